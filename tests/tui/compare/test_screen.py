"""The rows, their order, the side, the grids: what is asked for, when, and where it lands."""

from __future__ import annotations

import math

import pytest
from tui.compare.pairs import ANGLES, A, B, Opened, grid_of, module_names, open_pair, report_of, row_of, rows_of
from tui.fakes import FakeEvent, until

from lora_lab.domain.report import Finding
from lora_lab.tui.compare.feed import SIDES
from lora_lab.tui.compare.module_list import Order
from lora_lab.tui.compare.overlap_view import GRID_COLUMNS
from lora_lab.tui.export import as_json
from lora_lab.tui.library.screen import LibraryScreen


def asked(opened: Opened, grid: str) -> list[dict[str, object]]:
    """Arguments of every overlap job there has been, with grids or without."""
    found = [job.request.arguments for job in opened.jobs.jobs if job.request.arguments.get("id") == "overlap"]
    return [arguments for arguments in found if arguments["parameters"]["grid"] == grid]


# Rows


async def test_one_job_gives_all_rows(size: tuple[int, int]) -> None:
    """They come without grids, are shown as they come, largest φ first, with the cursor on the largest."""
    rows = rows_of(module_names())
    async with open_pair(size) as opened:
        expected = {"id": "overlap", "locators": [A, B], "parameters": {"side": "right", "grid": "false"}}
        assert asked(opened, "false") == [expected]
        job = opened.waiting("overlap", grid="false")[0]
        opened.jobs.begin(job, 5, 24)
        opened.app.on_job_event(FakeEvent(job, "rows", table="modules", rows=rows[:5]))  # type: ignore[arg-type]
        modules = opened.screen.list_view
        await until(opened.pilot, lambda: len(modules.keys) == 5)
        by_phi = sorted(rows[:5], key=lambda row: -row["phi_full"])
        assert modules.keys == tuple(row["module"] for row in by_phi)
        assert modules.cursor == 0
        assert "computed 5 of 24" in opened.text()
        await opened.rows(report_of(rows))
        assert [opened.screen.feed.rows[key]["phi_full"] for key in modules.keys] == sorted(
            (row["phi_full"] for row in rows), reverse=True
        )
        assert modules.cursor == 0
        assert "24 modules" in opened.text()


async def test_orders() -> None:
    """s goes through φ, natural, cosine, φ over random; what is undefined comes last; the cursor keeps its module."""
    rows = rows_of(module_names(6))
    rows[4] = row_of(rows[4]["module"], 4, rank_b=0)
    rows[7] = row_of(rows[7]["module"], 7, rank_b=4)
    names = [row["module"] for row in rows]
    expected = {
        Order.NATURAL: names,
        Order.COSINE: sorted(names, key=lambda name: -(rows[names.index(name)]["cosine"] or -9)),
        Order.OVER_RANDOM: sorted(
            names,
            key=lambda name: (
                -(
                    rows[names.index(name)]["phi_full"] / rows[names.index(name)]["phi_full_random"]
                    if rows[names.index(name)]["phi_full"]
                    else -9
                )
            ),
        ),
    }
    async with open_pair() as opened:
        await opened.rows(report_of(rows))
        assert opened.screen.list_view.keys[-1] == names[4]
        await opened.press("j")
        module = opened.screen.module
        for order, wanted in expected.items():
            await opened.press("s")
            assert opened.screen.list_view.order is order
            assert list(opened.screen.list_view.keys) == wanted
            assert opened.screen.module == module
        await opened.press("s")
        assert opened.screen.list_view.order is Order.PHI


async def test_the_filter() -> None:
    """It filters as one types; esc goes back to the row of before."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await opened.press("j", "j", "j")
        before = opened.screen.module
        await opened.press("slash", "L", "1", "space", "v", "underscore")
        assert opened.screen.list_view.keys == ("model.layers.1.self_attn.v_proj",)
        assert "1 of 24" in opened.text()
        await opened.press("escape")
        assert len(opened.screen.list_view.keys) == 24
        assert opened.screen.module == before
        await opened.press("slash", "x", "x", "enter")
        assert "None of 24 modules matches" in opened.words()
        await opened.press("escape")
        assert opened.screen.list_view.has_focus


async def test_previous_and_next_module() -> None:
    """[ and ] follow the list from wherever the focus is, and say when it ends."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await opened.grid()
        await opened.press("enter", "right_square_bracket")
        assert opened.screen.list_view.cursor == 1
        await opened.grid()
        assert opened.screen.overlap.heatmap.has_focus
        await opened.press("left_square_bracket", "left_square_bracket")
        assert opened.screen.list_view.cursor == 0
        assert any("This is the first module." in toast.message for toast in opened.app._notifications)


# Grids


