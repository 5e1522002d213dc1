"""The wizard with the process that computes: to the end, and cancelled."""

from __future__ import annotations

import time
from pathlib import Path

from builders import contents, factors, write_adapter
from textual.widgets import Static
from tui.combining.driving import TURNS, enter
from tui.fakes import reached, until

from lora_lab import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.changing.outcome import OutcomeScreen
from lora_lab.tui.combining.screen import CombineScreen
from lora_lab.tui.jobs_screen import JobsScreen


def said(outcome: OutcomeScreen) -> str:
    """What stands above the table."""
    return str(outcome.query_one("#outcome-said", Static).content)


async def test_from_the_library_to_the_library(here: Path, size: tuple[int, int]) -> None:
    """The preview's figures are the outcome's, the bytes are the session's, and the adapter is listed."""
    app = LoraLabApp({"state": False, "cache": False}, ["."])
    async with app.run_test(size=size) as pilot:
        await enter(app, pilot, ("one", "two"))
        wizard = app.screen
        assert isinstance(wizard, CombineScreen)
        await until(pilot, lambda: wizard.plan is not None and not wizard._meeting.is_waiting, turns=TURNS)
        foretold = wizard.plan
        assert foretold is not None
        assert wizard._meeting.report is not None
        await pilot.press("ctrl+g")
        outcome = await reached(pilot, OutcomeScreen)
        await until(pilot, lambda: outcome.report is not None and bool(outcome.table.rows), turns=TURNS)
        assert outcome.report is not None
        assert outcome.report.table("modules").rows == foretold.table("modules").rows
        await pilot.press("7")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, OutcomeScreen))
        await pilot.press("1")
        await until(pilot, lambda: any(row.name == "combined" for row in app.library.library.rows.values()))  # type: ignore[attr-defined]
    Session(cache=False).combine(["one", "two"], output="wanted")
    found, wanted = contents(here / "combined"), contents(here / "wanted")
    assert found["adapter_model.safetensors"] == wanted["adapter_model.safetensors"]
    assert found["adapter_config.json"] == wanted["adapter_config.json"]


async def test_cancelling_leaves_nothing(here: Path) -> None:
    """Under a second, with no output and no staging folder."""
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(24)]
    for name, seed in (("one", 1), ("two", 2)):
        write_adapter(here / name, factors(dict.fromkeys(names, (1024, 1024)), seed=seed))
    before = sorted(contents(here))
    app = LoraLabApp({"state": False, "cache": False}, ["."])
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(app, pilot, ("one", "two"))
        wizard = app.screen
        assert isinstance(wizard, CombineScreen)
        await until(pilot, lambda: wizard.plan is not None, turns=TURNS)
        wizard.methods.choose("ties")
        await pilot.pause()
        wizard._run(wizard.recipe)
        outcome = await reached(pilot, OutcomeScreen)
        await until(pilot, lambda: outcome.job.done > 0, turns=TURNS)
        await until(pilot, lambda: "of 24 modules" in said(outcome))
        begun = time.monotonic()
        await pilot.press("c")
        await until(pilot, lambda: "Cancelled" in said(outcome), turns=TURNS)
        assert time.monotonic() - begun < 1.0
        assert outcome.unavailable("look_into", ()) == "there is no adapter"
    assert sorted(contents(here)) == before
