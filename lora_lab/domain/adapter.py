"""What a file says about an adapter: modules, factors, configuration, and everything else that changes ΔW."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.report import Finding
    from lora_lab.domain.tensors import FileStamp, TensorRef


class DeltaKind(StrEnum):
    """How the stored factors become the matrix ΔW."""

    LINEAR = "linear"  # ΔW = s·B·A, A (r, in), B (out, r)
    EMBEDDING = "embedding"  # ΔW = s·(B·A)ᵀ, A (r, vocabulary), B (dim, r)
    CONV = "conv"  # A (r, in, k…), B (out, r/groups, 1…); ΔW flattened to (out, in·k…)
    EXPERTS = "experts"  # one matrix per expert, A (r·E, in) expert-major, B (out, r·E) rank-major


class Effect(StrEnum):
    """What is done with a feature."""

    HONOURED = "honoured"  # in every number shown
    OUTSIDE = "outside"  # real, but not part of ΔW = s·B·A; shown, and said where it matters
    REFUSED = "refused"  # ΔW cannot be computed from these files alone


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing beyond A, B and alpha/rank that changes what the adapter does."""

    id: str  # rslora, dora, rank_pattern, alpha_pattern, fan_in_fan_out, lora_bias, bias, modules_to_save, …
    title: str
    effect: Effect
    detail: str = ""  # one sentence
    modules: int = 0  # how many modules it concerns; 0 when it concerns the adapter as a whole


@dataclass(frozen=True, slots=True)
class Delta:
    """What the files say about one module.

    ``shape`` is that of ΔW as the base stores the weight: (out, in), or (in, out) with ``fan_in_fan_out``, or
    (vocabulary, dim) for an embedding, or the full kernel shape for a convolution.
    """

    module: str
    kind: DeltaKind
    lora_A: TensorRef
    lora_B: TensorRef
    rank: int
    alpha: float
    scaling: float
    shape: tuple[int, ...]
    fan_in_fan_out: bool = False
    groups: int = 1  # of a grouped convolution
    experts: int = 0  # how many matrices the factors hold; 0 unless kind is EXPERTS
    expert: int | None = None  # which of them this delta is
    magnitude: TensorRef | None = None  # DoRA
    lora_bias: TensorRef | None = None  # added to the base's bias, times scaling
    diagonal: TensorRef | None = None  # KaSA: ΔW = s·B·diag(d)·A

    @property
    def weight_path(self) -> str:
        """Path of the weight that it changes: for one of several experts, that of all of them."""
        return self.module.removesuffix(f"[{self.expert}]") if self.kind is DeltaKind.EXPERTS else self.module

    @property
    def parameters(self) -> int:
        """Elements of A and B that belong to this delta."""
        share = self.experts or 1
        return (self.lora_A.elements + self.lora_B.elements) // share


class SavedRole(StrEnum):
    """Why a tensor that is no LoRA factor is in the file."""

    MODULES_TO_SAVE = "modules_to_save"
    BIAS = "bias"
    TRAINABLE_TOKENS = "trainable_tokens"
    EMBEDDING_LAYER = "embedding_layer"


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor that replaces or adds to one of the base, outside the factored update."""

    module: str
    role: SavedRole
    tensor: TensorRef


@dataclass(frozen=True)
class Adapter:
    """An adapter as its headers and configuration describe it; no weight has been read.

    ``deltas`` are in natural order of their modules.
    """

    name: str
    locator: str  # as typed
    path: str  # resolved folder or file
    format: str  # id of the format that read it
    deltas: tuple[Delta, ...]
    files: tuple[FileStamp, ...]
    peft_type: str | None = None
    base_model: str | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)  # as parsed
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the safetensors header
    features: tuple[Feature, ...] = ()
    saved: tuple[SavedTensor, ...] = ()
    findings: tuple[Finding, ...] = ()
    revision: str | None = None  # commit, when it came from the Hub

    @cached_property
    def by_module(self) -> dict[str, Delta]:
        """Deltas under their module paths."""
        return {delta.module: delta for delta in self.deltas}

    @property
    def modules(self) -> tuple[str, ...]:
        """Module paths in natural order."""
        return tuple(delta.module for delta in self.deltas)

    @property
    def parameters(self) -> int:
        """Elements of every LoRA factor."""
        # A few layouts are shared by hundreds of modules; a library of a thousand adapters feels the difference.
        layouts = Counter((delta.lora_A.shape, delta.lora_B.shape, delta.experts or 1) for delta in self.deltas)
        return sum(count * ((prod(a) + prod(b)) // experts) for (a, b, experts), count in layouts.items())

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that hold the tensors and the configuration."""
        return sum(stamp.size_bytes for stamp in self.files)

    @property
    def ranks(self) -> tuple[int, int]:
        """Smallest and largest rank."""
        ranks = [delta.rank for delta in self.deltas]
        return (min(ranks), max(ranks)) if ranks else (0, 0)
