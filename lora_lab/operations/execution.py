"""A plan turned into files: bytes copied, blocks summed and rounded once, every file hashed while it is written."""

from __future__ import annotations

import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import torch

from lora_lab.domain.plan import StepKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import NumericalError, quoted
from lora_lab.linalg.nonfinite import require_finite, settle_nonfinite
from lora_lab.linalg.rechecking import require_right
from lora_lab.linalg.rounding import Rounding, block_generator, rounded
from lora_lab.linalg.storing import Fidelity, stored_rows
from lora_lab.linalg.threads import one_thread, worker_count
from lora_lab.linalg.workspace import Workspace
from lora_lab.operations.weights import bands_of, matrix_shape
from lora_lab.storage.files import opened, require_unchanged, stamp_of
from lora_lab.storage.hashing import Hasher
from lora_lab.storage.reading import torch_dtype
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.dtypes import DType
    from lora_lab.domain.plan import Plan, PlannedFile, Step
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.tensors import FileStamp, TensorRef
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.options import MergeOptions
    from lora_lab.operations.weights import Band
    from lora_lab.storage.staging import StagedFile, StagedFolder

    Work = tuple[Step, TensorRef, int, Band, Any, int, int, int]
    Result = tuple[torch.Tensor, torch.Tensor, Fidelity, int, Any]

_W = TypeVar("_W")
_R = TypeVar("_R")
_CAST_ELEMENTS: Final = 1 << 20
_COPY_BYTES: Final = 64 << 20  # between two looks at whether it is still wanted


class Witness(Protocol):
    """Whoever looks at every row that is summed, as it was and as it is."""

    def begin(self, step: Step) -> None:
        """The rows of this tensor come next."""

    def prepared(self, band: Band) -> Any:
        """What :meth:`look` wants to know of a band of rows."""

    def look(self, prepared: Any, before: torch.Tensor, after: torch.Tensor, first: int) -> Any:
        """Look at rows, counted within their band; called from several threads at once."""

    def take(self, element: int, seen: Any) -> None:
        """What was seen of the rows whose first element is `element` of the tensor; in order."""

    def end(self, step: Step, sha256: str) -> None:
        """All rows were shown; `sha256` is that of their bytes as they were."""


