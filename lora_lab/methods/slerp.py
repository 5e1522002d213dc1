"""Interpolation along the sphere: from one update to another, or the mean direction of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.errors import LoraLabError, quoted
from lora_lab.methods.entry_based import in_one_order, pairs_of, parts_of
from lora_lab.methods.exact import summed, summed_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.changes import Change
    from lora_lab.extension.contracts import Combination, Factors, MergeContext


class Slerp:
    """Go from the first update to the second along the arc between them, module by module.

        sin((1 − t)θ)/sin θ · ΔW₁ + sin(tθ)/sin θ · ΔW₂,        cos θ = ⟨ΔW₁, ΔW₂⟩/(‖ΔW₁‖·‖ΔW₂‖)

    t is w₂/(w₁ + w₂) of the strengths where it is not given. The result is a sum with coefficients of its own for each
    module, exact at rank r₁ + r₂. Source: Shoemake, SIGGRAPH 1985; mergekit's ``slerp``.
    """

    id = "slerp"
    title = "Slerp"
    summary = "From one adapter to another along the arc between them."
    reference = "Shoemake, SIGGRAPH 1985"
    is_low_rank = True
    parameters = (Parameter("t", "0 is the first, 1 the second", ParameterKind.NUMBER, None, 0.0, 1.0),)

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Factors of the combination of one module."""
        from lora_lab.linalg.spherical import gram_matrix, slerp_coefficients

        t = self._share(len(factors), strengths, context)
        coefficients = slerp_coefficients(gram_matrix(pairs_of(factors, context.module)), t)
        return summed(factors, coefficients, context)

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """The same of changes that have no factors."""
        from lora_lab.linalg.changes import gram_of_changes
        from lora_lab.linalg.spherical import slerp_coefficients

        t = self._share(len(changes), strengths, context)
        coefficients = slerp_coefficients(gram_of_changes(parts_of(changes, context.module)), t)
        return summed_changes(changes, coefficients, context)

    def _share(self, count: int, strengths: Sequence[float], context: MergeContext) -> float:
        """How far to go from the first to the second."""
        if count != 2:
            raise LoraLabError(
                f"slerp goes from one adapter to another, got {count} that have {quoted(context.module)}, expected 2.",
                hint="multislerp takes any number.",
            )
        t = context.parameters.get("t")
        if t is not None:
            return float(t)
        if min(strengths) < 0 or sum(strengths) == 0:
            raise LoraLabError(
                f"The strengths are {', '.join(f'{one:g}' for one in strengths)}, expected two that are not negative, "
                "not both zero.",
                hint="Or say how far to go: --param t=0.5",
            )
        return strengths[1] / (strengths[0] + strengths[1])


class MultiSlerp:
    """Give the weighted mean direction of several updates the weighted mean of their lengths, module by module.

        Σ ŵᵢ‖ΔWᵢ‖ · u/‖u‖,        u = Σ ŵᵢ ΔWᵢ/‖ΔWᵢ‖,  ŵ = w/Σw

    Exact at rank Σr. Source: mergekit's ``multislerp``.
    """

    id = "multislerp"
    title = "Multislerp"
    summary = "The mean direction of several adapters, at their mean length."
    reference = ""
    is_low_rank = True
    parameters: tuple[Parameter, ...] = ()

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Factors of the combination of one module."""
        from lora_lab.extension.contracts import Factors
        from lora_lab.linalg.spherical import gram_matrix, multislerp_coefficients

        pairs, weights = in_one_order(pairs_of(factors, context.module), strengths)
        coefficients = multislerp_coefficients(gram_matrix(pairs), weights)
        ordered = [Factors(one.lora_A, one.lora_B, one.scaling, factors[0].is_transposed) for one in pairs]
        return summed(ordered, coefficients, context)

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """The same of changes that have no factors."""
        from lora_lab.linalg.changes import gram_of_changes
        from lora_lab.linalg.spherical import multislerp_coefficients

        coefficients = multislerp_coefficients(gram_of_changes(parts_of(changes, context.module)), strengths)
        return summed_changes(changes, coefficients, context)
