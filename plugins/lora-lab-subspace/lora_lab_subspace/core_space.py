"""Core Space: any way of merging, applied to the small matrices that adapters are in their common space."""

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
    "How the cores are merged",
    ParameterKind.CHOICE,
    "ties",
    choices=("linear", "ties", "dare_linear", "dare_ties", "tsv"),
)


class CoreSpace(SubspaceMethod):
    """Merge the cores of the updates in reference bases, and lift the result back.

        U = left singular vectors of [s₁B₁ … s_TB_T],  V = right singular vectors of [A₁; …; A_T],
        M_t = Uᵀ·ΔW_t·V,        D = U · merge(M₁, …, M_T) · Vᵀ

    Each ΔW_t = U·M_t·Vᵀ without loss, whatever its rank, and M_t has at most Σr rows and columns. ``ties`` and
    ``dare_…`` decide about the entries of M_t, which are not those of ΔW_t, and weigh by the strengths what was decided
    about; ``tsv`` makes the singular directions of the cores orthonormal as ``tsv_m`` does, ⌊min(Σr, out, in)/T⌋ of
    each; and ``isotropize`` gives the singular values of the result their mean, Iso-C. For what only knows singular
    vectors the basis is of no matter: ``linear`` is the sum, ``linear`` with ``isotropize`` is ``iso_c``.

    U and V are those of the factors as stored: B·R and R⁻¹·A, which give the same ΔW_t, have other entries.

    Source: Panariello, Marczak et al., arXiv 2509.17786;
    github.com/apanariello4/core-space-merging.
    """

    id = "core_space"
    title = "Core Space"
    summary = "Merge the small matrices that the adapters are in their common space, by TIES or as --param inner says."
    reference = "arXiv 2509.17786"
    parameters = (
        INNER,
        Parameter("density", "Share of the cores' entries that is kept", ParameterKind.NUMBER, 0.5, 0.0, 1.0),
        Parameter("isotropize", "Make the singular values of the result equal", ParameterKind.BOOLEAN, False),
    )

    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        from lora_lab_subspace.entries import merged_entries
        from lora_lab_subspace.span import composed, decomposed, levelled, singular_basis

        if context.parameters["inner"] == "tsv":
            most = max(1, min(span.left.shape[1], span.right.shape[1]) // len(span.updates))
            found = composed([update.svd().leading(most) for update in span.updates])
        else:
            U, V = singular_basis(span.left_factor), singular_basis(span.right_factor)
            parts = [U.T @ update.core @ V for update in span.updates]
            merged = merged_entries(
                parts, span.updates, context.parameters["inner"], context.parameters["density"], context.seed
            )
            found = decomposed(U @ merged @ V.T, sum(abs(update.strength) * update.noise for update in span.updates))
        return levelled(found) if context.parameters["isotropize"] else found, span.right
