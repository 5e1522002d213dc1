"""DELLA: drop entries by chance, small ones more often, then sum them or elect signs."""

from __future__ import annotations

from typing import ClassVar, Final

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.methods.entry_based import DENSITY, ELECTION, MAJORITY, SPACE, EntryBased

EPSILON: Final = Parameter(
    "epsilon", "By how much the probability varies around the density", ParameterKind.NUMBER, 0.1, 0.0, 0.5
)


class DellaLinear(EntryBased):
    """Keep each entry with a probability that grows with its rank in the row, divided by it, and sum.

    The probability goes from density − ε for the smallest entry of a row to density + ε for the largest. Source: arXiv
    2406.11617, section 3.1 (MagPrune). mergekit's ``della_linear`` draws alike and rescales the whole tensor to its L1
    norm instead of each entry by its probability.
    """

    id = "della_linear"
    title = "DELLA, summed"
    summary = "Drop small entries more often than large ones, rescale each by its chance, and sum."
    reference = "arXiv 2406.11617"
    parameters = (DENSITY, EPSILON, SPACE)
    sparsity: ClassVar[str] = "rank"


class Della(EntryBased):
    """Keep entries as :class:`DellaLinear`, then elect signs and average what agrees.

    Source: arXiv 2406.11617, sections 3.2 and 3.3.
    """

    id = "della"
    title = "DELLA"
    summary = "Drop small entries more often than large ones, elect signs, and average what agrees."
    reference = "arXiv 2406.11617"
    parameters = (DENSITY, EPSILON, MAJORITY, ELECTION, SPACE)
    sparsity: ClassVar[str] = "rank"
    election: ClassVar[str | None] = "before"
