"""The entries of ΔW, made block of rows by block of rows, and which of them are the largest.

An entry is s·Σ_k B_ik A_kj summed in float64 and rounded once to float32: what a method decides about entries it
decides about these numbers. ΔW itself is never held.

The largest are found exactly, in two or three passes. The bits of a float32 without its sign, read as an integer, are
in the order of the magnitudes (IEEE 754, section 5.10): the first pass counts how many entries share their upper
sixteen bits,
which names the slice that the k-th largest is in, the second counts the numbers of that slice one by one, and a third
looks where those stand that equal it, when not all of them are wanted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, NumericalError, quoted
from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.linalg.spectra import Pair

    Rows = Callable[[int, int], torch.Tensor]

_LOWER_BITS: Final = 15
_UPPER_VALUES: Final = 1 << 16
_LOWER_VALUES: Final = 1 << _LOWER_BITS
_MAGNITUDE: Final = 0x7FFFFFFF


class Entries(NamedTuple):
    """A matrix of which rows can be made.

    rows : makes the rows from the first to before the second number, (k, n) float32, a block that is the caller's own
    """

    shape: tuple[int, int]
    rows: Rows

    def blocks(self) -> RowBlocks:
        """The same as what products can be had of."""
        return RowBlocks(self.shape, self.rows)


class Threshold(NamedTuple):
    """What the largest entries have in common: they exceed `value`, or equal it and stand before `end`.

    value : a magnitude, 0 where all entries that are not zero belong to them
    end : counted along the rows
    """

    value: float
    end: int

    def kept(self, first: int, rows: torch.Tensor) -> torch.Tensor:
        """A block with zeros in place of the entries that do not belong to the largest."""
        if self.value == 0.0:
            return rows
        begin = first * rows.shape[1]
        # hardshrink keeps what exceeds its limit: here all that reach the value, there all that exceed it.
        below = _next_below(self.value)
        if self.end >= begin + rows.numel():
            return torch.nn.functional.hardshrink(rows, below)
        kept = torch.nn.functional.hardshrink(rows, self.value)
        if self.end > begin:
            flat, held = rows.reshape(-1), kept.view(-1)
            held[: self.end - begin] = torch.nn.functional.hardshrink(flat[: self.end - begin], below)
        return kept


def entries_of(pair: Pair) -> Entries:
    """Make the entries of scaling · lora_B @ lora_A.

    Raises
    ------
    NumericalError
        when rows are made: an entry is NaN or exceeds the range of float32.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> entries_of(Pair("q", torch.ones(1, 3), torch.ones(2, 1), 0.5)).rows(0, 1)
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    lora_A = pair.lora_A.to("cpu", torch.float64)
    lora_B = pair.lora_B.to("cpu", torch.float64) * pair.scaling
    if lora_A.shape[0] != lora_B.shape[1]:
        raise CompatibilityError(
            f"The factors of {quoted(pair.name)} have ranks {lora_A.shape[0]} and {lora_B.shape[1]}, expected one."
        )

    def rows(first: int, end: int) -> torch.Tensor:
        block = (lora_B[first:end] @ lora_A).to(torch.float32)
        if not math.isfinite(float(block.sum())) and not torch.isfinite(block).all():
            raise NumericalError(
                f"The factors of {quoted(pair.name)} hold NaN or infinity, or their product exceeds float32."
            )
        return block

    return Entries((lora_B.shape[0], lora_A.shape[1]), rows)


def largest(entries: Entries, counts: Sequence[int]) -> list[Threshold]:
    """Find for each of several numbers k which entries are the k largest in magnitude.

    Among entries of one magnitude those that come first along the rows are taken.

    Parameters
    ----------
    counts : k, from 0 to the number of entries, each by itself

    Notes
    -----
    Two passes over the entries, and a third where not all of one magnitude are taken; memory for some blocks. Exact,
    whatever the numbers are.

    Examples
    --------
    >>> values = torch.tensor([[3.0, -1.0], [2.0, -3.0]])
    >>> found = largest(Entries((2, 2), lambda first, end: values[first:end]), [1])[0]
    >>> found.kept(0, values)
    tensor([[3., 0.],
            [0., 0.]])
    """
    total = entries.shape[0] * entries.shape[1]
    wanted = [count for count in counts if 0 < count < total]
    if not wanted:
        return [_trivial(count, total) for count in counts]
    with one_thread():  # the processors belong to the workers
        return _found(entries, counts, wanted, total)


