"""The table that draws only what one sees."""

from __future__ import annotations

from textual.app import App, ComposeResult

from lora_lab.tui.text import fit
from lora_lab.tui.themes import variable_defaults
from lora_lab.tui.widgets.table import Cell, LabTable, TableColumn

COLUMNS = (
    TableColumn("name", "name", 10, is_flexible=True, is_fixed=True),
    *(TableColumn(f"c{index}", f"column {index}", 12, is_right=True) for index in range(8)),
)


class Host(App[None]):
    """A table alone on a screen."""

    drawn: int = 0

    def compose(self) -> ComposeResult:
        """Only the table."""
        yield LabTable(COLUMNS, self.cell)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """The colours our styles name."""
        return variable_defaults(dark=True)

    def cell(self, key: str, column: str) -> Cell:
        """Key and column, counted."""
        self.drawn += 1
        return Cell(f"{key}-{column}")


def lines(app: App[None]) -> list[str]:
    """The screen as text."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


def test_fit_cuts_and_pads_by_cells() -> None:
    """A wide character counts as the two cells it takes."""
    assert fit("abc", 5) == "abc  "
    assert fit("abc", 5, True) == "  abc"
    assert fit("abcdef", 4) == "abc…"
    assert fit("漢字漢字", 5) == "漢字…"
    assert fit("漢字漢字", 4) == "漢 …"


async def test_only_visible_rows_are_drawn() -> None:
    """Ten thousand rows cost no more cells than fit on the screen."""
    app = Host()
    async with app.run_test(size=(80, 24)) as pilot:
        table = app.query_one(LabTable)
        table.set_rows([f"row{index}" for index in range(10_000)])
        app.drawn = 0
        table.refresh()
        await pilot.pause()
        assert 0 < app.drawn <= 24 * len(COLUMNS)
        await pilot.press("G")
        assert table.cursor_key == "row9999"
        assert lines(app)[-1].startswith("row9999-name")


async def test_columns_are_whole_or_absent_and_all_can_be_reached() -> None:
    """No title is cut by the edge; moving right brings every column into view."""
    app = Host()
    async with app.run_test(size=(60, 10)) as pilot:
        table = app.query_one(LabTable)
        table.set_rows(["a", "b"])
        seen = set()
        for _ in COLUMNS:
            await pilot.pause()
            header = lines(app)[0]
            shown = [column for column, _ in table.layout_columns()]
            assert all(column.title in header for column in shown)
            assert COLUMNS[table.column] in shown
            assert shown[0].id == "name"
            assert ("›" in header) == (COLUMNS[-1] not in shown)
            seen |= {column.id for column in shown}
            await pilot.press("l")
        assert seen == {column.id for column in COLUMNS}
        for _ in COLUMNS:
            await pilot.press("h")
        assert table.column == 0


async def test_vim_keys_equal_arrows() -> None:
    """j k h l g G do what ↓ ↑ ← → home end do."""
    app = Host()
    async with app.run_test(size=(60, 10)) as pilot:
        table = app.query_one(LabTable)
        table.set_rows([str(index) for index in range(100)])

        async def trail(keys: list[str]) -> list[tuple[int, int]]:
            table.cursor, table.column = 50, 3
            places = []
            for name in keys:
                await pilot.press(name)
                places.append((table.cursor, table.column))
            return places

        vim = await trail(["j", "j", "k", "l", "l", "h", "G", "k", "g"])
        arrows = await trail(["down", "down", "up", "right", "right", "left", "end", "up", "home"])
        assert vim == arrows == [(51, 3), (52, 3), (51, 3), (51, 4), (51, 5), (51, 4), (99, 4), (98, 4), (0, 4)]


async def test_cursor_belongs_to_its_row() -> None:
    """The cursor follows its key through another order, and stays at its line when the row is gone."""
    app = Host()
    async with app.run_test(size=(60, 10)) as pilot:
        table = app.query_one(LabTable)
        keys = [str(index) for index in range(50)]
        table.set_rows(keys)
        assert table.move_to("30")
        await pilot.pause()
        place = table.cursor - round(table.scroll_offset.y)
        table.set_rows(keys[::-1])
        await pilot.pause()
        assert table.cursor_key == "30"
        assert table.cursor - round(table.scroll_offset.y) == place
        table.set_rows([key for key in keys if key != "30"])
        assert table.cursor_key == "19"
        assert not table.move_to("30")


async def test_messages() -> None:
    """Moving, opening and a click on a title are told; a cursor that moves nowhere is not."""

    class Ear(Host):
        heard: list[tuple[str, object]] = []  # noqa: RUF012 - emptied below

        def on_lab_table_cursor_moved(self, message: LabTable.CursorMoved) -> None:
            self.heard.append(("moved", message.key))

        def on_lab_table_opened(self, message: LabTable.Opened) -> None:
            self.heard.append(("opened", message.key))

        def on_lab_table_header_clicked(self, message: LabTable.HeaderClicked) -> None:
            self.heard.append(("header", message.column))

    app = Ear()
    app.heard = []
    async with app.run_test(size=(80, 10)) as pilot:
        app.query_one(LabTable).set_rows(["a", "b"])
        await pilot.pause()
        await pilot.press("j", "j", "enter")
        await pilot.click(LabTable, offset=(1, 0))
        await pilot.click(LabTable, offset=(1, 1), times=2)
        await pilot.pause()
    assert app.heard == [
        ("moved", "a"),
        ("moved", "b"),
        ("opened", "b"),
        ("header", "name"),
        ("moved", "a"),
        ("opened", "a"),
    ]


async def test_no_rows() -> None:
    """An empty table has no cursor row and survives every key."""
    app = Host()
    async with app.run_test(size=(60, 10)) as pilot:
        table = app.query_one(LabTable)
        await pilot.press("j", "k", "G", "g", "pagedown", "pageup", "enter", "l", "h")
        assert table.cursor_key is None
        assert table.visible_keys() == ()