async def test_the_grid_of_the_module_under_the_cursor(size: tuple[int, int]) -> None:
    """One job, for that module alone by a literal glob; the words below are the grid's with all their digits."""
    rows = rows_of(["model.layers.0.[x]*", *module_names(2)])
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows))
        opened.screen.list_view.move_to("model.layers.0.[x]*")
        await until(opened.pilot, lambda: opened.waiting("overlap", grid="true"))
        assert asked(opened, "true")[-1]["modules"] == ["model.layers.0.[[]x][*]"]
        assert "computing φ(i,j) …" in opened.text()
        await opened.grid()
        assert len(asked(opened, "true")) == 1
        row = row_of("model.layers.0.[x]*", 0, has_grid=True)
        await opened.press("enter", "down", "down", "right")
        shown = opened.words()
        assert f"i=3 j=2 φ={row['phi'][2][1]!r}" in shown
        assert "random 0.003348" in shown
        assert row["phi_random"][2][1] == pytest.approx(0.003348, abs=1e-6)
        await opened.press("G")
        assert f"i=8 j=16 φ={row['phi'][7][15]!r}" in opened.words()


async def test_a_grid_that_is_queued_is_no_longer_wanted_when_the_cursor_moves_on() -> None:
    """One that is being computed goes on and is kept; one that has come is not asked for again."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        keys = opened.screen.list_view.keys
        await until(opened.pilot, lambda: opened.waiting("overlap", grid="true"))
        first = opened.waiting("overlap", grid="true")[0]
        opened.jobs.begin(first)
        await opened.press("j")
        await until(opened.pilot, lambda: opened.waiting("overlap", grid="true"))
        second = opened.waiting("overlap", grid="true")[0]
        await opened.press("j")
        await until(opened.pilot, lambda: second.state == "cancelled")
        assert first.state == "running"
        opened.jobs.finish(first, report_of([row_of(keys[0], 0, has_grid=True)]))
        await opened.pilot.pause()
        assert opened.screen.overlap.shown is None, "the grid of another module is not drawn here"
        before = len(asked(opened, "true"))
        await opened.press("g")
        assert opened.screen.overlap.shown is opened.screen.overlap.heatmap
        await opened.pilot.pause(0.2)
        assert len(asked(opened, "true")) == before


async def test_running_down_the_list_asks_for_one_grid() -> None:
    """While the cursor runs, nothing is computed."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await opened.grid()
        before = len(asked(opened, "true"))
        for _ in range(10):
            opened.screen.list_view.action_cursor_down()
        await until(opened.pilot, lambda: opened.waiting("overlap", grid="true"))
        await opened.pilot.pause(0.2)
        assert len(asked(opened, "true")) == before + 1


async def test_a_grid_that_fails_says_why() -> None:
    """Its sentence stands in its place; the list goes on."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await until(opened.pilot, lambda: opened.waiting("overlap", grid="true"))
        opened.jobs.fail(opened.waiting("overlap", grid="true")[0], "lora_A holds NaN.", "Train it again.")
        await opened.pilot.pause()
        assert "lora_A holds NaN. Train it again." in opened.words()
        assert opened.screen.unavailable("numbers", ()) == "there is no grid to show"
        await opened.press("j")
        await opened.grid()
        assert opened.screen.overlap.shown is not None


async def test_an_undefined_overlap_is_a_dash_with_its_reason(size: tuple[int, int]) -> None:
    """A ΔW of zero spans nothing: no grid is asked for."""
    rows = rows_of(module_names(2))
    rows[1] = row_of(rows[1]["module"], 1, rank_a=0)
    rows[2] = row_of(rows[2]["module"], 2, rank_b=0)
    said = Finding("zero_delta", "In 'q_proj' of B ΔW is zero.", rows[2]["module"])
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows, findings=[said]))
        await opened.grid()
        before = len(asked(opened, "true"))
        opened.screen.list_view.move_to(rows[1]["module"])
        await opened.pilot.pause(0.2)
        assert "ΔW of A is zero here" in opened.words()
        assert "φ(0,16) —" in opened.words()
        opened.screen.list_view.move_to(rows[2]["module"])
        await opened.pilot.pause(0.2)
        assert opened.words().count("In 'q_proj' of B ΔW is zero.") == 2  # among the findings, and in the grid's place
        assert len(asked(opened, "true")) == before


# Side, and A with B


async def test_every_side() -> None:
    """v goes round; each side is asked for once and kept; the module stays; a late answer lands on its own side."""
    rows = rows_of(module_names())
    async with open_pair() as opened:
        first = opened.waiting("overlap", grid="false")[0]
        await opened.rows(report_of(rows))
        await opened.press("j", "j", "j")
        module = opened.screen.module
        for side in list(SIDES)[1:]:
            await opened.press("v")
            assert opened.compared.side == side
            assert f"side {side}" in opened.text().splitlines()[0]
            assert opened.screen.list_view.keys == ()
            assert asked(opened, "false")[-1]["parameters"] == {"side": side, "grid": "false"}
            await opened.rows(report_of(rows[:20], side=side))
            assert opened.screen.module == module
        await opened.press("v")
        assert opened.compared.side == "right"
        assert len(opened.screen.list_view.keys) == 24
        assert opened.screen.module == module
        assert len(asked(opened, "false")) == 4
        opened.jobs.finish(first, report_of(rows[:1]))
        await opened.pilot.pause()
        assert len(opened.screen.list_view.keys) == 24


async def test_another_size(size: tuple[int, int]) -> None:
    """Titles take the room there is; the baseline stands beside φ down to the smallest terminal."""
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await opened.grid()
        await opened.press("enter", "G")
        await opened.pilot.resize_terminal(60, 16)
        await opened.pilot.pause()
        assert "φ=0.546973155863314" in opened.words()
        assert "random 0.01786" in opened.words()
        assert "▀" in opened.text()
        await opened.pilot.resize_terminal(*size)
        await opened.pilot.pause()
        assert "model.layers.0.self_attn.q_proj" in opened.text()
        assert opened.screen.overlap.at == (7, 15)


async def test_a_grid_belongs_to_its_side() -> None:
    """Another side's grid of the same module is another one."""
    rows = rows_of(module_names(2))
    async with open_pair() as opened:
        await opened.rows(report_of(rows))
        await opened.grid()
        right = opened.screen.overlap.grid
        await opened.press("v")
        assert opened.screen.overlap.shown is None
        await opened.rows(report_of(rows, side="left"))
        assert opened.screen.overlap.shown is None
        await opened.grid(rank_a=4)
        assert asked(opened, "true")[-1]["parameters"] == {"side": "left", "grid": "true"}
        assert opened.screen.overlap.grid is not right
        assert len(opened.screen.overlap.heatmap.matrix) == 4
        await opened.press("v", "v", "v")
        assert opened.screen.overlap.grid is right