def _found(entries: Entries, counts: Sequence[int], wanted: Sequence[int], total: int) -> list[Threshold]:
    blocks = entries.blocks()
    histogram = torch.zeros(_UPPER_VALUES, dtype=torch.int64)
    for part in blocks.each(lambda _first, rows: torch.bincount(_upper(_bits(rows)), minlength=_UPPER_VALUES)):
        histogram += part
    above = histogram.flip(0).cumsum(0).flip(0)  # entries in this slice or a higher one
    # The slice of the k-th largest: the highest one at or above which there are k.
    slices = {count: int((above >= count).nonzero().max()) for count in wanted}
    within = _lower_histograms(blocks, sorted(set(slices.values())))
    found = {}
    for count in wanted:
        upper = slices[count]
        higher = int(above[upper + 1]) if upper + 1 < _UPPER_VALUES else 0
        found[count] = _within(entries, within[upper], upper, count - higher)
    return [found.get(count) or _trivial(count, total) for count in counts]


def _lower_histograms(blocks: RowBlocks, slices: Sequence[int]) -> dict[int, torch.Tensor]:
    """How often every number of the slices is there, by their lower bits."""
    histograms = {upper: torch.zeros(_LOWER_VALUES, dtype=torch.int64) for upper in slices}

    def one(_first: int, rows: torch.Tensor) -> list[torch.Tensor]:
        bits = _bits(rows)
        uppers = _upper(bits)
        members = [bits[uppers == upper] & (_LOWER_VALUES - 1) for upper in slices]
        return [torch.bincount(lower, minlength=_LOWER_VALUES) for lower in members]

    for parts in blocks.each(one):
        for upper, part in zip(slices, parts, strict=True):
            histograms[upper] += part
    return histograms


def _within(entries: Entries, histogram: torch.Tensor, upper: int, count: int) -> Threshold:
    """The threshold of the `count` largest of one slice."""
    above = histogram.flip(0).cumsum(0).flip(0)
    lower = int((above >= count).nonzero().max())
    bits = upper << _LOWER_BITS | lower
    value = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    equal = int(histogram[lower])
    taken = count - (int(above[lower]) - equal)  # of those that equal it
    if taken == equal or value == 0.0:
        return Threshold(value, entries.shape[0] * entries.shape[1])
    return Threshold(value, _place_of(entries, value, taken))


def _place_of(entries: Entries, value: float, count: int) -> int:
    """One more than the place of the entry that is the `count`-th of magnitude `value`; one more pass."""
    work = entries.blocks().each(lambda first, rows: (first, rows.shape[0], int((rows.abs() == value).sum())))
    for first, height, here in work:
        if count <= here:
            places = (entries.rows(first, first + height).abs() == value).view(-1).nonzero()
            return first * entries.shape[1] + int(places[count - 1]) + 1
        count -= here
    raise AssertionError("rows were made differently in two passes")


def _trivial(count: int, total: int) -> Threshold:
    return Threshold(0.0, total) if count >= total else Threshold(math.inf, 0)


def _next_below(value: float) -> float:
    """The float32 before a positive one."""
    one = torch.tensor(value, dtype=torch.float32)
    return float(torch.nextafter(one, torch.zeros_like(one)))


def _bits(rows: torch.Tensor) -> torch.Tensor:
    """Magnitudes as integers in the same order, flat."""
    return rows.contiguous().view(-1).view(torch.int32) & _MAGNITUDE


def _upper(bits: torch.Tensor) -> torch.Tensor:
    return bits >> _LOWER_BITS
