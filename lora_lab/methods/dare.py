"""DARE: drop entries by chance and rescale the others, then sum them or elect signs."""

from __future__ import annotations

from typing import ClassVar

from lora_lab.methods.entry_based import DENSITY, ELECTION, MAJORITY, SPACE, EntryBased


class DareLinear(EntryBased):
    """Keep each entry with the probability `density`, divided by it, and sum: Σ wᵢ·mᵢ∘ΔWᵢ/density.

    The mean over seeds is Σ wᵢΔWᵢ. Which entries are kept follows from the seed and the factors alone. Source: arXiv
    2311.03099, equations 2 and 3; PEFT's ``dare_linear_svd``.
    """

    id = "dare_linear"
    title = "DARE, summed"
    summary = "Drop entries by chance, rescale the others, and sum."
    reference = "arXiv 2311.03099"
    parameters = (DENSITY, SPACE)
    sparsity: ClassVar[str] = "chance"


class DareTies(EntryBased):
    """Keep entries by chance as :class:`DareLinear`, then elect signs and average as TIES, without its trimming.

    Source: arXiv 2311.03099, section 4; PEFT's ``dare_ties_svd`` (election ``before``), mergekit's ``dare_ties``
    (``after``).
    """

    id = "dare_ties"
    title = "DARE with TIES"
    summary = "Drop entries by chance, rescale, elect signs, and average what agrees."
    reference = "arXiv 2311.03099"
    parameters = (DENSITY, MAJORITY, ELECTION, SPACE)
    sparsity: ClassVar[str] = "chance"
    election: ClassVar[str | None] = "before"
