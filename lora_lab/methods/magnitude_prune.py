"""Magnitude pruning: the largest entries of each update, summed."""

from __future__ import annotations

from typing import ClassVar

from lora_lab.methods.entry_based import DENSITY, SPACE, EntryBased


class MagnitudePrune(EntryBased):
    """Keep the ⌊density·out·in⌋ entries of largest magnitude of each ΔWᵢ and sum them: Σ wᵢ·x̂ᵢ, without rescaling.

    Source: PEFT's ``magnitude_prune_svd``.
    """

    id = "magnitude_prune"
    title = "Magnitude pruning"
    summary = "Trim each update to its largest entries, and sum."
    reference = ""
    parameters = (DENSITY, SPACE)
    sparsity: ClassVar[str] = "largest"
