"""The budget's screen: what is shown is what the analysis says, whatever is slid, typed or ticked."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from textual.widgets import Checkbox, Static
from tui.fakes import FakeSession, entry, make_app, ready, screen_text, until

from lora_lab.cli.commands import program
from lora_lab.domain.library import EntryKind, LibraryEntry
from lora_lab.session import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.base_dialog import BaseDialog
from lora_lab.tui.budget.screen import BudgetScreen, NumberField, RankTable
from lora_lab.tui.budget.slider import RankSlider
from lora_lab.tui.budget.targets import TargetList
from lora_lab.tui.export import as_json

GOLDEN = Path(__file__).parent / "golden"
DISTILBERT = {
    "model_type": "distilbert",
    "architectures": ["DistilBertModel"],
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
SESSION = Session(device="cpu", cache=False, plugins=False)


class Budget:
    """The screen, and jobs that are answered by the real analysis when a test says so."""

    def __init__(self, app: LoraLabApp, pilot: Any) -> None:
        self.app, self.pilot = app, pilot
        self.jobs: Any = app.jobs
        assert isinstance(app.screen, BudgetScreen)
        self.screen = app.screen

    async def answer(self) -> list[dict[str, Any]]:
        """Answer all that is asked, and all that follows; what was asked."""
        asked = []
        for _ in range(40):
            await self.pilot.pause(0.02)
            waiting = [job for job in self.jobs.jobs if job.state in ("queued", "running") and job.title == "budget"]
            if not waiting and not self.screen._is_asking and not self.screen.feed.is_waiting:
                break
            for job in waiting:
                asked.append(dict(job.request.arguments["parameters"]))
                try:
                    self.jobs.finish(job, SESSION.analyze(**job.request.arguments))
                except Exception as error:
                    self.jobs.fail(job, getattr(error, "message", str(error)), getattr(error, "hint", ""))
        await self.pilot.pause()
        return asked

    async def press(self, *keys: str) -> None:
        """Type, and let all be answered."""
        await self.pilot.press(*keys)
        await self.answer()

    def text(self) -> str:
        """The screen."""
        return screen_text(self.app)

    def facts(self) -> str:
        """What stands above the table, not broken into lines."""
        return str(self.screen.query_one("#budget-facts", Static).content)

    @property
    def row(self) -> Any:
        """The row of the rank that is shown."""
        return self.screen._rows[str(self.screen.plan.rank)]

    @property
    def slider(self) -> RankSlider:
        """The slider."""
        return self.screen.query_one(RankSlider)

    @property
    def targets(self) -> TargetList:
        """The targets."""
        return self.screen.query_one(TargetList)

    async def choose(self, line: int) -> None:
        """Take or leave one of the targets."""
        self.targets.focus()
        self.targets.highlighted = line
        await self.press("space")


@asynccontextmanager
async def open_budget(tmp_path: Path, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Budget]:
    """The budget of a DistilBERT of which there is only the configuration."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DISTILBERT), encoding="utf-8")
    base = LibraryEntry(EntryKind.BASE, "distilbert", str(path), parameters=1)
    app = make_app([base])
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, BudgetScreen))
        opened = Budget(app, pilot)
        await opened.answer()
        yield opened


async def test_published_counts(tmp_path: Path) -> None:
    """DistilBERT with q,v: 73,728 at r=4, 147,456 at r=8, 294,912 at r=16; all attention and all linear at r=8."""
    async with open_budget(tmp_path) as budget:
        assert budget.row["parameters"] == 663_552  # all-linear, r=8
        assert "663 552" in budget.text()
        await budget.choose(2)
        assert budget.screen.plan.targets == "q_lin,v_lin"
        assert budget.row["parameters"] == 147_456
        budget.slider.focus()
        await budget.press("left")
        assert budget.row["parameters"] == 73_728
        await budget.press("right", "right")
        assert budget.row["parameters"] == 294_912
        await budget.choose(1)
        budget.slider.focus()
        await budget.press("left")
        assert budget.row["parameters"] == 294_912


async def test_sliding_asks_nothing_that_is_known(tmp_path: Path) -> None:
    """All powers of two come at once; another rank is asked for, and typed digits are one number."""
    async with open_budget(tmp_path) as budget:
        number = len(budget.jobs.jobs)
        await budget.press("right", "right", "left", "home", "end")
        assert len(budget.jobs.jobs) == number
        assert budget.slider.rank == 512
        await budget.press("home", "shift+right", "plus")
        assert budget.slider.rank == 3
        assert budget.row["parameters"] == 3 * 663_552 // 8
        await budget.press("1", "0", "0")
        assert budget.slider.rank == 100
        assert budget.row["parameters"] == 100 * 663_552 // 8
        await budget.press("backspace")
        assert budget.slider.rank == 10
        await budget.press("minus")
        assert budget.slider.rank == 9
        await budget.press("left")
        assert budget.slider.rank == 8
        await budget.press("home", "left")
        assert budget.slider.rank == 1


