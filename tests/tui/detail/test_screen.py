"""The screen of one adapter: reading, filling in, looking, moving."""

from __future__ import annotations

import math

import pytest
from textual.events import MouseScrollUp
from textual.geometry import Offset
from textual.widgets import TabbedContent
from tui.detail.made import (
    make_adapter,
    make_report,
    module_names,
    open_detail,
    singular_values,
    spectrum_row,
)
from tui.fakes import FakeEvent, until

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Report
from lora_lab.errors import AdapterError
from lora_lab.tui import text
from lora_lab.tui.detail.config_view import TextView
from lora_lab.tui.detail.module_tree import ModuleTree
from lora_lab.tui.detail.outline import Grouping, Order
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.detail.spectrum_view import SpectrumView
from lora_lab.tui.detail.tables import ReportTable

FIRST = "model.layers.0.self_attn.q_proj"


async def test_names_are_there_before_any_number(size: tuple[int, int], adapter: Adapter) -> None:
    """Headers first: layers in natural order, numbers still to come."""
    async with open_detail(adapter, size=size) as opened:
        tree = opened.screen.query_one(ModuleTree)
        assert [line.label for line in tree.lines if line.module is None] == [f"L{layer}" for layer in range(12)]
        assert opened.screen.module == FIRST
        assert text.PENDING in opened.text()
        assert "A 16×896  B 128×16" in opened.text()


async def test_rows_fill_in_as_they_arrive(adapter: Adapter, report: Report) -> None:
    """A row shows at once; its group waits for the rest; the report ends it."""
    rows = [dict(row) for row in report.table("modules").rows]
    async with open_detail(adapter) as opened:
        job = opened.jobs_of(adapter.locator)[0]
        opened.jobs.on_event(FakeEvent(job, "rows", "modules", rows[:1]))
        await opened.pilot.pause()
        lines = opened.text().splitlines()
        assert text.number(rows[0]["frobenius_norm"]) in next(
            line for line in lines if "q_proj" in line and "│  " in line
        )
        assert text.PENDING in next(line for line in lines if "▼ L0" in line)
        assert "computed 1 of 48" in opened.text()
        assert opened.screen.spectra[0].values == tuple(rows[0]["singular_values"])
        await opened.finish(report)
        assert "computed" not in opened.text()
        norm = math.hypot(*(row["frobenius_norm"] for row in rows[:4]))
        assert text.number(norm) in next(line for line in opened.text().splitlines() if "▼ L0" in line)


async def test_a_large_adapter_asks_for_what_is_in_sight_first() -> None:
    """Two jobs: the modules one sees, by their exact names, then all."""
    adapter = make_adapter(module_names(100))
    async with open_detail(adapter) as opened:
        first, whole = opened.jobs_of(adapter.locator)
        assert first.priority > whole.priority
        assert FIRST in first.request.arguments["modules"]
        assert len(first.request.arguments["modules"]) < 400
        assert "modules" not in whole.request.arguments


async def test_status_line_has_the_digits_of_the_report(
    size: tuple[int, int], adapter: Adapter, report: Report
) -> None:
    """What the cursor reads off is what JSON holds, digit for digit."""
    async with open_detail(adapter, size=size) as opened:
        await opened.finish(report)
        await opened.press("enter", "right", "right", "right")
        value = report.to_json()["modules"][0]["singular_values"][2]
        assert opened.plot.cursor == 3
        assert f"k=3  σ={value!r}" in opened.text()


