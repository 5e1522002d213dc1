"""Tabs of analyses against a base: Amplification, Intruders; and the base they are run against."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, OptionList, Static
from tui.detail.made import make_adapter, make_report, module_names, open_detail
from tui.detail.reports import (
    Amplify,
    BudgetAnalysis,
    Interference,
    Intruders,
    amplify_report,
    intruders_report,
)
from tui.fakes import make_app, until

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.library import EntryKind, LibraryEntry
from lora_lab.domain.report import Column, ColumnKind, Report, Table
from lora_lab.errors import MissingFileError
from lora_lab.extension.contracts import Need
from lora_lab.session import Session
from lora_lab.tui.base_dialog import BaseDialog, BaseMemory, choices_of
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.detail.analysis_view import AnalysisView, takes_one_adapter
from lora_lab.tui.detail.presenting import curve_groups, presentation_of
from lora_lab.tui.detail.tables import ReportTable, cell_text, fields_of
from lora_lab.tui.state import State

GOLDEN = Path(__file__).parent / "golden"
MODULES = module_names(4)


@pytest.fixture
def small() -> Adapter:
    """Four layers of four projections."""
    return make_adapter(MODULES)


def analysis_jobs(opened: Any) -> list[Any]:
    """Jobs of analyses other than the spectrum, waiting."""
    return [job for job in opened.jobs.waiting() if job.request.call == "analyze"]


async def show(opened: Any, report: Report) -> AnalysisView:
    """Finish the analysis that waits."""
    (job,) = analysis_jobs(opened)
    opened.jobs.finish(job, report)
    view = next(view for view in opened.screen.query(AnalysisView) if view.analysis.id == job.request.arguments["id"])
    await until(opened.pilot, lambda: view.report is not None and view.table.row is not None)
    await opened.pilot.pause()
    return view


def test_only_analyses_of_one_adapter_are_tabs() -> None:
    """Not those of two, and not those that are about a model or about none."""
    assert takes_one_adapter(Amplify())
    assert takes_one_adapter(Intruders())
    assert not takes_one_adapter(Interference())
    assert not takes_one_adapter(BudgetAnalysis())


async def test_amplification(size: tuple[int, int], small: Adapter) -> None:
    """The largest first, the random baseline beside it, and what the number means."""
    async with open_detail(small, size=size, analyses=[Amplify(), Interference()], base="/models/qwen") as opened:
        await opened.finish(make_report(small))
        assert "Interference" not in opened.text()
        await opened.press("less_than_sign")
        view = await show(opened, amplify_report(MODULES))
        table = view.table
        assert table.sorted_by == ("amplification", True)
        assert table.keys[0] == MODULES[-2]
        assert table.keys[-1] == MODULES[-1]  # undefined comes last
        titles = [column.id for column in table.columns[:3]]
        assert titles == ["module", "amplification", "amplification_random"]
        said = opened.words()
        assert "the adapter amplifies directions that W hardly uses" in said
        assert "345.5" in said  # of random directions
        assert "21.67" in said
        assert "ΔW is zero" in str(view.query_one(".analysis--note", Static).content)
        table.focus()
        await opened.press("G")
        assert "it is undefined here" in opened.words()
        table.move_to(MODULES[0])
        await opened.pilot.pause()
        assert "2.159: the adapter amplifies" in opened.words()
        await opened.press("enter")
        assert opened.screen.module == MODULES[0]
        check_golden("amplify", size, opened.text())


async def test_intruders(size: tuple[int, int], small: Adapter) -> None:
    """Cosines with their threshold, σ on an axis of its own, which of the directions are new."""
    async with open_detail(small, size=size, analyses=[Intruders()], base="/models/qwen") as opened:
        await opened.finish(make_report(small))
        await opened.press("less_than_sign")
        view = await show(opened, intruders_report(MODULES))
        await until(opened.pilot, lambda: "threshold" in opened.text())
        plot: Any = view.query_one("RowPlot")
        assert len(plot._datasets) == 1
        assert list(plot._datasets[0].y)[2] == pytest.approx(0.1 * 3**0.5)
        assert len(plot.drawing.levels) == 1
        assert view.table.keys[0] == MODULES[1]
        assert "k = 3, 7" in opened.words()
        check_golden("intruders", size, opened.text())
        await opened.press("w")
        await opened.pilot.pause()
        assert not plot.drawing.levels
        assert plot.drawing.is_logarithmic
        assert "σₖ of W+ΔW" in opened.text()
        view.table.focus()
        await opened.press("G")
        assert "each of the leading 10 has a cosine of 0.7200 or more" in opened.words()


@pytest.mark.parametrize(
    ("norm", "here", "meaning"),
    [
        (6.91, 0.32, "the adapter amplifies directions that W hardly uses"),  # table 7 of the paper, r = 4
        (60.0, 20.0, "the adapter amplifies W's own leading directions"),
        (10.0, 10.0, "the adapter is about as strong as W along directions that W uses, though not its strongest"),
        (1.0, 20.0, "the adapter is small beside what W does along W's own leading directions"),
    ],
)
def test_what_an_amplification_means(norm: float, here: float, meaning: str) -> None:
    """Judged by what W does along its own leading directions, not by the factor alone."""
    row = {
        "module": "h.0.q",
        "delta_norm": norm,
        "projected": {"delta": here, "base": 21.67, "random": 0.02},
        "amplification": norm / here,
    }
    assert presentation_of("amplify").row(row, 60)[-1].plain.endswith(f": {meaning}.")


def test_curves_of_a_stranger_share_a_plot_when_they_share_an_axis() -> None:
    """Without a presentation: by unit, kind of axis and index; levels go with all of them."""
    columns = (
        Column("module", "Module", ColumnKind.TEXT),
        Column("a", "a", ColumnKind.CURVE),
        Column("b", "b", ColumnKind.CURVE),
        Column("c", "c", ColumnKind.CURVE, is_logarithmic=True),
        Column("edge", "edge", is_marker=True),
    )
    groups = curve_groups(Table("modules", "Modules", columns, ()), presentation_of("stranger"))
    assert [[column.id for column in group] for group in groups] == [["a", "b", "edge"], ["c", "edge"]]


def test_cells_of_every_kind() -> None:
    """Records are counted, values written, numbers of a mapping have a column each."""
    assert cell_text([{"k": 1}, {"k": 2}], ColumnKind.RECORDS) == "2"
    assert cell_text(True, ColumnKind.VALUE) == "yes"
    assert cell_text(["q", "v"], ColumnKind.VALUE) == '["q", "v"]'
    assert cell_text({"a": None}, ColumnKind.VALUE) == '{"a": null}'
    assert cell_text("\x1b[31m", ColumnKind.VALUE) == cell_text("\x1b[31m", ColumnKind.TEXT)
    assert "\x1b" not in cell_text(["\x1b[31m"], ColumnKind.VALUE)
    table = amplify_report(MODULES).table("modules")
    fields = [field.id for field in fields_of(table, ("amplification", "rank"))]
    assert fields[:3] == ["module", "amplification", "rank"]
    assert "projected.random" in fields
    assert fields[-1] == "tensor"  # wide ones last


async def test_values_of_different_types_are_sorted(small: Adapter) -> None:
    """A setting may be a number here and a list there."""
    columns = (Column("key", "Key", ColumnKind.TEXT), Column("a", "A", ColumnKind.VALUE))
    rows = tuple({"key": str(place), "a": value} for place, value in enumerate([3, "x", [1], True, None, {"b": 1}]))
    report = Report("analyze", "Settings", (Table("config", "Config", columns, rows, key="key"),))
    async with open_detail(small, analyses=[Amplify()], base="/models/qwen") as opened:
        await opened.press("less_than_sign")
        view = await show(opened, report)
        view.query_one(ReportTable).sort_by("a")
        assert sorted(view.table.keys) == list("012345")
        assert view.table.keys[-1] == "4"


# The base.


def base_entry(name: str, **values: Any) -> LibraryEntry:
    """A base of a library."""
    return LibraryEntry(EntryKind.BASE, name, f"/library/{name}", parameters=5_000_000, size_bytes=10_000_000, **values)


def test_the_base_that_the_adapter_names_comes_first(tmp_path: Path) -> None:
    """By the name of its folder, or as a path that is there; broken ones and adapters are no choice."""
    entries = [
        base_entry("other"),
        base_entry("Qwen2.5-0.5B"),
        base_entry("broken", error="It is broken."),
        LibraryEntry(EntryKind.ADAPTER, "x", "/library/x"),
    ]
    found = choices_of(entries, "Qwen/qwen2.5-0.5b")
    assert [choice.locator for choice in found] == ["/library/Qwen2.5-0.5B", "/library/other"]
    assert [choice.is_named for choice in found] == [True, False]
    (tmp_path / "tiny").mkdir()
    beside = choices_of(entries, "tiny", str(tmp_path / "adapter"))
    assert beside[0].locator == str(tmp_path / "tiny")
    assert beside[0].is_named
    assert not any(choice.is_named for choice in choices_of(entries, "a\0b"))
    assert not any(choice.is_named for choice in choices_of(entries, None))


def test_what_was_chosen_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For adapters that name the same model, in this run and the next; never a place on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/qwen").mkdir(parents=True)
    app = make_app()
    app.state = State(tmp_path / "tui.json")
    memory = BaseMemory(app)
    assert memory.base_for("Qwen/Qwen2.5-0.5B") is None
    memory.choose("Qwen/Qwen2.5-0.5B", "models/qwen")
    memory.choose("bert", "hf://google-bert/bert-base-uncased")
    assert memory.base_for("Qwen/Qwen2.5-0.5B") == "models/qwen"
    assert memory.base_for("bert") == app.base == "hf://google-bert/bert-base-uncased"
    assert memory.base_for("llama") is None  # chosen for another model
    app.state.save()
    again = make_app()
    again.state = State(tmp_path / "tui.json")
    later = BaseMemory(again)
    assert later.base_for("Qwen/Qwen2.5-0.5B") == str(tmp_path / "models/qwen")
    assert later.base_for("bert") is None
    again.base = "/given"
    assert later.base_for("Qwen/Qwen2.5-0.5B") == "/given"  # the command line comes first
    again.base = None
    again.state.set("bases", {"Qwen/Qwen2.5-0.5B": 3})
    assert later.base_for("Qwen/Qwen2.5-0.5B") is None


async def test_choosing_a_base_runs_the_tab(size: tuple[int, int], small: Adapter) -> None:
    """The tab says which base the adapter names; d offers what is here; the chosen one is used at once."""
    async with open_detail(small, size=size, analyses=[Amplify()]) as opened:
        await opened.finish(make_report(small))
        assert opened.screen.unavailable("choose_base", ()) == (
            "this tab needs no base model; those of analyses against the base's weights do"
        )
        await opened.press("less_than_sign")
        said = opened.screen.query_one(AnalysisView).reason
        assert "Qwen/Qwen2.5-0.5B, as the adapter says" in said
        assert "d chooses it" in said
        assert "d chooses it" in opened.text()
        home: Any = opened.app.library
        home.library.add([base_entry("other"), base_entry("Qwen2.5-0.5B")])
        await opened.press("d")
        dialog = opened.app.screen
        assert isinstance(dialog, BaseDialog)
        await opened.pilot.pause()
        shown = opened.text()
        assert "as the adapter says" in shown
        assert shown.index("/library/Qwen2.5-0.5B") < shown.index("/library/other")
        check_golden("base", size, shown)
        await opened.press("enter")
        (job,) = analysis_jobs(opened)
        assert job.request.arguments["base"] == "/library/Qwen2.5-0.5B"
        assert opened.app.base == "/library/Qwen2.5-0.5B"
        await show(opened, amplify_report(MODULES))
        await opened.press("d", "j", "enter")
        (job,) = analysis_jobs(opened)
        assert job.request.arguments["base"] == "/library/other"


async def test_a_typed_base_is_looked_at_first(small: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no model is told in the dialogue; a place on the Hub is fetched only after a yes."""
    async with open_detail(small, analyses=[Amplify()]) as opened:

        def base(locator: str) -> object:
            if locator != "/models/qwen":
                raise MissingFileError(f"'{locator}' does not exist.", hint="Give a folder.")
            return object()

        monkeypatch.setattr(opened.app.session, "base", base, raising=False)
        await opened.press("less_than_sign", "d")
        dialog = opened.app.screen
        assert isinstance(dialog, BaseDialog)
        assert not dialog.query_one(OptionList).display
        field = dialog.query_one(Input)
        assert field.has_focus
        assert field.value == "Qwen/Qwen2.5-0.5B"  # what the adapter names is one key away, and a question
        assert "⏎ takes it from the Hub" in opened.words()
        await opened.press("enter")
        assert isinstance(opened.app.screen, Confirm)
        await opened.press("n")
        field.value = ""
        await opened.press("enter")
        assert "Type a path" in opened.text()
        field.value = "/nowhere"
        await opened.press("enter")
        await until(opened.pilot, lambda: "does not exist" in opened.text())
        field.value = "org/name"
        await opened.press("enter")
        assert isinstance(opened.app.screen, Confirm)
        await opened.press("n")
        assert opened.app.screen is dialog
        assert not analysis_jobs(opened)
        field.value = "hf://"
        await opened.press("enter")
        assert "names no repository" in opened.words()
        field.value = "/models/qwen"
        await opened.press("enter")
        await until(opened.pilot, lambda: opened.app.screen is opened.screen)
        (job,) = analysis_jobs(opened)
        assert job.request.arguments["base"] == "/models/qwen"
        opened.jobs.fail(job, "'/models/qwen' is no base of this adapter.", "Look again.")
        await opened.pilot.pause()
        assert "Press d for another base." in opened.words()


