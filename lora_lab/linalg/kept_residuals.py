"""Residuals that stay in memory beside the weights they restore, on any device."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from lora_lab.linalg.residuals import residual_of

_INTEGERS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class KeptResidual(NamedTuple):
    """ord(W) − ord(P) where it is not zero, see :func:`~lora_lab.linalg.residuals.residual_of`.

    positions : (n,) int32 ascending, within a block of fewer than 2³¹ elements
    values : (n,) integers of the width of the weight, modulo which they are meant
    """

    positions: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.positions.nbytes + self.values.nbytes


def kept_residual(before: torch.Tensor, predicted: torch.Tensor) -> KeptResidual:
    """Find what is missing from `predicted` to be `before`.

    Parameters
    ----------
    before, predicted : one shape, one floating-point type, one device

    Examples
    --------
    >>> before, predicted = torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0])
    >>> restore_kept(predicted, kept_residual(before, predicted))
    tensor([1., -0.])
    """
    found = residual_of(before.cpu(), predicted.cpu())
    positions = torch.from_numpy(found.positions).to(torch.int32)
    values = torch.from_numpy(found.values).to(_INTEGERS[before.element_size()])
    return KeptResidual(positions.to(before.device), values.to(before.device))


def restore_kept(predicted: torch.Tensor, residual: KeptResidual) -> torch.Tensor:
    """Change `predicted`, which is contiguous, in place into what the residual was found from."""
    kind = _INTEGERS[predicted.element_size()]
    codes = predicted.view(-1).view(kind)
    positions = residual.positions.to(torch.int64)
    # Integers of torch wrap around, which is what modulo their width means.
    codes[positions] = _ordinal(_ordinal(codes[positions]) + residual.values)
    return predicted


def _ordinal(codes: torch.Tensor) -> torch.Tensor:
    """Place of a float among its type's, from its bits as a signed integer; its own inverse."""
    return codes ^ ((codes >> (8 * codes.element_size() - 1)) & torch.iinfo(codes.dtype).max)
