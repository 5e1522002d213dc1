"""The form of a push: nothing leaves before a yes, what is said yes to is what is sent, and each refusal is read."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hubserver import HubServer, environment
from textual.pilot import Pilot
from textual.widgets import Input, Static
from tui.fakes import FakeJobs, entry, make_app, press_each, reached, ready, screen_text, until, write_adapter

from lora_lab import Session
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Report
from lora_lab.domain.sharing import Account, Target
from lora_lab.operations.push import PushOptions, plan_push
from lora_lab.operations.push_hashing import Hashes
from lora_lab.operations.push_report import report_of
from lora_lab.storage.files import sha256_of
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.changing.outcome import OutcomeScreen
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.hub.card_dialog import CardDialog
from lora_lab.tui.hub.pages import Tick
from lora_lab.tui.hub.push_screen import PushScreen
from lora_lab.tui.job_list import COMMITTING
from lora_lab.tui.widgets.pane import Pane

GOLDEN = Path(__file__).parents[1] / "golden"
TURNS = 6_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter to push."""
    return write_adapter(tmp_path / "sql expert", base="org/tiny")


def planned(folder: Path) -> Report:
    """What a dry run gives."""
    (folder / "train.py").write_text("x")
    plan = plan_push(
        Session(cache=False).open(str(folder)),
        Target("anna/sql-expert", "https://huggingface.co", account=Account("anna", "write"), exists=False),
        PushOptions(),
        facts=None,
        hashes=Hashes(sha256_of),
        pictured=lambda: (None, None, ()),
        observer=Unwatched(),
    )
    return report_of(plan)


@asynccontextmanager
async def opened(folder: Path, size: tuple[int, int]) -> AsyncIterator[tuple[LoraLabApp, Pilot[None], PushScreen]]:
    """The form, on jobs that go on when a test says so."""
    app = make_app([entry("sql expert", path=str(folder)), entry("zzz")], state=False)
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await pilot.press("u")
        yield app, pilot, await reached(pilot, PushScreen)


def said(screen: PushScreen) -> str:
    return str(screen.query_one("#push-said", Static).content)


def dry_runs(app: LoraLabApp) -> list[Any]:
    jobs: Any = app.jobs
    assert isinstance(jobs, FakeJobs)
    return [job for job in jobs.jobs if job.request.call == "push" and job.request.arguments.get("dry_run")]


