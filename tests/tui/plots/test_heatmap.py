"""The heatmap on a screen: what is drawn where, in which colour, and what the cursor says."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.filter import Monochrome

from lora_lab.domain.report import Column, ColumnKind
from lora_lab.tui.plots.cells import CellSize, Matrix, block_means, colour_of, contrasting
from lora_lab.tui.plots.heatmap import Heatmap

PHI = Column("phi", "φ", ColumnKind.HEATMAP, index_title="i of A, j of B", low=0.0, high=1.0)
PLAIN = Column("value", "Value", ColumnKind.HEATMAP)


class Plain(App[None]):
    """A heatmap that fills the screen, without the focus until a test gives it."""

    AUTO_FOCUS = None

    def __init__(self, *, has_status: bool = True) -> None:
        super().__init__()
        self.has_status = has_status
        self.places: list[tuple[int, int]] = []

    def compose(self) -> ComposeResult:
        """Nothing else."""
        yield Heatmap(has_status=self.has_status)

    @property
    def heatmap(self) -> Heatmap:
        """It."""
        return self.query_one(Heatmap)

    def on_heatmap_cursor_moved(self, message: Heatmap.CursorMoved) -> None:
        """Remember."""
        self.places.append(message.at)


Triple = tuple[int, int, int]


def lines(heatmap: Heatmap) -> list[list[tuple[str, Triple | None, Triple | None]]]:
    """Each cell on screen: its character, its colour and that of the background."""
    shown = []
    for y in range(heatmap.size.height):
        line = []
        for segment in heatmap.render_line(y):
            style = segment.style
            colours = (style.color, style.bgcolor) if style else (None, None)
            above, below = (tuple(one.triplet) if one is not None and one.triplet else None for one in colours)
            line += [(char, above, below) for char in segment.text]
        shown.append(line)
    return shown


def ramp(rows: int, columns: int) -> list[list[float]]:
    """Every value another one, from 0 to 1."""
    return [[(row * columns + column) / (rows * columns - 1) for column in range(columns)] for row in range(rows)]


def pixel(heatmap: Heatmap, row: int, column: int) -> Triple | None:
    """Colour of the first half cell of a value, in a heatmap that shows everything one to one."""
    layout = heatmap._layout()
    top = row * layout.tall
    char, upper, lower = lines(heatmap)[layout.header + top // 2][layout.gutter + column * layout.wide]
    assert char == "▀"
    return lower if top % 2 else upper


@pytest.mark.parametrize("size", list(CellSize))
@pytest.mark.parametrize("shape", [(8, 8), (8, 16), (5, 3), (1, 1), (12, 30)])
async def test_every_value_has_its_colour(size: CellSize, shape: tuple[int, int]) -> None:
    """Two values share a cell, or one value several; each has the colour of its own number."""
    app = Plain()
    async with app.run_test(size=(80, 24)) as pilot:
        heatmap = app.heatmap
        heatmap.cell_size = size
        matrix = ramp(*shape) if shape != (1, 1) else [[0.25]]
        heatmap.show_matrix(PHI, matrix)
        await pilot.pause()
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                assert pixel(heatmap, row, column) == colour_of(value)


async def test_the_scale_is_the_columns_or_the_callers_or_the_values() -> None:
    """φ keeps 0 … 1 whatever the matrix holds; another quantity takes its own ends."""
    app = Plain()
    async with app.run_test(size=(60, 20)) as pilot:
        heatmap = app.heatmap
        heatmap.show_matrix(PHI, [[0.5, 0.25]])
        await pilot.pause()
        assert pixel(heatmap, 0, 0) == colour_of(0.5)
        heatmap.show_matrix(PLAIN, [[0.5, 0.25]])
        assert pixel(heatmap, 0, 0) == colour_of(1.0)
        heatmap.show_matrix(PLAIN, [[0.5, 0.25]], low=-1.0, high=2.0)
        assert pixel(heatmap, 0, 1) == colour_of(1.25 / 3)
        heatmap.show_matrix(PLAIN, [[3.0, 3.0]])
        assert pixel(heatmap, 0, 0) == colour_of(0.5)


async def test_the_undefined_is_grey_and_says_so() -> None:
    """None and NaN have no colour of the scale; both halves undefined are dots."""
    app = Plain()
    async with app.run_test(size=(60, 20)) as pilot:
        heatmap = app.heatmap
        heatmap.cell_size = CellSize.HALF
        heatmap.show_matrix(PHI, [[0.5, None], [math.nan, None], [1.0, 0.0]])
        app.set_focus(None)
        await pilot.pause()
        layout = heatmap._layout()
        first = lines(heatmap)[layout.header]
        assert first[layout.gutter][2] == (48, 48, 48)
        assert first[layout.gutter + 1][0] == "·"
        heatmap.at = (0, 1)
        assert "undefined" in heatmap.status()
        heatmap.at = (1, 0)
        assert "nan" in heatmap.status()


async def test_the_cursor_is_on_its_value_and_nowhere_else() -> None:
    """Brackets where a value has a whole line, half a cell where it has not; its numbers stand in both axes."""
    app = Plain()
    async with app.run_test(size=(60, 20)) as pilot:
        heatmap = app.heatmap
        heatmap.focus()
        matrix = ramp(20, 20)
        heatmap.show_matrix(PHI, matrix)
        heatmap.cell_size = CellSize.HALF
        await pilot.press("down", "down", "down", "right", "right")
        assert heatmap.at == (3, 2)
        layout = heatmap._layout()
        char, upper, lower = lines(heatmap)[layout.header + 1][layout.gutter + 2]
        assert (char, upper) == ("▀", colour_of(matrix[2][2]))
        assert lower == contrasting(colour_of(matrix[3][2]))
        heatmap.cell_size = CellSize.FULL
        layout = heatmap._layout()
        line = "".join(cell[0] for cell in lines(heatmap)[layout.header + 3])
        assert line[layout.gutter + 4 : layout.gutter + 6] == "[]"
        assert "".join(cell[0] for row in lines(heatmap) for cell in row).count("[") == 1
        assert line.split()[0] == "4"
        assert "3" in "".join(cell[0] for cell in lines(heatmap)[0]).split()
        assert heatmap.status().strip() == f"i of A=4 j of B=3  {matrix[3][2]!r}"


async def test_keys_and_mouse() -> None:
    """j k h l are the arrows, g and G the ends; the pointer and the wheel move the cursor; each move is told."""
    app = Plain()
    async with app.run_test(size=(60, 20)) as pilot:
        heatmap = app.heatmap
        heatmap.focus()
        heatmap.show_matrix(PHI, ramp(30, 20))
        await pilot.press("j", "j", "l", "l", "l", "k", "h")
        assert heatmap.at == (1, 2)
        await pilot.press("G")
        assert heatmap.at == (29, 19)
        await pilot.press("down", "right")
        assert heatmap.at == (29, 19)
        await pilot.press("home", "pagedown")
        assert heatmap.at == (8, 0)
        assert app.places[-1] == (8, 0)
        await pilot.press("g", "z")
        assert heatmap.cell_size is CellSize.HALF
        layout = heatmap._layout()
        await pilot.hover(Heatmap, offset=(layout.gutter + 4, layout.header + 2))
        assert heatmap.at == (4, 4)
        await pilot.hover(Heatmap, offset=(0, 0))
        assert heatmap.at == (4, 4)
        heatmap.action_move(0, 1)
        heatmap.on_mouse_scroll_down(_Wheel())  # type: ignore[arg-type]
        assert heatmap.at == (7, 5)
        heatmap.on_mouse_scroll_up(_Wheel())  # type: ignore[arg-type]
        assert heatmap.at == (4, 5)


class _Wheel:
    def stop(self) -> None:
        """As an event has it."""


async def test_a_matrix_larger_than_the_pane() -> None:
    """Fit draws means and says of how many; half and full scroll with the cursor and say what is in sight."""
    matrix = ramp(130, 150)
    app = Plain()
    async with app.run_test(size=(60, 20)) as pilot:
        heatmap = app.heatmap
        heatmap.focus()
        heatmap.show_matrix(PHI, matrix)
        await pilot.pause()
        layout = heatmap._layout()
        assert (layout.down, layout.across) == (4, 3)
        text = "\n".join("".join(cell[0] for cell in line) for line in lines(heatmap))
        assert "means of 4 × 3" in text
        await pilot.press("G")
        assert heatmap.value == matrix[129][149], "the value is one of the matrix, not a mean"
        app.set_focus(None)
        cell = lines(heatmap)[layout.header][layout.gutter]
        assert cell[1] == colour_of(block_means(matrix, 4, 3)[0][0])
        heatmap.focus()
        heatmap.cell_size = CellSize.HALF
        await pilot.pause()
        layout = heatmap._layout()
        text = "\n".join("".join(cell[0] for cell in line) for line in lines(heatmap))
        assert f"i {131 - layout.rows_shown}–130 of 130" in text
        assert f"j {151 - layout.columns_shown}–150 of 150" in text
        before = heatmap._origin
        await pilot.press("up")
        lines(heatmap)
        assert heatmap._origin == before, "the window moves only when the cursor leaves it"
        await pilot.press("g")
        lines(heatmap)
        assert heatmap._origin == (0, 0)


async def test_without_colours_light_is_still_large() -> None:
    """What NO_COLOR leaves of a ramp rises from the first value to the last."""
    app = Plain()
    async with app.run_test(size=(80, 12)) as pilot:
        heatmap = app.heatmap
        heatmap.cell_size = CellSize.HALF
        heatmap.show_matrix(PHI, [[column / 63 for column in range(64)]] * 2)
        await pilot.pause()
        layout = heatmap._layout()
        segments = list(heatmap.render_line(layout.header))
        filtered = Monochrome().apply(segments, heatmap.background_colors[1])
        shades: list[Any] = [
            segment.style.color.triplet for segment in filtered if segment.text == "▀" and segment.style.color
        ]
        assert len(shades) == 64
        assert all(red == green == blue for red, green, blue in shades)
        assert [shade[0] for shade in shades] == sorted(shade[0] for shade in shades)
        assert len({shade[0] for shade in shades}) > 40


async def test_names_instead_of_numbers() -> None:
    """Layers and projections, say; a name is shown safely."""
    app = Plain()
    async with app.run_test(size=(80, 16)) as pilot:
        heatmap = app.heatmap
        heatmap.show_matrix(PLAIN, ramp(3, 2), rows=["L0", "L1", "L\x1b[2J"], columns=["q_proj", "[b]v[/b]"])
        heatmap.focus()
        await pilot.press("G")
        text = "\n".join("".join(cell[0] for cell in line) for line in lines(heatmap))
        assert "\x1b" not in text
        assert "q_proj" in text
        assert "[b]v[/b]" in text
        assert "L\\x1b[2J" in text
        assert heatmap.status().strip().endswith("1.0")
        assert "i=L\\x1b[2J" in heatmap.status()


async def test_words_instead_of_a_matrix() -> None:
    """They stand in the middle; the cursor comes back where it was."""
    app = Plain(has_status=False)
    async with app.run_test(size=(30, 7)) as pilot:
        heatmap = app.heatmap
        heatmap.focus()
        heatmap.show_matrix(PHI, ramp(9, 9))
        await pilot.press("down", "right")
        heatmap.show_note("ΔW is \x1b zero: nothing to draw here, whatever one does.")
        await pilot.press("down", "G", "z")
        text = ["".join(cell[0] for cell in line).strip() for line in lines(heatmap)]
        assert " ".join(filter(None, text)) == "ΔW is \\x1b zero: nothing to draw here, whatever one does."
        heatmap.show_matrix(PHI, ramp(9, 9))
        assert heatmap.at == (1, 1)
        heatmap.show_matrix(PHI, ramp(1, 5))
        assert heatmap.at == (0, 1)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (19, 5), (20, 6), (200, 60)])
async def test_any_size_of_pane_and_matrix(size: tuple[int, int]) -> None:
    """Nothing falls over, and no line is longer than the pane."""
    app = Plain()
    noise = random.Random(0)
    async with app.run_test(size=size) as pilot:
        heatmap = app.heatmap
        heatmap.focus()
        for rows, columns in ((0, 0), (1, 0), (1, 1), (3, 200), (200, 3), (64, 64)):
            matrix: Matrix = [[noise.random() if noise.random() > 0.1 else None] * columns for _ in range(rows)]
            for cells in CellSize:
                heatmap.cell_size = cells
                heatmap.show_matrix(PHI, matrix)
                await pilot.press("G")
                for y in range(heatmap.size.height):
                    assert heatmap.render_line(y).cell_length <= max(1, heatmap.size.width)
