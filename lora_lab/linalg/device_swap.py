"""Swaps on CUDA: which of two kernels, and many launches recorded as one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.linalg import triton_swap
from lora_lab.linalg.sliced import Sliced, sliced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.linalg.in_place import Ready

_TRIALS: Final = 9
_WORTH: Final = 1.2  # times as fast as two multiplications in place, or the simpler one is kept


@dataclass(frozen=True, slots=True)
class DeviceSwap:
    """Swaps of 16-bit weights by products alone, one weight after another.

    is_one_kernel : whether each is one kernel of Triton's; else two multiplications in place
    reason : why, for a person
    """

    is_one_kernel: bool
    reason: str

    def __call__(self, weight: torch.Tensor, taken: Sliced, put: Sliced) -> None:
        """W ← round(round(W − ΔA) + ΔB), accumulated in float32."""
        if self.is_one_kernel and triton_swap.may_swap(taken, put):
            triton_swap.swap(weight, taken, put)
            return
        taken.add_to(weight, -1.0)
        put.add_to(weight, 1.0)


def slices_of(step: Ready, dtype: torch.dtype) -> Sliced:
    """Factors of an update as one kernel takes them."""
    A, B = step.update.plain_factors
    return triton_swap.padded(sliced(A, B, dtype))


def chosen(weights: Sequence[torch.Tensor], taken: Sequence[Sliced], put: Sequence[Sliced], device: str) -> DeviceSwap:
    """Try both on a copy of the largest weight, and every shape once, so that nothing is compiled later.

    The one kernel is taken where it is there, gives what two multiplications give to within a rounding, and is at least
    1.2 times as fast.
    """
    two = DeviceSwap(is_one_kernel=False, reason="two multiplications in place")
    one = DeviceSwap(is_one_kernel=True, reason="one Triton kernel")
    shapes = _one_of_each_kind(weights, taken, put)
    right = [weights[number].clone() for number in shapes]
    for number, wanted in zip(shapes, right, strict=True):
        two(wanted, taken[number], put[number])
    if not triton_swap.usable(device):
        return DeviceSwap(is_one_kernel=False, reason="two multiplications in place: there is no Triton")
    try:
        for number, wanted in zip(shapes, right, strict=True):
            found = weights[number].clone()
            one(weights[number].clone(), put[number], taken[number])  # the way back is compiled by itself
            one(found, taken[number], put[number])
            eps = torch.finfo(found.dtype).eps
            size = float(wanted.abs().max()) + eps
            if not float((found.float() - wanted.float()).abs().max()) <= 2 * eps * size:
                return DeviceSwap(is_one_kernel=False, reason="two multiplications in place: Triton's result is wrong")
        largest = max(range(len(weights)), key=lambda number: weights[number].numel())
        place = weights[largest].clone()
        fast, slow = (
            _seconds(lambda way=way: way(place, taken[largest], put[largest]), device)  # type: ignore[misc]
            for way in (one, two)
        )
    except Exception as error:  # whatever a compiler on somebody's machine may run into
        return DeviceSwap(
            is_one_kernel=False, reason=f"two multiplications in place: Triton failed, {type(error).__name__}"
        )
    times = f"{slow / fast:.2f} times as fast as two multiplications in place"
    if slow >= _WORTH * fast:
        return DeviceSwap(is_one_kernel=True, reason=f"one Triton kernel, {times}")
    return DeviceSwap(is_one_kernel=False, reason=f"two multiplications in place: a Triton kernel is {times}")


class Recorded:
    """Work of many launches on one device, recorded once as a CUDA graph and then told in one launch.

    Parameters
    ----------
    work : launches kernels on memory that stays where it is; has run before, so that nothing is loaded or compiled

    Notes
    -----
    Where it cannot be recorded, it is done launch by launch.
    """

    def __init__(self, work: Callable[[], object], device: str) -> None:
        self._work = work
        self._graph: Any = None
        if device.startswith("cuda"):
            graph: Any = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.device(device), torch.cuda.graph(graph):
                    work()
                self._graph = graph
            except RuntimeError:
                torch.cuda.synchronize(device)

    def __call__(self) -> None:
        """Do it."""
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()


def _one_of_each_kind(weights: Sequence[torch.Tensor], taken: Sequence[Sliced], put: Sequence[Sliced]) -> list[int]:
    """Places of weights of which no two have the same type, shape and ranks."""
    kinds = {
        (weight.dtype, tuple(weight.shape), len(old.lora_A), len(new.lora_A)): number
        for number, (weight, old, new) in enumerate(zip(weights, taken, put, strict=True))
    }
    return list(kinds.values())


def _seconds(work: Callable[[], object], device: str) -> float:
    """Median of some runs, by the device's own clock."""
    make: Any = torch.cuda.Event
    found = []
    for _ in range(_TRIALS):
        start, end = make(enable_timing=True), make(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        found.append(float(start.elapsed_time(end)))
    return statistics.median(found)