class Execution:
    """Writes the files of one plan.

    Parameters
    ----------
    adapters : the inputs, in the order that the plan's parts count
    witness : is shown every tensor that is summed
    """

    def __init__(
        self,
        plan: Plan,
        adapters: Sequence[Adapter],
        reader: Reader,
        options: MergeOptions,
        observer: Observer,
        witness: Witness | None = None,
    ) -> None:
        self._witness = witness
        self._plan = plan
        self._adapters = adapters
        self._reader = reader
        self._options = options
        self._observer = observer
        self._sources: dict[FileStamp, int] = {}
        self._done_bytes = 0
        self._device = torch.device(options.device)
        self._space = Workspace()
        self.bytes_read = 0
        self.fidelity: dict[str, Fidelity] = {}
        self.base_sha256: dict[str, str] = {}  # of the bytes of every tensor that was summed

    def write(self, staged: StagedFolder) -> None:
        """Write every file that is not finished yet.

        Raises
        ------
        CancelledError
            the observer no longer wants it.
        NumericalError
            a sum exceeds the range of the type it is stored in, or an input is not finite.
        FileFormatError
            a source changed underneath.
        """
        there = frozenset(staged.finished)
        with ExitStack() as stack, ThreadPoolExecutor(worker_count(), thread_name_prefix="merge") as pool:
            for file in self._plan.files:
                if file.name in there and not any(step.kind is StepKind.UPDATE for step in file.steps):
                    self._advance(file.size_bytes, file.name)
                    continue
                self._open_sources(file, stack)
                if file.name in there:
                    self._measure(file, pool)
                    continue
                with staged.file(file.name, file.size_bytes) as output:
                    self._weights(file, output, pool)
            for copy in self._plan.copies:
                stop_if_cancelled(self._observer)
                if copy.name not in there:
                    with opened(copy.path) as source, staged.file(copy.name, copy.size_bytes) as output:
                        output.copy_from(source, 0, copy.size_bytes)
                        output.finish()
                self._advance(copy.size_bytes, copy.name)
            for name, content in self._plan.documents.items():
                if name not in there:
                    with staged.file(name, len(content)) as output:
                        output.write(content)
            for stamp, descriptor in self._sources.items():
                require_unchanged(stamp, stamp_of(descriptor, stamp.path))

    def tensors(self, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the output on `device`, with its name, instead of files; raises as :meth:`write` does."""
        with ExitStack() as stack, ThreadPoolExecutor(worker_count(), thread_name_prefix="merge") as pool:
            for file in self._plan.files:
                self._open_sources(file, stack)
                for step in file.steps:
                    stop_if_cancelled(self._observer)
                    blocks = self._copied(step) if step.kind is StepKind.COPY else self._blocks(step, pool)
                    yield step.name, self._whole(step, blocks, device)
            for stamp, descriptor in self._sources.items():
                require_unchanged(stamp, stamp_of(descriptor, stamp.path))

    def _copied(self, step: Step) -> Iterator[torch.Tensor]:
        """A tensor that is kept, in parts."""
        assert step.source is not None
        elements = prod(step.shape)
        self.bytes_read += step.source.size_bytes
        for first in range(0, max(1, elements), _CAST_ELEMENTS):
            stop_if_cancelled(self._observer)
            yield self._rows(step.source, first, min(elements, first + _CAST_ELEMENTS), 1)

    def _whole(self, step: Step, blocks: Iterator[torch.Tensor], device: torch.device) -> torch.Tensor:
        """The tensor that `blocks` make."""
        found: torch.Tensor | None = None
        at = 0
        for block in blocks:
            if found is None:
                found = torch.empty(step.shape, dtype=block.dtype, device=device)
            found.view(-1)[at : at + block.numel()].copy_(block.reshape(-1))
            at += block.numel()
            self._advance(block.nbytes, step.name)
        assert found is not None
        return found

    def _open_sources(self, file: PlannedFile, stack: ExitStack) -> None:
        for step in file.steps:
            stamp = None if step.source is None else self._place(step.source).file
            if stamp is not None and stamp not in self._sources:
                descriptor = stack.enter_context(opened(stamp.path))
                require_unchanged(stamp, stamp_of(descriptor, stamp.path))
                self._sources[stamp] = descriptor

    def _weights(self, file: PlannedFile, output: StagedFile, pool: ThreadPoolExecutor) -> None:
        output.write(file.header)
        for is_copied, steps in groupby(file.steps, key=lambda step: step.kind is StepKind.COPY):
            if is_copied:
                for source, begin, count in _ranges([self._place(step.source) for step in steps if step.source]):
                    for at in range(begin, begin + count, _COPY_BYTES):
                        stop_if_cancelled(self._observer)
                        part = min(_COPY_BYTES, begin + count - at)
                        output.copy_from(self._sources[source], at, part)
                        self.bytes_read += part
                        self._advance(part, file.name)
                continue
            for step in steps:
                for block in self._blocks(step, pool):
                    output.write(raw_bytes(block))
                    self._advance(block.nbytes, step.name)

    def _measure(self, file: PlannedFile, pool: ThreadPoolExecutor) -> None:
        """What became of the updates in a file that an earlier run has finished: worked out again, not written."""
        for step in file.steps:
            if step.kind is StepKind.UPDATE:
                for block in self._blocks(step, pool):
                    self._advance(block.nbytes, step.name)

    def _blocks(self, step: Step, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        """New rows of one tensor, in order."""
        if step.kind is StepKind.ADD:
            saved = step.parts[0].saved
            assert saved is not None
            tensor = self._reader.tensor(saved.tensor)
            self.bytes_read += tensor.nbytes
            if not self._options.allow_nonfinite and not torch.isfinite(tensor).all():
                raise NumericalError(
                    f"The tensor {quoted(saved.tensor.name)} that {quoted(self._adapters[step.parts[0].adapter].name)} "
                    f"adds holds {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite, expected "
                    "finite numbers.",
                    hint="The training diverged, or the file is damaged; merge --allow-nonfinite lets it through.",
                )
            yield tensor.to(torch_type(step.dtype))
            return
        assert step.source is not None
        self.bytes_read += step.source.size_bytes
        rows, columns = matrix_shape(step)
        if step.kind is StepKind.CAST:
            at_once = max(1, _CAST_ELEMENTS // max(1, columns))
            for first in range(0, rows, at_once):
                stop_if_cancelled(self._observer)
                before = self._rows(step.source, first, min(rows, first + at_once), columns)
                after = rounded(before, torch_type(step.dtype))
                if self._options.allow_nonfinite:
                    settle_nonfinite(after, before, step.name)
                else:
                    require_finite(after, before, step.name)
                yield after
            return
        yield from self._updated(step, step.source, columns, pool)

    def _updated(self, step: Step, source: TensorRef, columns: int, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        fidelity = self.fidelity.setdefault(step.name, Fidelity())
        hasher = Hasher()
        if self._witness is not None:
            self._witness.begin(step)
        try:
            at = 0
            with one_thread():
                bands = self._bands(step)
            for band in bands:
                yield from self._untouched(step, source, at, band.first, columns, hasher)
                yield from self._band(step, source, columns, band, pool, hasher, fidelity)
                at = band.end
            yield from self._untouched(step, source, at, matrix_shape(step)[0], columns, hasher)
            self.base_sha256[step.name] = hasher.hexdigest()
            if self._witness is not None:
                self._witness.end(step, self.base_sha256[step.name])
        finally:
            hasher.close()

    def _bands(self, step: Step) -> list[Band]:
        try:
            return bands_of(step, self._adapters, self._reader)
        except NumericalError as error:
            hint = f"{error.hint.rstrip('.')}; merge --allow-nonfinite lets it through."
            raise NumericalError(error.message, hint=hint) from None

    def _band(
        self,
        step: Step,
        source: TensorRef,
        columns: int,
        band: Band,
        pool: ThreadPoolExecutor,
        hasher: Hasher,
        fidelity: Fidelity,
    ) -> Iterator[torch.Tensor]:
        """New rows of one band, computed side by side and given in order."""
        if band.update.needs_columns:
            for _, first, end in band.update.blocks():
                band.update.look(self._rows(source, band.first + first, band.first + end, columns), first)
        view = None if self._witness is None else self._witness.prepared(band)
        there = band._replace(update=band.update.to(self._device))
        work = ((step, source, columns, there, view, *place) for place in band.update.blocks())
        for before, after, part, first, seen in in_order(pool, self._one, work):
            stop_if_cancelled(self._observer)
            fidelity.add(part)
            hasher.update(raw_bytes(before))
            if self._witness is not None:
                self._witness.take((band.first + first) * columns, seen)
            yield after

    def _untouched(
        self, step: Step, source: TensorRef, first: int, end: int, columns: int, hasher: Hasher
    ) -> Iterator[torch.Tensor]:
        """Rows of experts that no adapter has."""
        if end > first:
            before = self._rows(source, first, end, columns)
            hasher.update(raw_bytes(before))
            yield before.to(torch_type(step.dtype))

    def _one(self, work: Work) -> Result:
        step, source, columns, band, view, block, first, end = work
        generator = None
        if self._options.rounding == Rounding.STOCHASTIC:
            generator = block_generator(self._options.seed, band.update.name, block, device=self._device.type)
        with one_thread():
            before = self._rows(source, band.first + first, band.first + end, columns)
            rows = before.to(self._device)
            moved = band.update.moved(rows, first, space=self._space)
            after_there, fidelity = stored_rows(
                rows, moved, torch_type(step.dtype), generator=generator, space=self._space
            )
            after = after_there.cpu()
            if not math.isfinite(fidelity.realised_square):  # as it is where any number is infinite or none
                fidelity.not_finite = self._nonfinite(after, before, step, band, first)
            require_right(rows, after_there, band.update, first, block)
            seen = None if self._witness is None else self._witness.look(view, before, after, first)
        return before, after, fidelity, first, seen

    def _nonfinite(self, after: torch.Tensor, before: torch.Tensor, step: Step, band: Band, first: int) -> int:
        """How many values of a block are not finite, when they may be so; refuse them otherwise."""

        def sums() -> torch.Tensor:
            return band.update.moved(before.to(self._device), first).cpu()

        if self._options.allow_nonfinite:
            return settle_nonfinite(after, sums(), step.name)
        require_finite(after, before, step.name, sums=sums)
        return 0

    def _place(self, source: TensorRef) -> TensorRef:
        """Where the bytes of a tensor are."""
        return source

    def _rows(self, source: TensorRef, first: int, end: int, columns: int) -> torch.Tensor:
        """Rows of a tensor before it is changed."""
        return read_rows(self._sources[source.file], source, first, end, columns)

    def _advance(self, count: int, what: str) -> None:
        self._done_bytes += count
        self._observer.advance(min(self._done_bytes, self._plan.bytes_to_write), self._plan.bytes_to_write, what)


def in_order(pool: ThreadPoolExecutor, function: Callable[[_W], _R], work: Iterable[_W]) -> Iterator[_R]:
    """Results in the order of `work`, a few of them ahead of whoever takes them."""
    ahead = worker_count() * 4
    waiting: deque[Future[_R]] = deque()
    for one in work:
        waiting.append(pool.submit(function, one))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _ranges(refs: Sequence[TensorRef]) -> Iterator[tuple[FileStamp, int, int]]:
    """Runs of bytes of tensors that lie side by side."""
    run: tuple[FileStamp, int, int] | None = None
    for ref in refs:
        if run is not None and run[0] == ref.file and run[1] + run[2] == ref.begin_bytes:
            run = (run[0], run[1], run[2] + ref.size_bytes)
            continue
        if run is not None:
            yield run
        run = (ref.file, ref.begin_bytes, ref.size_bytes)
    if run is not None:
        yield run


def torch_type(dtype: DType) -> torch.dtype:
    """The torch type of a weight that is computed with."""
    found = torch_dtype(dtype)
    assert found is not None
    return found


def raw_bytes(block: torch.Tensor) -> memoryview:
    """Bytes of a block as they are stored."""
    # numpy has no bfloat16; the bytes are the same whatever they are called.
    flat: Any = block.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def peak_memory_bytes() -> int | None:
    """The most memory that this process has held; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if os.uname().sysname == "Darwin" else 1024)
