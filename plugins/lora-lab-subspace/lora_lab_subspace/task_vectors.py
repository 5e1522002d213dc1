"""TSV-M: each task keeps its singular values, on directions that no two tasks share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.errors import LoraLabError
from lora_lab_subspace.method import SubspaceMethod

if TYPE_CHECKING:
    import torch

    from lora_lab.extension.contracts import MergeContext
    from lora_lab_subspace.span import Span, Svd


class TsvM(SubspaceMethod):
    """Put the singular directions of all tasks side by side, make them orthonormal, and keep the singular values.

        wΔW_t = U_t·S_t·V_tᵀ,  U = [U₁ … U_T],  V = [V₁ … V_T],        D = U⊥ · diag(S₁ … S_T) · V⊥ᵀ

    with U⊥ and V⊥ the orthonormal matrices nearest to U and V, their polar factors. Each task gives ⌈fraction·r_t⌉
    directions, the largest first, and no more than ⌊min(out, in)/T⌋, beyond which there is no room for orthogonal ones.
    The authors give every task that last number, as a full matrix has so many; an adapter has only r_t, and the others
    of its singular vectors mean nothing. Directions that two tasks share to rounding are taken once, with the mean of
    their values: two copies of an adapter give the adapter.

    Source: Gargiulo et al., arXiv 2412.00081; github.com/AntoAndGar/task_singular_vectors.
    """

    id = "tsv_m"
    title = "Task singular vectors"
    summary = "Keep every task's singular values, on directions made orthogonal to those of the other tasks."
    reference = "arXiv 2412.00081"
    parameters = (
        Parameter("fraction", "Share of each task's directions that is kept", ParameterKind.NUMBER, 1.0, 0.0, 1.0),
    )

    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        from lora_lab_subspace.span import composed

        fraction = context.parameters["fraction"]
        if fraction <= 0.0:
            raise LoraLabError(
                f"The parameter fraction is {fraction:g}, expected a share above 0 and up to 1.",
                hint="Its default, 1, keeps all directions.",
            )
        most = max(1, min(span.left.shape[0], span.right.shape[0]) // len(span.updates))
        parts = [update.svd() for update in span.updates]
        return composed([part.leading(min(most, math.ceil(fraction * part.rank))) for part in parts]), span.right
