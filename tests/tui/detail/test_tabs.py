"""Overlays, tabs of analyses, copy and export, and the screens as text."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import TabbedContent
from tui.detail.made import (
    EdgeAnalysis,
    edge_report,
    make_adapter,
    make_report,
    module_names,
    open_detail,
)
from tui.fakes import until

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Column, ColumnKind, Report, Table
from lora_lab.extension.contracts import Need
from lora_lab.tui.detail.analysis_view import AnalysisView
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.export import as_csv, as_json
from lora_lab.tui.plots.heatmap import Heatmap, colour_of

GOLDEN = Path(__file__).parent / "golden"


class OtherAnalysis(EdgeAnalysis):
    """A second one."""

    id = "other"
    title = "Other"


class NeedsBase(EdgeAnalysis):
    """One that cannot do without the base."""

    id = "amplify"
    title = "Amplification"
    base = Need.REQUIRED


class ComparesTwo(EdgeAnalysis):
    """One for two adapters."""

    id = "overlap"
    title = "Overlap"
    subjects = (2, 2)


def chat(modules: list[str] | None = None) -> Adapter:
    """Another adapter, of another rank."""
    return make_adapter(modules or module_names(), rank=8, locator="/library/chat-de")


# Overlays


async def test_overlay_on_and_off(size: tuple[int, int], adapter: Adapter, report: Report) -> None:
    """o lays the marked adapter over, computed only then; o again takes it away."""
    other = chat()
    async with open_detail(adapter, size=size, others=[other]) as opened:
        await opened.finish(report)
        assert opened.jobs_of(other.locator) == []
        await opened.press("o")
        await opened.finish(make_report(other, decay=0.9), other.locator)
        assert [spectrum.name for spectrum in opened.screen.spectra] == ["sql-expert", "chat-de"]
        assert len(opened.plot._datasets) == 2
        assert len(opened.plot._datasets[1].x) == 8
        assert opened.plot._datasets[0].line_style != opened.plot._datasets[1].line_style
        shown = opened.text()
        assert "● sql-expert" in shown
        assert "◆ chat-de" in shown
        await opened.press("enter", "end")
        assert "k=16  beyond r = 8" in opened.text()
        await opened.press("o")
        assert len(opened.plot._datasets) == 1
        await opened.press("o")
        assert len(opened.plot._datasets) == 2
        assert opened.jobs_of(other.locator) == []


async def test_an_overlay_without_the_module_says_so(adapter: Adapter, report: Report) -> None:
    """Adapters need not have the same modules."""
    other = chat(["model.layers.0.mlp.up_proj"])
    async with open_detail(adapter, others=[other]) as opened:
        await opened.finish(report)
        await opened.press("o")
        await opened.finish(make_report(other), other.locator)
        assert "has no module of this name" in opened.text()
        assert opened.screen.spectra[1].values is None


async def test_an_overlay_that_fails_leaves_the_adapter(adapter: Adapter, report: Report) -> None:
    """Its sentence stands where its values would."""
    other = chat()
    async with open_detail(adapter, others=[other]) as opened:
        await opened.finish(report)
        await opened.press("o")
        opened.jobs.fail(opened.jobs_of(other.locator)[0], "chat-de is gone.")
        await opened.pilot.pause()
        assert "chat-de is gone." in opened.text()
        assert opened.screen.spectra[0].values is not None


async def test_without_a_mark_overlay_says_how(adapter: Adapter, report: Report) -> None:
    """A key that cannot do anything now says what would help."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        reason = opened.screen.unavailable("overlay", ())
        assert reason is not None
        assert "mark one in the library" in reason
        await opened.press("o")
        assert not opened.screen.is_overlaid


# Analyses


async def test_an_analysis_of_a_plugin_is_a_tab(adapter: Adapter, report: Report) -> None:
    """It runs when it is first looked at, and is drawn from what it declares."""
    async with open_detail(adapter, size=(120, 36), analyses=[EdgeAnalysis(), ComparesTwo()]) as opened:
        await opened.finish(report)
        assert "Noise edge" in opened.text()
        assert "Overlap" not in opened.text()
        assert not [job for job in opened.jobs.jobs if job.request.call == "analyze"]
        await opened.press("less_than_sign")
        (job,) = [job for job in opened.jobs.jobs if job.request.call == "analyze"]
        assert job.request.arguments == {"id": "edges", "locators": [adapter.locator]}
        opened.jobs.begin(job, 3, 48)
        await opened.pilot.pause()
        assert "computing … 3 of 48" in opened.text()
        opened.jobs.finish(job, edge_report(adapter.modules))
        await opened.pilot.pause()
        await opened.pilot.pause()
        view = opened.screen.query_one(AnalysisView)
        assert view.table.keys == adapter.modules
        plot: Any = view.query_one("RowPlot")
        assert [float(y) for y in plot._datasets[0].y] == pytest.approx([math.log10(v) for v in (2.0, 1.0, 0.5, 0.1)])
        shown = opened.text()
        for wanted in ("● observed", "◆ random factors", "╌ edge", "ill-posed", "Learnt directions 3", "Pastur"):
            assert wanted in shown
        plot.focus()
        await opened.press("right", "right", "right")
        assert "k=3  observed 0.5  random factors 0.4" in opened.text()
        view.table.focus()
        await opened.press("down", "greater_than_sign", "less_than_sign")
        assert view.table.cursor_key == adapter.modules[1]
        assert len([job for job in opened.jobs.jobs if job.request.call == "analyze"]) == 1


