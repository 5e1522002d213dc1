"""Tensors of a merged model beside those of its base, a block of rows at a time."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import torch

from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.plan import StepKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import quoted
from lora_lab.linalg.rounding import Rounding, block_generator
from lora_lab.linalg.suspects import Seen, Suspect, off_by_too_much
from lora_lab.linalg.threads import one_thread, worker_count
from lora_lab.linalg.verification import (
    DORA_ROUNDINGS_ULP,
    SOME_ROUNDINGS_ULP,
    Comparison,
    Diagnosis,
    compare_right_rows,
    compare_rows,
    sound_or_not,
)
from lora_lab.operations.weights import bands_of, matrix_shape
from lora_lab.storage.files import opened, read_at, require_unchanged, stamp_of
from lora_lab.storage.reading import torch_dtype
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from types import TracebackType

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.plan import Step
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.tensors import FileStamp, TensorRef
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.options import MergeOptions
    from lora_lab.operations.weights import Band

_BYTES: Final = 4 << 20
_ELEMENTS: Final = 1 << 20
_FINE_ENOUGH: Final = 1e-3  # of a strength that is refined
_MOST_REFINEMENTS: Final = 3
_DORA_REACH: Final = 4.0  # m/‖W + ΔW‖ multiplies the sum with all its roundings
_COMPARED: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Judged(NamedTuple):
    """What one tensor is."""

    diagnosis: Diagnosis
    detail: str
    found: Comparison
    strength: float | None
    strength_error: float | None


class Place(NamedTuple):
    """One block of rows: of which band, its number in it, first row and end in it."""

    band: Band
    block: int
    first: int
    end: int


class Comparer:
    """Compares tensors of a merged model with what its base and adapters make; files stay open meanwhile.

    Parameters
    ----------
    adapters : in the order that the parts of steps count
    """

    def __init__(
        self, adapters: Sequence[Adapter], reader: Reader, options: MergeOptions, observer: Observer, total_bytes: int
    ) -> None:
        self._adapters = adapters
        self._reader = reader
        self._options = options
        self._observer = observer
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._files: dict[FileStamp, int] = {}
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        try:
            if error is None:
                for stamp, descriptor in self._files.items():
                    require_unchanged(stamp, stamp_of(descriptor, stamp.path))
        finally:
            self._stack.close()

    def unlike(self, step: Step, merged: TensorRef) -> int:
        """Count how many bytes, or values where the type is another, of a tensor are not the base's.

        What an adapter adds to the base is compared with the adapter's own tensor.
        """
        ref = step.source or next(part.saved.tensor for part in step.parts if part.saved is not None)
        one, other = self._open(ref), self._open(merged)
        if ref.dtype is not merged.dtype and None in (torch_dtype(ref.dtype), torch_dtype(merged.dtype)):
            return ref.elements
        if ref.dtype is merged.dtype:

            def differing(place: tuple[int, int]) -> int:
                first, count = place
                ours = read_at(one, ref.file.path, ref.begin_bytes + first, count)
                theirs = read_at(other, merged.file.path, merged.begin_bytes + first, count)
                if ours == theirs:
                    return 0
                pair = [torch.frombuffer(bytearray(raw), dtype=torch.uint8) for raw in (ours, theirs)]
                return int(torch.count_nonzero(pair[0] != pair[1]))

            places = [(first, min(_BYTES, ref.size_bytes - first)) for first in range(0, ref.size_bytes, _BYTES)]
        else:

            def differing(place: tuple[int, int]) -> int:
                first, count = place
                theirs = read_rows(other, merged, first, first + count, 1)
                ours = read_rows(one, ref, first, first + count, 1).to(theirs.dtype)
                is_nan = (ours != ours) & (theirs != theirs)
                return int(torch.count_nonzero((ours != theirs) & ~is_nan))

            places = [(first, min(_ELEMENTS, ref.elements - first)) for first in range(0, ref.elements, _ELEMENTS)]
        found = 0
        for place, count in zip(places, self._in_order(differing, places), strict=True):
            found += count
            self._advance(place[1] * merged.size_bytes // max(1, ref.size_bytes), merged.name)
        return found

    def judge(self, step: Step, merged: TensorRef) -> Judged:
        """Say what a changed tensor is, of the step's name and shape."""
        assert step.kind is StepKind.UPDATE
        assert step.source is not None
        for ref in (step.source, merged):
            self._open(ref)  # here, not in one of several threads
        dtype = torch_dtype(merged.dtype)
        if dtype not in _COMPARED:
            self._advance(merged.size_bytes, merged.name)
            detail = f"it is stored as {merged.dtype}, which holds no weight as it was summed"
            return Judged(Diagnosis.INCONCLUSIVE, detail, Comparison(), None, None)
        bands = bands_of(step, self._adapters, self._reader)
        self._look_at_columns(step, bands)
        first = self._quickly(step, merged, bands) or self._compared(step, merged, bands, 1.0)
        self._advance(merged.size_bytes, merged.name)
        at_rest = self._unlike_between(step, merged, bands)
        diagnosis = sound_or_not(first)
        if at_rest and (diagnosis is None or diagnosis.is_sound):
            detail = f"values of experts that no adapter has are not the base's: {at_rest}"
            return Judged(Diagnosis.WRONG_VALUES, detail, first, first.strength, first.strength_error)
        if diagnosis is not None:
            is_told = first.wrong and diagnosis is not Diagnosis.NOT_APPLIED
            detail = off_by_too_much(first.wrong) if is_told else ""
            return Judged(diagnosis, detail, first, first.strength, first.strength_error)
        return self._suspected(step, merged, bands, first)

    def _suspected(self, step: Step, merged: TensorRef, bands: Sequence[Band], first: Comparison) -> Judged:
        is_plain = all(part.delta is not None and part.delta.magnitude is None for part in step.parts)
        suspect = Suspect(first, matrix_shape(step), is_plain and len(step.shape) > 1, self._owners(step))

        def look(place: Place) -> Seen:
            with one_thread():
                before, after = self._pair(step, merged, place)
                delta = place.band.update.delta(before, place.first)
                return suspect.look(
                    before, after, delta, place.band.first + place.first, place.band.update, place.band.first
                )

        for seen in self._in_order(look, _places(bands)):
            suspect.take(seen)
        strength = first.weighed_strength or 0.0
        for _ in range(_MOST_REFINEMENTS):
            found = self._compared(step, merged, bands, strength)
            ratio = found.weighed_strength
            if ratio is None or abs(ratio - 1) < _FINE_ENOUGH:
                break
            strength *= ratio
        error = abs(strength) * (found.weighed_error or 0.0)
        diagnosis, detail = suspect.diagnosis(strength, error, found)
        return Judged(diagnosis, detail, first, strength, error)

    def _dora(self, step: Step) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Factors A (R, in) and B (out, R), with scaling and strength, of the parts that have magnitudes."""
        found = []
        for part in step.parts:
            if part.delta is None or part.delta.magnitude is None or len(step.shape) < 2:
                continue
            factors = self._reader.factors(part.delta)
            A, B = factors.lora_A.to(torch.float64), factors.lora_B.to(torch.float64)
            A, B = (B.T, A.T) if factors.is_transposed else (A, B)
            found.append((A, B * (_DORA_REACH * factors.scaling * part.strength)))
        return found

    def _owners(self, step: Step) -> tuple[str, ...]:
        """The adapter of every rank of the stacked factors."""
        return tuple(
            quoted(self._adapters[part.adapter].name)
            for part in step.parts
            if part.delta is not None and part.delta.kind is not DeltaKind.EXPERTS
            for _ in range(part.delta.rank)
        )

    def _look_at_columns(self, step: Step, bands: Sequence[Band]) -> None:
        assert step.source is not None
        for band in bands:
            if band.update.needs_columns:
                for _, first, end in band.update.blocks():
                    band.update.look(self._read(step.source, step, band.first + first, band.first + end), first)

    def _quickly(self, step: Step, merged: TensorRef, bands: Sequence[Band]) -> Comparison | None:
        """Compare every band with W + Δ; None as soon as one has other bits."""

        def one(place: Place) -> Comparison | None:
            with one_thread():
                before, after = self._pair(step, merged, place)
                moved = place.band.update.moved(before, place.first)
                return compare_right_rows(before, after, moved, generator=self._generator(place))

        total = Comparison()
        found = self._in_order(one, _places(bands))
        for comparison in found:
            if comparison is None:
                found.close()
                return None
            total.add(comparison)
        return total

    def _generator(self, place: Place) -> torch.Generator | None:
        """Of stochastic rounding, as the merge began the block with it."""
        if self._options.rounding != Rounding.STOCHASTIC:
            return None
        return block_generator(self._options.seed, place.band.update.name, place.block)

    def _compared(self, step: Step, merged: TensorRef, bands: Sequence[Band], strength: float) -> Comparison:
        """Compare every band with W + strength·Δ."""
        scales = [abs(part.strength * part.delta.scaling) for part in step.parts if part.delta is not None]
        dora = self._dora(step)

        def one(place: Place) -> Comparison:
            update = place.band.update
            with one_thread():
                before, after = self._pair(step, merged, place)
                delta = strength * update.delta(before, place.first)

                def reach() -> torch.Tensor:
                    own = slice(place.first, place.end)
                    scale = max(scales, default=1.0)
                    factors = [update.plain_factors, *dora]
                    return torch.stack([_products(A, B[own], scale, after.dtype) for A, B in factors]).sum(dim=0)

                most_ulp = DORA_ROUNDINGS_ULP if dora else SOME_ROUNDINGS_ULP
                return compare_rows(
                    before, after, delta, generator=self._generator(place), reach=reach, most_ulp=most_ulp
                )

        total = Comparison()
        for found in self._in_order(one, _places(bands)):
            total.add(found)
        return total

    def _unlike_between(self, step: Step, merged: TensorRef, bands: Sequence[Band]) -> int:
        """Count values outside all bands that are not the base's."""
        assert step.source is not None
        found = 0
        at = 0
        for first, end in [(band.first, band.end) for band in bands] + [(matrix_shape(step)[0],) * 2]:
            if first > at:
                after = self._read(merged, step, at, first)
                before = self._read(step.source, step, at, first).to(after.dtype)
                found += int(torch.count_nonzero((before != after) & ~(before.isnan() & after.isnan())))
            at = end
        return found

    def _pair(self, step: Step, merged: TensorRef, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        assert step.source is not None
        first, end = place.band.first + place.first, place.band.first + place.end
        return self._read(step.source, step, first, end), self._read(merged, step, first, end)

    def _read(self, ref: TensorRef, step: Step, first: int, end: int) -> torch.Tensor:
        return read_rows(self._open(ref), ref, first, end, matrix_shape(step)[1])

    def _open(self, ref: TensorRef) -> int:
        if ref.file not in self._files:
            descriptor = self._stack.enter_context(opened(ref.file.path))
            require_unchanged(ref.file, stamp_of(descriptor, ref.file.path))
            self._files[ref.file] = descriptor
        return self._files[ref.file]

    def _in_order(self, function: Callable[[Any], Any], work: Iterable[Any]) -> Generator[Any, None, None]:
        """Results in the order of `work`, a few of them ahead of whoever takes them."""
        waiting: deque[Any] = deque()
        for one in work:
            stop_if_cancelled(self._observer)
            waiting.append(self._pool.submit(function, one))
            if len(waiting) > 4 * worker_count():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _advance(self, count: int, what: str) -> None:
        self._done_bytes += count
        self._observer.advance(min(self._done_bytes, self._total_bytes), self._total_bytes, what)


def _products(lora_A: torch.Tensor, lora_B: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """The size of what a product B·A is the sum of: Σ|bᵢ||aᵢ|, half of it more for each √R sums.

    Whoever rounds the factors to `dtype` is off by a share of each product; below the type's normal numbers by more.
    """
    tiny = torch.finfo(dtype).tiny
    products = lora_B.abs().clamp_min(scale * tiny) @ lora_A.abs().clamp_min(tiny)
    return (1 + math.sqrt(lora_A.shape[0]) / 2) * products


def _places(bands: Sequence[Band]) -> Iterator[Place]:
    for band in bands:
        for block, first, end in band.update.blocks():
            yield Place(band, block, first, end)
