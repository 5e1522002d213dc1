"""Adapters made by hand, and a reader that holds their tensors in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_lab.domain.adapter import Adapter, Delta, DeltaKind
from lora_lab.domain.dtypes import DType
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.extension.contracts import AnalysisContext, Factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

STAMP = FileStamp("/nowhere/adapter_model.safetensors", 1000, 0, 1, 1)
NAMES = {torch.float64: DType.F64, torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16}


@dataclass
class Memory:
    """A Reader over tensors in memory; counts what was asked for."""

    held: dict[str, Factors]
    asked: list[str] = field(default_factory=list)

    def factors(self, delta: Delta) -> Factors:
        self.asked.append(delta.module)
        return self.held[delta.module]

    def factors_of(self, deltas: Sequence[Delta]) -> Iterator[tuple[Delta, Factors]]:
        for delta in deltas:
            yield delta, self.factors(delta)

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        return pytest.fail(f"{ref.name} is no factor, and none of these analyses reads others")


@dataclass
class Watcher:
    """An Observer that remembers, and cancels after a number of rows."""

    cancel_after: int | None = None
    told: list[Mapping[str, Any]] = field(default_factory=list)
    steps: list[tuple[int, int, str]] = field(default_factory=list)

    def advance(self, done: int, total: int, what: str = "") -> None:
        self.steps.append((done, total, what))

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        assert table == "modules"
        self.told.extend(rows)

    def is_cancelled(self) -> bool:
        return self.cancel_after is not None and len(self.told) >= self.cancel_after


def ref_of(name: str, tensor: torch.Tensor) -> TensorRef:
    return TensorRef(STAMP, name, NAMES[tensor.dtype], tuple(tensor.shape), 8, 8 + tensor.nbytes)


@pytest.fixture
def make_adapter() -> Callable[..., tuple[Adapter, Memory]]:
    """An adapter and its reader out of {module: (lora_A, lora_B)}."""

    def make(
        factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, scaling: float = 2.0, **fields: Any
    ) -> tuple[Adapter, Memory]:
        deltas = tuple(
            Delta(
                module=module,
                kind=DeltaKind.LINEAR,
                lora_A=ref_of(f"{module}.lora_A.weight", lora_A),
                lora_B=ref_of(f"{module}.lora_B.weight", lora_B),
                rank=lora_A.shape[0],
                alpha=scaling * lora_A.shape[0],
                scaling=scaling,
                shape=(lora_B.shape[0], lora_A.shape[1]),
            )
            for module, (lora_A, lora_B) in factors.items()
        )
        adapter = Adapter("mine", "mine", "/nowhere/mine", "peft", deltas, (STAMP,), **fields)
        return adapter, Memory({module: Factors(*pair, scaling) for module, pair in factors.items()})

    return make


@pytest.fixture
def analyse(make_adapter) -> Callable[..., Any]:
    """Run an analysis on {module: (lora_A, lora_B)} and give its Report."""

    def run(analysis: Any, factors: Any, *, fields: Mapping[str, Any] | None = None, **context: Any) -> Any:
        adapter, reader = make_adapter(factors, **(fields or {}))
        return analysis.run(AnalysisContext(subjects=(adapter,), reader=reader, **context))

    return run


@pytest.fixture
def factors() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Six modules in two layers, of two shapes, one of them zero."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for layer in (0, 1):
        for name, (outputs, inputs, rank) in {"q_proj": (24, 32, 4), "v_proj": (12, 32, 4), "up": (40, 24, 8)}.items():
            lora_A = torch.randn(rank, inputs, generator=generator)
            made[f"model.layers.{layer}.{name}"] = (lora_A, torch.randn(outputs, rank, generator=generator))
    made["model.layers.1.up"][1].zero_()
    return made


@pytest.fixture
def watcher() -> type[Watcher]:
    """The class of the remembering observer."""
    return Watcher