async def test_a_side_that_is_being_computed_goes_on() -> None:
    """Ending the process would cost more than the answer; one that only waits is taken back."""
    async with open_pair() as opened:
        right = opened.waiting("overlap", grid="false")[0]
        opened.jobs.begin(right)
        await opened.press("v")
        left = opened.waiting("overlap", grid="false")[0]
        await opened.press("v")
        assert right.state == "running"
        assert left.state == "cancelled"
        opened.jobs.finish(right, report_of(rows_of(module_names())))
        await opened.press("v", "v")
        assert opened.compared.side == "right"
        assert len(opened.screen.list_view.keys) == 24


async def test_swapped() -> None:
    """w compares B with A, and back again without a job."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        assert "A sql-expert vs B chat-de" in opened.words()
        await opened.press("w")
        assert asked(opened, "false")[-1]["locators"] == [B, A]
        assert "A chat-de vs B sql-expert" in opened.words()
        await opened.rows(report_of(rows_of(module_names(), rank_a=16, rank_b=8)))
        await opened.press("w")
        assert opened.screen.names == ("sql-expert", "chat-de")
        assert len(asked(opened, "false")) == 2


# What goes wrong, and what should be known


async def test_a_failure_is_a_sentence_with_the_next_step() -> None:
    """r runs it again."""
    async with open_pair() as opened:
        job = opened.waiting("overlap", grid="false")[0]
        opened.jobs.fail(job, "The two [b]share[/b] no module.", "Compare adapters of one base.")
        await opened.pilot.pause()
        assert "The two [b]share[/b] no module." in opened.words()
        assert "→ Compare adapters of one base." in opened.words()
        await opened.press("r")
        await opened.rows(report_of(rows_of(module_names())))
        assert "share" not in opened.words()
        assert len(opened.screen.list_view.keys) == 24


async def test_no_module_in_common() -> None:
    """It is said, with what to look at."""
    async with open_pair() as opened:
        await opened.rows(report_of([], only_in_a=module_names(2)))
        assert "No module is in both adapters." in opened.words()
        assert "4 only in A" in opened.words()
        assert opened.screen.copy_value() is None
        await opened.press("less_than_sign")
        assert "Only in A (4)" in opened.words()


async def test_three_findings_and_their_number(size: tuple[int, int]) -> None:
    """The rest is in the tab Facts; nothing of a file's text is obeyed."""
    findings = [Finding("odd", f"\x1b]52;c;AA\x07 [@click=app.quit]odd {number}[/]") for number in range(5)]
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows_of(["model.\x1b[2J.q", "b"]), findings=findings, only_in_a=["\x1b[31mred"]))
        shown = opened.text()
        assert "\x1b" not in shown
        assert shown.count("⚠") == 3
        assert "and 2 more findings: tab Facts" in opened.words()
        await opened.press("less_than_sign")
        shown = opened.text()
        assert "\x1b" not in shown
        assert shown.count("⚠") == 5
        assert "\\x1b[31mred" in shown
        assert "[@click=app.quit]odd 4[/]" in shown


