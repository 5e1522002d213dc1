"""Matrices as plain text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lora_lab.cli.grids import grid
from lora_lab.domain.report import Column, ColumnKind

PHI = Column("phi", "φ", ColumnKind.HEATMAP, index_title="i of A, j of B")


def test_numbers_where_they_fit() -> None:
    """Every value with its row and column, undefined ones as a dash."""
    assert list(grid(PHI, [[0.5, 0.125], [None, 1.0]], 60)) == [
        "φ  (rows i of A, columns j of B)",
        "   1    2",
        "1  0.50 0.12",
        "2  —    1.00",
    ]


def test_shades_where_they_do_not() -> None:
    """A wide matrix is one character a value, the ends of the scale told; a wider one is thinned, and says so."""
    matrix = [[column / 63 for column in range(64)] for _ in range(3)]
    lines = list(grid(PHI, matrix, 80))
    assert lines[1] == "1  " + "".join(" .:-=+*#%@"[round(column / 63 * 9)] for column in range(64))
    assert lines[-1].strip() == "' ' 0 … '@' 1.00"
    assert list(grid(PHI, matrix, 40))[-1].endswith("every 2th row and column")


@given(
    st.lists(st.lists(st.none() | st.floats(-1e9, 1e9), min_size=70, max_size=70), min_size=1, max_size=5),
    st.integers(30, 200),
)
def test_no_line_is_wider_than_the_room(matrix: list[list[float | None]], room: int) -> None:
    """Whatever the numbers are, values keep within the terminal."""
    assert all(cell_len(line) <= room for line in list(grid(PHI, matrix, room))[1:-1])