async def test_the_newest_question_is_the_one_that_is_answered(tmp_path: Path) -> None:
    """One that waits gives way; one that is being answered is let go on, and its answer passed over."""
    async with open_budget(tmp_path) as budget:
        await budget.pilot.press("3")
        await until(budget.pilot, lambda: budget.screen.feed.is_waiting)
        first = budget.jobs.jobs[-1]
        await budget.pilot.press("3")
        await until(budget.pilot, lambda: budget.jobs.jobs[-1] is not first)
        assert first.state == "cancelled"
        second = budget.jobs.jobs[-1]
        budget.jobs.begin(second)
        await budget.pilot.press("shift+right")
        await budget.pilot.pause(0.1)
        assert budget.jobs.jobs[-1] is second
        assert second.state == "running"
        await budget.answer()
        assert budget.screen.plan.rank == 34
        assert budget.row["rank"] == 34
        assert len([job for job in budget.jobs.jobs if job.state == "cancelled"]) == 1


async def test_the_inverse(tmp_path: Path) -> None:
    """The largest rank that a number of parameters buys, and the next; i goes back to the rank."""
    async with open_budget(tmp_path) as budget:
        await budget.press("i")
        field = budget.screen.query_one("#budget-spent", NumberField)
        assert field.has_focus
        assert field.value == "663552"
        field.value = "700 000"
        await budget.answer()
        assert budget.screen.plan.spent == 700_000
        assert list(budget.screen._rows) == ["8", "9"]
        assert budget.slider.rank == 8
        assert budget.slider.disabled
        assert "--parameters 700000" in budget.screen.plan.command()
        field.value = "5"
        await budget.answer()
        assert "buy no rank" in budget.facts()
        await budget.press("i")
        assert budget.screen.plan.spent is None
        assert budget.slider.has_focus
        assert not budget.slider.disabled


async def test_tasks_head_and_boxes(tmp_path: Path) -> None:
    """Whatever is typed or ticked is asked; an empty field is its default."""
    async with open_budget(tmp_path) as budget:
        budget.screen.query_one("#budget-tasks", NumberField).value = "10"
        budget.screen.query_one("#budget-head", NumberField).value = "592130"
        asked = (await budget.answer())[-1]
        assert asked["tasks"] == 10
        assert asked["head"] == 592_130
        assert budget.row["trained"] == 1_255_682  # PEFT's count with the classification head
        assert "1 255 682" in budget.text()
        assert "10 tasks" in budget.text()
        budget.screen.query_one("#budget-tasks", NumberField).value = ""
        budget.screen.query_one("#budget-dora", Checkbox).value = True
        asked = (await budget.answer())[-1]
        assert asked["tasks"] == 1
        assert asked["dora"] is True
        assert budget.row["parameters"] > 663_552
        assert "[x]" in budget.text() or "x" in str(budget.screen.query_one("#budget-dora", Checkbox).render())


async def test_targets_one_by_one(tmp_path: Path) -> None:
    """A kind taken or left; a set that has a name is called by it; none at all is said."""
    async with open_budget(tmp_path) as budget:
        patterns = [kind.pattern for kind in budget.targets.kinds]
        first = len(budget.targets.presets)
        line = {pattern.rpartition(".")[2]: first + place for place, pattern in enumerate(patterns)}
        await budget.choose(1)
        assert budget.targets.preset == "attention"
        await budget.choose(line["k_lin"])
        assert budget.targets.preset == ""
        assert "k_lin" not in budget.screen.plan.targets
        await budget.choose(line["out_lin"])
        assert budget.targets.preset == "qv"
        for name in ("q_lin", "v_lin"):
            await budget.choose(line[name])
        assert budget.screen.plan.targets == ""
        assert "No matrix is chosen" in budget.text()
        await budget.choose(line["lin1"])
        assert budget.row["parameters"] == 8 * 6 * (768 + 3072)


async def test_the_command_prints_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """y copies it; run as it stands it gives the row that is shown."""
    async with open_budget(tmp_path) as budget:
        taken: list[str] = []
        monkeypatch.setattr(budget.app, "copy_to_clipboard", taken.append)
        await budget.choose(2)
        budget.slider.focus()
        await budget.press("1", "2")
        budget.screen.query_one("#budget-tasks", NumberField).value = "7"
        await budget.answer()
        await budget.press("y")
        words = shlex.split(taken[-1])
        assert words[:2] == ["lora-lab", "budget"]
        result = CliRunner().invoke(program, [*words[1:], "--json", "--no-cache", "--quiet"])
        assert result.exit_code == 0, result.output
        (row,) = json.loads(result.stdout)["rows"]
        assert row == dict(budget.row)
        document = budget.screen.export_document()
        assert document is not None
        exported = json.loads(as_json(document))
        assert row in exported