async def test_leaving_takes_everything_back() -> None:
    """No job goes on for a screen that is gone."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await until(opened.pilot, lambda: opened.waiting("overlap", grid="true"))
        await opened.press("v", "q")
        assert isinstance(opened.app.screen, LibraryScreen)
        await opened.pilot.pause()
        assert opened.jobs.waiting() == []


# Looks, copy, export


async def test_numbers_and_cells_are_remembered(size: tuple[int, int]) -> None:
    """t turns colours to numbers with the cursor on the same value; z goes through three sizes."""
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await opened.grid()
        overlap = opened.screen.overlap
        await opened.press("enter", "down", "right", "right", "t")
        assert overlap.numbers.has_focus
        assert overlap.numbers.at == overlap.at == (1, 2)
        module = opened.screen.module
        assert module is not None
        place = list(opened.screen.feed.rows).index(module)
        phi = row_of(module, place, has_grid=True)["phi"]
        assert f"{phi[1][2]:.4f}" in opened.text()
        await opened.press("down", "l")
        assert overlap.at == (2, 3)
        assert f"i=3 j=4 φ={phi[2][3]!r}" in opened.words()
        assert opened.screen.unavailable("cells", ()) == "numbers have one size; t goes back to colours"
        await opened.press("t")
        assert overlap.heatmap.has_focus
        assert overlap.heatmap.at == (2, 3)
        seen = set()
        for _ in range(3):
            await opened.press("z")
            seen.add(overlap.heatmap.cell_size)
        assert len(seen) == 3
        await opened.press("z", "t", "v")
        state = opened.app.state
        assert state.get("compare.cells", "") == "half"
        assert state.get("compare.numbers", False)
        assert state.get("compare.side", "") == "left"


async def test_the_scale() -> None:
    """φ is drawn from 0 to 1, so that two grids can be compared; e shows what differs within one."""
    rows = rows_of(module_names())
    async with open_pair() as opened:
        await opened.rows(report_of(rows))
        await opened.grid()
        first = max(rows, key=lambda row: row["phi_full"])
        phi = row_of(first["module"], rows.index(first), has_grid=True)["phi"]
        heatmap = opened.screen.overlap.heatmap
        assert heatmap.share(0.25) == 0.25
        bar = opened.text().splitlines()[3].split("│")[1].count("█")
        await opened.press("e")
        assert heatmap.share(phi[-1][-1]) == 0.0
        assert heatmap.share(phi[0][0]) == 1.0
        assert opened.text().splitlines()[3].split("│")[1].count("█") > bar
        assert opened.app.state.get("compare.own_scale", False)
        await opened.press("e")
        assert heatmap.share(0.25) == 0.25


async def test_copy_and_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list gives the module's row, the grid its value with the baseline; x writes all of them."""
    rows = rows_of(module_names())
    taken: list[str] = []
    async with open_pair((120, 36)) as opened:
        monkeypatch.setattr(opened.app, "copy_to_clipboard", taken.append)
        await opened.rows(report_of(rows))
        await opened.press("y")
        header, values = (line.split("\t") for line in taken[-1].splitlines())
        first = max(rows, key=lambda row: row["phi_full"])
        assert float(values[header.index("phi_full")]) == first["phi_full"]
        assert values[header.index(ANGLES)].startswith("[")
        document = opened.screen.export_document()
        assert document is not None
        assert document.name == "sql-expert-chat-de-overlap-right"
        assert [row[0] for row in document.rows] == list(opened.screen.list_view.keys)
        await opened.grid()
        await opened.press("enter", "down", "y")
        grid = row_of(first["module"], rows.index(first), has_grid=True)
        header, values = (line.split("\t") for line in taken[-1].splitlines())
        assert tuple(header) == GRID_COLUMNS
        assert values[:4] == [first["module"], "right", "2", "1"]
        assert [float(value) for value in values[4:]] == [grid["phi"][1][0], grid["phi_random"][1][0]]
        document = opened.screen.export_document()
        assert document is not None
        assert len(document.rows) == 8 * 16
        assert repr(grid["phi"][7][15]) in as_json(document)


def test_the_made_up_grid_is_one() -> None:
    """With every angle zero φ is 1 wherever the smaller subspace lies in the larger."""
    assert grid_of([0.0, 0.0], 2, 3) == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert grid_of([math.pi / 3], 1, 1)[0][0] == pytest.approx(0.25)
