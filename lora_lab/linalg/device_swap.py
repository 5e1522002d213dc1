"""Swaps on CUDA: which of two kernels, and many launches recorded as one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.linalg import triton_swap
from lora_lab.linalg.in_place import NARROW, Change, swap_all
from lora_lab.linalg.sliced import Sliced, sliced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lora_lab.linalg.in_place import Ready

    Pair = tuple[int | None, int | None]

_TRIALS: Final = 9
_WORTH: Final = 1.2  # times as fast as two multiplications in place, or the simpler one is kept


@dataclass(frozen=True, slots=True)
class DeviceSwap:
    """Swaps of weights by products alone, one weight after another.

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
    """Factors of an update as the device multiplies them: in 16 bits as one kernel takes them, or in float32."""
    if dtype == torch.float32:
        assert step.single_A is not None
        assert step.single_B is not None
        return Sliced(step.single_A, step.single_B, 1.0)
    A, B = step.update.plain_factors
    return triton_swap.padded(sliced(A, B, dtype))


def chosen(weights: Sequence[torch.Tensor], taken: Sequence[Sliced], put: Sequence[Sliced], device: str) -> DeviceSwap:
    """Try both on a copy of the largest weight of 16 bits, and every shape once, so that nothing is compiled later.

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
    kernels = [number for number in range(len(weights)) if triton_swap.may_swap(taken[number], put[number])]
    if not kernels:
        return DeviceSwap(is_one_kernel=False, reason="two multiplications in place: one kernel takes no such factors")
    try:
        for number, wanted in zip(shapes, right, strict=True):
            found = weights[number].clone()
            one(weights[number].clone(), put[number], taken[number])  # the way back is compiled by itself
            one(found, taken[number], put[number])
            eps = torch.finfo(found.dtype).eps
            size = float(wanted.abs().max()) + eps
            if not float((found.float() - wanted.float()).abs().max()) <= 2 * eps * size:
                return DeviceSwap(is_one_kernel=False, reason="two multiplications in place: Triton's result is wrong")
        largest = max(kernels, key=lambda number: weights[number].numel())
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


class Swaps:
    """Swaps between updates of weights that stay where they are: round(round(W − ΔA) + ΔB), by the fastest way.

    On CUDA, where weights are of at most 32 bits and updates are products, by kernels of the device, and often needed
    swaps recorded beforehand; else block by block. There weights of float32 are summed in float32, unless torch was
    told to multiply those in fewer bits.

    Parameters
    ----------
    weights : changed in place
    updates : of every adapter, one for each weight, on the device
    recorded : swaps that will be done often: numbers of the adapter that is taken out and of the one that is put in,
        None for none
    is_by_kernels : what is chosen instead of what the device says
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        updates: Sequence[Sequence[Ready]],
        device: str,
        *,
        recorded: Iterable[Pair] = (),
        is_by_kernels: bool | None = None,
    ) -> None:
        self._weights, self._updates = weights, updates
        self._recorded: dict[Pair, Recorded] = {}
        self._parts: list[list[Sliced]] = []
        self.note = ""
        if is_by_kernels is None:
            is_by_kernels = device.startswith("cuda") and self._is_for_kernels
        if is_by_kernels:
            self._parts = [
                [slices_of(step, weight.dtype) for weight, step in zip(weights, steps, strict=True)]
                for steps in updates
            ]
            self._way = chosen(weights, self._parts[0], self._parts[-1], device)
            self.note = f"On {device} it is {self._way.reason}."
            self._recorded = {pair: Recorded(partial(self._launch, *pair), device) for pair in recorded}

    def __call__(self, old: int | None, new: int | None) -> None:
        """Take one adapter out of every weight and put another in; None is none."""
        if (old, new) in self._recorded:
            self._recorded[old, new]()
        elif self._parts:
            self._launch(old, new)
        else:
            none = [None] * len(self._weights)
            taken = none if old is None else self._updates[old]
            put = none if new is None else self._updates[new]
            swap_all([Change(*one) for one in zip(self._weights, put, taken, strict=True)])

    @property
    def _is_for_kernels(self) -> bool:
        is_plain = all(step.update.is_plain for steps in self._updates for step in steps)
        is_whole = torch.get_float32_matmul_precision() == "highest"
        taken = (*NARROW, torch.float32) if is_whole else NARROW
        return is_plain and all(weight.dtype in taken for weight in self._weights)

    def _launch(self, old: int | None, new: int | None) -> None:
        for number, weight in enumerate(self._weights):
            if old is not None and new is not None:
                self._way(weight, self._parts[old][number], self._parts[new][number])
            elif old is not None:
                self._parts[old][number].add_to(weight, -1.0)
            elif new is not None:
                self._parts[new][number].add_to(weight, 1.0)


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
    with torch.cuda.device(device):  # whose queue events are recorded into
        for _ in range(_TRIALS):
            start, end = make(enable_timing=True), make(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            found.append(float(start.elapsed_time(end)))
    return statistics.median(found)