async def test_a_failing_analysis_stays_in_its_tab(adapter: Adapter, report: Report) -> None:
    """Its sentence and hint are shown; everything else goes on."""
    async with open_detail(adapter, analyses=[EdgeAnalysis(), OtherAnalysis()]) as opened:
        await opened.finish(report)
        await opened.press("less_than_sign")
        (job,) = [job for job in opened.jobs.jobs if job.request.call == "analyze"]
        opened.jobs.fail(job, "The analysis other raised [bold]ZeroDivisionError[/].", "Tell its author.")
        await opened.pilot.pause()
        said = opened.words()
        assert "[bold]ZeroDivisionError[/]." in said
        assert "Tell its author." in opened.text()
        await opened.press("less_than_sign")
        second = [job for job in opened.jobs.jobs if job.request.call == "analyze"][-1]
        opened.jobs.finish(second, edge_report(adapter.modules))
        await opened.pilot.pause()
        assert "L0 q_proj" in opened.text()


async def test_reading_again_runs_the_analysis_again_in_the_same_tab(adapter: Adapter, report: Report) -> None:
    """r keeps the place; what came before is forgotten, and so is what was still under way."""
    async with open_detail(adapter, analyses=[EdgeAnalysis()]) as opened:
        await opened.finish(report)
        await opened.press("less_than_sign")
        tab = opened.screen.tab
        (first,) = [job for job in opened.jobs.jobs if job.request.call == "analyze"]
        await opened.press("r")
        await until(opened.pilot, lambda: len([j for j in opened.jobs.jobs if j.request.call == "analyze"]) == 2)
        assert opened.screen.tab == tab
        assert first.state == "cancelled"
        second = [job for job in opened.jobs.jobs if job.request.call == "analyze"][1]
        opened.jobs.finish(second, edge_report(adapter.modules))
        await opened.pilot.pause()
        assert opened.screen.query_one(AnalysisView).report is not None


async def test_a_job_cancelled_by_hand_says_how_to_go_on(adapter: Adapter) -> None:
    """Neither the spectrum nor an analysis waits for ever."""
    async with open_detail(adapter, analyses=[EdgeAnalysis()]) as opened:
        opened.jobs.cancel(opened.jobs_of(adapter.locator)[0])
        await opened.pilot.pause()
        assert opened.screen.spectra[0].reason == "The spectrum was cancelled. r computes it again."
        assert "The spectrum was cancelled." in opened.words()
        await opened.press("less_than_sign")
        opened.jobs.cancel(opened.jobs.waiting()[0])
        await opened.pilot.pause()
        assert "r runs it again" in opened.words()


async def test_an_analysis_that_needs_a_base(adapter: Adapter, report: Report) -> None:
    """Without one the tab says which; with one it is handed on."""
    async with open_detail(adapter, analyses=[NeedsBase()]) as opened:
        await opened.finish(report)
        await opened.press("less_than_sign")
        said = opened.words()
        assert "Qwen/Qwen2.5-0.5B" in said
        assert "--base" in said
        assert not [job for job in opened.jobs.jobs if job.request.call == "analyze"]
    async with open_detail(adapter, analyses=[NeedsBase()], base="/models/qwen") as opened:
        await opened.press("less_than_sign")
        (job,) = [job for job in opened.jobs.jobs if job.request.call == "analyze"]
        assert job.request.arguments["base"] == "/models/qwen"


async def test_a_report_without_rows_or_with_a_matrix(adapter: Adapter, report: Report) -> None:
    """Neither is a reason to fall over; a matrix is drawn as a heatmap with its exact values."""
    columns = (
        Column("pair", "Pair", ColumnKind.TEXT),
        Column("phi", "φ", ColumnKind.HEATMAP, index_title="i, j"),
    )
    matrix = [[0.0, 1 / 3, 1.0], [None, 0.25, 0.5]]
    whole = Report("analyze", "Other", (Table("pairs", "Pairs", columns, ({"pair": "a", "phi": matrix},), key="pair"),))
    async with open_detail(adapter, analyses=[EdgeAnalysis(), OtherAnalysis()]) as opened:
        await opened.finish(report)
        await opened.press("less_than_sign")
        opened.jobs.finish(opened.jobs.waiting()[0], whole)
        await opened.pilot.pause()
        await opened.pilot.pause()
        assert opened.screen.query(AnalysisView)[1].unavailable("next_table", ()) == "this report has no other table"
        heatmap = opened.screen.query(AnalysisView)[1].query_one(Heatmap)
        heatmap.focus()
        await opened.press("right")
        assert f"i=1 j=2  {1 / 3!r}" in opened.text()
        await opened.press("less_than_sign")
        opened.jobs.finish(opened.jobs.waiting()[0], Report("analyze", "Empty"))
        await opened.pilot.pause()
        assert opened.app.is_running


