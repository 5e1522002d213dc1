"""The library screen: rows, marks, filter, order, measures, and what is in names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input
from tui.fakes import FakeSession, entry, make_app, ready, screen_text, small_library, spectrum_report, until

from lora_lab.domain.library import LibraryEntry
from lora_lab.errors import MissingFileError
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.compare.screen import CompareScreen
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.library.screen import LibraryScreen

ORDER = ["broken", "chat-de", "legal-ner", "math-dora", "mixed-9", "mixed-10", "sql-expert", "tiny-base"]


def home(app: LoraLabApp) -> LibraryScreen:
    """The library screen."""
    screen = app.library
    assert isinstance(screen, LibraryScreen)
    return screen


def names(app: LoraLabApp) -> list[str]:
    """Names in the table, from above."""
    screen = home(app)
    return [screen.library.rows[path].name for path in screen.table.keys]


def at(app: LoraLabApp) -> str:
    """Name under the cursor."""
    screen = home(app)
    key = screen.table.cursor_key
    return screen.library.rows[key].name if key else ""


async def go_to(pilot: Pilot[Any], name: str) -> None:
    """Put the cursor on a row by keys."""
    app = pilot.app
    assert isinstance(app, LoraLabApp)
    await pilot.press("g", *(["j"] * names(app).index(name)))
    assert at(app) == name


async def test_rows_in_natural_order_with_everything_listed(size: tuple[int, int]) -> None:
    """Adapters, a broken one and a base, with numbers a person reads."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        assert names(app) == ORDER
        text = screen_text(app)
        for shown in ("Qwen2.5-0.5B", "2.03 M", "4–16", "mix", "✗", "base", "7 adapters · 1 base · 1 broken"):
            assert shown in text


async def test_broken_row_gives_its_reason() -> None:
    """The side panel says what is wrong and what to do; opening it does not leave the library."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        text = " ".join(screen_text(app).split())
        assert "cannot be read" in text
        assert "Download it again." in text
        await pilot.press("enter")
        await pilot.pause()
        assert app.screen is home(app)
        assert any("is not opened" in toast.message for toast in app._notifications)


async def test_side_panel_as_overlay_when_narrow() -> None:
    """Hidden at 80 columns, shown by i, gone by esc; at 120 i hides it."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert "cannot be read" not in screen_text(app)
        await pilot.press("i")
        await pilot.pause()
        assert "cannot be read" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert "cannot be read" not in screen_text(app)
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        assert "cannot be read" in screen_text(app)
        await pilot.press("i")
        await pilot.pause()
        assert "cannot be read" not in screen_text(app)


async def test_marks(size: tuple[int, int]) -> None:
    """First A, then B, a third takes B's place, again unmarks; what cannot be read is not marked."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await pilot.press("space")
        assert home(app).library.marks == {}
        await pilot.press("j", "space", "j", "space")
        await pilot.pause()
        assert home(app).library.marks == {"a": "/library/chat-de", "b": "/library/legal-ner"}
        text = screen_text(app)
        assert "●A" in text
        assert "●B" in text
        await pilot.press("j", "space")
        assert home(app).library.marks == {"a": "/library/chat-de", "b": "/library/math-dora"}
        await pilot.press("space")
        assert home(app).library.marks == {"a": "/library/chat-de"}
        await pilot.press("G", "space")
        assert home(app).library.marks == {"a": "/library/chat-de"}


async def test_filter_as_one_types(size: tuple[int, int]) -> None:
    """The count is shown; enter keeps; esc goes back to the row of before; nothing found says so."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await go_to(pilot, "mixed-10")
        await pilot.press("slash", *"r>=16")
        await pilot.pause()
        assert names(app) == ["math-dora", "mixed-9", "mixed-10", "sql-expert"]
        assert at(app) == "mixed-10"
        assert "r>=16 · 4 of 8" in screen_text(app)
        await pilot.press("space", *"zz")
        await pilot.pause()
        assert names(app) == []
        assert "None of 8 matches" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert names(app) == ORDER
        assert at(app) == "mixed-10"

        await pilot.press("slash", *"mixed", "enter")
        assert names(app) == ["mixed-9", "mixed-10"]
        assert not isinstance(app.focused, Input)
        await pilot.press("n")
        assert at(app) == "mixed-9"
        await pilot.press("N")
        assert at(app) == "mixed-10"
        await pilot.press("escape")
        assert names(app) == ORDER
        assert at(app) == "mixed-10"


