"""What an operation will do, complete before the first byte is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.adapter import Delta, SavedTensor
    from lora_lab.domain.dtypes import DType
    from lora_lab.domain.report import Finding
    from lora_lab.domain.tensors import FileStamp, TensorRef


class StepKind(StrEnum):
    """How a tensor of the output comes about."""

    COPY = "copy"  # its bytes as they are
    CAST = "cast"  # its values in another type
    UPDATE = "update"  # W + Σ wᵢ(W′ᵢ − W)
    ADD = "add"  # the base has none of that name


@dataclass(frozen=True, slots=True)
class Part:
    """What one adapter does to one tensor: a factored delta, or a tensor that takes its place."""

    adapter: int  # place among the inputs
    strength: float
    delta: Delta | None = None
    saved: SavedTensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the output."""

    name: str
    kind: StepKind
    dtype: DType
    shape: tuple[int, ...]
    source: TensorRef | None = None  # of the base; None for what is added
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of weights: its header, then its tensors in the order of ``steps``."""

    name: str
    steps: tuple[Step, ...]
    header: bytes  # with its length in front
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file that goes along as it is."""

    name: str  # relative to the folder, with slashes
    path: str
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that will be in the output."""

    operation: str
    files: tuple[PlannedFile, ...]
    copies: tuple[CopiedFile, ...]
    documents: Mapping[str, bytes] = field(default_factory=dict)  # small files that are written anew
    findings: tuple[Finding, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[FileStamp, ...] = ()

    @property
    def bytes_to_write(self) -> int:
        """Size of the output without its receipt."""
        return sum(size for _, size in self.sizes)

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Name and size of every file but the receipt."""
        weights = [(file.name, file.size_bytes) for file in self.files]
        copied = [(file.name, file.size_bytes) for file in self.copies]
        return [*weights, *copied, *((name, len(content)) for name, content in self.documents.items())]

    @property
    def id(self) -> str:
        """Identity of what will be made: equal only for the same files, recipe and version."""
        from lora_lab.version import __version__

        inputs = [[stamp.path, stamp.size_bytes, stamp.mtime_ns, stamp.inode] for stamp in self.inputs]
        document = [__version__, self.operation, inputs, self.sizes, dict(self.arguments)]
        text = json.dumps(document, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