async def test_a_report_of_several_tables(adapter: Adapter, report: Report) -> None:
    """m goes from one to the next."""
    first = edge_report(adapter.modules)
    second = Table("layers", "Layers", (Column("layer", "Layer", ColumnKind.INTEGER),), ({"layer": 7},), key="layer")
    whole = Report("analyze", "Two", (*first.tables, second), parameters={"draws": 10})
    async with open_detail(adapter, analyses=[EdgeAnalysis()]) as opened:
        await opened.press("less_than_sign")
        opened.jobs.finish(next(job for job in opened.jobs.waiting() if job.request.call == "analyze"), whole)
        await opened.pilot.pause()
        assert "draws 10" in opened.text()
        view = opened.screen.query_one(AnalysisView)
        view.table.focus()
        await opened.press("m")
        assert view.table.keys == ("7",)
        await opened.press("m")
        assert view.table.keys == adapter.modules


def test_lightness_grows_with_the_value() -> None:
    """A grey screen still orders the cells of a heatmap."""
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (colour_of(place / 63) for place in range(64))]
    assert lightness == sorted(lightness)
    assert len(set(lightness)) == 64


# Copy and export


async def test_copy_is_at_full_precision(adapter: Adapter, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list copies the module's row, the plot the values under its cursor, the table its row."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        row = report.to_json()["modules"][0]
        taken: list[str] = []
        monkeypatch.setattr(opened.app, "copy_to_clipboard", taken.append)
        await opened.press("y")
        header, values = (line.split("\t") for line in taken[-1].splitlines())
        assert float(values[header.index("frobenius_norm")]) == row["frobenius_norm"]
        assert json.loads(values[header.index("singular_values")]) == row["singular_values"]
        await opened.press("enter", "right", "right", "y")
        header, values = (line.split("\t") for line in taken[-1].splitlines())
        assert float(values[header.index("singular_value")]) == row["singular_values"][1]
        opened.screen.query_one(TabbedContent).active = "tab-modules"
        opened.screen.query_one("#module-table", ReportTable).focus()
        await opened.press("down", "y")
        assert taken[-1].splitlines()[1].startswith("model.layers.0.self_attn.k_proj\t")


async def test_export_is_what_is_on_screen(adapter: Adapter, report: Report) -> None:
    """Curves with overlays, the table in its order, the configuration, the rows of an analysis."""
    other = chat()
    async with open_detail(adapter, others=[other], analyses=[EdgeAnalysis()]) as opened:
        await opened.finish(report)
        await opened.press("o")
        await opened.finish(make_report(other), other.locator)
        document = opened.screen.export_document()
        assert document is not None
        rows = json.loads(as_json(document))
        assert len(rows) == 16 + 8
        assert rows[3]["singular_value"] == report.to_json()["modules"][0]["singular_values"][3]
        assert as_csv(document).startswith("module,adapter,k,singular_value,cumulative_energy")
        await opened.press("greater_than_sign")
        table = opened.screen.query_one("#module-table", ReportTable)
        table.sort_by("frobenius_norm")
        document = opened.screen.export_document()
        assert document is not None
        assert [row[0] for row in document.rows] == list(table.keys)
        assert len(json.loads(as_json(document))) == 48
        await opened.press("greater_than_sign", "greater_than_sign")
        document = opened.screen.export_document()
        assert document is not None
        assert ["lora_alpha", 32] in document.rows
        await opened.press("greater_than_sign")
        assert opened.screen.export_document() is None
        opened.jobs.finish(opened.jobs.waiting()[0], edge_report(adapter.modules))
        await opened.pilot.pause()
        document = opened.screen.export_document()
        assert document is not None
        assert "observed" in document.columns


# The screens as text


async def test_golden(size: tuple[int, int], adapter: Adapter, report: Report) -> None:
    """What a person sees; LORA_LAB_GOLDEN=write writes the files anew."""
    other = chat()
    seen: dict[str, str] = {}
    async with open_detail(adapter, size=size, others=[other], analyses=[EdgeAnalysis()]) as opened:
        await opened.finish(report)
        seen["spectrum"] = opened.text()
        for name in ("modules", "matrix", "config"):
            await opened.press("greater_than_sign")
            await opened.pilot.pause()
            seen[name] = opened.text()
        await opened.press("greater_than_sign")
        opened.jobs.finish(opened.jobs.waiting()[0], edge_report(adapter.modules))
        await until(opened.pilot, lambda: "╌ edge" in opened.text())
        await opened.pilot.pause()
        seen["analysis"] = opened.text()
        await opened.press("greater_than_sign", "o")
        await opened.finish(make_report(other, decay=0.9), other.locator)
        await opened.press("enter", "right", "right")
        seen["overlay"] = opened.text()
    for name, shown in seen.items():
        path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
        if os.environ.get("LORA_LAB_GOLDEN") == "write":
            path.parent.mkdir(exist_ok=True)
            path.write_text(shown + "\n", encoding="utf-8")
        assert shown + "\n" == path.read_text(encoding="utf-8"), name
