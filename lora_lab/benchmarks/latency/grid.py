"""Which batches and lengths are measured, over how many layers, how often: given, or as two minutes allow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.benchmarks.latency.blocks import BlockShape

_CELL: Final = re.compile(r"([0-9]{1,6})\s*[x×]\s*([0-9]{1,7})")
# Rounds: with six samples the smallest and the largest hold the median with 97 %; the paper took a hundred.
FEWEST: Final = 7
_MOST: Final = 100
WARM_UPS: Final = 1
# Seconds of measured work; what comes before and after makes two minutes of them.
BUDGET_SECONDS: Final = 100.0


class Cell(NamedTuple):
    """Sequences side by side, and tokens in each."""

    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """In all."""
        return self.batch * self.length

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


PAPER_GRID: Final = (Cell(32, 512), Cell(16, 256), Cell(1, 128))
# What is measured where the paper's grid takes too long, the largest first.
_GRIDS: Final = (
    PAPER_GRID,
    (Cell(16, 256), Cell(1, 128)),
    (Cell(4, 128), Cell(1, 128)),
    (Cell(1, 128), Cell(1, 32)),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """What one block of the base takes: ``floor_seconds`` for next to nothing, and more with every operation."""

    floor_seconds: float
    seconds_per_flop: float

    def round_seconds(self, shape: BlockShape, layers: int, cell: Cell, variants: int) -> float:
        """Of one round of all variants."""
        each = self.floor_seconds + self.seconds_per_flop * block_flops(shape, cell)
        return variants * layers * each


@dataclass(frozen=True, slots=True)
class Course:
    """What is run.

    repeats : rounds that are kept, of each cell
    seconds : expected; 0 where nothing had to be chosen
    """

    cells: tuple[Cell, ...]
    layers: int
    repeats: tuple[int, ...]
    seconds: float = 0.0


def cells_of(text: str) -> tuple[Cell, ...]:
    """Read a grid such as ``32x512,16x256,1x128``: batch × length.

    Raises
    ------
    LoraLabError
        a part is no such pair.

    Examples
    --------
    >>> [str(cell) for cell in cells_of("4x128, 1x32")]
    ['4x128', '1x32']
    """
    found: list[Cell] = []
    for part in text.split(","):
        match = _CELL.fullmatch(part.strip())
        cell = Cell(int(match[1]), int(match[2])) if match else Cell(0, 0)
        if not cell.tokens:
            raise LoraLabError(
                f"The grid has {quoted(part.strip())}, expected BATCHxLENGTH, both from 1.",
                hint="Like this: --grid 16x256,1x128",
            )
        if cell not in found:
            found.append(cell)
    return tuple(found)


def block_flops(shape: BlockShape, cell: Cell) -> float:
    """Operations of one block: two an element of its matrices and token, and the half square of causal attention."""
    attention = 2 * cell.batch * cell.length**2 * shape.heads * shape.head_dim
    return 2.0 * cell.tokens * shape.parameters + attention


def course_of(
    shape: BlockShape,
    speed: Speed,
    *,
    whole: int,
    variants: int,
    may_cut: bool,
    cells: Sequence[Cell] = (),
    layers: int | None = None,
    repeats: int | None = None,
) -> Course:
    """Choose what was not given so that it takes about two minutes.

    Parameters
    ----------
    whole : layers of the whole model
    may_cut : whether grid and layers may be smaller than the whole, as on a processor; repeats may in any case
    cells, layers, repeats : as given; kept however long they take

    Examples
    --------
    >>> from lora_lab.benchmarks.latency.blocks import GPT2_MEDIUM
    >>> slow, fast = Speed(0.0, 1e-11), Speed(0.0, 1e-14)
    >>> course_of(GPT2_MEDIUM, fast, whole=24, variants=5, may_cut=True).layers
    24
    >>> [str(cell) for cell in course_of(GPT2_MEDIUM, slow, whole=24, variants=5, may_cut=True).cells]
    ['16x256', '1x128']
    """
    least = repeats if repeats is not None else FEWEST
    for grid, depth in _choices(tuple(cells), layers, whole, may_cut=may_cut):
        rounds = [speed.round_seconds(shape, depth, cell, variants) for cell in grid]
        if sum(rounds) * (WARM_UPS + least) <= BUDGET_SECONDS:
            break
    spare = max(0.0, BUDGET_SECONDS - sum(rounds) * (WARM_UPS + least)) / len(rounds)
    counts = [
        least if repeats is not None else min(_MOST, least + int(spare / max(seconds, 1e-9))) for seconds in rounds
    ]
    expected = sum(seconds * (WARM_UPS + count) for seconds, count in zip(rounds, counts, strict=True))
    return Course(grid, depth, tuple(counts), expected)


def _choices(
    cells: tuple[Cell, ...], layers: int | None, whole: int, *, may_cut: bool
) -> Iterator[tuple[tuple[Cell, ...], int]]:
    """Grids with numbers of layers, in the order in which they are wished for; the last is taken at any cost."""
    grids = (cells,) if cells else _GRIDS if may_cut else _GRIDS[:1]
    depths = [layers] if layers is not None else [whole]
    while layers is None and may_cut and depths[-1] > 1:
        depths.append(depths[-1] // 2)
    for grid in grids:
        for depth in depths:
            yield grid, depth