async def test_measures_are_those_of_the_report(adapter: Adapter, report: Report) -> None:
    """The line under the plot shows the row's own numbers, written by the function that every table uses."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        row = report.to_json()["modules"][0]
        for column in ("frobenius_norm", "spectral_norm", "stable_rank", "effective_rank", "participation_ratio"):
            assert text.number(row[column]) in opened.text()
        assert f"r@99 {row['energy_rank']['0.99']}" in opened.text()


async def test_keys_change_what_is_drawn(adapter: Adapter, report: Report) -> None:
    """l, e and n change the data that the plot is given."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        values = list(opened.screen.spectra[0].values or ())

        def drawn() -> list[float]:
            return [float(height) for height in opened.plot._datasets[0].y]

        assert drawn() == pytest.approx([math.log10(value) for value in values])
        await opened.press("n")
        assert drawn() == pytest.approx([math.log10(value / values[0]) for value in values])
        await opened.press("l")
        assert drawn() == pytest.approx([value / values[0] for value in values])
        await opened.press("e")
        assert drawn()[-1] == 100.0
        await opened.press("l")  # an energy has no logarithm: refused, with the reason
        assert drawn()[-1] == 100.0
        await opened.press("e", "n", "l")
        assert drawn() == pytest.approx([math.log10(value) for value in values])


async def test_the_view_is_remembered(adapter: Adapter, report: Report) -> None:
    """A second screen starts as the first was left."""
    async with open_detail(adapter) as opened:
        await opened.press("l", "v", "s")
        app = opened.app
        app.open_detail(adapter.locator)
        await until(opened.pilot, lambda: app.screen is not opened.screen and getattr(app.screen, "adapter", None))
        assert not app.screen.view.is_logarithmic  # type: ignore[attr-defined]
        assert app.screen.outline.grouping is Grouping.PROJECTION  # type: ignore[attr-defined]
        assert app.screen.outline.order is Order.NORM  # type: ignore[attr-defined]


async def test_hover_reads_off_the_nearest_value(adapter: Adapter, report: Report) -> None:
    """The mouse puts the cursor on the k under it."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        plot = opened.plot
        x, y = plot.get_pixel_from_coordinate(7, 0.0)
        at = plot._canvas().region.offset + Offset(x, y)
        await opened.pilot.hover(offset=(at.x, at.y))
        await opened.pilot.pause()
        assert plot.cursor == 7
        assert f"σ={opened.screen.spectra[0].values[6]!r}" in opened.text()  # type: ignore[index]


async def test_zoom_pan_and_reset(adapter: Adapter, report: Report) -> None:
    """+ and - change the window, 0 brings the whole curve back, and r is left to rescan."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        plot = opened.plot
        whole = (plot._x_min, plot._x_max)
        await opened.press("enter", "plus")
        assert plot._x_max - plot._x_min < whole[1] - whole[0]
        await opened.press("shift+right")
        zoomed = (plot._x_min, plot._x_max)
        assert zoomed[0] > whole[0]
        await opened.press("G")  # the cursor takes the window with it
        assert plot._x_min <= 16 <= plot._x_max
        await opened.press("0")
        assert (plot._x_min, plot._x_max) == whole
        for _ in range(60):
            plot.action_zoom_out()
        assert plot._x_max - plot._x_min < 6 * (whole[1] - whole[0])


async def test_the_window_stays_only_while_the_same_thing_is_looked_at(adapter: Adapter, report: Report) -> None:
    """Another module is shown whole."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        whole = (opened.plot._x_min, opened.plot._x_max)
        await opened.press("enter", "plus", "right_square_bracket")
        assert (opened.plot._x_min, opened.plot._x_max) == whole


async def test_filter_sort_and_group_keep_the_selection(adapter: Adapter, report: Report) -> None:
    """The module stays where it can be seen, through every change of the list."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        screen, tree = opened.screen, opened.screen.query_one(ModuleTree)
        wanted = "model.layers.10.self_attn.v_proj"
        tree.select(wanted)
        await opened.filter("v_proj")
        assert "12 of 48" in opened.text()
        assert screen.module == wanted
        assert tree.line is not None
        assert tree.line.module == wanted
        await opened.press("enter", "s", "v")
        assert screen.module == wanted
        assert tree.line.module == wanted
        await opened.press("escape")
        assert screen.outline.filter == ""
        assert tree.line.module == wanted


