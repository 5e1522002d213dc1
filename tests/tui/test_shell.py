"""What every screen shares: help, palette, jump mode, sizes, keys, toasts."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.binding import Binding
from textual.command import CommandPalette
from textual.widgets import Input, OptionList
from tui.fakes import make_app, ready, screen_text, until

from lora_lab.tui.bindings import key_name
from lora_lab.tui.help import HelpScreen
from lora_lab.tui.jobs_screen import JobsScreen
from lora_lab.tui.jump import JumpScreen
from lora_lab.tui.library.screen import LibraryScreen
from lora_lab.tui.palette import actions_of
from lora_lab.tui.widgets.footer import KeyBar
from lora_lab.tui.widgets.too_small import TooSmall


@pytest.mark.parametrize("opener", ["question_mark", "f1"])
async def test_help_lists_every_active_binding(size: tuple[int, int], opener: str) -> None:
    """Nothing that a key does is left out, and esc closes."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        wanted = {
            (key_name(active.binding), active.binding.tooltip)
            for active in app.screen.active_bindings.values()
            if active.binding.description
        }
        assert len(wanted) > 30
        await pilot.press(opener)
        assert isinstance(app.screen, HelpScreen)
        listed = {
            (name, action.tooltip)
            for section in app.screen.sections
            for action in section.actions
            for name in action.keys
        }
        assert listed == wanted
        text = app.screen.text(70).plain
        assert all(action.keys[0] in text for section in app.screen.sections for action in section.actions)
        await pilot.press("escape")
        assert isinstance(app.screen, LibraryScreen)


async def test_help_is_about_the_focused_pane() -> None:
    """The first section is the pane's, and changes with the focus."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        titles = []
        for _ in range(2):
            await pilot.press("question_mark")
            assert isinstance(app.screen, HelpScreen)
            titles.append(app.screen.sections[0].title)
            await pilot.press("escape", "tab")
        assert titles == ["Library", "Facts about the row"]


async def test_help_scrolls_by_vim_keys() -> None:
    """At 80×24 the list is longer than the screen."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("question_mark", "G")
        await pilot.pause()
        assert "Everywhere" in screen_text(app)
        await pilot.press("g")
        await pilot.pause()
        assert "Everywhere" not in screen_text(app)


async def test_help_leads_to_the_palette() -> None:
    """What its border promises."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("question_mark", "ctrl+p")
        await until(pilot, lambda: CommandPalette.is_open(app))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, LibraryScreen))


def all_bindings() -> list[tuple[str, Binding]]:
    """Bindings of every class of ours that declares some."""
    from textual.dom import DOMNode

    import lora_lab.tui.export_dialog
    import lora_lab.tui.library.side
    import lora_lab.tui.theme_picker  # noqa: F401 - imported for its classes

    found = []
    classes: list[type] = [DOMNode]
    while classes:
        cls = classes.pop()
        classes.extend(cls.__subclasses__())
        if cls.__module__.startswith("lora_lab.tui"):
            found += [
                (cls.__qualname__, binding) for binding in Binding.make_bindings(cls.__dict__.get("BINDINGS", []))
            ]
    return found


def test_every_binding_has_an_id_and_a_tooltip() -> None:
    """A keymap names bindings by id; the help shows the tooltip."""
    bindings = all_bindings()
    assert len(bindings) > 80
    assert [(owner, binding.key) for owner, binding in bindings if not (binding.id and binding.tooltip)] == []


async def test_palette_holds_every_action_with_its_key(size: tuple[int, int]) -> None:
    """The list that opens is made of the bindings; what cannot be done says why."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        actions = [action for action in actions_of(app.screen) if action.action != "command_palette"]
        await pilot.press("ctrl+p")
        assert CommandPalette.is_open(app)
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == len(actions))
        prompts = [str(option.prompt) for option in app.screen.query_one(OptionList).options]
        for action in actions:
            line = next(
                prompt
                for prompt in prompts
                if prompt.split("  ")[0].strip() == " ".join(action.keys).strip()
                or f" {' '.join(action.keys)}  {action.label}" in f" {prompt}"
            )
            assert action.label in line
            if action.reason:
                assert "not now" in line


async def test_palette_does_what_the_key_does() -> None:
    """Choosing an action runs it on the screen it came from."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("j", "ctrl+p", *"mark", "enter")
        await until(pilot, lambda: isinstance(app.screen, LibraryScreen))
        await until(pilot, lambda: app.screen.library.marks)
        marked = dict(app.screen.library.marks)
        await pilot.press("space", "space")
        assert app.screen.library.marks == marked == {"a": "/library/chat-de"}


async def test_unavailable_key_says_why() -> None:
    """Pressing what cannot be done is answered."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("n")
        await pilot.pause()
        assert any("there is no filter" in toast.message for toast in app._notifications)
        await pilot.press("2")
        await pilot.pause()
        assert any("open an adapter first" in toast.message for toast in app._notifications)


