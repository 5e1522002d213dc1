"""Changes of which no factors are known, and methods that take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from lora_lab.extension.contracts import Combination, Factors, MergeContext


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter does to one weight where no factors of low rank say it: DoRA's W′ − W.

    Rows are outputs of the layer and columns its inputs, as of lora_B @ lora_A.

    rows : makes the rows from the first to before the second number, (k, in) float64, anew each time; called from
        several threads
    factors : that it is made with, among other things: their shape, rank and orientation are its own
    magnitude : (out,), DoRA's
    """

    rows: Callable[[int, int], torch.Tensor]
    factors: Factors
    magnitude: torch.Tensor


@runtime_checkable
class ChangeMethod(Protocol):
    """A merge method, besides, that needs no factors: it also takes changes whose rows are made block by block.

    One that does not is never given such; whoever asks for it is told so.
    """

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """The combination of one module, as ``combine``; without rank and energy of the sum of the factors' ranks."""