def compared(app: LoraLabApp, view: str, size: tuple[int, int]) -> None:
    """The screen is the one in the file."""
    text = screen_text(app) + "\n"
    path = GOLDEN / f"{view}_{size[0]}x{size[1]}.txt"
    if os.environ.get("LORA_LAB_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


async def test_the_plan_the_card_and_one_question(
    folder: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run by itself, the card on a key, and only a yes sends what was shown."""
    monkeypatch.chdir(folder.parent)
    async with opened(Path("sql expert"), size) as (app, pilot, form):
        assert form.query_one("#push-repository", Input).value == "sql-expert"
        await until(pilot, lambda: bool(dry_runs(app)))
        assert form.unavailable("push", ()) is not None
        report = planned(Path("sql expert"))
        app.jobs.finish(dry_runs(app)[0], report)  # type: ignore[attr-defined]
        await until(pilot, lambda: form.plan is not None)
        assert "train.py stays: code is not sent" in said(form)
        assert "anna, with a token that may write" in said(form)
        await pilot.pause()
        compared(app, "push", size)
        await pilot.press("f2")
        await until(pilot, lambda: isinstance(app.screen, CardDialog))
        await pilot.pause()
        compared(app, "card", size)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is form)
        for answer in ("n", "y"):
            await pilot.press("ctrl+g")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            assert "private anna/sql-expert" in screen_text(app)
            await pilot.press(answer)
            await until(pilot, lambda: not isinstance(app.screen, Confirm))
            sent = [job for job in app.job_list.asked() if job.request.call == "push"]
            assert len(sent) == (answer == "y")
        assert isinstance(app.screen, OutcomeScreen)
        assert sent[0].request.arguments == {
            "folder": "sql expert",
            "repository": "sql-expert",
            "expected": report.to_json()["plan"],
        }


async def test_switches_show_their_state_without_colour(folder: Path) -> None:
    async with opened(folder, (80, 24)) as (_, pilot, form):
        tick = form.query_one("#push-public", Tick)
        tick.focus()
        before = str(tick.render())
        await pilot.press("space")
        assert tick.value
        assert str(tick.render()) != before
        assert "--public" in str(form.query_one("#push-command", Static).content)


async def test_only_the_newest_question_is_answered(folder: Path) -> None:
    """What was typed while the Hub was asked is asked next, and the old answer is passed over."""
    async with opened(folder, (80, 24)) as (app, pilot, form):
        await until(pilot, lambda: bool(dry_runs(app)))
        first = dry_runs(app)[0]
        app.jobs.begin(first)  # type: ignore[attr-defined]
        form.query_one("#push-repository", Input).value = "lab/other"
        await pilot.pause(1.0)
        assert len(dry_runs(app)) == 1
        app.jobs.finish(first, planned(folder))  # type: ignore[attr-defined]
        await until(pilot, lambda: len(dry_runs(app)) == 2)
        assert form.plan is None
        assert dry_runs(app)[1].request.arguments["repository"] == "lab/other"


async def test_an_answer_to_what_is_no_longer_typed_is_passed_over(folder: Path) -> None:
    """However short a time ago the last key was pressed."""
    async with opened(folder, (80, 24)) as (app, pilot, form):
        await until(pilot, lambda: bool(dry_runs(app)))
        form.query_one("#push-repository", Input).value = "lab/other"
        await pilot.pause()
        app.jobs.finish(dry_runs(app)[0], planned(folder))  # type: ignore[attr-defined]
        await pilot.pause()
        assert form.plan is None
        await until(pilot, lambda: len(dry_runs(app)) == 2)
        assert form.plan is None


async def test_a_refusal_is_read_and_nothing_can_be_pushed(folder: Path) -> None:
    async with opened(folder, (80, 24)) as (app, pilot, form):
        await until(pilot, lambda: bool(dry_runs(app)))
        app.jobs.fail(dry_runs(app)[0], "The token of 'anna' may only read, and a push writes.", "Make one.")  # type: ignore[attr-defined]
        await until(pilot, lambda: "may only read" in said(form))
        await pilot.press("ctrl+g", "f2")
        await pilot.pause()
        assert app.screen is form
        form.query_one("#push-repository", Input).value = ""
        await pilot.pause()
        assert form.unavailable("push", ()) == "the repository is not named yet"


async def test_what_cannot_be_pushed_says_why(tmp_path: Path) -> None:
    broken = entry("broken", path=str(tmp_path), error="It is broken.")
    app = make_app([broken, entry("zzz")], state=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        assert app.library.unavailable("push", ()) == "this row cannot be read"
        await pilot.press("u")
        await pilot.pause()
        assert app.screen is app.library


@pytest.mark.parametrize(("what", "words"), [("sending", "Nothing was committed"), (COMMITTING, "was under way")])
async def test_a_cancelled_push_says_what_is_there(folder: Path, what: str, words: str) -> None:
    async with opened(folder, (80, 24)) as (app, pilot, form):
        await until(pilot, lambda: bool(dry_runs(app)))
        app.jobs.finish(dry_runs(app)[0], planned(folder))  # type: ignore[attr-defined]
        await until(pilot, lambda: form.plan is not None)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(app.screen, OutcomeScreen))
        job: Any = app.screen.job  # type: ignore[attr-defined]
        job.what = what
        app.jobs.begin(job, 5, 10)  # type: ignore[attr-defined]
        await pilot.press("c")
        await until(pilot, lambda: words in str(app.screen.query_one("#outcome-said", Static).content))


async def test_a_push_from_the_library_arrives(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the jobs' own process, the unmodified client, and back to what is there."""
    hub.add("org/tiny", {"README.md": "---\nlicense: mit\n---\n", "config.json": "{}"})
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(endpoint=hub.url, home=tmp_path / "home", token="hf_anna").items():
        if name.startswith(("HF_", "LORA_LAB_", "PYTHONPATH")):
            monkeypatch.setenv(name, value)
    write_adapter(tmp_path / "zzz")
    app = LoraLabApp({"state": False, "cache": False}, [str(tmp_path)])
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        await pilot.press("u")
        form = await reached(pilot, PushScreen)
        await until(pilot, lambda: form.plan is not None or "✗" in said(form), turns=TURNS)
        assert form.plan is not None, said(form)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        outcome = await reached(pilot, OutcomeScreen)
        await until(pilot, lambda: outcome.job.is_over, turns=TURNS)
        last = outcome.query_one("#outcome-said", Static)
        await until(pilot, lambda: "as it was sent" in str(last.content))
        assert "push anna/sql-expert" in str(outcome.query_one("#outcome-pane", Pane).border_title)
    there = hub.files("anna/sql-expert")
    assert there["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert b"license: mit" in there["README.md"]


async def test_every_key_of_the_form(folder: Path, size: tuple[int, int]) -> None:
    """Pressed one after the other on the plan, whatever each opens is left, and the form is still there."""
    async with opened(folder, size) as (app, pilot, form):
        await until(pilot, lambda: bool(dry_runs(app)))
        app.jobs.finish(dry_runs(app)[0], planned(folder))  # type: ignore[attr-defined]
        await until(pilot, lambda: form.plan is not None)
        leaves = {"ctrl+q", "q", "1", "2", "3", "4", "6", "7", "escape", "tab", "shift+tab"}
        await press_each(pilot, form.query_one("#push-pages"), leaves)
