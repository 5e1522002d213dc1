"""The bench at both sizes: chosen, watched, cancelled, compared and written, on results that were recorded."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input
from tui.bench.recorded import latency_report, samples, swap_report
from tui.fakes import FakeEvent, FakeSession, make_app, point_at, reached, ready, screen_text, small_library, until

from lora_lab import Session
from lora_lab.benchmarks.live import Live
from lora_lab.domain.report import Column, ColumnKind, Finding, Scalars
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.bench.screen import BenchScreen
from lora_lab.tui.bench.watching import Watched
from lora_lab.tui.bench.words import said_of
from lora_lab.tui.combining.pick import Pick
from lora_lab.tui.export_dialog import ExportDialog

FOLDER = Path(__file__).parent / "golden"


class Recorded(FakeSession):
    """The library of a stand-in, and the history of a real session."""

    def __init__(self) -> None:
        super().__init__(small_library())
        self._real = Session(cache=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def kept(name: str, report: Any) -> Any:
    """Put a result into the history under an id of its own; the result as it says so itself."""
    saved = Scalars("", "Saved", (Column("saved", "Saved as", ColumnKind.TEXT),), {"saved": name})
    from dataclasses import replace

    told = replace(report, scalars=(*report.scalars, saved))
    history = Session(cache=False).history
    entry = history.save(report)
    entry.path.rename(entry.path.with_name(f"{name}.json"))
    return told


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoraLabApp:
    """The application on stand-ins."""
    monkeypatch.chdir(tmp_path)
    return make_app(session=Recorded(), device="cpu")


async def bench(pilot: Any, *, marks: int = 2) -> BenchScreen:
    """Open the bench for the first `marks` of two adapters."""
    await ready(pilot)
    app = pilot.app
    for name in ("chat-de", "legal-ner")[:marks]:
        point_at(app, name)
        await pilot.press("space")
    await pilot.press("5")
    screen = await reached(pilot, BenchScreen)
    await pilot.pause()
    return screen


def job_of(app: LoraLabApp) -> Any:
    """The job of the bench."""
    return app.watched.job


def fill(screen: BenchScreen, name: str, typed: str) -> None:
    """Type into a field."""
    control = next(one.control for line in screen.lines for one in line.fields if one.id == name)
    assert isinstance(control, Input)
    control.value = typed


async def test_the_model_that_adapters_name_is_there_already_where_the_library_has_it(app: LoraLabApp) -> None:
    """Under the name that they give it; what it is called elsewhere is asked for."""
    session: Any = app.session
    base = next(entry for entry in session.entries if entry.kind == "base")
    session.entries = [
        replace(entry, base_model="someone/" + base.path.rpartition("/")[2]) if entry.kind == "adapter" else entry
        for entry in session.entries
    ]
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await bench(pilot)
        assert screen.form.value("base") == base.path


async def test_two_marked_adapters_are_swapped_and_none_is_latency(app: LoraLabApp, size: tuple[int, int]) -> None:
    """The fields follow what is chosen."""
    async with app.run_test(size=size) as pilot:
        screen = await bench(pilot)
        assert screen.form.kind == "swap"
        assert (screen.form.value("a"), screen.form.value("b")) != ("", "")
        assert "repeats" in screen_text(app)
        assert "grid" not in screen_text(app)
        await pilot.press("right")
        await pilot.pause()
        assert screen.form.kind == "latency"
        assert "grid" in screen_text(app)
        assert "adapter A" not in screen_text(app)
        fill(screen, "grid", "1x")
        await pilot.pause()
        assert "BATCHxLENGTH" in " ".join(screen_text(app).split())
        await pilot.press("ctrl+g")
        assert job_of(app) is None


async def test_distributions_grow_while_the_job_runs(app: LoraLabApp, size: tuple[int, int]) -> None:
    """Row by row, with how far it is; a screen that is opened again goes on showing them."""
    async with app.run_test(size=size) as pilot:
        screen = await bench(pilot)
        fill(screen, "base", "base")
        await pilot.press("ctrl+g")
        jobs: Any = app.jobs
        job = job_of(app)
        assert job.request.call == "bench_swap"
        assert job.request.arguments["base"] == "base"
        jobs.begin(job, 6, 24)
        rows = samples(runs=8)
        app.on_job_event(FakeEvent(job, "rows", "samples", rows[:6]))  # type: ignore[arg-type]
        await pilot.pause()
        assert {key: row["runs"] for key, row in screen.table.rows.items()} == {"reload": 2, "fused": 2, "hotswap": 2}
        assert screen.table.rows["reload"]["p50_milliseconds"] == pytest.approx(1000 * 0.5 * 1.015625)
        assert "6 of 24 runs" in screen_text(app)
        assert screen.unavailable("run", ()) is not None
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, BenchScreen)
        app.on_job_event(FakeEvent(job, "rows", "samples", rows[6:]))  # type: ignore[arg-type]
        await pilot.press("5")
        await until(pilot, lambda: isinstance(app.screen, BenchScreen))
        await pilot.pause()
        again = app.screen
        assert isinstance(again, BenchScreen)
        assert again.table.rows["fused"]["runs"] == 8
        jobs.finish(job, swap_report())
        await pilot.pause()
        assert [table.id for table in again.tables()] == ["strategies", "distribution"]
        assert list(again.table.rows) == ["reload", "fused", "hotswap"]
        assert "noisy" in screen_text(app)
        await pilot.press("m")
        assert "histogram" in next(iter(again.table.rows.values()))


async def test_noise_is_said_while_it_runs(app: LoraLabApp) -> None:
    """Before the result says so."""
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await bench(pilot)
        fill(screen, "base", "base")
        await pilot.press("ctrl+g")
        jobs: Any = app.jobs
        jobs.begin(job_of(app), 4, 24)
        seconds = [1.0, 2.0, 1.0, 2.0]
        rows = [{"id": "fused", "run": run, "seconds": one} for run, one in enumerate(seconds)]
        app.on_job_event(FakeEvent(job_of(app), "rows", "samples", rows))  # type: ignore[arg-type]
        await pilot.pause()
        assert "half of the runs of fused spread over 67%" in " ".join(screen_text(app).split())


async def test_it_is_cancelled_and_what_fails_is_said(app: LoraLabApp, size: tuple[int, int]) -> None:
    """By its key; then another can begin."""
    async with app.run_test(size=size) as pilot:
        screen = await bench(pilot)
        fill(screen, "base", "base")
        await pilot.press("ctrl+g")
        jobs: Any = app.jobs
        jobs.begin(job_of(app))
        await pilot.press("c")
        await pilot.pause()
        assert job_of(app).state == "cancelled"
        assert "Cancelled" in screen_text(app)
        await pilot.press("ctrl+g")
        jobs.fail(job_of(app), "There is no room.", "Measure some of the modules.")
        await pilot.pause()
        assert "There is no room." in screen_text(app)
        assert "Measure some of the modules." in screen_text(app)


async def test_a_result_is_compared_with_an_earlier_one(app: LoraLabApp, size: tuple[int, int]) -> None:
    """Faster, slower or the same, and what else differs; without a result the earlier one is shown."""
    kept("20260101T000000Z-swap", swap_report(2.0, threads=4))
    kept("20260102T000000Z-latency", latency_report())
    async with app.run_test(size=size) as pilot:
        screen = await bench(pilot)
        fill(screen, "base", "base")
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.watched.report is not None)
        await pilot.pause()
        assert app.watched.report is not None
        assert app.watched.report.command == "bench swap"
        await pilot.press("ctrl+g")
        jobs: Any = app.jobs
        jobs.begin(job_of(app))
        jobs.finish(job_of(app), kept("20260103T000000Z-swap", swap_report()))
        await pilot.pause()
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        assert "latency" not in screen_text(app).split("Compare with")[1]
        await pilot.press("enter")
        await until(pilot, lambda: screen.comparison is not None)
        await pilot.pause()
        assert {row["verdict"] for row in screen.table.rows.values()} == {"faster"}
        assert {row["ratio"] for row in screen.table.rows.values()} == {0.5}
        shown = " ".join(screen_text(app).split())
        assert "3 faster" in shown
        assert "threads: 4 → 2" in shown
        await pilot.press("escape")
        assert screen.comparison is None
        assert app.screen is screen


async def test_an_earlier_result_chosen_while_one_is_measured_is_answered(app: LoraLabApp) -> None:
    """Nothing can be compared yet, and nothing is lost."""
    kept("20260101T000000Z-swap", swap_report(2.0))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        screen = await bench(pilot)
        fill(screen, "base", "base")
        await pilot.press("ctrl+g")
        jobs: Any = app.jobs
        jobs.begin(job_of(app))
        await pilot.pause()
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("enter")
        await until(pilot, lambda: "One is measured now" in screen_text(app))
        assert app.watched.is_running
        assert screen.comparison is None


def test_whether_figures_can_be_trusted_is_said_first() -> None:
    """There is room for three sentences, however many strategies were left out."""
    left_out = [Finding("not_usable", f"'{number}' was left out.") for number in range(4)]
    watched = Watched()
    watched.show(replace(swap_report(), findings=(*left_out, Finding("noisy_machine", "The machine was noisy."))))
    assert said_of(watched, None, 80).plain.startswith("⚠ The machine was noisy.")


@pytest.mark.parametrize("form", ["md", "json"])
async def test_a_result_is_written_whole(app: LoraLabApp, form: str, tmp_path: Path) -> None:
    """As Markdown for a person, as the document of --json for programs."""
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await bench(pilot)
        fill(screen, "base", "base")
        await pilot.press("ctrl+g")
        jobs: Any = app.jobs
        jobs.begin(job_of(app))
        jobs.finish(job_of(app), swap_report())
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ExportDialog))
        if form == "json":
            await pilot.press("shift+tab", "down", "space")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.screen is screen)
    written = tmp_path / f"bench-swap.{form}"
    if form == "json":
        assert json.loads(written.read_text()) == swap_report().to_json()
    else:
        assert "| fused |" in written.read_text()


async def drive(pilot: Any, view: str) -> None:
    """Bring the bench to what a golden screen shows."""
    app = pilot.app
    screen = await bench(pilot, marks=0 if view == "latency" else 2)
    fill(screen, "base", "/library/tiny-base")
    jobs: Any = app.jobs
    if view != "form":
        await pilot.press("ctrl+g")
        jobs.begin(job_of(app), 18, 24)
        app.on_job_event(FakeEvent(job_of(app), "rows", "samples", samples(runs=6)))
        job_of(app).what = "fused"
    if view in ("done", "compared"):
        jobs.finish(job_of(app), kept("20260103T000000Z-swap", swap_report()))
    if view == "latency":
        jobs.finish(job_of(app), latency_report())
    if view == "compared":
        await pilot.press("h")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("enter")
        await until(pilot, lambda: screen.comparison is not None)
    await pilot.pause()


@pytest.mark.parametrize("view", ["form", "running", "done", "compared", "latency"])
async def test_golden(app: LoraLabApp, view: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The screen is the one in the file; LORA_LAB_GOLDEN=write takes over a change that is meant."""
    kept("20260101T000000Z-swap", swap_report(2.0, threads=4))
    monkeypatch.setattr(app.job_list, "eta_seconds", lambda job: 12.0)
    async with app.run_test(size=size) as pilot:
        await drive(pilot, view)
        text = screen_text(app) + "\n"
    assert len(text.splitlines()) == size[1]
    path = FOLDER / f"{view}_{size[0]}x{size[1]}.txt"
    if os.environ.get("LORA_LAB_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_plain_copy_is_no_row_while_it_runs() -> None:
    """It moves bytes of its own, so that its seconds beside the strategies' would mislead."""
    live = Live()
    live.take([{"id": "copy", "seconds": 1.0}, {"id": "fused", "seconds": 2.0}])
    assert [(row["id"], row["ratio"]) for row in live.table().rows] == [("fused", 1.0)]
