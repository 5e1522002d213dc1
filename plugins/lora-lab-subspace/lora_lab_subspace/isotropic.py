"""Iso-C and Iso-CTS: all directions of the sum count alike, and each task brings some of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab_subspace.method import SubspaceMethod

if TYPE_CHECKING:
    import torch

    from lora_lab.extension.contracts import MergeContext
    from lora_lab_subspace.span import Span, Svd, Update


class IsoC(SubspaceMethod):
    """Give all singular values of the sum their mean.

        Σ wΔW = U·diag(σ)·Vᵀ,        D = σ̄·U·Vᵀ,  σ̄ = (σ₁ + … + σ_ρ)/ρ

    over the numerical rank ρ of the sum. The authors' mean is over min(out, in) values, as a full matrix has so many;
    the zeros of a sum of adapters have no directions of their own, and would only make the others small. All of D's
    singular values are equal, so that of any rank no one choice of directions is better than another: those of the
    largest σ are kept.

    Source: Marczak et al., arXiv 2502.04959, Iso-C; github.com/danielm1405/iso-merging.
    """

    id = "iso_c"
    title = "Isotropic merging"
    summary = "The sum with all its singular values made equal, so that no task's directions are drowned."
    reference = "arXiv 2502.04959"

    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        from lora_lab_subspace.span import levelled

        del context
        return levelled(span.total()), span.right


class IsoCTS(SubspaceMethod):
    """Replace the least directions of the sum by some of each task's own, and give all of them one singular value.

    Of the ρ = rank(Σ wΔW) directions k are common, the leading ones of the sum, and each of T tasks has n of its own:

        n = round((ρ − ⌊common_space_fraction·ρ⌋)/T), at most ⌊ρ/T⌋,        k = ρ − T·n

    the leading ones of wΔW_t − U_k·U_kᵀ·wΔW_t, what the task has outside of the common outputs; fewer where it has not
    as many. All of them are made orthonormal together, U⊥ and V⊥ as in TSV-M, and D = σ̄·U⊥·V⊥ᵀ with the mean of their
    singular values. With ``common_space_fraction=1`` this is Iso-C.

    Source: Marczak et al., arXiv 2502.04959, Iso-CTS; github.com/danielm1405/iso-merging,
    where ρ is min(out, in).
    """

    id = "iso_cts"
    title = "Isotropic merging, common and task-specific"
    summary = "Isotropic merging in which each task keeps some directions that the sum would lose."
    reference = "arXiv 2502.04959"
    parameters = (
        Parameter(
            "common_space_fraction",
            "Share of the directions that are those of the sum",
            ParameterKind.NUMBER,
            0.8,
            0.0,
            1.0,
        ),
    )

    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        from lora_lab_subspace.span import composed

        total = span.total()
        tasks = len(span.updates)
        rest = total.rank - int(context.parameters["common_space_fraction"] * total.rank)
        own = min(total.rank // tasks, round(rest / tasks))
        common = total.leading(total.rank - tasks * own)
        parts = [outside(update, common.U).leading(own) for update in span.updates] if own else []
        found = [part for part in (common, *parts) if part.rank]
        return composed(found, is_level=True) if found else total, span.right


def outside(update: Update, U: torch.Tensor) -> Svd:
    """What w·C has outside of the span of U's orthonormal columns: the SVD of w·C − U·Uᵀ·w·C."""
    import torch

    from lora_lab_subspace.span import decomposed

    core = update.strength * update.core
    # The projection is rounded relative to what it is taken of.
    noise = abs(update.strength) * update.noise
    noise += 8 * torch.finfo(core.dtype).eps * len(core) ** 0.5 * float(torch.linalg.vector_norm(core))
    return decomposed(core - U @ (U.T @ core), noise)
