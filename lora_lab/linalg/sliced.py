"""Products of factors as one multiplication of 16 bits: what a device's matrix units do at the memory's speed.

``W.addmm_(B, A)`` of 16-bit matrices accumulates in float32, adds W there and rounds once: W is read and written once,
with no intermediate result in memory. Factors in float32 do not fit into 16 bits, but slices of them do: x = x₀ + x₁ +
x₂, each the rest of those before, rounded; three of bfloat16 hold 24 bits. Six products, those whose indices add up to
at most two, give B·A to 2⁻²³ of its largest terms, and six products are one, of factors laid side by side: at rank 16
of rank 96, which costs a matrix unit less time than the weight takes to come and go. Factors that are of 16 bits
already, as most are stored, have one slice and one product.

The largest elements are brought near one, by powers of two that go into the scale of the product, so that float16 has
room for the slices. Source: Henry, Tang and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype, ARITH
26 (2019), section 2; Ozaki et al., Numerical Algorithms 59 (2012).
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_SLICES: Final = 3


class Sliced(NamedTuple):
    """B·A as scale · lora_B @ lora_A.

    lora_A : (K, in), 16 bits, contiguous
    lora_B : (out, K), 16 bits, contiguous
    scale : a power of two
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scale: float

    def add_to(self, weight: torch.Tensor, sign: float) -> None:
        """W ← round(W ± B·A), accumulated in float32 and rounded once, in place."""
        if len(self.lora_A):
            weight.addmm_(self.lora_B, self.lora_A, alpha=sign * self.scale)


def sliced(A: torch.Tensor, B: torch.Tensor, dtype: torch.dtype) -> Sliced:
    """Lay slices of both factors side by side.

    Parameters
    ----------
    A : (R, in), float32 or float64
    B : (out, R)
    dtype : float16 or bfloat16

    Examples
    --------
    >>> A, B = torch.tensor([[1.0, 1.001]]), torch.tensor([[3.0]])
    >>> made = sliced(A, B, torch.bfloat16)
    >>> exact = made.scale * made.lora_B.double() @ made.lora_A.double()
    >>> bool((exact - B.double() @ A.double()).abs().max() < 3 * 2**-23)
    True
    """
    near_A, by_A = _near_one(A)
    near_B, by_B = _near_one(B)
    slices_A, slices_B = _slices(near_A, dtype), _slices(near_B, dtype)
    pairs = [
        (one, other) for (i, one), (j, other) in product(enumerate(slices_A), enumerate(slices_B)) if i + j < _SLICES
    ]
    return Sliced(
        torch.cat([one for one, _ in pairs]).contiguous(),
        torch.cat([other for _, other in pairs], dim=1).contiguous(),
        by_A * by_B,
    )


def _near_one(factor: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The factor over the power of two just above its largest element, and that power."""
    largest = float(factor.abs().max()) if factor.numel() else 0.0
    power = 2.0 ** math.frexp(largest)[1] if largest else 1.0
    return factor / power, power


def _slices(factor: torch.Tensor, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    """As many slices as it takes, at least one."""
    found, rest = [], factor
    for _ in range(_SLICES):
        found.append(rest.to(dtype))
        rest = rest - found[-1].to(rest.dtype)
        if not bool(rest.any()):
            break
    return found
