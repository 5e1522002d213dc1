"""Merging, taking back and verifying from the library: plan, command, progress, outcome, and cancelling."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from builders import factors, write_adapter, write_base
from safetensors.torch import save_file
from textual.pilot import Pilot
from textual.widgets import Input, Static
from tui.fakes import FakeJobs, point_at, reached, ready, until

from lora_lab import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.changing.outcome import OutcomeScreen
from lora_lab.tui.changing.screen import ChangeScreen
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.jobs_screen import JobsScreen
from lora_lab.tui.widgets.footer import KeyBar
from lora_lab.tui.widgets.pane import Pane

TURNS = 3_000


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "one", factors(seed=1))
    write_adapter(tmp_path / "two", factors(seed=2))
    return tmp_path


@asynccontextmanager
async def opened(name: str, size: tuple[int, int]) -> AsyncIterator[tuple[LoraLabApp, Pilot[None], ChangeScreen]]:
    """The form, opened on the row called `name`."""
    app = LoraLabApp({"state": False, "cache": False}, ["."])
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        point_at(app, name)
        await pilot.press("m")
        yield app, pilot, await reached(pilot, ChangeScreen)


def fill(form: ChangeScreen, **typed: str) -> None:
    for name, value in typed.items():
        form.query_one(f"#field-{name}", Input).value = value


@asynccontextmanager
async def merging(here: Path, side: int) -> AsyncIterator[tuple[LoraLabApp, Pilot[None], OutcomeScreen]]:
    """The outcome of a merge of 24 matrices of `side` squared, which has begun and is not over."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(24)]
    weights = {f"{name}.weight": torch.randn(side, side, generator=generator) for name in names}
    save_file(weights, here / "base" / "model.safetensors")
    write_adapter(here / "one", factors(dict.fromkeys(names, (side, side)), seed=1))
    async with opened("one", (80, 24)) as (app, pilot, form):
        fill(form, base="base", output="out")
        await until(pilot, lambda: form.plan is not None, turns=TURNS)
        await pilot.press("ctrl+g")
        outcome = await reached(pilot, OutcomeScreen)
        await until(pilot, lambda: outcome.job.done > 0, turns=TURNS)
        yield app, pilot, outcome


def said(screen: ChangeScreen | OutcomeScreen) -> str:
    name = "#change-said" if isinstance(screen, ChangeScreen) else "#outcome-said"
    return str(screen.query_one(name, Static).content)


async def test_a_merge_from_the_library(here: Path, size: tuple[int, int]) -> None:
    """The plan before, the receipt's figures after, the same bytes as the command's, and the model in the library."""
    async with opened("one", size) as (app, pilot, form):
        assert form.query_one("#field-adapters", Input).value == "one"
        assert form.unavailable("run", ()) == "a field is empty that is needed"
        fill(form, base="base", output="out")
        await until(pilot, lambda: form.plan is not None, turns=TURNS)
        assert "3 tensors change" in said(form)
        assert str(form.query_one("#change-command", Static).content) == "$ lora-lab merge one --base base -o out"
        await pilot.press("ctrl+g")
        outcome = await reached(pilot, OutcomeScreen)
        await until(pilot, lambda: outcome.report is not None and bool(outcome.table.rows), turns=TURNS)
        assert outcome.report is not None
        assert len(outcome.table.rows) == len(outcome.report.table("modules").rows) == 3
        await pilot.press("slash", *"q_proj", "enter")
        await until(pilot, lambda: 0 < len(outcome.table.keys) < 3)
        await pilot.press("m")
        await until(pilot, lambda: "model.safetensors" in outcome.table.rows)
        await pilot.press("7")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, OutcomeScreen))
        await pilot.press("1")
        await until(pilot, lambda: any(row.name == "out" for row in app.library.library.rows.values()))  # type: ignore[attr-defined]
    Session(cache=False).merge(["one"], base="base", output="wanted")
    assert (here / "out/model.safetensors").read_bytes() == (here / "wanted/model.safetensors").read_bytes()


async def test_a_refusal_stands_where_the_plan_would(here: Path) -> None:
    """The sentence of the command line; it cannot be run."""
    save_file({"other.weight": torch.ones(2, 2)}, here / "base" / "model.safetensors")
    async with opened("one", (80, 24)) as (app, pilot, form):
        fill(form, base="base", output="out")
        await until(pilot, lambda: "✗" in said(form), turns=TURNS)
        await pilot.press("ctrl+g")
        await pilot.pause()
        assert app.screen is form
        assert "esc Back" in "".join(form.query_one(KeyBar).render_line(0).text)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.library)
    assert not (here / "out").exists()


