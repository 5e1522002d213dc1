"""SVD-orthogonal merging: each update adds what is orthogonal to the sum of those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab_subspace.method import SubspaceMethod

if TYPE_CHECKING:
    import torch

    from lora_lab.extension.contracts import MergeContext
    from lora_lab_subspace.span import Span, Svd


class SvdOrthogonal(SubspaceMethod):
    """Take the updates in their order, each without what it has in the singular directions of the sum so far.

        D₁ = wΔW₁,        D_t = D_{t−1} + P(wΔW_t)
        P(X) = X − Σ_{i,j ≤ k} ⟨X, u_i v_jᵀ⟩ u_i v_jᵀ − Σ_{i > k} ⟨X, u_i v_iᵀ⟩ u_i v_iᵀ

    where u_i, σ_i, v_i are those of D_{t−1} and k is the number of leading ones with σ₁ + … + σ_k ≤ alpha·Σσ: the block
    of the leading directions is left to what was there before, and of the others each singular direction. What is added
    is orthogonal to what was there, ⟨D_{t−1}, P(wΔW_t)⟩ = 0, so that no update strengthens or weakens an earlier one.
    With ``length=mean`` the result has the mean of the norms of all wΔW_t, as the authors scale it, here module by
    module and not over the whole model; with ``length=sum`` it stays as it is. The first adapter has the say: the order
    matters.

    Source: Tang et al., arXiv 2501.09522, OPCM; github.com/tanganke/opcm. There i runs over min(out, in), of
    which those beyond the rank of D_{t−1} are arbitrary; here they are not touched.
    """

    id = "svd_orthogonal"
    title = "SVD-orthogonal"
    summary = "Add each adapter without what it has in the directions of those before it; the order matters."
    reference = "arXiv 2501.09522"
    is_sequential = True
    parameters = (
        Parameter(
            "alpha", "Share of Σσ whose directions are left to what came before", ParameterKind.NUMBER, 0.5, 0.0, 1.0
        ),
        Parameter("length", "Norm of the result", ParameterKind.CHOICE, "mean", choices=("mean", "sum")),
    )

    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        import torch

        from lora_lab_subspace.span import decomposed

        parts = [update.strength * update.core for update in span.updates]
        total, noise = torch.zeros_like(parts[0]), 0.0
        for update, part in zip(span.updates, parts, strict=True):
            total = total + cleaned(part, decomposed(total, noise), context.parameters["alpha"])
            noise += abs(update.strength) * update.noise
        found = decomposed(total, noise)
        if context.parameters["length"] == "mean":
            mean = sum(float(torch.linalg.vector_norm(part)) for part in parts) / len(parts)
            found = found._replace(S=found.S * (mean / float(torch.linalg.vector_norm(found.S))))
        return found, span.right


def cleaned(part: torch.Tensor, before: Svd, alpha: float) -> torch.Tensor:
    """P(X): `part` without what it has in the leading block and the other singular directions of `before`."""
    shares = before.S.cumsum(0)
    # At alpha = 1 all of them, whatever rounding makes of the sum.
    leading = before.rank if alpha >= 1.0 else int((shares <= alpha * shares[-1:]).sum())
    inner = before.U.T @ part @ before.V
    removed = inner.diag().diag()
    removed[:leading, :leading] = inner[:leading, :leading]
    return part - before.U @ removed @ before.V.T
