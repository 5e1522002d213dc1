"""What is kept of one weight: its singular values, and its singular vectors on the smaller side.

The vectors are Q = H·V. V holds the eigenvectors of the tridiagonal T = Hᵀ S Sᵀ H, and H is a product of Householder
reflectors 1 − τ v vᵀ, or the identity where S Sᵀ was decomposed in one go. Multiplying H and V would take as long as
finding both; what is asked of Q are its products with a handful of columns, and those take k² each.

Rounded to float32, v with its first entry 1 still makes an orthogonal reflector when τ = 2/vᵀv is taken from what was
rounded. A column of Q then moves by about the rounding of a float32, as it does when Q itself is rounded.

Source: Golub and Van Loan, Matrix Computations, 4th ed., sections 5.1 and 8.3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 2  # of what is kept; a change of method makes another
_EPSILON: Final = 2.0**-52
_BLOCK_ELEMENTS: Final = 1 << 20


class WeightBasis(NamedTuple):
    """The decomposition of one weight W (out, in), k = min(out, in).

    shape : (out, in)
    vectors : Vᵀ, (k, k) float32
    singular_values : (k,) float64, descending
    reflectors : v of each reflector as a row, (k−1, k−1) float32, zero up to and on the diagonal; None: H = 1
    scales : τ of each reflector, (k−1,) float64; None: H = 1
    """

    shape: tuple[int, int]
    vectors: torch.Tensor
    singular_values: torch.Tensor
    reflectors: torch.Tensor | None = None
    scales: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """How many σ exceed √(k·ε)·σ₁, below which nothing can be told from zero."""
        floor = math.sqrt(self.singular_values.numel() * _EPSILON) * self._largest
        return int((self.singular_values > floor).sum())

    @property
    def _largest(self) -> float:
        return float(self.singular_values[0]) if self.singular_values.numel() else 0.0

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.nbytes for tensor in self.to_tensors().values())

    def coordinates(self, columns: torch.Tensor) -> torch.Tensor:
        """Qᵀ·columns, (k, b) float64 on the device of `columns`, which are (k, b) float64.

        Q's columns are the left singular vectors of W where out ≤ in, the right ones otherwise.
        """
        return product(self.vectors, self._reflected(columns, is_transposed=True))

    def leading(self, count: int) -> torch.Tensor:
        """The first `count` columns of Q, (k, count) float64."""
        return self._reflected(self.vectors[:count].to(torch.float64).T, is_transposed=False)

    def _reflected(self, columns: torch.Tensor, *, is_transposed: bool) -> torch.Tensor:
        """H·columns, or Hᵀ·columns."""
        if self.reflectors is None or self.scales is None:
            return columns
        reflectors = self.reflectors.to(torch.float64).T  # columns, as LAPACK has them; the ones are implied
        below = torch.ormqr(reflectors, self.scales, columns[1:].cpu(), transpose=is_transposed)
        return torch.cat([columns[:1], below.to(columns.device)])

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a store keeps."""
        kept = {"vectors": self.vectors, "singular_values": self.singular_values}
        if self.reflectors is not None and self.scales is not None:
            kept |= {"reflectors": self.reflectors, "scales": self.scales}
        return kept


def basis_from(shape: tuple[int, int], tensors: Mapping[str, torch.Tensor] | None) -> WeightBasis | None:
    """What :meth:`WeightBasis.to_tensors` gave, when it fits a weight of `shape`; None otherwise."""
    if tensors is None:
        return None
    side = min(shape)
    expected = {"vectors": ((side, side), torch.float32), "singular_values": ((side,), torch.float64)}
    if "reflectors" in tensors:
        expected |= {"reflectors": ((side - 1, side - 1), torch.float32), "scales": ((side - 1,), torch.float64)}
    if {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} != expected:
        return None
    return WeightBasis(shape, **tensors)


def product(matrix: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """matrix·columns, float64 on the device of `columns`, by blocks of rows."""
    step = max(1, _BLOCK_ELEMENTS // max(matrix.shape[1], 1))
    parts = [
        matrix[first : first + step].to(device=columns.device, dtype=torch.float64) @ columns
        for first in range(0, matrix.shape[0], step)
    ]
    return torch.cat(parts) if parts else columns.new_zeros((0, columns.shape[1]))