async def test_jump_labels_every_pane_and_goes_there() -> None:
    """A letter for each, in reading order; the letter focuses; another key does nothing; esc leaves."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+o")
        assert isinstance(app.screen, JumpScreen)
        assert {widget.id for widget in app.screen.targets.values()} == {"library", "side"}
        await pilot.pause()
        first = screen_text(app).splitlines()[1]
        assert first.startswith(" a Library")
        assert " s broken" in first
        await pilot.press("9")
        assert isinstance(app.screen, JumpScreen)
        await pilot.press("s")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "side")
        await pilot.press("ctrl+o", "escape")
        assert app.focused is not None
        assert app.focused.id == "side"


@pytest.mark.parametrize("opener", ["", "question_mark", "7", "x"])
async def test_too_small_says_so_and_comes_back(opener: str) -> None:
    """Below 60×16 the sizes are named, on pushed screens and dialogues too; nothing is lost by it."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("j", "j")
        if opener:
            await pilot.press(opener)
        screen, focused = app.screen, app.screen.focused
        before = screen_text(app)
        for width, height in ((60, 15), (59, 16)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            text = screen_text(app)
            assert f"{width} × {height}" in text
            assert "60 × 16" in text
            assert "╭" not in text
        await pilot.resize_terminal(60, 16)
        await pilot.pause()
        assert "too small" not in screen_text(app)
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert app.screen is screen
        assert screen.focused is focused
        assert screen_text(app) == before


async def test_opened_too_small() -> None:
    """A screen pushed while there is no room is covered from the start."""
    app = make_app()
    async with app.run_test(size=(50, 12)) as pilot:
        await ready(pilot)
        assert app.screen.query_one(TooSmall).display
        await pilot.press("7")
        await pilot.pause()
        assert isinstance(app.screen, JobsScreen)
        assert "50 × 12" in screen_text(app)


@pytest.mark.parametrize("width", [60, 73, 80, 97, 120])
async def test_footer_shows_whole_items(width: int) -> None:
    """Each item is there with its label, or not at all; help, back and commands always."""
    app = make_app()
    async with app.run_test(size=(width, 24)) as pilot:
        await ready(pilot)
        bar = app.screen.query_one(KeyBar)
        line = screen_text(app).splitlines()[-1]
        labels = [f"{name} {label}" for _, name, label, _ in bar._items()]
        shown = [label for label in labels if f" {label} " in f"{line} "]
        assert " ".join(line.split()) == " ".join(shown)
        assert {"? Help", "q Quit", "^p Commands"} <= set(shown)


async def test_footer_click_is_the_key() -> None:
    """The mouse reaches what the footer names."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.click(KeyBar, offset=(1, 0))
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))


async def test_digits_and_back() -> None:
    """7 shows the jobs, 1 the library; q goes back, and on the library quits with code 0."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("7", "7")
        assert isinstance(app.screen, JobsScreen)
        assert len(app.screen_stack) == 3  # Textual's own, the library, the jobs
        await pilot.press("1")
        assert isinstance(app.screen, LibraryScreen)
        await pilot.press("7", "q")
        assert isinstance(app.screen, LibraryScreen)
        await pilot.press("q")
    assert app.return_code == 0


async def test_maximise_and_back() -> None:
    """f gives the pane the screen; f, esc and q take it back."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        assert "broken ──" in screen_text(app).splitlines()[1]
        for leaving in ("f", "escape", "q"):
            await pilot.press("f")
            await pilot.pause()
            text = screen_text(app).splitlines()
            assert "broken ──" not in text[1]
            assert len(text[1]) == 120
            assert "? Help" in text[-1]
            await pilot.press(leaving)
            await pilot.pause()
            assert "broken ──" in screen_text(app).splitlines()[1]


def names_in(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


async def test_export_writes_csv_json_svg_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dialogue names a free file; one in the way needs a yes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "library.csv").write_text("mine")
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("x", "enter")
        await until(pilot, lambda: isinstance(app.screen, LibraryScreen))
        assert (tmp_path / "library-2.csv").read_text().startswith("name,base_model,type,rank_max")
        assert (tmp_path / "library.csv").read_text() == "mine"

        await pilot.press("x")
        app.screen.query_one(Input).value = "library.csv"
        await pilot.press("enter")
        await pilot.pause()
        assert "is there already" in screen_text(app)
        assert (tmp_path / "library.csv").read_text() == "mine"
        await pilot.press("space", "ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, LibraryScreen))
        assert (tmp_path / "library.csv").read_text().startswith("name,")

        await pilot.press("x")
        app.screen.query_one(Input).value = "nowhere/x.csv"
        await pilot.press("enter")
        await pilot.pause()
        assert "was not written" in screen_text(app)
        await pilot.press("escape", "x", "shift+tab", "down", "space")
        await pilot.pause()
        assert app.screen.query_one(Input).value == "library.json"
        await pilot.press("ctrl+s", "ctrl+s")
        await until(pilot, lambda: (tmp_path / "library.json").exists())
        await until(pilot, lambda: app.screen.query(Input).first().value == "screen.svg")
        await pilot.press("enter")
        await until(pilot, lambda: (tmp_path / "screen.svg").exists())
    assert (tmp_path / "screen.svg").read_text().startswith("<svg")
    assert names_in(tmp_path) == [
        "library-2.csv", "library.csv", "library.json", "screen.svg",
    ]  # fmt: skip


async def test_a_screen_that_is_not_composed_yet_disturbs_nobody() -> None:
    """News of the jobs may come between the push of a screen and its first child."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        app.push_screen(JobsScreen())
        app.refresh_job_status()
        await pilot.pause()
        assert isinstance(app.screen, JobsScreen)