async def test_escape_leaves_the_filter_where_it_began(adapter: Adapter) -> None:
    """Moving about in a filtered list is forgotten with the filter."""
    async with open_detail(adapter) as opened:
        await opened.filter("L7")
        await opened.press("enter", "down", "down")
        assert opened.screen.module == "model.layers.7.self_attn.k_proj"
        await opened.press("slash", "escape")
        assert opened.screen.outline.filter == ""
        await opened.filter("nowhere")
        assert "0 of 48" in opened.text()
        await opened.press("escape")
        assert opened.screen.module == "model.layers.7.self_attn.k_proj"


async def test_sorting_finds_the_largest(adapter: Adapter, report: Report) -> None:
    """The first module after sorting is the one that the report calls the largest."""
    async with open_detail(adapter) as opened:
        await opened.finish(report)
        await opened.press("v", "s")  # by projection: its first line is the projection with the largest norm
        opened.screen.outline.opened = {group.id for group in opened.screen.outline.groups}
        opened.screen.query_one(ModuleTree).lay_out()
        largest = report.scalars[0].values["largest_module"]
        groups: dict[str, str] = {}
        for line in opened.screen.query_one(ModuleTree).lines:
            if line.module is not None:
                groups.setdefault(line.group, line.module)
        assert largest in groups.values()


async def test_next_and_previous_module(adapter: Adapter) -> None:
    """Brackets go through modules, opening groups as they come."""
    async with open_detail(adapter) as opened:
        await opened.press(*["right_square_bracket"] * 4)
        assert opened.screen.module == "model.layers.1.self_attn.q_proj"
        assert "model.layers.1" in opened.screen.outline.opened
        await opened.press("left_square_bracket")
        assert opened.screen.module == "model.layers.0.self_attn.o_proj"


async def test_folding(adapter: Adapter) -> None:
    """Groups open and close by arrow, space and z; closing from a module goes to its group."""
    async with open_detail(adapter) as opened:
        tree = opened.screen.query_one(ModuleTree)
        opened_lines = len(tree.lines)
        await opened.press("left")
        assert tree.line is not None
        assert tree.line.module is None
        await opened.press("left")
        assert len(tree.lines) == opened_lines - 4
        await opened.press("space")
        assert len(tree.lines) == opened_lines
        await opened.press("z")
        assert len(tree.lines) == 12 * 5
        await opened.press("z")
        assert len(tree.lines) == 12


async def test_the_modules_tab_has_every_scalar_measure(adapter: Adapter, report: Report) -> None:
    """Rows fill the table; the cursor's column sorts it; enter goes to the plot of the row."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.press("greater_than_sign")
        table = opened.screen.query_one("#module-table", ReportTable)
        assert table.keys == adapter.modules
        assert text.PENDING in opened.text()
        await opened.finish(report)
        shown = set(table.fields)
        assert {"module", "rank", "frobenius_norm", "stable_rank", "energy_rank.0.9"} <= shown
        assert "singular_values" not in shown
        table.focus()
        await opened.press("s")  # by name, as it is; then by norm
        table.sort_by("frobenius_norm")
        largest = report.scalars[0].values["largest_module"]
        assert table.keys[0] == largest
        await opened.press("g", "enter")
        assert opened.screen.module == largest
        assert opened.screen.query_one(TabbedContent).active == "tab-spectrum"
        assert opened.plot.has_focus


async def test_config_tells_everything_that_changes_the_update(adapter: Adapter, report: Report) -> None:
    """Features with what is done about them, findings of headers and of the spectrum, configuration, metadata."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        shown = opened.screen.query_one(TextView).shown.plain
        for wanted in (
            "✓ honoured",
            "Rank-stabilised scaling",
            "which nothing reads",
            "DoRA magnitudes are outside ΔW.",
            '"lora_alpha": 32',
            "format       pt",
            "Qwen/Qwen2.5-0.5B",
        ):
            assert wanted in shown


async def test_an_unreadable_adapter_is_one_sentence_and_a_hint(size: tuple[int, int]) -> None:
    """Nothing else is shown, and nothing is asked for."""
    error = AdapterError("adapter_config.json is no JSON object.", hint="Download it again.")
    async with open_detail(error, size=size) as opened:
        assert "adapter_config.json is no JSON object." in opened.text()
        assert "Download it again." in opened.text()
        assert opened.jobs.waiting() == []
        await opened.press("l", "s", "slash", "y", "x")
        assert opened.app.is_running


