"""A base that is nowhere, read through a merged model and its undo file, row by row."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Protocol, Self

import torch

from lora_lab.domain.plan import StepKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.linalg.nonfinite import require_finite
from lora_lab.linalg.residuals import Inverse, restore
from lora_lab.linalg.rounding import rounded
from lora_lab.linalg.threads import one_thread
from lora_lab.linalg.updates import BLOCK_ELEMENTS
from lora_lab.operations.execution import Execution, in_order, raw_bytes, torch_type
from lora_lab.operations.layout import steps_of
from lora_lab.operations.planning import changes_of
from lora_lab.operations.undo import Residual
from lora_lab.operations.weights import bands_of, matrix_shape
from lora_lab.storage.files import opened, require_unchanged, stamp_of
from lora_lab.storage.hashing import Hasher
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from types import TracebackType
    from typing import Any

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Plan, Step
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.undo import Undo
    from lora_lab.operations.weights import Band


class RestoredTensor:
    """The rows of one tensor of the base, from the merged rows; any of them, from any thread.

    Parameters
    ----------
    step : what the merge did to it
    merged : where it is now
    descriptor : of the merged file
    """

    def __init__(
        self, step: Step, merged: TensorRef, descriptor: int, bands: Sequence[Band], undo: Undo, undo_descriptor: int
    ) -> None:
        assert step.source is not None
        self._merged = merged
        self._descriptor = descriptor
        self._shape = matrix_shape(step)
        self._dtype = torch_type(step.source.dtype)
        needed = sum(_gain_count(band) for band in bands)
        ref = undo.residuals[step.name]
        self._residual = Residual(ref, undo_descriptor, prod(self._shape), step.source.dtype.bits, needed)
        self._bands: list[tuple[Band, Inverse, torch.Tensor]] = []
        at = 0
        for band in bands:
            gains = torch.from_numpy(self._residual.gains[at : at + _gain_count(band)])
            at += len(gains)
            by_column = [term.is_by_column for term in band.update.scaled_terms]
            columns = sum(by_column) * band.update.shape[1]
            inverse = Inverse(band.update, self._dtype, gains[:columns].reshape(sum(by_column), band.update.shape[1]))
            by_row = gains[columns:].reshape(band.update.shape[0], len(by_column) - sum(by_column))
            self._bands.append((band, inverse, by_row))

    def rows(self, first: int, end: int, columns: int) -> torch.Tensor:
        """The rows from `first` to before `end` of the tensor seen as a matrix of `columns` columns."""
        return in_other_rows(self._whole, self._dtype, self._shape[1], first, end, columns)

    def _whole(self, low: int, high: int) -> torch.Tensor:
        """Rows of the matrix that the merge saw."""
        own = self._shape[1]
        merged = read_rows(self._descriptor, self._merged, low, high, own)
        predicted = merged.to(self._dtype)
        for band, inverse, gains in self._bands:
            begin, stop = max(low, band.first), min(high, band.end)
            if begin < stop:
                here = slice(begin - band.first, stop - band.first)
                part = inverse.predicted(merged[begin - low : stop - low], begin - band.first, gains[here])
                predicted[begin - low : stop - low] = part
        return restore(predicted.contiguous(), self._residual.between(low * own, high * own))


def in_other_rows(
    whole: Callable[[int, int], torch.Tensor], dtype: torch.dtype, own: int, first: int, end: int, columns: int
) -> torch.Tensor:
    """Rows of a tensor seen as a matrix of `columns` columns, made of whole rows of `own` elements."""
    if not own or end == first:
        return torch.empty((end - first, columns), dtype=dtype)
    low, high = first * columns // own, -(-end * columns // own)
    skipped = first * columns - low * own
    found = whole(low, high).reshape(-1)
    return found[skipped : skipped + (end - first) * columns].reshape(end - first, columns)


def _gain_count(band: Band) -> int:
    rows, columns = band.update.shape
    return sum(columns if term.is_by_column else rows for term in band.update.scaled_terms)


class Restorer:
    """Everything of a base that a merge has changed; use as a context manager.

    Parameters
    ----------
    base : as its headers describe it, see :meth:`~lora_lab.operations.undo.Undo.base_behind`
    merged : where its bytes went
    adapters : those of the recipe, in its order

    Raises
    ------
    CompatibilityError
        the recipe and the residuals are not of one merge.
    """

    def __init__(self, undo: Undo, base: Base, merged: Base, adapters: Sequence[Adapter], reader: Reader) -> None:
        self.undo = undo
        self._merged = merged
        self._adapters = adapters
        self._reader = reader
        changes = changes_of(adapters, base, undo.options)
        steps = steps_of(changes, base, None)
        self._steps = {name: step for name, step in steps.items() if step.parts and name in base.tensors}
        if self._steps.keys() != undo.residuals.keys():
            other = min(self._steps.keys() ^ undo.residuals.keys())
            raise CompatibilityError(
                f"{quoted(undo.path)} is not the undo file of these adapters: {quoted(other)} is changed by them or "
                "has a residual, not both.",
                hint="Give the undo file and the adapters of one merge, or unmerge with the base.",
            )
        self._stack = ExitStack()
        self._descriptor = -1

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._descriptor = stack.enter_context(opened(self.undo.path))
            require_unchanged(self.undo.stamp, stamp_of(self._descriptor, self.undo.path))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._steps

    def place(self, ref: TensorRef) -> TensorRef:
        """Where a tensor of the base is in the merged model."""
        return self._merged.tensors[ref.name]

    def tensor(self, name: str, descriptor: int) -> RestoredTensor:
        """One tensor, `descriptor` being the open file where the merge has put it."""
        step = self._steps[name]
        bands = bands_of(step, self._adapters, self._reader)
        return RestoredTensor(step, self._merged.tensors[name], descriptor, bands, self.undo, self._descriptor)

    def require(self, name: str, sha256: str) -> None:
        """Refuse a tensor that is not what it was.

        Raises
        ------
        CompatibilityError
            its sha256 is another one than before the merge.
        """
        if sha256 != self.undo.tensor_sha256[name]:
            raise CompatibilityError(
                f"{quoted(name)} of {quoted(self._merged.name)} does not give the base's bits back: its sha256 is "
                f"{sha256[:12]}…, expected {self.undo.tensor_sha256[name][:12]}….",
                hint="The merged model was changed after the merge, or is another one than the undo file is of.",
            )


class Rows(Protocol):
    """Rows of a tensor that is made from another."""

    def rows(self, first: int, end: int, columns: int) -> torch.Tensor:
        """The rows from `first` to before `end` of the tensor seen as a matrix of `columns` columns."""


class Ground(Protocol):
    """A base that is read through a merged model."""

    def __contains__(self, name: str) -> bool: ...

    def place(self, ref: TensorRef) -> TensorRef:
        """Where a tensor of the base is in the merged model."""

    def tensor(self, name: str, descriptor: int) -> Rows:
        """One tensor that was changed, `descriptor` being the open file where the merge has put it."""

    def require(self, name: str, sha256: str) -> None:
        """Refuse a tensor that is not what it was; all of it was read."""


def planned_over(ground: Ground, plan: Plan) -> Plan:
    """A plan over the base, with nothing copied that is not in the merged model as it was in the base."""

    def moved(step: Step) -> Step:
        assert step.source is not None
        is_other = step.source.name in ground or ground.place(step.source).dtype is not step.source.dtype
        return replace(step, kind=StepKind.CAST) if is_other else step

    files = []
    for file in plan.files:
        steps = tuple(moved(step) if step.kind is StepKind.COPY else step for step in file.steps)
        files.append(replace(file, steps=steps))
    return replace(plan, files=tuple(files))


class RestoringExecution(Execution):
    """Writes the files of a plan over a base that is read through `ground`, which proves every tensor that it gives."""

    def __init__(self, ground: Ground, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._ground = ground
        self._restored: Rows | None = None

    def _place(self, source: TensorRef) -> TensorRef:
        return self._ground.place(source)

    def _rows(self, source: TensorRef, first: int, end: int, columns: int) -> torch.Tensor:
        if self._restored is not None:
            return self._restored.rows(first, end, columns)
        place = self._place(source)
        return read_rows(self._sources[place.file], place, first, end, columns).to(torch_type(source.dtype))

    def _blocks(self, step: Step, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        source = step.source
        if source is None:
            yield from super()._blocks(step, pool)
            return
        self._restored = None
        if source.name in self._ground:
            self._restored = self._ground.tensor(source.name, self._sources[self._place(source).file])
        if step.kind is StepKind.CAST:
            yield from self._cast(step, source, pool)
        else:
            yield from super()._blocks(step, pool)
            if self._restored is not None:
                self._ground.require(source.name, self.base_sha256[step.name])

    def _cast(self, step: Step, source: TensorRef, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        """Restored rows, in the step's type."""
        self.bytes_read += source.size_bytes
        rows, columns = matrix_shape(step)
        at_once = max(1, BLOCK_ELEMENTS // max(1, columns))

        def one(first: int) -> tuple[torch.Tensor, torch.Tensor]:
            with one_thread():
                before = self._rows(source, first, min(rows, first + at_once), columns)
                after = rounded(before, torch_type(step.dtype))
                if step.dtype is not source.dtype:
                    require_finite(after, before, step.name)
            return before, after

        hasher = Hasher()
        try:
            for before, after in in_order(pool, one, range(0, rows, at_once)):
                stop_if_cancelled(self._observer)
                hasher.update(raw_bytes(before))
                yield after
            if self._restored is not None:
                self._ground.require(source.name, hasher.hexdigest())
        finally:
            hasher.close()
