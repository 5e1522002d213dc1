"""Adapters and checkpoints in memory; the distribution itself, installed or not."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lora_lab.domain.adapter import Adapter, Delta, DeltaKind
from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.extension.contracts import Factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).parents[1]))

STAMP = FileStamp("/nowhere/model.safetensors", 1, 0, 1, 1)


@dataclass
class Memory:
    """A Reader over tensors in memory."""

    tensors: Mapping[str, torch.Tensor]
    scaling: float = 1.0

    def factors(self, delta: Delta) -> Factors:
        return Factors(self.tensor(delta.lora_A), self.tensor(delta.lora_B), self.scaling)

    def factors_of(self, deltas: Sequence[Delta]) -> Iterator[tuple[Delta, Factors]]:
        for delta in deltas:
            yield delta, self.factors(delta)

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        return self.tensors[f"{ref.file.path}:{ref.name}"]


def reference(name: str, tensor: torch.Tensor, path: str = STAMP.path) -> TensorRef:
    """Describe a tensor as if it lay in a file of this path."""
    dtypes = {torch.float64: DType.F64, torch.float32: DType.F32, torch.bfloat16: DType.BF16, torch.int64: DType.I64}
    stamp = FileStamp(path, 1, 0, 1, 1)
    return TensorRef(stamp, name, dtypes[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)


@pytest.fixture
def make_adapter() -> Callable[..., tuple[Adapter, Memory]]:
    """An adapter and its reader out of {module: (lora_A, lora_B)}."""

    def make(
        factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, scaling: float = 1.0
    ) -> tuple[Adapter, Memory]:
        held, deltas = {}, []
        for module, (lora_A, lora_B) in factors.items():
            held[f"{STAMP.path}:{module}.A"], held[f"{STAMP.path}:{module}.B"] = lora_A, lora_B
            refs = reference(f"{module}.A", lora_A), reference(f"{module}.B", lora_B)
            rank, shape = lora_A.shape[0], (lora_B.shape[0], lora_A.shape[1])
            deltas.append(Delta(module, DeltaKind.LINEAR, *refs, rank, scaling * rank, scaling, shape))
        return Adapter("mine", "mine", "/nowhere", "peft", tuple(deltas), (STAMP,)), Memory(held, scaling)

    return make


@pytest.fixture
def make_models() -> Callable[..., tuple[Base, Base, Memory]]:
    """A fine-tune, its base and a reader out of two mappings of tensors."""

    def make(tuned: Mapping[str, torch.Tensor], original: Mapping[str, torch.Tensor]) -> tuple[Base, Base, Memory]:
        held, models = {}, []
        for name, tensors in (("tuned", tuned), ("base", original)):
            refs = {key: reference(key, tensor, name) for key, tensor in tensors.items()}
            held.update({f"{name}:{key}": tensor for key, tensor in tensors.items()})
            models.append(Base(name, name, f"/nowhere/{name}", refs, ()))
        return models[0], models[1], Memory(held)

    return make
