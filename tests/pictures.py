"""Take the README's pictures from the running application.

    python tests/pictures.py

Writes ``.github/pictures/*.svg``: the library of sample adapters, one adapter with another laid over it, two compared,
what a rank would cost, what a merge of two would do, what would come of combining them, a push before it is made,
and ways of switching while they are measured.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / ".github" / "pictures"
SIZE = (120, 32)
SHOWN, OVERLAID, LARGER = "banking77-r8-seed0", "banking77-r8-seed1", "banking77-r64-seed0"


async def take() -> dict[str, str]:
    """Pictures under their names."""
    from tui.fakes import point_at, reached, ready, until

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.budget.screen import BudgetScreen
    from lora_lab.tui.detail.screen import DetailScreen
    from lora_lab.tui.library.screen import LibraryScreen

    taken = {}
    app = LoraLabApp({"state": False}, ["sample_adapters"], "sample_adapters/base")
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        screen = app.library
        assert isinstance(screen, LibraryScreen)
        await measured_library(pilot, screen)
        for name in (SHOWN, OVERLAID):
            point_at(app, name)
            await pilot.press("space")
        point_at(app, SHOWN)
        await pilot.pause()
        taken["library"] = app.picture()
        await pilot.press("enter")
        detail = await reached(pilot, DetailScreen)
        await until(pilot, lambda: detail.feed.report is not None and bool(detail.query("SpectrumPlot")), turns=20_000)
        await pilot.press("o")
        await pilot.pause(1)
        await pilot.pause()
        taken["detail"] = app.picture()
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, BudgetScreen))
        await pilot.pause(4)
        taken["budget"] = app.picture()
    return taken | await compared() | await planned() | await combined() | await measured() | await pushed()


async def measured_library(pilot: Any, screen: Any) -> None:
    """Wait for the spectra of all adapters of the library."""
    from tui.fakes import until

    rows = screen.library.rows.values
    await until(pilot, lambda: all(row.digest for row in rows() if row.is_measurable), turns=20_000)


async def compared() -> dict[str, str]:
    """The picture of two adapters beside each other."""
    from tui.fakes import until

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.compare.screen import CompareScreen

    app = LoraLabApp({"state": False}, [f"sample_adapters/{SHOWN}", f"sample_adapters/{LARGER}"])
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and app.is_measuring, turns=20_000)
        await pilot.press("v")
        await pilot.pause(6)
        return {"compare": app.picture()}


async def planned() -> dict[str, str]:
    """The picture of the form before a merge."""
    from textual.widgets import Input
    from tui.fakes import point_at, reached, ready, until

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.changing.screen import ChangeScreen

    app = LoraLabApp({"state": False}, ["sample_adapters"], "sample_adapters/base")
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        for name in (SHOWN, "snips-r8"):
            point_at(app, name)
            await pilot.press("space")
        await pilot.press("m")
        form = await reached(pilot, ChangeScreen)
        for field, typed in {"strengths": "1 0.003", "output": "merged", "undo": "merged.undo"}.items():
            form.query_one(f"#field-{field}", Input).value = typed
        await until(pilot, lambda: form.plan is not None, turns=20_000)
        await pilot.pause()
        return {"merge": app.picture()}


async def combined() -> dict[str, str]:
    """The picture of two adapters about to become one."""
    from tui.fakes import point_at, reached, ready, until

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.combining.screen import CombineScreen

    app = LoraLabApp({"state": False}, ["sample_adapters"], "sample_adapters/base")
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        for name in (SHOWN, "snips-r8"):
            point_at(app, name)
            await pilot.press("space")
        await pilot.press("a")
        form = await reached(pilot, CombineScreen)
        await until(pilot, lambda: form.methods.method is not None, turns=20_000)
        await pilot.press("backspace", *"0.7", "down", "backspace", *"0.3")
        form.methods.choose("ties")
        form.query_one("#combine-rank NumberEntry").value = "8"  # type: ignore[attr-defined]
        await pilot.pause()
        await until(pilot, lambda: form.plan is not None and not form._meeting.is_waiting, turns=20_000)
        await pilot.pause()
        return {"combine": app.picture()}


async def pushed() -> dict[str, str]:
    """The picture of a push before it is made; what the Hub would answer is set here, for a picture asks nobody."""
    from textual.widgets import Input
    from tui.fakes import FakeJobs, ready, until

    from lora_lab import Session
    from lora_lab.domain.progress import Unwatched
    from lora_lab.domain.sharing import Account, CardFacts, Target
    from lora_lab.operations.push import PushOptions, plan_push
    from lora_lab.operations.push_hashing import Hashes
    from lora_lab.operations.push_report import report_of
    from lora_lab.storage.files import sha256_of
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.hub.push_screen import PushScreen

    base = "anna/tiny-llama"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "banking-and-snips"
        inputs = [f"sample_adapters/{SHOWN}", "sample_adapters/snips-r8"]
        session = Session(cache=False)
        session.combine(inputs, method="svd", rank=8, strengths=[0.7, 0.3], output=folder)
        plan = plan_push(
            session.open(str(folder)),
            Target("anna/banking-and-snips", "https://huggingface.co", account=Account("anna", "write"), exists=False),
            PushOptions(base_model=base),
            facts=lambda name: CardFacts(name, licence={"license": "apache-2.0"}),
            hashes=Hashes(sha256_of),
            pictured=lambda: (None, None, ()),
            observer=Unwatched(),
        )
        os.chdir(place)
        app = LoraLabApp({"state": False}, ["."], jobs=FakeJobs)  # type: ignore[arg-type]
        async with app.run_test(size=SIZE) as pilot:
            await ready(pilot)
            app.library.action_push()  # type: ignore[attr-defined]
            await until(
                pilot, lambda: isinstance(app.screen, PushScreen) and bool(app.screen.query("#push-base_model"))
            )
            screen = app.screen
            screen.query_one("#push-base_model", Input).value = base
            jobs: Any = app.jobs
            await until(pilot, lambda: any(job.request.call == "push" for job in jobs.jobs))
            job = next(job for job in jobs.jobs if job.request.call == "push")
            jobs.finish(job, report_of(plan))
            for other in jobs.waiting():
                jobs.cancel(other)
            await pilot.pause(0.5)
            os.chdir(ROOT)
            return {"push": app.picture()}


async def measured() -> dict[str, str]:
    """The picture of ways of switching, measured here and now."""
    from tui.fakes import point_at, reached, ready, until

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.bench.screen import BenchScreen

    app = LoraLabApp({"state": False, "device": "cpu"}, ["sample_adapters"], "sample_adapters/base")
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await measured_library(pilot, app.library)
        for name in (SHOWN, "snips-r8"):
            point_at(app, name)
            await pilot.press("space")
        await pilot.press("5")
        screen = await reached(pilot, BenchScreen)
        fields = {one.id: one.control for line in screen.lines for one in line.fields}
        fields["repeats"].value = "40"  # type: ignore[attr-defined]
        await pilot.pause()
        await pilot.press("ctrl+g")
        await until(pilot, lambda: sum(map(len, app.watched.live.samples.values())) > 180, turns=20_000)
        await pilot.pause()
        running = app.picture()
        app.jobs.cancel(app.watched.job)  # type: ignore[arg-type]
        return {"bench": running}


def normalised(svg: str) -> str:
    """The same picture under the same names, run after run."""
    return re.sub(r"terminal-\d+", "terminal", svg)


def main() -> None:
    """Write the pictures."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(LORA_LAB_CACHE_DIR=scratch, LORA_LAB_STATE_DIR=scratch, TEXTUAL_ANIMATIONS="none")
        pictures = asyncio.run(take())
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures.items():
        (PICTURES / f"{name}.svg").write_text(normalised(svg))
        print(PICTURES / f"{name}.svg")


if __name__ == "__main__":
    main()
