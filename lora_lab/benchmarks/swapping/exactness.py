"""How far weights are from what a merge into the base gives, summed in float64 and rounded once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch

from lora_lab.benchmarks.swapping.merged import ready_updates
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.linalg.device import has_float64
from lora_lab.linalg.threads import in_lanes, worker_count
from lora_lab.linalg.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import SwapFactors, SwapScene

# Elements of a block on a device that is no processor.
_DEVICE_ELEMENTS: Final = 1 << 24


class Beside(Protocol):
    """What of a Swapper is needed to know what a model computes with."""

    def beside(self, module: int) -> tuple[SwapFactors, ...] | None:
        """What is applied beside the weight of a module; None where all is merged."""


@dataclass(slots=True)
class Exactness:
    """Sums over weights.

    error_square : ‖W_found − W_right‖_F²
    square : ‖W_right‖_F²
    """

    elements: int = 0
    differing: int = 0
    error_square: float = 0.0
    square: float = 0.0

    def add(self, other: Exactness) -> None:
        """Take in another block."""
        self.elements += other.elements
        self.differing += other.differing
        self.error_square += other.error_square
        self.square += other.square

    @property
    def is_exact(self) -> bool:
        """Whether every bit is right."""
        return self.differing == 0

    @property
    def relative(self) -> float | None:
        """‖W_found − W_right‖_F/‖W_right‖_F; None for zero weights."""
        return math.sqrt(self.error_square / self.square) if self.square else None

    @property
    def differing_fraction(self) -> float | None:
        """Share of the weights that differ."""
        return self.differing / self.elements if self.elements else None


def judged(
    works: Mapping[str, tuple[SwapScene, Beside]], adapter: int | None, observer: Observer, *, every: int = 1
) -> dict[str, Exactness]:
    """Compare the weights of several scenes of one workload with the base with `adapter` merged, or with the base.

    What is right is worked out once for each block of rows, from the base's file.

    Parameters
    ----------
    every : look at one block of so many of every weight, the first among them

    Raises
    ------
    CancelledError
        the observer no longer wants it.
    """
    if not works:
        return {}
    first = next(iter(works.values()))[0]
    judge = _Judge(works, first, adapter, observer)
    found = {name: Exactness() for name in works}
    lanes = worker_count() if judge.device == "cpu" else 1
    for part in in_lanes(judge.block, list(judge.blocks(every)), lanes):
        for name, figures in part.items():
            found[name].add(figures)
    return found


class _Judge:
    """What is right, and the looks at one block after another."""

    def __init__(
        self,
        works: Mapping[str, tuple[SwapScene, Beside]],
        first: SwapScene,
        adapter: int | None,
        observer: Observer,
    ) -> None:
        self._works, self._first, self._adapter, self._observer = works, first, adapter, observer
        self.device = first.device if has_float64(first.device) else "cpu"
        self._updates = [step.update for step in ready_updates(first, adapter, device=self.device)]
        self._space = Workspace()
        self._is_beside: dict[tuple[str, int], bool] = {}
        for number, update in enumerate(self._updates):
            if update.needs_columns:
                for _, start, end in update.blocks():
                    update.look(first.base_rows(number, start, end).to(self.device), start)
            for name, (scene, swapper) in works.items():
                beside = swapper.beside(number)
                if beside is not None:
                    wanted = () if adapter is None else scene.modules[number].adapters[adapter]
                    is_same = len(beside) == len(wanted) and all(map(_is_same, beside, wanted))
                    self._is_beside[name, number] = is_same

    def blocks(self, every: int) -> Iterator[tuple[int, int, int]]:
        """Module, first row and end of one block of `every`."""
        for number, module in enumerate(self._first.modules):
            rows, columns = module.weight.shape
            height = self._updates[number].rows_at_once
            if self.device != "cpu":
                height = max(1, _DEVICE_ELEMENTS // max(1, columns))
            for start in range(0, rows, height * every):
                yield number, start, min(rows, start + height)

    def block(self, place: tuple[int, int, int]) -> dict[str, Exactness]:
        """Look at one block of every scene."""
        number, start, end = place
        stop_if_cancelled(self._observer)
        base = self._first.base_rows(number, start, end).to(self.device)
        sum_ = self._updates[number].moved(base, start, space=self._space)
        right = self._space.take("right", tuple(base.shape), base.dtype, base.device).copy_(sum_)
        square = _square(right)
        found = {}
        for name, (scene, swapper) in self._works.items():
            weight = scene.modules[number].weight[start:end].to(self.device)
            found[name] = figures = Exactness(elements=right.numel(), square=square)
            if (name, number) not in self._is_beside:
                self._compare(figures, weight, right)
            elif self._is_beside[name, number]:  # the factors are the adapter's: the weight has to be the base's
                self._compare(figures, weight, base)
            else:
                self._compare_sum(figures, weight, swapper.beside(number) or (), base, number, start)
        return found

    def _compare(self, found: Exactness, weight: torch.Tensor, right: torch.Tensor) -> None:
        """Bits first, which most have in common; numbers where they differ."""
        if torch.equal(_bits(weight), _bits(right)):
            return
        wide = torch.promote_types(right.dtype, torch.float32)
        difference = self._space.converted("difference", weight, wide, is_copy=True)
        difference.sub_(self._space.converted("other", right, wide))
        is_other = self._space.take("changed", tuple(right.shape), torch.float32, right.device)
        # As numbers and summed, float32 being exact up to 2²⁴ of them: counting asks at every element.
        found.differing += int(torch.ne(difference, 0, out=is_other).sum())
        found.error_square += _square(difference)

    def _compare_sum(
        self,
        found: Exactness,
        weight: torch.Tensor,
        beside: tuple[SwapFactors, ...],
        base: torch.Tensor,
        number: int,
        start: int,
    ) -> None:
        """W_found + ΔW_found against W + ΔW, neither rounded."""
        wanted = () if self._adapter is None else self._first.modules[number].adapters[self._adapter]
        difference = weight.to(torch.float64) - base.to(torch.float64)
        for sign, parts in ((1.0, beside), (-1.0, wanted)):
            for part in parts:
                A, B = (factor.to(weight.device, torch.float64) for factor in (part.lora_A, part.lora_B))
                difference += sign * part.scaling * (B[start : start + weight.shape[0]] @ A)
        found.differing += int((difference != 0).sum())
        found.error_square += _square(difference)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Bits of contiguous rows, eight bytes at a time where they are so many: compared in a quarter of the time."""
    flat = values.reshape(-1)
    return flat.view(torch.int64 if flat.nbytes % 8 == 0 else torch.uint8)


def _square(values: torch.Tensor) -> float:
    """‖·‖_F² of one block, to the four digits or so that float32 sums of many squares have."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return float(torch.linalg.vector_norm(values, dtype=wide)) ** 2


def _is_same(one: SwapFactors, other: SwapFactors) -> bool:
    """Whether `one`, which may have rows of zeros to spare, is `other`."""
    rank = other.lora_A.shape[0]
    if one.scaling != other.scaling or (one.magnitude is None) != (other.magnitude is None):
        return False
    pairs = [(one.lora_A[:rank], other.lora_A), (one.lora_B[:, :rank], other.lora_B)]
    if one.magnitude is not None and other.magnitude is not None:
        pairs.append((one.magnitude, other.magnitude))
    is_padded = not (bool(one.lora_A[rank:].any()) or bool(one.lora_B[:, rank:].any()))
    return is_padded and all(torch.equal(found, wanted.to(found.dtype)) for found, wanted in pairs)