async def test_a_refusal_is_told_and_left(tmp_path: Path) -> None:
    """The sentence and the next step; another base goes on."""
    async with open_budget(tmp_path) as budget:
        budget.screen.plan = budget.screen.plan.__class__(str(tmp_path / "gone"))
        await budget.press("r")
        assert "does not exist" in budget.facts()
        assert budget.screen.export_document() is None
        await budget.press("d")
        assert isinstance(budget.app.screen, BaseDialog)
        await budget.press("enter")
        assert budget.app.screen is budget.screen
        assert budget.row["parameters"] == 663_552


async def test_a_rank_beyond_the_smaller_side_is_named(tmp_path: Path) -> None:
    """Only while it is the one that is shown."""
    async with open_budget(tmp_path) as budget:
        await budget.press("9", "0", "0")
        assert "adds nothing" in budget.facts()
        await budget.press("left")
        assert budget.slider.rank == 512
        assert "adds nothing" not in budget.facts()


async def test_enter_on_a_rank_takes_it(tmp_path: Path) -> None:
    """The table is a way to choose as well."""
    async with open_budget(tmp_path) as budget:
        table = budget.screen.query_one(RankTable)
        table.focus()
        await budget.press("g", "j", "enter")
        assert budget.slider.rank == 2
        assert budget.screen.plan.rank == 2
        await budget.press("escape")
        assert not isinstance(budget.app.screen, BudgetScreen)


async def test_of_an_adapter_its_base(tmp_path: Path) -> None:
    """The base of the library that the adapter names, from its rank on; asked for where there is none."""
    path = tmp_path / "tiny"
    path.mkdir()
    base = LibraryEntry(EntryKind.BASE, "tiny", str(path), parameters=1)
    adapters = [entry("sql-expert", base_model="org/tiny"), entry("zeta", base_model="org/other")]
    broken = LibraryEntry(EntryKind.ADAPTER, "broken", "/library/broken", error="It is broken.")
    app = make_app(session=FakeSession([base, broken, *adapters]))
    async with app.run_test() as pilot:
        await ready(pilot)
        home: Any = app.library
        home.table.move_to("/library/sql-expert")
        await pilot.press("b")
        screen = app.screen
        assert isinstance(screen, BudgetScreen)
        assert screen.plan.base == str(path)
        assert screen.plan.rank == 16
        await pilot.press("q")
        home.table.move_to("/library/zeta")
        await pilot.press("b")
        assert isinstance(app.screen, BaseDialog)
        await pilot.press("escape")
        home.table.move_to("/library/broken")
        assert app.unavailable("budget", ()) == "this row cannot be read"
        await pilot.press("b")
        assert app.screen is home
        await pilot.press("7", "b")
        assert not isinstance(app.screen, BudgetScreen)


LEAVES = {"ctrl+q", "q", "1", "2", "7", "escape"}


async def test_every_key(tmp_path: Path, size: tuple[int, int]) -> None:
    """Pressed on every pane, nothing falls over."""
    async with open_budget(tmp_path, size) as budget:
        panes = [budget.targets, budget.screen.query_one(RankTable)]
        panes += [budget.screen.query_one("#budget-dora"), budget.screen.query_one("#budget-tasks"), budget.slider]
        for pane in panes:
            pane.focus()
            await budget.pilot.pause()
            bound = budget.screen.active_bindings.items()
            keys = [key for key, active in bound if key not in LEAVES and active.node in (pane, budget.screen)]
            for key in (
                keys if pane is budget.slider else [key for key in keys if key in pane._bindings.key_to_bindings]
            ):
                pane.focus()
                await budget.pilot.press(key)
                for _ in range(3):
                    if budget.app.screen is not budget.screen:
                        await budget.pilot.press("escape")
                if budget.screen.maximized is not None:
                    budget.screen.minimize()
                assert budget.app.screen is budget.screen, key
        await budget.answer()
        assert budget.app.is_running


async def test_golden(tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person sees; LORA_LAB_GOLDEN=write writes the files anew."""
    monkeypatch.chdir(tmp_path)
    async with open_budget(tmp_path, size) as budget:
        budget.screen.plan = budget.screen.plan.__class__("config.json")
        budget.screen.query_one("#budget-tasks", NumberField).value = "10"
        await budget.answer()
        seen = {"budget": budget.text()}
        await budget.press("i")
        seen["inverse"] = budget.text()
    for name, shown in seen.items():
        path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
        if os.environ.get("LORA_LAB_GOLDEN") == "write":
            path.parent.mkdir(exist_ok=True)
            path.write_text(shown + "\n", encoding="utf-8")
        assert shown + "\n" == path.read_text(encoding="utf-8"), name
