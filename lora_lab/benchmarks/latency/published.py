"""What the LoRA paper measured on its own machine; a figure of reference, never one of this machine's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from lora_lab.benchmarks.latency.adapters import BASE, HOULSBY, MERGED, PFEIFFER
from lora_lab.benchmarks.latency.grid import Cell

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE: Final = "arXiv 2106.09685, table 1: GPT-2 medium on a Quadro RTX 8000"


class Published(NamedTuple):
    """One row of table 1: seconds of one forward pass, of the mean of 100."""

    seconds: Mapping[str, float]
    parameters: int  # of the adapters, about

    def overhead(self, variant: str) -> float | None:
        """Over the fine-tuned model, which is LoRA merged."""
        return self.seconds[variant] / self.seconds[BASE] - 1.0 if variant in self.seconds else None


def _row(tuned: float, pfeiffer: float, houlsby: float, parameters: int) -> Published:
    milliseconds = {BASE: tuned, MERGED: tuned, PFEIFFER: pfeiffer, HOULSBY: houlsby}
    return Published({variant: value / 1000.0 for variant, value in milliseconds.items()}, parameters)


TABLE_1: Final[Mapping[Cell, Published]] = {
    Cell(32, 512): _row(1449.4, 1482.0, 1492.2, 500_000),
    Cell(16, 256): _row(338.0, 354.8, 366.3, 11_000_000),
    Cell(1, 128): _row(19.8, 23.9, 25.8, 11_000_000),
}
# d and layers of the paper's model.
_HIDDEN: Final = 1024
_LAYERS: Final = 24


def bottleneck_width(hidden: int, cell: Cell) -> int:
    """Width of one bottleneck a block that takes the share of the model's width that the paper's adapters take.

    |Θ| = L·(2·d·m + m + d), so that 0.5 M are m ≈ 10 and 11 M are m ≈ 224 at d = 1024 in 24 layers. What the paper has
    no row for is measured as its larger ones are. Source: arXiv 2106.09685, section 5.1 and table 1.

    Examples
    --------
    >>> bottleneck_width(1024, Cell(32, 512)), bottleneck_width(1024, Cell(1, 128)), bottleneck_width(4096, Cell(1, 1))
    (10, 224, 892)
    """
    parameters = TABLE_1[cell].parameters if cell in TABLE_1 else TABLE_1[Cell(1, 128)].parameters
    width = (parameters / _LAYERS - _HIDDEN) / (2 * _HIDDEN + 1)
    return max(2, 2 * round(width * hidden / _HIDDEN / 2))  # even: half of it in each of two places