async def test_a_failed_spectrum_says_its_sentence(adapter: Adapter) -> None:
    """A factor with NaN has no spectrum; the rest of the screen stays."""
    async with open_detail(adapter) as opened:
        sentence = "lora_A of 'model.layers.0.self_attn.q_proj' holds NaN."
        opened.jobs.fail(opened.jobs_of(adapter.locator)[0], sentence, "Train it again.")
        await opened.pilot.pause()
        assert opened.screen.spectra[0].reason == f"{sentence} Train it again."
        assert "holds NaN" in " ".join(opened.text().split())
        assert sentence in opened.screen.query_one(TextView).shown.plain


async def test_a_module_that_is_not_finite(adapter: Adapter) -> None:
    """Its row has no numbers, and the plot says why; the others are drawn."""
    rows = [spectrum_row(module, [1.0] * 16, 16) for module in adapter.modules]
    kept = ("module", "shape", "rank", "scaling")
    rows[0] = {name: value if name in kept else None for name, value in rows[0].items()}
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(make_report(adapter, rows))
        await opened.press("space", "down")
        assert opened.screen.module == adapter.modules[0]
        assert "the factors hold NaN or infinity" in " ".join(opened.text().split())
        await opened.press("enter", "right", "plus", "e", "n", "s", "l", "y", "escape", "down")
        assert "the factors hold NaN" not in " ".join(opened.text().split())


async def test_a_zero_adapter(adapter: Adapter) -> None:
    """A zero update is not an empty screen: it says why there is nothing to draw."""
    rows = [spectrum_row(module, [0.0] * 16, 16) for module in adapter.modules]
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(make_report(adapter, rows))
        assert "ΔW is zero: every σ is 0" in opened.text()
        assert f"effective {text.NOT_THERE}" in opened.text()
        await opened.press("enter", "right", "plus", "e", "n", "s")
        assert "a share of it is undefined" in opened.text()


async def test_rank_one() -> None:
    """A single singular value is a point with a frame round it."""
    adapter = make_adapter(module_names(2), rank=1)
    async with open_detail(adapter) as opened:
        await opened.finish(make_report(adapter))
        await opened.press("enter", "right", "right")
        assert opened.plot.cursor == 1
        assert "cumulative 100.00 %" in opened.text()
        assert "●" in opened.text()


async def test_late_results_of_another_adapter_change_nothing(adapter: Adapter, report: Report) -> None:
    """Results are known by their job, not by what they say."""
    async with open_detail(adapter) as opened:
        job = opened.jobs_of(adapter.locator)[0]
        stranger = opened.jobs.submit(job.request, title="another", group="other")
        other = make_report(adapter, [spectrum_row(m, singular_values(99, 16), 16) for m in adapter.modules])
        opened.jobs.finish(stranger, other)
        await opened.pilot.pause()
        assert opened.screen.feed.rows == {}
        await opened.press("r")  # rescanned: the job from before is obsolete
        await until(opened.pilot, lambda: opened.jobs_of(adapter.locator))
        opened.jobs.finish(job, other)
        await opened.pilot.pause()
        assert opened.screen.feed.report is None
        await opened.finish(report)
        assert opened.screen.feed.report is report


async def test_leaving_takes_the_jobs_back(adapter: Adapter) -> None:
    """Nothing is computed for a screen that is gone."""
    async with open_detail(adapter) as opened:
        job = opened.jobs_of(adapter.locator)[0]
        await opened.press("q")
        await until(opened.pilot, lambda: opened.app.screen is not opened.screen)
        await opened.pilot.pause()
        assert job.state == "cancelled"
        assert opened.app.job_list.jobs == []


