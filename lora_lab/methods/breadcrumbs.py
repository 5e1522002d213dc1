"""Model Breadcrumbs: leave out the largest entries as well as the small ones."""

from __future__ import annotations

from typing import ClassVar, Final

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.methods.entry_based import DENSITY, ELECTION, MAJORITY, SPACE, EntryBased

GAMMA: Final = Parameter("gamma", "Share of the largest entries that is left out", ParameterKind.NUMBER, 0.01, 0.0, 1.0)


class Breadcrumbs(EntryBased):
    """Leave out the ⌊γ·out·in⌋ largest entries of each ΔWᵢ, keep the ⌊density·out·in⌋ next ones, and sum.

    Source: arXiv 2312.06795, section 3; mergekit's ``breadcrumbs``.
    """

    id = "breadcrumbs"
    title = "Breadcrumbs"
    summary = "Leave out the largest and the smallest entries, and sum the others."
    reference = "arXiv 2312.06795"
    parameters = (DENSITY, GAMMA, SPACE)
    sparsity: ClassVar[str] = "middle"


class BreadcrumbsTies(EntryBased):
    """Keep entries as :class:`Breadcrumbs`, then elect signs and average what agrees.

    Source: mergekit's ``breadcrumbs_ties``, which elects ``after`` weighting.
    """

    id = "breadcrumbs_ties"
    title = "Breadcrumbs with TIES"
    summary = "Leave out the largest and the smallest entries, elect signs, and average what agrees."
    reference = "arXiv 2312.06795"
    parameters = (DENSITY, GAMMA, MAJORITY, ELECTION, SPACE)
    sparsity: ClassVar[str] = "middle"
    election: ClassVar[str | None] = "before"