async def test_q_is_a_letter_in_the_filter() -> None:
    """Typing into the filter quits nothing."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("slash", "q", "w", "question_mark", "t")
        assert app.screen is home(app)
        assert home(app).library.filter == "qw?t"


async def test_sort_by_key_and_by_click() -> None:
    """Numbers from the largest first, again turned round; the cursor stays on its row."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        await go_to(pilot, "legal-ner")
        await pilot.press("l", "l", "l", "l", "s")
        await pilot.pause()
        assert names(app)[0] == "math-dora"
        assert at(app) == "legal-ner"
        assert "by rank ▼" in screen_text(app)
        await pilot.press("s")
        assert names(app)[:2] == ["legal-ner", "chat-de"]
        await pilot.click("#library", offset=(6, 0))
        assert names(app) == ORDER
        await pilot.click("#library", offset=(6, 0))
        assert names(app) == ORDER[::-1]


async def test_state_is_kept() -> None:
    """Order, filter, marks and the row survive a restart; --no-state ignores them."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("slash", *"mixed", "enter", "G", "space", "l", "s", "s")
        await pilot.pause()
        before = (names(app), at(app), dict(home(app).library.marks), home(app).library.sort)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert (names(app), at(app), home(app).library.marks, home(app).library.sort) == before
    app = make_app(state=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert names(app) == ORDER
    app = make_app(sources=["elsewhere"])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert len(names(app)) == len(ORDER)


async def test_rescan_keeps_the_cursor_and_sees_changes() -> None:
    """Rows that are gone go, new ones come, a changed file is measured anew."""
    session = FakeSession(small_library())
    app = make_app(session=session)
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        await go_to(pilot, "math-dora")
        screen = home(app)
        for job in app.jobs.waiting():  # type: ignore[attr-defined]
            app.jobs.finish(job, spectrum_report(2.0))  # type: ignore[attr-defined]
        await until(pilot, lambda: screen.library.rows["/library/math-dora"].digest)
        kept = [found for found in small_library() if found.name not in ("broken", "chat-de")]
        session.entries = [entry("aaa"), *[
            entry("math-dora", size_bytes=9) if found.name == "math-dora" else found for found in kept
        ]]  # fmt: skip
        await pilot.press("r")
        await until(pilot, lambda: "aaa" in names(app) and screen._is_complete)
        assert "broken" not in names(app)
        assert at(app) == "math-dora"
        assert screen.library.rows["/library/math-dora"].digest is None
        assert screen.library.rows["/library/sql-expert"].digest is not None
        asked = [job.request.arguments["locator"] for job in app.jobs.waiting()]  # type: ignore[attr-defined]
        assert set(asked) == {"/library/math-dora", "/library/aaa"}


async def test_measures_fill_in_visible_rows_first() -> None:
    """The cursor's row is first, then what is visible; a result lands on its row; digits are the report's."""
    app = make_app([entry(f"a-{index}") for index in range(200)])
    async with app.run_test(size=(120, 24)) as pilot:
        await ready(pilot)
        screen = home(app)
        jobs: Any = app.jobs
        await until(pilot, jobs.waiting)
        asked = [job.request.arguments["locator"] for job in jobs.waiting()]
        assert asked[0] == "/library/a-0"
        visible = list(screen.table.visible_keys())
        assert asked[: len(visible)] == visible
        assert "…" in screen_text(app)

        await pilot.press("G")
        await pilot.pause()
        asked = [job.request.arguments["locator"] for job in jobs.waiting()]
        assert asked[0] == "/library/a-199"
        assert set(screen.table.visible_keys()) <= set(asked)
        assert "/library/a-0" not in asked  # obsolete: nobody sees it now

        report = spectrum_report(7.0)
        jobs.finish(jobs.waiting()[0], report)
        await pilot.pause()
        total = report.scalars[0].values["frobenius_norm"]
        assert f"{total:.4g}" in screen_text(app)
        assert screen.library.rows["/library/a-199"].total("frobenius_norm") == total
        assert "largest modules" in screen_text(app)


async def test_no_late_result_lands_on_a_row() -> None:
    """A job that was taken back, and one that is not ours, change nothing."""
    app = make_app([entry(f"a-{index}") for index in range(200)])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        await until(pilot, jobs.waiting)
        first = next(job for job in jobs.waiting() if job.request.arguments["locator"] == "/library/a-0")
        await pilot.press("G")
        await pilot.pause()
        assert first.state == "cancelled"
        jobs.finish(first, spectrum_report(1.0))
        await pilot.pause()
        assert home(app).library.rows["/library/a-0"].digest is None


async def test_failed_measure_is_shown_and_the_others_go_on() -> None:
    """One adapter that cannot be measured has its reason in the panel."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        await go_to(pilot, "chat-de")
        await until(pilot, jobs.waiting)
        failing = next(job for job in jobs.waiting() if job.request.arguments["locator"] == "/library/chat-de")
        jobs.fail(failing, "lora_A of 'q_proj' holds NaN.", "Train again.")
        await pilot.pause()
        text = " ".join(screen_text(app).replace("│", " ").split())
        assert "No spectrum" in text
        assert "holds NaN" in text
        other = jobs.waiting()[0]
        jobs.finish(other, spectrum_report(1.0))
        await pilot.pause()
        assert home(app).library.rows[other.request.arguments["locator"]].digest is not None
        await pilot.press("slash", *"tag:broken", "enter")
        assert names(app) == ["broken", "chat-de"]


