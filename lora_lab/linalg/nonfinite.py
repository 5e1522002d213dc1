"""Sums that are not finite: refused with the reason, or let through with one pattern for every NaN."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lora_lab.errors import NumericalError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable


def require_finite(
    values: torch.Tensor, before: torch.Tensor, name: str, *, sums: Callable[[], torch.Tensor] | None = None
) -> None:
    """Refuse a result that is not finite, and say what makes it so.

    Parameters
    ----------
    values : what is to be stored
    before : what was there
    sums : gives W + Δ before it is rounded; None where nothing is added

    Raises
    ------
    NumericalError
        the base's own weight is not finite, or what is added, or a sum exceeds the range of the type it is stored in.
    """
    if torch.isfinite(values).all():
        return
    if not torch.isfinite(before).all():
        raise NumericalError(
            f"The base's {quoted(name)} holds NaN or infinity, expected finite weights.",
            hint="The base is damaged: fetch it again or take a sound one; merge --allow-nonfinite lets it through.",
        )
    if sums is not None and not torch.isfinite(sums()).all():
        raise NumericalError(
            f"What is added to {quoted(name)} holds NaN or infinity, expected finite numbers.",
            hint="A saved tensor or a magnitude of the adapter is not finite; merge --allow-nonfinite lets it through.",
        )
    raise _too_large(values, int((~torch.isfinite(values)).sum()), name)


def settle_nonfinite(values: torch.Tensor, sums: torch.Tensor, name: str) -> int:
    """Give every NaN of a result one pattern, in place, and count what is not finite.

    Which NaN a processor makes of two depends on the order in which it takes them; with one pattern for all the same
    inputs make the same bytes.

    Parameters
    ----------
    values : what is to be stored
    sums : the same before it was rounded

    Raises
    ------
    NumericalError
        a finite sum exceeds the range of the type it is stored in.

    Examples
    --------
    >>> values = torch.tensor([1.0, -torch.nan, torch.inf])
    >>> settle_nonfinite(values, values.double(), "w"), values.view(torch.int32)[1].item() == 0x7FC00000
    (2, True)
    """
    finite = torch.isfinite(values)
    too_large = int((~finite & torch.isfinite(sums)).sum())
    if too_large:
        raise _too_large(values, too_large, name)
    values.masked_fill_(values.isnan(), math.nan)
    return values.numel() - int(finite.sum())


def _too_large(values: torch.Tensor, count: int, name: str) -> NumericalError:
    return NumericalError(
        f"The sum for {quoted(name)} exceeds the range of {values.dtype} at {count} of {values.numel()} values.",
        hint="Write a wider type with --dtype, or lower the strength.",
    )
