"""Many weights that are in memory changed at once, each in one pass over it.

What bounds it: a weight of 16 bits is read and written, 4 bytes an element, as a copy is, and 4·R operations an element
are done between, R the rank taken out and that put in. At rank 16 a processor's core needs about as long for each of
the two products in float32 as for its share of the copy, twice that in float64, and each conversion costs another half
while the block stays in its second-level cache. So:

* A merge, whose bits are those that a merge into files writes, sums in float64.
* A swap by subtraction, which cannot promise the base's bits, sums weights of 16 bits in float32: 2⁻²⁴ relative, where
  the stored type has 2⁻⁹ at best. It rounds between taking out and putting in: round(round(W′ − ΔA) + ΔB). The first
  rounding gives back W wherever W′ lies in the binade of W, so that errors of most weights do not add up from swap to
  swap; the sum of both differences, rounded once, would save a sixth of the time and keep the error of every swap
  before in all of them. Where an adapter takes a weight into another binade errors do add up: who swaps for long takes
  a strategy that is exact, or merges anew at times.

A product in float32 may depend on the size of what is multiplied and on where it lies. Blocks are therefore always of
one size for one shape of weight, the last one filled up, in buffers that begin at the allocator's alignment, and each
is computed by one thread: same inputs, same bytes, whatever the number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.linalg.device import has_float64
from lora_lab.linalg.threads import in_lanes, worker_count
from lora_lab.linalg.updates import BLOCK_ELEMENTS, Update
from lora_lab.linalg.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Stored types so coarse that sums in float32 are far finer.
NARROW: Final = (torch.bfloat16, torch.float16)
# Elements of a float32 tile: few enough for the last cache, and so many that one tile's calls cost little beside it.
_TILE_ELEMENTS: Final = 1 << 19
# Rows of a block on a device that is no processor: enough for every multiprocessor, and a bounded float32 buffer.
_DEVICE_ELEMENTS: Final = 1 << 26


class Ready(NamedTuple):
    """An update whose factors have been brought into the type that they are multiplied in.

    single_A : (R, in) float32, contiguous; None where the update is more than one product
    single_B : (out, R) float32
    """

    update: Update
    single_A: torch.Tensor | None
    single_B: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        own = (*self.update.plain_factors, *(one for one in (self.single_A, self.single_B) if one is not None))
        return sum(factor.nbytes for factor in own)


class Change(NamedTuple):
    """What is done to one weight.

    weight : (out, in), float16, bfloat16, float32 or float64; changed in place
    put : what is added; None for nothing
    taken : what is subtracted before that, and the difference rounded: products alone; None for nothing
    kept : of the shape and type of the weight: what is added to instead of the weight itself
    """

    weight: torch.Tensor
    put: Ready | None
    taken: Ready | None = None
    kept: torch.Tensor | None = None


def ready(update: Update, device: str = "cpu") -> Ready:
    """Bring the factors of `update` to `device` and into both types; those of float64 stay where float64 is."""
    place = torch.device(device)
    there = update.to(place) if device != "cpu" and has_float64(device) else update
    if not there.is_plain:
        return Ready(there, None, None)
    A, B = (factor.to(torch.float32).contiguous().to(place) for factor in there.plain_factors)
    return Ready(there, A, B)


def merge_all(changes: Sequence[Change]) -> None:
    """Change every weight to round(W + Δ): the bits that a merge into files writes.

    A device without float64 sums products in float32; DoRA goes through the processor.

    Examples
    --------
    >>> from lora_lab.linalg.updates import Term, Update
    >>> kept, weight = torch.ones(3, 2), torch.empty(3, 2)
    >>> update = Update("w", (3, 2), [Term(torch.ones(1, 2), torch.ones(3, 1), 0.5)])
    >>> merge_all([Change(weight, ready(update), kept=kept)])
    >>> weight[0]
    tensor([1.5000, 1.5000])
    """
    _run([(change, not has_float64(change.weight.device.type) and _may_be_single(change)) for change in changes])


def swap_all(changes: Sequence[Change]) -> None:
    """Change every weight to round(round(W′ − ΔA) + ΔB), weights of 16 bits summed in float32.

    A device without float64 sums others in float32 too.
    """
    _run([(change, _may_be_single(change)) for change in changes])


def _may_be_single(change: Change) -> bool:
    """Whether float32 is wide enough, and the change nothing but products."""
    steps = [step for step in (change.put, change.taken) if step is not None]
    is_enough = change.weight.dtype in NARROW or not has_float64(change.weight.device.type)
    return is_enough and all(step.single_A is not None for step in steps)


def _run(changes: Sequence[tuple[Change, bool]]) -> None:
    for change, _ in changes:
        assert change.taken is None or change.taken.update.is_plain  # DoRA's norms are of the unmerged weight
        if change.put is not None and change.put.update.needs_columns:
            _look(change.put.update, change.weight if change.kept is None else change.kept)
    space = Workspace()

    def one(place: tuple[int, int, int]) -> None:
        number, first, end = place
        change, is_single = changes[number]
        (_single if is_single else _double)(change, first, end, space)

    places = [
        (number, *span)
        for number, (change, is_single) in enumerate(changes)
        for span in _spans(change, is_single=is_single)
    ]
    is_on_processor = all(change.weight.device.type == "cpu" for change, _ in changes)
    in_lanes(one, places, worker_count() if is_on_processor else 1)


def _spans(change: Change, *, is_single: bool) -> Iterator[tuple[int, int]]:
    rows, step = change.weight.shape[0], _height(change, is_single=is_single)
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def _height(change: Change, *, is_single: bool) -> int:
    """Rows of a block, in float64 as many as a merge into files takes."""
    rows, columns = change.weight.shape
    if change.weight.device.type == "cpu":
        most = _TILE_ELEMENTS if is_single else BLOCK_ELEMENTS
        return max(1, min(rows, most // max(1, columns)))
    return max(1, min(rows, _DEVICE_ELEMENTS // max(1, columns)))


def _look(update: Update, source: torch.Tensor) -> None:
    update.forget()
    for _, first, end in update.blocks():
        update.look(_where_float64_is(source[first:end]), first)


def _double(change: Change, first: int, end: int, space: Workspace) -> None:
    """One block in float64."""
    rows = change.weight[first:end]
    source = _where_float64_is(rows if change.kept is None else change.kept[first:end])
    if change.taken is not None:
        gone = change.taken.update.delta(source, first, space=space)
        _store(rows, torch.sub(source.to(torch.float64), gone, out=gone))
        source = _where_float64_is(rows)
    if change.put is not None:
        _store(rows, change.put.update.moved(source, first, space=space))


def _store(rows: torch.Tensor, total: torch.Tensor) -> None:
    """Round into the rows; on the processor where float64 is there alone."""
    rows.copy_(total if total.device == rows.device else total.to(rows.dtype))


def _where_float64_is(rows: torch.Tensor) -> torch.Tensor:
    """The rows, on the processor where their device has no float64."""
    return rows if has_float64(rows.device.type) else rows.cpu()


def _single(change: Change, first: int, end: int, space: Workspace) -> None:
    """One block in float32, a tile of always the same height."""
    rows = change.weight[first:end]
    count, height = end - first, _height(change, is_single=True)
    tile = space.take("tile", (height, rows.shape[1]), torch.float32, rows.device)
    part = tile[:count]
    if count < height:
        tile[count:].zero_()
    part.copy_(rows if change.kept is None else change.kept[first:end])
    if change.taken is not None:
        _add_product(tile, change.taken, first, end, space, sign=-1.0)
        rows.copy_(part)
    if change.put is None:
        return
    if change.taken is not None:
        part.copy_(rows)
    _add_product(tile, change.put, first, end, space, sign=1.0)
    rows.copy_(part)


def _add_product(tile: torch.Tensor, step: Ready, first: int, end: int, space: Workspace, *, sign: float) -> None:
    """Add rows of ±B·A to the tile."""
    A, B = step.single_A, step.single_B
    assert A is not None
    assert B is not None
    if not len(A):
        return
    factor = space.take("factor", (tile.shape[0], B.shape[1]), torch.float32, tile.device)
    factor[: end - first].copy_(B[first:end])
    if end - first < tile.shape[0]:
        factor[end - first :].zero_()
    tile.addmm_(factor, A, alpha=sign)  # (height, R)(R, in)