async def test_names_from_a_file_are_shown_and_not_obeyed() -> None:
    """Markup, control characters and quotes in a module's name are inert everywhere."""
    names = ["[@click=app.quit]x[/].layers.0.q\x1b[2J", "[bold]layers.1.[/red]y\u202e"]
    adapter = make_adapter(names)
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(make_report(adapter))
        for _ in range(4):
            await opened.press("greater_than_sign")
            shown = opened.text()
            assert "\x1b" not in shown
            assert "\u202e" not in shown
        await opened.press("right_square_bracket", "enter", "right", "y")
        await opened.pilot.click(ModuleTree, offset=(6, 1))
        assert opened.app.is_running
        assert "[bold]" in "".join(line.label + line.group for line in opened.screen.query_one(ModuleTree).lines)


async def test_ten_thousand_modules_cost_what_a_screenful_costs() -> None:
    """Only visible lines become text, whatever is done."""
    adapter = make_adapter(module_names(2500), rank=1)
    async with open_detail(adapter) as opened:
        tree = opened.screen.query_one(ModuleTree)
        drawn: list[int] = []
        render = tree.render_line

        def counted(y: int) -> object:
            drawn.append(y)
            return render(y)

        tree.render_line = counted  # type: ignore[assignment,method-assign]
        await opened.press("z")
        assert len(tree.lines) == 12_500
        assert not list(tree.children)
        drawn.clear()
        await opened.press("G")
        assert opened.screen.module == "model.layers.2499.self_attn.o_proj"
        assert 0 < len(drawn) <= 4 * tree.size.height
        drawn.clear()
        await opened.filter("L2400")
        assert len(tree.lines) == 5
        assert len(drawn) <= 12 * tree.size.height


async def test_resizing_keeps_the_module_and_fits(adapter: Adapter, report: Report) -> None:
    """Down to 60 × 16 and back: no pane without room, the same module, the same cursor."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        await opened.press("right_square_bracket", "enter", "right", "right")
        module = opened.screen.module
        for width, height in ((80, 24), (60, 16), (200, 60), (50, 12), (80, 24)):
            await opened.pilot.resize_terminal(width, height)
            await opened.pilot.pause()
            if width >= 60:
                for widget in (opened.screen.query_one(ModuleTree), opened.plot, opened.screen.query_one(SpectrumView)):
                    assert widget.size.width > 0
                    assert widget.size.height > 0
                assert all(len(line) <= width for line in opened.text().splitlines())
        assert opened.screen.module == module
        assert opened.plot.cursor == 2


async def test_every_key_has_a_name_and_a_sentence(adapter: Adapter, report: Report) -> None:
    """Help and keymaps know every binding of every pane."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        for target in (ModuleTree, "#spectrum-plot", "#module-table", "#config"):
            opened.screen.query_one(target).focus()  # type: ignore[arg-type]
            await opened.pilot.pause()
            for active in opened.screen.active_bindings.values():
                assert active.binding.id, active
                assert active.binding.tooltip, active


async def test_the_wheel_zooms_round_the_pointer(adapter: Adapter, report: Report) -> None:
    """What is under the pointer stays under it."""
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        plot = opened.plot
        canvas = plot._canvas()
        x, y = plot.get_pixel_from_coordinate(9, -0.5)
        at = canvas.region.offset + Offset(x, y)
        before, span = plot.get_coordinate_from_pixel(x, y), plot._x_max - plot._x_min
        common = {"x": x, "y": y, "delta_x": 0, "delta_y": 0, "button": 0, "shift": False, "meta": False, "ctrl": False}
        plot.zoom_out(MouseScrollUp(canvas, screen_x=at.x, screen_y=at.y, **common))
        assert plot._x_max - plot._x_min < span
        assert plot.get_coordinate_from_pixel(x, y) == pytest.approx(before)


def test_overlays_that_end_alike_are_told_apart() -> None:
    """Two folders may both be called adapter."""
    screen = DetailScreen("/a/adapter", overlays=("/b/adapter", "/c/other", "/a/adapter"))
    assert [feed.name for feed in screen.overlays] == ["b/adapter", "other"]
