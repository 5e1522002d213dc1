"""What the methods have in common: the way from factors to the span, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.contracts import Combination, Factors, MergeContext
    from lora_lab_subspace.span import Span, Svd


class SubspaceMethod(ABC):
    """A method that works on the cores of the updates in the space that they span.

    A subclass names itself and says what it makes of the cores; what comes out is in the span too, so that its rank is
    at most Σr. Where nothing is left to combine it is not asked.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    is_low_rank: ClassVar[bool] = True
    is_sequential: ClassVar[bool] = False  # whether the order of the updates means something

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Factors of the combination of one module, of the rank or the energy that `context` says."""
        from lora_lab.linalg.threads import one_thread
        from lora_lab_subspace.span import combination, span_of

        with one_thread():
            span = span_of(factors, strengths, name=context.module, is_sequential=self.is_sequential)
            found, right = self._merged(span, context) if span.updates else (span.total(), span.right)
            return combination(span.left, found, right, context, is_transposed=factors[0].is_transposed)

    @abstractmethod
    def _merged(self, span: Span, context: MergeContext) -> tuple[Svd, torch.Tensor]:
        """The result as an SVD, whose U is in the basis ``span.left``, and the basis that its V is in."""
