"""TIES: trim each update, elect a sign for each entry, and take the mean of those that agree with it."""

from __future__ import annotations

from typing import ClassVar

from lora_lab.methods.entry_based import DENSITY, ELECTION, MAJORITY, SPACE, EntryBased


class Ties(EntryBased):
    """Keep the largest entries of each ΔWᵢ, then in every entry those whose sign is elected.

    With x̂ᵢ the ⌊density·out·in⌋ entries of largest magnitude and γ = sgn Σ x̂ᵢ,

        Σ_{sgn x̂ᵢ = γ} wᵢ·x̂ᵢ / #{i: sgn x̂ᵢ = γ}         election ``before`` weighting, as PEFT's ``ties_svd``
        Σ_{sgn wᵢx̂ᵢ = γ} wᵢ·x̂ᵢ / Σ_{sgn wᵢx̂ᵢ = γ} wᵢ    election ``after`` weighting, as mergekit's ``ties``, γ of wᵢx̂ᵢ

    Source: arXiv 2306.01708, algorithm 1, whose λ is the strength with which the result is used.
    """

    id = "ties"
    title = "TIES"
    summary = "Trim to the largest entries, elect signs, and average what agrees."
    reference = "arXiv 2306.01708"
    parameters = (DENSITY, MAJORITY, ELECTION, SPACE)
    sparsity: ClassVar[str] = "largest"
    election: ClassVar[str | None] = "before"
