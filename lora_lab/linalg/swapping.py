"""Swapping adapters in weights that are in memory, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.errors import CompatibilityError, quoted
from lora_lab.linalg.updates import Update, apply_update

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_lab.linalg.storing import Fidelity
    from lora_lab.linalg.updates import Term


def swap_terms(
    weight: torch.Tensor,
    old: Sequence[Term],
    new: Sequence[Term],
    *,
    kept: torch.Tensor | None = None,
    name: str = "weight",
) -> Fidelity:
    """Take `old` out of a merged weight and put `new` in, in place and in one pass over it.

    With `kept`, W′ ← round(W + ΔW_B): the bits of a merge into the base however often it is done. Without it,
    W′ ← round(round(W′ − ΔW_A) + ΔW_B). The rounding in the middle gives back W itself wherever W′ lies in the binade
    of W: the sum of both differences, rounded once, would keep the error of W′ instead, and of every swap before.

    Parameters
    ----------
    weight : (out, in), merged, float16, bfloat16, float32 or float64, on the device of the factors
    old, new : with the strengths that they were, or will be, merged at
    kept : the unmerged weight, of the same shape and type
    name : for messages

    Returns
    -------
    what became of the sum of `new`

    Raises
    ------
    CompatibilityError
        an old term of DoRA without `kept`: its norms are of the unmerged weight.

    Notes
    -----
    Reads and writes the weight once; 2·R floating-point operations an element, R the rank of both, or of `new` alone.

    Examples
    --------
    >>> import torch
    >>> from lora_lab.linalg.updates import Term
    >>> kept = torch.ones(3, 2)
    >>> one, two = (Term(torch.full((1, 2), a), torch.ones(3, 1), 0.5) for a in (1.0, 4.0))
    >>> weight = kept + 0.5
    >>> _ = swap_terms(weight, [one], [two], kept=kept)
    >>> weight[0]
    tensor([3., 3.])
    """
    shape = (weight.shape[0], weight.shape[1])
    update = Update(name, shape, new)
    if kept is not None:
        return apply_update(weight, update, kept=kept)
    if any(term.magnitude is not None for term in old):
        raise CompatibilityError(
            f"A term in {quoted(name)} is DoRA, whose norms are of the unmerged weight.", hint="Pass the kept weight."
        )
    back = [term._replace(strength=-term.strength) for term in old]
    return apply_update(weight, update, before=Update(name, shape, back))
