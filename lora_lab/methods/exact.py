"""Methods that are sums: exact where nothing is cut, the best there is where something is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.errors import LoraLabError, quoted
from lora_lab.methods.entry_based import factors_of, in_one_order, pairs_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.changes import Change
    from lora_lab.extension.contracts import Combination, Factors, MergeContext

_BEST: Final = "Eckart & Young, Psychometrika 1 (1936)"


class Linear:
    """Add the updates: ΔW = Σ wᵢΔWᵢ, exact, expressed at its numerical rank, at most Σrᵢ.

    A negative strength takes a task away; a − b + c is an analogy. Unlike a sum of the lora_A and of the lora_B, it has
    no cross terms. Source: Ilharco et al., arXiv 2212.04089, section 3.
    """

    id = "linear"
    title = "Sum"
    summary = "The exact weighted sum, at the rank that it has; negative strengths subtract."
    reference = "arXiv 2212.04089, section 3"
    parameters: tuple[Parameter, ...] = ()
    is_low_rank = True

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Factors of the sum, of the rank or the energy that `context` says, the best of that rank."""
        return summed(factors, strengths, context)

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """The best approximation of the sum, which has full rank."""
        return summed_changes(changes, strengths, context)


class Concatenation:
    """Put the factors side by side: lora_B = [w₁s₁B₁ … w_ks_kB_k], lora_A = [A₁; …; A_k], of rank Σrᵢ.

    The same sum as :class:`Linear`, without any decomposition: lora_A keeps its numbers. Source: Prabhakar et al., LoRA
    Soups, arXiv 2410.13025, section 3.
    """

    id = "cat"
    title = "Concatenation"
    summary = "The exact weighted sum as stacked factors, of the sum of the ranks."
    reference = "arXiv 2410.13025, section 3"
    parameters: tuple[Parameter, ...] = ()
    is_low_rank = True

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Stacked factors; with a rank or an energy the best approximation, as of any sum."""
        from lora_lab.extension.contracts import Combination, Factors
        from lora_lab.linalg.combining import side_by_side_factors
        from lora_lab.linalg.spectra import factored_singular_values

        if context.rank is not None or context.energy is not None:
            return summed(factors, strengths, context)
        lora_B, lora_A = side_by_side_factors(pairs_of(factors, context.module), strengths)
        norm = float(factored_singular_values(lora_A, lora_B, 1.0, name=context.module).norm())
        return Combination(Factors(lora_A, lora_B, 1.0, factors[0].is_transposed), norm)

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """With a rank or an energy the best approximation, as of any sum; without, there is nothing to stack."""
        if context.rank is None and context.energy is None:
            raise LoraLabError(
                f"cat stacks factors, and what DoRA does to {quoted(context.module)} has none.",
                hint="Say --rank or --energy, or take the method linear.",
            )
        return summed_changes(changes, strengths, context)


class BestRank:
    """Add the updates and keep the R leading singular directions: the best matrix of rank R, Σ_{j≤R} σⱼuⱼvⱼᵀ.

    Its error is √(σ_{R+1}² + …), and none of rank R has a smaller one. R is the largest of the inputs' ranks where
    neither rank nor energy is given. Source: Eckart and Young, Psychometrika 1 (1936); PEFT's ``svd``, which decomposes
    the dense matrix.
    """

    id = "svd"
    title = "Best of a rank"
    summary = "The best approximation of the weighted sum that a rank allows; the largest input's without --rank."
    reference = _BEST
    parameters: tuple[Parameter, ...] = ()
    is_low_rank = True

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Factors of the sum, of the rank or the energy that `context` says."""
        from dataclasses import replace

        if context.rank is None and context.energy is None:
            context = replace(context, rank=max(one.lora_A.shape[0] for one in factors))
        return summed(factors, strengths, context)

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """The same of changes that have no factors."""
        from dataclasses import replace

        if context.rank is None and context.energy is None:
            context = replace(context, rank=max(factors_of(one).lora_A.shape[0] for one in changes))
        return summed_changes(changes, strengths, context)


def summed(factors: Sequence[Factors], coefficients: Sequence[float], context: MergeContext) -> Combination:
    """Σ cᵢΔWᵢ at its numerical rank, or its best approximation of the rank or the energy that `context` says.

    To the last bit whatever the order of the updates.
    """
    from lora_lab.extension.contracts import Combination, Factors
    from lora_lab.linalg.combining import best_factors, side_by_side_factors

    lora_B, lora_A = side_by_side_factors(*in_one_order(pairs_of(factors, context.module), coefficients))
    found = best_factors(lora_B, lora_A, rank=context.rank, energy=context.energy, name=context.module)
    result = Factors(found.lora_A, found.lora_B, 1.0, factors[0].is_transposed)
    return Combination(result, found.norm, found.error)


def summed_changes(
    changes: Sequence[Factors | Change], coefficients: Sequence[float], context: MergeContext
) -> Combination:
    """The best approximation of Σ cᵢ·changeᵢ of the rank or energy that `context` says, else of the sum of the ranks.

    Within 1 % of the least error of its rank (:mod:`~lora_lab.linalg.approximation`); the error told is the real one.
    """
    from lora_lab.domain.progress import stop_if_cancelled
    from lora_lab.extension.contracts import Combination, Factors
    from lora_lab.linalg.approximation import low_rank_approximation
    from lora_lab.linalg.changes import sum_of_changes

    def watched(_first: int, rows: Tensor) -> Tensor:
        stop_if_cancelled(context.observer)
        return rows

    rank = context.rank
    if rank is None and context.energy is None:
        rank = sum(factors_of(one).lora_A.shape[0] for one in changes)
    found = low_rank_approximation(
        sum_of_changes(parts_of(changes, context.module), coefficients).mapped(watched),
        rank=rank,
        energy=context.energy,
        seed=context.seed,
        name=context.module,
    )
    root = found.S.sqrt()
    factors = Factors(root[:, None] * found.Vh, found.U * root, 1.0, factors_of(changes[0]).is_transposed)
    return Combination(factors, found.norm, found.error)
