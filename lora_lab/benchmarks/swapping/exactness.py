"""How far weights are from what a merge into the base gives, summed in float64 and rounded once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_lab.benchmarks.swapping.merged import ready_updates
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.linalg.device import has_float64
from lora_lab.linalg.in_place import Change, merge_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import SwapFactors, Swapper, SwapScene


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
    works: Mapping[str, tuple[SwapScene, Swapper]], adapter: int | None, observer: Observer
) -> dict[str, Exactness]:
    """Compare the weights of several scenes of one workload with the base with `adapter` merged, or with the base.

    What is right is worked out once for each weight, from the base's file.

    Raises
    ------
    CancelledError
        the observer no longer wants it.
    """
    scenes = [scene for scene, _ in works.values()]
    found = {name: Exactness() for name in works}
    if not scenes:
        return found
    first = scenes[0]
    device = first.device if has_float64(first.device) else "cpu"
    updates = ready_updates(first, adapter, 1.0, device=device)
    for number, module in enumerate(first.modules):
        stop_if_cancelled(observer)
        base = first.base_rows(number, 0, module.weight.shape[0]).to(device)
        right = torch.empty_like(base)
        merge_all([Change(right, updates[number], kept=base)])
        square = _square(right)
        for name, (scene, swapper) in works.items():
            one = scene.modules[number]
            found[name].elements += right.numel()
            found[name].square += square
            wanted = () if adapter is None else one.adapters[adapter]
            beside = swapper.beside(number)
            if beside is None:
                _compare(found[name], one.weight.to(device), right)
            else:
                _compare_beside(found[name], one.weight.to(device), beside, base, wanted)
    return found


def _compare(found: Exactness, weight: torch.Tensor, right: torch.Tensor) -> None:
    if torch.equal(weight, right):
        return
    found.differing += int((weight != right).sum())
    wide = torch.promote_types(right.dtype, torch.float32)
    found.error_square += _square(weight.to(wide) - right.to(wide))


def _square(values: torch.Tensor) -> float:
    """‖·‖_F², to the four digits or so that float32 sums of many squares have."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return float(torch.linalg.vector_norm(values, dtype=wide)) ** 2


def _compare_beside(
    found: Exactness,
    weight: torch.Tensor,
    beside: tuple[SwapFactors, ...],
    base: torch.Tensor,
    wanted: tuple[SwapFactors, ...],
) -> None:
    """What is computed with is right when the weight is the base's and every factor is the adapter's."""
    is_same = len(beside) == len(wanted) and all(map(_is_same, beside, wanted))
    if is_same:
        _compare(found, weight, base)
        return
    difference = weight.to(torch.float64) - base.to(torch.float64)
    for sign, parts in ((1.0, beside), (-1.0, wanted)):
        for part in parts:
            A, B = (factor.to(weight.device, torch.float64) for factor in (part.lora_A, part.lora_B))
            difference += sign * part.scaling * (B @ A)
    found.differing += int((difference != 0).sum())
    found.error_square += _square(difference)


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
