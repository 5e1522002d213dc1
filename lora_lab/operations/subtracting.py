"""A base that is nowhere, read through a merged model by subtracting adapters: nearly, and what that cannot know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.linalg.storing import stored_rows
from lora_lab.linalg.subtraction import Doubt, doubt_about
from lora_lab.operations.execution import torch_type
from lora_lab.operations.layout import steps_of
from lora_lab.operations.restoring import in_other_rows
from lora_lab.operations.weights import bands_of, matrix_shape
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Step
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.planning import Changes
    from lora_lab.operations.weights import Band


class SubtractedTensor:
    """round(W′ − ΔW) of one tensor; any rows of it, from any thread.

    Parameters
    ----------
    step : the subtraction
    descriptor : of the merged file
    """

    def __init__(self, step: Step, descriptor: int, bands: Sequence[Band]) -> None:
        assert step.source is not None
        self._source = step.source
        self._descriptor = descriptor
        self._bands = bands
        self._columns = matrix_shape(step)[1]
        self._dtype = torch_type(step.source.dtype)
        self._doubts: dict[int, Doubt] = {}  # by first row: rows that are read again are not counted again

    def rows(self, first: int, end: int, columns: int) -> torch.Tensor:
        """The rows from `first` to before `end` of the tensor seen as a matrix of `columns` columns."""
        return in_other_rows(self._whole, self._dtype, self._columns, first, end, columns)

    @property
    def doubt(self) -> Doubt:
        """What is uncertain about all rows that were read."""
        total = Doubt()
        for _, doubt in sorted(self._doubts.items()):
            total.add(doubt)
        return total

    def _whole(self, low: int, high: int) -> torch.Tensor:
        merged = read_rows(self._descriptor, self._source, low, high, self._columns)
        found = merged.clone()
        for band in self._bands:
            begin, stop = max(low, band.first), min(high, band.end)
            if begin < stop:
                here = merged[begin - low : stop - low]
                moved = band.update.moved(here, begin - band.first)
                found[begin - low : stop - low] = stored_rows(here, moved, self._dtype, is_measured=False)[0]
        self._doubts[low] = doubt_about(merged, found)
        return found


class Subtractor:
    """Everything of a base that a merge has changed, nearly.

    Parameters
    ----------
    going : the adapters with strengths turned round
    base : the merged model without what its merge had added
    adapters : those of `going`
    """

    def __init__(self, going: Changes, base: Base, adapters: Sequence[Adapter], reader: Reader) -> None:
        steps = steps_of(going, base, None)
        self._steps = {name: step for name, step in steps.items() if step.parts and name in base.tensors}
        self._adapters = adapters
        self._reader = reader
        self._open: dict[str, SubtractedTensor] = {}
        self.doubts: dict[str, Doubt] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._steps

    def place(self, ref: TensorRef) -> TensorRef:
        """Where a tensor of the base is."""
        return ref

    def tensor(self, name: str, descriptor: int) -> SubtractedTensor:
        """One tensor, `descriptor` being the open file where the merge has put it."""
        step = self._steps[name]
        self._open[name] = SubtractedTensor(step, descriptor, bands_of(step, self._adapters, self._reader))
        return self._open[name]

    def require(self, name: str, sha256: str) -> None:  # noqa: ARG002
        """Nothing is known to hold it against; its doubt is kept."""
        self.doubts[name] = self._open.pop(name).doubt
