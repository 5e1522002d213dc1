"""What every benchmark of a stack begins with: the shape, the type, the place, and how fast one block is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.benchmarks.latency import adapters
from lora_lab.benchmarks.latency.blocks import GPT2_MEDIUM, GPT2_MEDIUM_LAYERS, BlockShape, Noise, Stack, stack_of
from lora_lab.benchmarks.latency.grid import Cell, Speed, block_flops
from lora_lab.benchmarks.latency.shapes import block_shape_of, dtype_of
from lora_lab.benchmarks.memory import available_bytes
from lora_lab.domain.figures import plural, size
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import LoraLabError, OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.benchmarks.measurement import Measurement
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer

DTYPES: Final = ("float32", "float16", "bfloat16")
_ONE: Final = Cell(1, 1)
_PILOT: Final = Cell(1, 512)
_PILOT_RUNS: Final = 3
# Of one element of a factor, in both types that updates are multiplied in.
READY_BYTES: Final = 8 + 4
# Tensors of tokens × (hidden or inner) that are alive at once in one block, about.
_ALIVE: Final = 6


@dataclass(frozen=True, slots=True)
class Setup:
    """Where a stack is measured, and what its blocks are like.

    whole : layers of the model that the shape is from
    may_cut : whether less than the whole may be measured where nothing else is said: not on a GPU
    """

    model: str
    shape: BlockShape
    whole: int
    dtype: torch.dtype
    device: str
    seed: int
    measurement: Measurement
    observer: Observer

    @property
    def may_cut(self) -> bool:
        """Whether layers and grids default to what can be waited for."""
        return not self.device.startswith("cuda")

    @property
    def dtype_name(self) -> str:
        """As torch writes it."""
        return str(self.dtype).removeprefix("torch.")

    def stack(self, number: int, layers: int) -> Stack:
        """One set of weights; others have other numbers."""
        return stack_of(self.shape, layers, device=self.device, dtype=self.dtype, seed=self.seed + number)

    def noise(self) -> Noise:
        """Numbers for adapters."""
        return Noise(self.device, self.dtype, self.seed + 1)

    def input(self, cell: Cell) -> torch.Tensor:
        """(batch, length, hidden), normally distributed."""
        x = torch.empty((cell.batch, cell.length, self.shape.hidden), device=self.device, dtype=self.dtype)
        Noise(self.device, self.dtype, self.seed).fill(x, 1.0)
        return x

    def speed(self) -> Speed:
        """Seconds of one block for one token, and for each operation more."""
        stack = self.stack(0, 1)
        floor, longer = (self._best_seconds(stack, cell) for cell in (_ONE, _PILOT))
        flops = block_flops(self.shape, _PILOT) - block_flops(self.shape, _ONE)
        return Speed(floor, max(0.0, longer - floor) / flops)

    @torch.inference_mode()
    def _best_seconds(self, stack: Stack, cell: Cell) -> float:
        x = self.input(cell)
        times = [self.measurement.once(lambda: stack(x)) for _ in range(_PILOT_RUNS)]
        stop_if_cancelled(self.observer)
        return min(times)

    def require_room(self, layers: int, copies: int, tokens: int, *, added_bytes: int) -> None:
        """Refuse before anything is made that would not fit: weights, as much again at most, activations.

        Parameters
        ----------
        added_bytes : of the adapters of one of so many copies
        """
        weights = layers * self.shape.parameters * self.dtype.itemsize
        alive = _ALIVE * tokens * max(self.shape.hidden, self.shape.inner) * self.dtype.itemsize
        needed = copies * (2 * weights + added_bytes) + alive
        there = available_bytes(self.device)
        if there is not None and there < needed:
            raise OperationError(
                f"{plural(layers, 'layer')}, {plural(tokens, 'token')} and the adapters need {size(needed)} of memory "
                f"on {self.device}, got {size(there)}.",
                hint="Give fewer --layers, fewer tokens or smaller adapters.",
            )


def setup_of(
    base: Base | None, dtype: str | None, *, device: str, seed: int, measurement: Measurement, observer: Observer
) -> Setup:
    """Take shape and type from `base`; without one GPT-2 medium's shape, and float32.

    Raises
    ------
    CompatibilityError
        what a block of `base` looks like is not known.
    LoraLabError
        there is no such type.
    """
    shape, whole = (GPT2_MEDIUM, GPT2_MEDIUM_LAYERS) if base is None else block_shape_of(base)
    chosen = dtype or ("float32" if base is None else dtype_of(base))
    if chosen not in DTYPES:
        raise LoraLabError(f"The dtype is {quoted(chosen)}, expected one of: {', '.join(DTYPES)}.")
    model = "GPT-2 medium" if base is None else base.name
    return Setup(model, shape, whole, getattr(torch, chosen), device, seed, measurement, observer)


def require_counts(counts: Mapping[str, int | None]) -> None:
    """Refuse what is counted from 1 and is not."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise LoraLabError(f"For {name} the benchmark got {count}, expected at least 1.")


def require_targets(targets: Sequence[str], rank: int, shape: BlockShape) -> None:
    """Refuse layers that a block of this shape does not have, and a rank that is none for it."""
    if rank > shape.hidden:
        raise LoraLabError(f"The rank is {rank}, expected at most the hidden size, {shape.hidden}.")
    there = [target for target in adapters.TARGETS if shape.is_gated or target != "gate_proj"]
    for target in targets:
        if target not in there:
            raise LoraLabError(f"A block has no layer {quoted(target)}, expected some of: {', '.join(there)}.")
    if not targets or len(set(targets)) < len(targets):
        raise LoraLabError(f"LoRA got {', '.join(targets) or 'nothing'} to adapt, expected layers, each once.")
