"""KnOTS: updates put into one basis of outputs, and merged by their right parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab_subspace.method import SubspaceMethod

if TYPE_CHECKING:
    import torch

    from lora_lab.extension.contracts import MergeContext
    from lora_lab_subspace.span import Span, Svd

INNER: Final = Parameter(
    "inner",
    "How what is aligned is merged",
    ParameterKind.CHOICE,
    "ties",
    choices=("linear", "ties", "dare_linear", "dare_ties"),
)
DENSITY: Final = Parameter("density", "Share of the aligned entries that is kept", ParameterKind.NUMBER, 0.5, 0.0, 1.0)


class Knots(SubspaceMethod):
    """Align updates by the SVD of all of them side by side, and merge their right parts.

        [ΔW₁ … ΔW_T] = U · S · [V₁ᵀ … V_Tᵀ],        D = U · merge(S·V₁ᵀ, …, S·V_Tᵀ)

    As S·V_tᵀ = Uᵀ·ΔW_t, the parts are the updates themselves in one basis of output directions, and ``inner=linear`` is
    Σ wΔW exactly. ``ties`` and ``dare_…`` decide about the entries of the parts, as many as the rank of the whole times
    the inputs. Strengths weigh what was decided about. The density is that of each module, ⌊density·entries⌋ of its
    own, where the authors' code counts through the whole model. Time and memory beyond the span: O(T·Σr·in).

    Source: Stoica et al., arXiv 2410.19735; github.com/gstoica27/KnOTS. Its threshold for S,
    1e-5, is here the rounding error, whatever the size of the updates.
    """

    id = "knots"
    title = "KnOTS"
    summary = "Align the adapters by one SVD, then merge their right parts, by TIES or as --param inner says."
    reference = "arXiv 2410.19735"
    parameters = (INNER, DENSITY)

    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        import torch

        from lora_lab_subspace.entries import merged_entries
        from lora_lab_subspace.span import decomposed

        noise = sum(update.noise**2 for update in span.updates) ** 0.5
        U = decomposed(torch.cat([update.core for update in span.updates], dim=1), noise).U
        # S·V_tᵀ, (k, in): as Q_a is no square matrix, entries are those of the whole row.
        parts = [(U.T @ update.core) @ span.right.T for update in span.updates]
        merged = merged_entries(
            parts, span.updates, context.parameters["inner"], context.parameters["density"], context.seed
        )
        right, R = torch.linalg.qr(merged.T)  # (in, k), (k, k)
        weighted = sum(abs(update.strength) * update.noise for update in span.updates)
        return decomposed(U @ R.T, weighted), right