async def test_a_plan_says_that_the_base_goes_by_another_name(here: Path, size: tuple[int, int]) -> None:
    """In the sentence that the command line has for it."""
    (here / "base" / "config.json").write_text('{"_name_or_path": "org/other"}')
    write_adapter(here / "one", base_model_name_or_path="org/first")
    async with opened("one", size) as (_, pilot, form):
        fill(form, base="base", output="out")
        await until(pilot, lambda: form.plan is not None, turns=TURNS)
        assert "'one' was trained on 'org/first', and this base is called 'org/other'" in " ".join(said(form).split())


async def test_a_plan_that_was_cancelled_says_so(here: Path) -> None:
    """Nobody waits for what will not come, and the next key asks again."""
    app = LoraLabApp({"state": False, "cache": False}, ["."], jobs=FakeJobs)  # type: ignore[arg-type]
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        point_at(app, "one")
        await pilot.press("m")
        form = await reached(pilot, ChangeScreen)
        fill(form, base="base", output="out")
        plans = app.jobs.jobs  # type: ignore[attr-defined]
        await until(pilot, lambda: bool(plans) and plans[-1].request.call == "merge")
        app.jobs.cancel(plans[-1])
        await until(pilot, lambda: "was cancelled" in said(form))
        fill(form, output="other")
        await until(pilot, lambda: plans[-1].request.arguments.get("output") == "other")


async def test_what_is_there_is_replaced_after_a_yes(here: Path) -> None:
    """No keeps it; yes replaces it."""
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("mine")
    async with opened("one", (80, 24)) as (app, pilot, form):
        fill(form, base="base", output="out")
        await until(pilot, lambda: form.plan is not None, turns=TURNS)
        assert "is there already" in said(form)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("n")
        await until(pilot, lambda: app.screen is form)
        assert (here / "out" / "mine.txt").read_text() == "mine"
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: (here / "out" / "model.safetensors").exists(), turns=TURNS)
        await until(pilot, lambda: not app.job_list.active(), turns=TURNS)
        (here / "out" / "mine.txt").write_text("mine again")
        await pilot.press("7")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen))
        await pilot.press("R")
        await until(pilot, lambda: app.job_list.jobs[0].state == "failed", turns=TURNS)
        assert (here / "out" / "mine.txt").read_text() == "mine again"


async def test_a_merged_model_is_verified(here: Path) -> None:
    """The form begins with it, and the outcome says what is proven."""
    Session(cache=False).merge(["one"], base="base", output="out")
    async with opened("out", (80, 24)) as (_, pilot, form):
        assert form.call == "verify"
        assert "verify" in str(form.query_one("#change-form", Pane).border_title)
        fill(form, base="base", adapters="two")
        await pilot.pause(0.5)
        await pilot.press("ctrl+g")
        outcome = await reached(pilot, OutcomeScreen)
        await until(pilot, lambda: outcome.report is not None and "✗ refuted" in said(outcome), turns=TURNS)


async def test_cancelling_leaves_nothing(here: Path) -> None:
    """Under a second, with no output and no staging folder."""
    async with merging(here, 2048) as (_, pilot, outcome):
        begun = time.monotonic()
        await pilot.press("c")
        await until(pilot, lambda: "Cancelled" in said(outcome), turns=TURNS)
        assert time.monotonic() - begun < 1.0
        await until(pilot, lambda: sorted(path.name for path in here.iterdir()) == ["base", "one", "two"], turns=TURNS)


async def test_what_a_killed_run_leaves_is_named_and_the_library_looks_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the process of a cancelled change has ended: the folder beside the output, and a fresh listing."""
    async with merging(here, 1024) as (app, pilot, outcome):
        (here / ".out.lora_lab-0123").mkdir()  # of a run that this one does not go on with
        scans: list[None] = []
        monkeypatch.setattr(app.library, "action_rescan", lambda: scans.append(None))
        await pilot.press("c")
        await until(pilot, lambda: ".out.lora_lab-0123" in said(outcome), turns=TURNS)
        assert "--resume" in said(outcome)
        assert len(scans) == 1


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_a_long_path_shows_both_its_ends(here: Path, size: tuple[int, int]) -> None:
    """In a field that is not typed in, and in the sentence that it is there already; the value stays whole."""
    long = here / ("deep-" + "x" * 90) / "out-at-the-end"
    long.mkdir(parents=True)
    async with opened("one", size) as (_, pilot, form):
        fill(form, base="base", output=str(long))
        form.query_one("#field-dtype", Input).focus()
        await until(pilot, lambda: form.plan is not None, turns=TURNS)
        await pilot.pause()
        shown = form.query_one("#field-output", Input).render_line(0).text.rstrip()
        assert shown.startswith(str(long)[:20])
        assert "…" in shown
        assert shown.endswith("out-at-the-end")
        assert form.query_one("#field-output", Input).value == str(long)
        assert "out-at-the-end is there already" in " ".join(said(form).split())
