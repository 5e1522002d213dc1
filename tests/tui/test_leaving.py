"""Screens, dialogues and the application are closed at any moment, whatever is being mounted then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.events import Key
from textual.screen import Screen
from textual.widgets import Static
from tui.detail.made import make_adapter, module_names
from tui.fakes import FakeEvent, FakeSession, make_app, ready, small_library

import lora_lab
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.base_dialog import BaseDialog
from lora_lab.tui.bench.screen import BenchScreen
from lora_lab.tui.budget.opening import Subject
from lora_lab.tui.budget.screen import BudgetScreen
from lora_lab.tui.changing.outcome import OutcomeScreen
from lora_lab.tui.changing.screen import ChangeScreen
from lora_lab.tui.combining.pick import Choice, Pick
from lora_lab.tui.combining.recipe import Source
from lora_lab.tui.combining.screen import CombineScreen
from lora_lab.tui.compare.screen import CompareScreen
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.dialog import LabDialog
from lora_lab.tui.export_dialog import ExportDialog
from lora_lab.tui.finetune.screen import FineTuneScreen
from lora_lab.tui.hub.push_screen import PushScreen
from lora_lab.tui.hub.screen import HubScreen
from lora_lab.tui.jobs_screen import JobsScreen
from lora_lab.tui.leaving import AbstractMeta, Leaving
from lora_lab.tui.screens import LabScreen

A, B = "/library/sql-expert", "/library/chat-de"
OPENED: dict[str, Callable[[LoraLabApp], Screen[Any]]] = {
    "detail": lambda app: DetailScreen(A),
    "compare": lambda app: CompareScreen((A, B)),
    "combine": lambda app: CombineScreen("combine", [Source(A), Source(B)], {}),
    "resize": lambda app: CombineScreen("resize", [], {"adapter": A}),
    "change": lambda app: ChangeScreen("merge", {"adapters": A}),
    "push": lambda app: PushScreen(A, "sql-expert", {"repository": "sql-expert"}),
    "outcome": lambda app: OutcomeScreen(app.begin("merge", {"output": "out"}, "merge")),
    "bench": lambda app: BenchScreen("latency", {}),
    "budget": lambda app: BudgetScreen("/library/tiny-base", Subject("tiny-base", "/library/tiny-base")),
    "finetune": lambda app: FineTuneScreen("/library/tiny-base", "/library/tuned", "tuned"),
    "hub": lambda app: HubScreen(),
    "jobs": lambda app: JobsScreen(),
    "confirm": lambda app: Confirm("Really?", "do it"),
    "pick": lambda app: Pick("One of them", [Choice(A, "sql-expert")], is_typed=True),
    "base": lambda app: BaseDialog("sql-expert", None, (), current=None, open_base=lambda locator: None),
    "export": lambda app: ExportDialog(None, ""),
}


class Opening(FakeSession):
    """Opens any adapter; the rest is the session's."""

    def open(self, locator: str) -> Any:
        """Twelve layers."""
        return make_adapter(module_names())

    def __getattr__(self, name: str) -> Any:
        return getattr(lora_lab.Session(cache=False), name)


def opening() -> LoraLabApp:
    """The application on stand-ins."""
    return make_app(session=Opening(small_library()))


async def turns(count: int) -> None:
    """Let everything that waits go on by so many steps."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", OPENED)
async def test_a_screen_is_closed_while_it_is_mounted(name: str) -> None:
    """After every other step; and what its jobs tell meanwhile reaches nothing that is not there."""
    app = opening()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        for count in range(0, 36, 2):
            app.push_screen(OPENED[name](app))
            await turns(count)
            for job in app.jobs.jobs[-2:]:  # type: ignore[attr-defined]
                app.on_job_event(FakeEvent(job, "progress"))  # type: ignore[arg-type]
            app.pop_screen()
            await turns(count)
        await pilot.pause()
        assert app.screen is app.library
        assert app.is_running


@pytest.mark.parametrize("count", [1, 5, 9, 17, 29])
@pytest.mark.parametrize("name", ["detail", "combine", "bench"])
async def test_the_application_is_closed_while_a_screen_is_mounted(name: str, count: int) -> None:
    """By ctrl+q, which no screen has to be there for."""
    app = opening()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        app.push_screen(OPENED[name](app))
        await turns(count)
        app.exit()
    assert app.return_code == 0


async def test_jobs_that_end_after_the_application_tell_nobody() -> None:
    """The child process of one that was asked for goes last."""
    app = opening()
    async with app.run_test() as pilot:
        await ready(pilot)
        job = app.begin("merge", {"output": "out"}, "merge")
    app.on_job_event(FakeEvent(job, "gone"))  # type: ignore[arg-type]
    assert app.screen_stack == []


async def test_a_key_that_is_pressed_last_is_passed_over() -> None:
    """It may arrive when there is no screen any more."""
    app = opening()
    async with app.run_test() as pilot:
        await ready(pilot)
    await app.on_event(Key("q", "q"))
    assert app.return_code is None


class Heard(Leaving, Static):
    """Notes what it is asked to do later."""

    later: int = 0

    def note(self) -> None:
        """Count."""
        self.later += 1


class Holder(App[None]):
    def compose(self) -> ComposeResult:
        yield Heard(id="heard")


async def test_what_was_put_off_is_not_done_for_one_that_is_gone() -> None:
    """Nor is it forgotten for one that is there."""
    async with Holder().run_test() as pilot:
        heard = pilot.app.query_one(Heard)
        heard.call_after_refresh(heard.note)
        await pilot.pause()
        assert heard.later == 1
        heard.call_after_refresh(heard.note)
        await heard.remove()
        await pilot.pause()
        assert heard.later == 1


def every(kind: type) -> set[type]:
    """All that are made from it."""
    return {kind}.union(*(every(made) for made in kind.__subclasses__()))


def test_what_a_class_lacks_is_found_when_it_is_made() -> None:
    """Not when it is called; and no screen or dialogue of the application lacks anything."""

    class Bodiless(LabScreen):
        pass

    class Boxless(LabDialog[None]):
        pass

    for lacking in (Bodiless, Boxless):
        with pytest.raises(TypeError, match="abstract method"):
            lacking()
    own = {kind for kind in every(LabScreen) | every(LabDialog) if kind.__module__.startswith("lora_lab.")}
    assert all(isinstance(kind, AbstractMeta) for kind in own)
    ends = {kind for kind in own if not any(made in own for made in kind.__subclasses__())}
    assert len(ends) > 15
    assert {kind.__name__ for kind in ends if getattr(kind, "__abstractmethods__", None)} == set()