async def test_order_follows_measures() -> None:
    """Sorted by ‖ΔW‖, a row moves to its place when its number arrives; the cursor stays on its row."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        home(app).sort_by("norm")
        await go_to(pilot, "math-dora")
        await until(pilot, lambda: len(jobs.waiting()) == 6)
        for norm, job in enumerate(sorted(jobs.waiting(), key=lambda job: job.title), start=1):
            jobs.finish(job, spectrum_report(float(norm)))
        await until(pilot, lambda: names(app)[0] == "sql-expert")
        assert at(app) == "math-dora"
        assert names(app)[-2:] == ["broken", "tiny-base"]


HOSTILE = "[@click=app.quit]x[/]\x1b]52;c;QUFB\x07\u202eevil[red]"


@pytest.mark.parametrize(
    ("size", "key"),
    [
        ((120, 36), ""),
        ((80, 24), "i"),
        ((120, 36), "question_mark"),
        ((120, 36), "ctrl+o"),
        ((80, 24), "7"),
        ((80, 24), "enter"),
    ],
)
async def test_names_are_text(size: tuple[int, int], key: str) -> None:
    """Markup, escape sequences and bidirectional controls are shown, not obeyed, wherever a name appears."""
    rows: list[LibraryEntry] = [
        entry(HOSTILE, base_model=HOSTILE, peft_type=HOSTILE, dtype=HOSTILE, features=(HOSTILE,), path="/h"),
        entry(HOSTILE + "broken", error=f"bad {HOSTILE}", hint=HOSTILE, path="/i"),
    ]
    app = make_app(rows, sources=[HOSTILE])
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        await until(pilot, jobs.waiting)
        await pilot.press("j")
        if key:
            await pilot.press(key)
        await pilot.pause()
        jobs.fail(jobs.jobs[0], HOSTILE, HOSTILE)
        await pilot.pause()
        text = screen_text(app)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                assert "@click" not in (segment.style.meta if segment.style else {})
        if key in ("", "7"):
            assert "[@click" in text


async def test_copy_is_tab_separated_text() -> None:
    """y copies the row with its names, Y all rows; full precision; the toast says what."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        report = spectrum_report(7.0)
        await go_to(pilot, "sql-expert")
        mine = next(job for job in jobs.waiting() if job.request.arguments["locator"] == "/library/sql-expert")
        jobs.finish(mine, report)
        await pilot.pause()
        await pilot.press("y")
        await pilot.pause()
        header, row = (line.split("\t") for line in app.clipboard.split("\n"))
        values = dict(zip(header, row, strict=True))
        assert values["name"] == "sql-expert"
        assert float(values["frobenius_norm"]) == report.scalars[0].values["frobenius_norm"]
        assert any("the row of sql-expert" in toast.message for toast in app._notifications)
        await pilot.press("Y")
        assert len(app.clipboard.split("\n")) == 1 + len(ORDER)
        document = home(app).export_document()
        assert document is not None
        assert json.loads(json.dumps(document.rows))[6][0] == "sql-expert"


