"""What is missing from W after W′ − Δ: unmerging by arithmetic, and the integers that make it exact.

The prediction of W from the merged weight is P = round(W′ − Δ̃), and the residual ord(W) − ord(P), in units in the last
place of the stored type, is zero for all but some hundredths of the elements. Adding it to ord(P) gives every bit of W
back, −0 and subnormal numbers included, as long as Δ̃ has the same bits wherever it is computed.

Δ̃ is therefore a sum that no order can change. The factors are rounded to a grid, each row of lora_B and each column of
lora_A to p bits of its largest element, with 2p + ⌈log₂ R⌉ ≤ 53 for the rank R: all products in one element of B·A are
multiples of one power of two and their sums stay below 2⁵³ of it, so float64 holds every partial sum exactly, in any
order, with or without fused multiplication, on any device and by any library. For types of 32 and 64 bits the rest of
the factors, rounded to the next p bits, gives a second such product. Sources: exact slices of a product as in Ozaki et
al., Numerical Algorithms 59 (2012), section 3; IEEE 754-2019, section 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from lora_lab.linalg.residual_coding import Integers, Sparse

if TYPE_CHECKING:
    from lora_lab.linalg.updates import Update

_MANTISSA_BITS: Final = 53
_EXPONENT_BIAS: Final = 1023
_LEAST_SHARE: Final = 2.0**-16
_LEAST_EXPONENT: Final = -400  # of a row's unit: products stay normal numbers
_INTEGERS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class ExactProduct:
    """Δ̃ ≈ B·A, the same bits in any order of summation.

    Parameters
    ----------
    A : (R, in) float64
    B : (out, R) float64
    is_fine : take two slices of the factors, error 2^(−2p) instead of 2^(−p) of the largest elements
    """

    def __init__(self, A: torch.Tensor, B: torch.Tensor, *, is_fine: bool) -> None:
        rank = max(1, A.shape[0]) * (2 if is_fine else 1)
        bits = (_MANTISSA_BITS - (rank - 1).bit_length()) // 2
        self._A, rest_A = _sliced(A, bits, dim=0)
        self._B, rest_B = _sliced(B, bits, dim=1)
        self._fine_A = self._fine_B = None
        if is_fine:
            unit_A, unit_B = _units(A, bits, dim=0), _units(B, bits, dim=1)
            below = 2.0**-bits
            self._fine_A = torch.cat([_on_grid(rest_A, unit_A * below), self._A])  # (2R, in)
            self._fine_B = torch.cat([self._B, _on_grid(rest_B, unit_B * below)], dim=1)  # (out, 2R)

    def rows(self, first: int, end: int) -> torch.Tensor:
        """Rows of Δ̃, (end − first, in) float64."""
        coarse = self._B[first:end] @ self._A
        if self._fine_A is None or self._fine_B is None:
            return coarse
        return coarse.add_(self._fine_B[first:end] @ self._fine_A)


class Inverse:
    """The prediction of the unmerged rows of one weight.

    Everything that is done to a weight is W′ = c ⊙ W + D: plain deltas add to D; DoRA's gain g = m/‖W + ΔW‖ at
    strength w adds w(g − 1) to c and w·g·ΔW to D; a tensor V in the weight's place takes w from c and adds w·V to
    D. With the gains at hand, P = round((W′ − D)/c); where c vanishes nothing of W is left, and P = 0.

    Parameters
    ----------
    update : what was done
    dtype : of the unmerged weight
    column_gains : of DoRA's terms by column, (terms, in) float64; those that the update has found when not given
    """

    def __init__(self, update: Update, dtype: torch.dtype, column_gains: torch.Tensor | None = None) -> None:
        self.update = update
        self.column_gains = update.column_gains() if column_gains is None else column_gains
        self._dtype = dtype
        self._is_fine = dtype.itemsize > 2
        self._product = ExactProduct(*update.plain_factors, is_fine=self._is_fine)
        self._scaled = [
            (term, ExactProduct(term.lora_A.double(), term.lora_B.double() * term.scaling, is_fine=self._is_fine))
            for term in update.scaled_terms
        ]
        self._is_linear = not self._scaled and not any(dense.is_target for dense in update.dense)

    def predicted(self, after: torch.Tensor, first: int, row_gains: torch.Tensor) -> torch.Tensor:
        """Predict the rows from `first` on.

        Parameters
        ----------
        after : (n, in), merged rows, float of at least the range and precision of the unmerged type
        row_gains : of DoRA's terms by row, (n, terms) float64, as the update gave them when it was applied

        Returns
        -------
        (n, in) of the unmerged type, the same bits on any device
        """
        added = self._product.rows(first, first + after.shape[0])
        if self._is_linear:
            for dense in self.update.dense:
                added = added + dense.strength * dense.values[first : first + after.shape[0]].to(torch.float64)
            wide = torch.float64 if self._is_fine or after.dtype is torch.float64 else torch.float32
            return (after.to(wide) - added.to(wide)).to(self._dtype)
        share = torch.ones_like(added)
        by_row, by_column = iter(row_gains.T[:, :, None]), iter(self.column_gains[:, None])
        for term, product in self._scaled:
            gain = next(by_column if term.is_by_column else by_row)
            share += term.strength * (gain - 1.0)
            added += (term.strength * gain) * product.rows(first, first + after.shape[0])
        for dense in self.update.dense:
            here, values = dense.within(first, first + after.shape[0])
            added[here] += dense.strength * values.to(torch.float64)
            if dense.is_target:
                share[here] -= dense.strength
        found = torch.where(share.abs() > _LEAST_SHARE, (after.to(torch.float64) - added) / share, 0.0)
        # In two steps, each rounded to nearest, as every device does it.
        return (found if self._dtype is torch.float64 else found.to(torch.float32)).to(self._dtype)


def residual_of(before: torch.Tensor, predicted: torch.Tensor) -> Sparse:
    """ord(before) − ord(predicted) where it is not zero, modulo 2^bits into the signed range.

    Parameters
    ----------
    before, predicted : one shape, one floating-point type, on the processor

    Examples
    --------
    >>> residual_of(torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0]))
    Sparse(positions=array([1]), values=array([-1]))
    """
    kind = _INTEGERS[before.element_size()]
    bits = before.element_size() * 8
    wanted, found = (tensor.contiguous().view(kind).reshape(-1).numpy() for tensor in (before, predicted))
    positions = np.flatnonzero(wanted != found)
    difference = _ordinal(wanted[positions].astype(np.int64), bits) - _ordinal(found[positions].astype(np.int64), bits)
    return Sparse(positions, _wrapped(difference, bits))


def restore(predicted: torch.Tensor, residual: Sparse) -> torch.Tensor:
    """The weights whose :func:`residual_of` from `predicted` is `residual`; changes `predicted` in place.

    Examples
    --------
    >>> restore(torch.tensor([1.0, 0.0]), Sparse(np.array([1]), np.array([-1])))
    tensor([1., -0.])
    """
    bits = predicted.element_size() * 8
    flat = predicted.view(_INTEGERS[predicted.element_size()]).reshape(-1).numpy()
    found = _ordinal(flat[residual.positions].astype(np.int64), bits)
    flat[residual.positions] = _ordinal(_wrapped(found + residual.values, bits), bits)
    return predicted


def _ordinal(codes: Integers, bits: int) -> Integers:
    """Place of a float among its type's, from its bits as a signed integer; its own inverse.

    …, −2: the negative number nearest to zero, −1: −0, 0: +0, 1: the smallest positive number, …
    """
    return codes ^ ((codes >> 63) & ((1 << (bits - 1)) - 1))


def _wrapped(values: Integers, bits: int) -> Integers:
    """Modulo 2^bits, into −2^(bits−1) … 2^(bits−1) − 1."""
    return (values << (64 - bits)) >> (64 - bits)


def _units(factor: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The grid of each column (`dim` 0) or row (1): 2^(e − bits), where the largest element is below 2^e."""
    if not factor.numel():
        return factor.new_ones((1, factor.shape[1]) if dim == 0 else (factor.shape[0], 1))
    exponent = torch.frexp(factor.abs().amax(dim=dim, keepdim=True)).exponent.clamp(min=_LEAST_EXPONENT) - bits
    # By its bits: no library's power is promised to be exact.
    return ((exponent.to(torch.int64) + _EXPONENT_BIAS) << (_MANTISSA_BITS - 1)).view(torch.float64)


def _on_grid(factor: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Nearest multiples of `unit`, a power of two."""
    return torch.round(factor / unit) * unit


def _sliced(factor: torch.Tensor, bits: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `bits` bits of a factor, and what is left of it; both exact."""
    coarse = _on_grid(factor, _units(factor, bits, dim))
    return coarse, factor - coarse
