"""What an analysis may say before it runs: tensors that have to be fetched in time, how much arithmetic it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext


@runtime_checkable
class ReadsAhead(Protocol):
    """An analysis, besides, that knows from headers which tensors of models it will read.

    Its tensors come while it works, neighbours by one request, and a dry run says how many bytes that takes. An
    analysis that is none is served all the same: each tensor is fetched when it is read.
    """

    def reads(self, context: AnalysisContext) -> Sequence[TensorRef]:
        """Tensors of the base, and of inputs that are models, in the order in which they are read, each as often.

        No weight is read for it. Raises what ``run`` would raise of inputs that do not fit.
        """


@runtime_checkable
class CountsOperations(Protocol):
    """An analysis, besides, that knows from headers how much arithmetic it is.

    With ``--device auto`` little work stays on the processor: to start a device takes longer.
    """

    def operations(self, subjects: Sequence[Adapter | Base], modules: Sequence[str]) -> float:
        """Floating-point operations in float64, about; `modules` are globs, none means all."""
