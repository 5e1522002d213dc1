"""Every variant computes what it is said to compute, or it gets no time.

Tolerances follow from the stored type. A merged weight is W + BA in float64, rounded once: half a unit in the last
place, and what adding in float64 loses. Outputs of two ways of computing one thing differ by the roundings of the
stored type, ε each, and of sums over `in` products in float32, about √in·2⁻²³ each; both add up over the layers like
errors of either sign, with their square root.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.benchmarks.latency.adapters import BASE, HOULSBY, MERGED, PFEIFFER, UNMERGED, blocks_of
from lora_lab.domain.report import Finding
from lora_lab.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.benchmarks.latency.blocks import Stack

WRONG: Final = "wrong_result"
_TOKENS: Final = 16
_SINGLE: Final = 2.0**-23
# Roundings of one block that two ways of computing do not share: of W′, of x·Aᵀ, of both sums and of the residual.
_ROUNDINGS: Final = 8.0


def faults_of(
    stacks: Mapping[str, Stack], factors: Sequence[dict[str, tuple[torch.Tensor, torch.Tensor]]], seed: int
) -> Iterator[tuple[str, Finding]]:
    """Variants that are wrong, each with a sentence.

    Parameters
    ----------
    stacks : the base; LoRA, both merged and not, or none; bottlenecks with a way up of zeros
    factors : (A, B) of every adapted weight of every block

    Raises
    ------
    OperationError
        the base's outputs are not finite.
    """
    base = stacks[BASE]
    like = next(base.parameters())
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, _TOKENS, base.shape.hidden), generator=generator).to(like.device, like.dtype)
    with torch.inference_mode():
        outputs = {name: stack(x) for name, stack in stacks.items()}
    right = outputs[BASE]
    if not bool(right.isfinite().all()):
        raise OperationError(
            f"The outputs of the stack are not all finite in {str(like.dtype).removeprefix('torch.')}.",
            hint="Measure in another --dtype.",
        )
    if MERGED in stacks:
        worst = _worst_rounding(stacks[MERGED], base, factors)
        if not worst <= 1.0:
            yield MERGED, _said(MERGED, f"a merged weight is {worst:.3g} roundings from W + BA, expected at most 1")
        yield from _apart(outputs, tolerance_of(x.dtype, base.shape.inner, len(base.blocks)))
    for name in (PFEIFFER, HOULSBY):
        if name in stacks and not torch.equal(outputs[name], right):
            yield name, _said(name, "with a way up of zeros it does not give the base's outputs")


def tolerance_of(dtype: torch.dtype, width: int, layers: int) -> float:
    """Relative distance that the outputs of two ways of computing `layers` blocks may have."""
    return _ROUNDINGS * math.sqrt(layers) * (torch.finfo(dtype).eps + math.sqrt(width) * _SINGLE)


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖_F / ‖other‖_F, summed in float64 where the device has it."""
    a, b = one.cpu().double(), other.cpu().double()
    return float((a - b).norm() / b.norm())


def _apart(outputs: Mapping[str, torch.Tensor], limit: float) -> Iterator[tuple[str, Finding]]:
    """Unmerged is merged, and neither is the base."""
    distance = relative_distance(outputs[UNMERGED], outputs[MERGED])
    if not distance <= limit:
        yield UNMERGED, _said(UNMERGED, f"it is {distance:.3g} from the merged one, expected at most {limit:.3g}")
    elif not relative_distance(outputs[UNMERGED], outputs[BASE]) > limit:
        yield UNMERGED, _said(UNMERGED, "its factors change nothing")


def _worst_rounding(
    merged: Stack, base: Stack, factors: Sequence[dict[str, tuple[torch.Tensor, torch.Tensor]]]
) -> float:
    """Largest distance of a merged weight from W + BA in float64, over what one rounding may do."""
    worst = 0.0
    for block, kept, own in zip(blocks_of(merged), blocks_of(base), factors, strict=True):
        for target, (A, B) in own.items():
            # The whole of every weight, some rows of it at a time, on the processor, where there is float64.
            stored, weight, down = getattr(block, target).weight, getattr(kept, target).weight, A.cpu().double()
            for first in range(0, len(weight), _ROWS):
                rows = slice(first, first + _ROWS)
                exact = weight[rows].cpu().double() + B[rows].cpu().double() @ down
                # A sum that is only float32 near, as where a device has no more, is one more rounding of that type.
                step = torch.finfo(weight.dtype).eps / 2 * exact.abs() + _SINGLE * (1.0 + exact.abs())
                worst = max(worst, float(((stored[rows].cpu().double() - exact).abs() / step).max()))
    return worst


def _said(name: str, what: str) -> Finding:
    return Finding(WRONG, f"{name} got no time: {what}.", name)


_ROWS: Final = 512