async def test_empty_folder_and_missing_folder() -> None:
    """Nothing there says what to do; nowhere to look says what is wrong."""
    app = make_app([])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert "No adapters in adapters" in screen_text(app)
        assert "press r" in screen_text(app)
        await pilot.press("space", "y", "x", "s", "enter", "j")
        await pilot.pause()
        assert app.screen is home(app)
    refusing = FakeSession([], MissingFileError("There is nothing at './nowhere'.", hint="Check the path."))
    app = make_app(session=refusing)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert "There is nothing at './nowhere'." in screen_text(app)
        assert "Check the path." in screen_text(app)


async def test_ten_thousand_rows_are_all_there() -> None:
    """A large library is listed, filtered and walked through."""
    app = make_app(
        [entry(f"adapter-{index}", rank_min=index % 64 + 1, rank_max=index % 64 + 1) for index in range(10_000)]
    )
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        assert names(app)[2] == "adapter-2"
        await pilot.press("G")
        assert at(app) == "adapter-9999"
        home(app)._set_filter("r=64")
        assert len(names(app)) == 156


class FolderSession(FakeSession):
    """Each source is one adapter."""

    def scan(self, locator: str) -> Iterator[LibraryEntry]:
        """The folder itself."""
        yield entry(Path(locator).name, path=locator)


@pytest.fixture(params=[["one"], ["one", "two"]], ids=len)
def folders(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """Folders that look like an adapter each."""
    for name in request.param:
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    return [str(tmp_path / name) for name in request.param]


async def test_adapters_named_on_the_command_line_are_opened(folders: list[str]) -> None:
    """One goes straight to its screen, two to the screen that compares them; q goes to the list, 2 to the first."""
    app = make_app(session=FolderSession([]), sources=folders)
    async with app.run_test(size=(80, 24)) as pilot:
        if len(folders) == 2:
            await until(pilot, lambda: isinstance(app.screen, CompareScreen))
            assert isinstance(app.screen, CompareScreen)
            assert list(app.screen.compared[:2]) == folders
            await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
        assert isinstance(app.screen, DetailScreen)
        assert app.screen.locator == folders[0]
        assert [feed.locator for feed in app.screen.overlays] == folders[1:]
        await pilot.press("q")
        assert app.screen is home(app)
        assert home(app).library.marks == ({} if len(folders) == 1 else {"a": folders[0], "b": folders[1]})
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
        await pilot.press("7", "2")
        assert isinstance(app.screen, DetailScreen)
        await pilot.press("1")
        assert app.screen is home(app)


async def test_two_marks_are_compared(size: tuple[int, int]) -> None:
    """c needs two adapters: A and B, or the one that is marked and the row of the cursor; 3 goes back to them."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await pilot.press("c")
        assert app.screen is home(app)
        assert "mark two adapters" in (home(app).unavailable("compare", ()) or "")
        assert "press c" in (app.unavailable("go", ("compare",)) or "")
        keys = [key for key in home(app).table.keys if home(app).library.rows[key].is_measurable]
        home(app).table.move_to(keys[0])
        await pilot.press("space")
        assert home(app).unavailable("compare", ()) is not None
        home(app).table.move_to(keys[2])
        await pilot.press("c")
        assert isinstance(app.screen, CompareScreen)
        assert app.screen.compared[:2] == (keys[0], keys[2])
        await pilot.press("q")
        home(app).table.move_to(keys[1])
        await pilot.press("space")
        assert any("c compares them" in toast.message for toast in app._notifications)
        home(app).table.move_to(keys[3])
        await pilot.press("c")
        assert isinstance(app.screen, CompareScreen)
        assert app.screen.compared[:2] == (keys[0], keys[1])
        shown = app.screen
        await pilot.press("7", "3")
        assert app.screen is shown
        await pilot.press("1")
        assert app.screen is home(app)
        await pilot.press("3")
        assert isinstance(app.screen, CompareScreen)
        assert app.screen.compared[:2] == (keys[0], keys[1])
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))


async def test_a_folder_with_one_adapter_in_it_is_a_library(tmp_path: Path) -> None:
    """Only an adapter that was named itself is opened without a key."""
    app = make_app([entry("only")], sources=[str(tmp_path)])
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert app.screen is home(app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