async def test_esc_leaves_the_choice_as_it_was(small: Adapter) -> None:
    """Nothing is run, nothing is remembered."""
    async with open_detail(small, analyses=[Amplify()]) as opened:
        await opened.press("less_than_sign", "d", "escape")
        assert opened.app.screen is opened.screen
        assert opened.app.base is None
        assert not analysis_jobs(opened)


def check_golden(name: str, size: tuple[int, int], shown: str) -> None:
    """The screen is the one in the file."""
    path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
    if os.environ.get("LORA_LAB_GOLDEN") == "write":
        path.write_text(shown + "\n", encoding="utf-8")
    assert shown + "\n" == path.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("id_", ["amplify", "intruders", "health", "check"])
async def test_the_real_analyses(id_: str, size: tuple[int, int]) -> None:
    """On a sample adapter: every row has its line, the first columns are there, and nothing has to give way."""
    samples = Path(__file__).parents[3] / "sample_adapters"
    session = Session(device="cpu", cache=False, plugins=False)
    adapter = session.adapter(str(samples / "banking77-r8-seed0"))
    analysis = session.registry.analyses[id_]
    base = str(samples / "base") if analysis.base is not Need.NO else None
    report = session.analyze(id_, [adapter.locator], base=base)
    async with open_detail(adapter, size=size, analyses=[analysis], base=base) as opened:
        await opened.press("less_than_sign")
        view = await show(opened, report)
        assert set(view.table.keys) == set(adapter.modules)
        wanted = presentation_of(id_).first
        assert wanted[0] in [column.id for column in view.table.columns] or id_ == "check"
        assert sum(child.size.height for child in view.children if child.display) <= view.size.height
        assert view.table.size.height >= 3
        about = presentation_of(id_).about(report)
        assert about
        assert about.split()[0] in opened.text()
