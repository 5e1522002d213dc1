"""The Matrix tab: modules as a grid of layers and projections, any number of any report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from textual.widgets import OptionList
from tui.detail.made import make_adapter, make_report, module_names, open_detail
from tui.detail.reports import Amplify, Intruders, amplify_report, intruders_report
from tui.detail.test_against_base import analysis_jobs, check_golden, show
from tui.fakes import until

from lora_lab.tui.detail.layers import grid_of, metrics_of
from lora_lab.tui.detail.matrix_view import LayerMap, MatrixView, MetricPicker
from lora_lab.tui.export import as_json


def test_grid_of_a_decoder() -> None:
    """Layers downwards in order, projections across under their own names, the rest beside."""
    modules = [*module_names(12), "lm_head"]
    grid = grid_of(modules)
    assert grid.rows == tuple(f"L{layer}" for layer in range(12))
    assert grid.columns == ("q", "k", "v", "o")
    assert grid.outside == ("lm_head",)
    assert grid.modules[10][2] == "model.layers.10.self_attn.v_proj"
    assert grid.place_of("model.layers.10.self_attn.v_proj") == (10, 2)
    assert grid.place_of("lm_head") is None


def test_grid_tells_alike_names_apart() -> None:
    """BERT calls three matrices of a layer dense; an encoder and a decoder number their layers from 0 each."""
    bert = grid_of(
        [
            f"bert.encoder.layer.{layer}.{name}"
            for layer in range(2)
            for name in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
        ]
    )
    assert bert.columns == ("query", "attention.output.dense", "intermediate.dense", "output.dense")
    assert all(len(set(row)) == 4 and None not in row for row in bert.modules)
    both = grid_of(["encoder.block.0.layer.0.q", "encoder.block.1.layer.0.q", "decoder.block.0.layer.0.q"])
    assert both.rows == ("encoder.block 0", "encoder.block 1", "decoder.block 0")
    holes = grid_of(["h.0.a", "h.1.b"])
    assert holes.modules == (("h.0.a", None), (None, "h.1.b"))
    assert grid_of(()).modules == ()


def test_grid_of_blocks_inside_stages() -> None:
    """A convolutional network numbers its blocks anew in every stage; experts stay columns of their layer."""
    stages = [(stage, block) for stage, blocks in enumerate((3, 3, 9, 3)) for block in range(blocks)]
    grid = grid_of([f"stages.{stage}.blocks.{block}.mlp.fc{k}" for stage, block in stages for k in (1, 2)])
    assert grid.columns == ("fc1", "fc2")
    assert grid.rows == tuple(f"L{stage}.{block}" for stage, block in stages)
    assert all(None not in row for row in grid.modules)
    experts = grid_of(
        [f"layers.{layer}.mlp.experts.{expert}.w{k}" for layer in range(4) for expert in range(8) for k in (1, 2, 3)]
        + [f"layers.{layer}.self_attn.{name}" for layer in range(4) for name in "qkvo"]
    )
    assert experts.rows == ("L0", "L1", "L2", "L3")
    assert len(experts.columns) == len(set(experts.columns)) == 28


def test_metrics_are_every_column_of_numbers() -> None:
    """Mappings once for each entry, records as their number, texts and curves not at all."""
    modules = module_names(2)
    found = {
        metric.field.id: metric
        for metric in metrics_of("intruders", "Intruders", intruders_report(modules).table("modules"))
    }
    assert set(found) == {"rank", "intruder_count", "smallest_cosine", "threshold", "intruders"}
    assert found["intruders"].value(modules[1]) == 2
    assert found["intruder_count"].value("no such module") is None
    amplify = {
        metric.id: metric for metric in metrics_of("amplify", "Amplify", amplify_report(modules).table("modules"))
    }
    assert amplify["amplify.projected.base"].value(modules[0]) == 21.67
    assert amplify["amplify.amplification"].value(modules[-1]) is None


async def test_every_number_of_every_report(size: tuple[int, int]) -> None:
    """The cursor says the report's own digits; enter goes to the module; m offers what has been computed."""
    modules = [*module_names(6), "lm_head"]
    adapter = make_adapter(modules)
    report = make_report(adapter)
    async with open_detail(adapter, size=size, analyses=[Amplify()], base="/models/qwen") as opened:
        assert opened.screen.unavailable("next_table", ()) == "this tab shows one thing"
        await opened.press("greater_than_sign", "greater_than_sign")
        assert opened.screen.unavailable("next_table", ()) == "no number has been computed yet"
        await opened.finish(report)
        view = opened.screen.query_one(MatrixView)
        await until(opened.pilot, lambda: view.metric is not None)
        shown = opened.text()
        assert "lm_head" in shown
        check_golden("layers", size, shown)
        grid = view.query_one(LayerMap)
        grid.focus()
        await opened.press("down", "right", "right")
        rows = {row["module"]: row for row in report.table("modules").rows}
        module = "model.layers.1.self_attn.v_proj"
        assert view.module == module
        assert repr(rows[module]["frobenius_norm"]) in opened.words()
        assert module in opened.text()
        await opened.press("enter")
        assert opened.screen.module == module
        assert opened.screen.tree_view.has_focus
        await opened.press("right_square_bracket")
        assert view.module == "model.layers.1.self_attn.o_proj"  # the cursor follows the tree

        await opened.press("greater_than_sign", "greater_than_sign")
        await show(opened, amplify_report(modules))
        await opened.press("less_than_sign", "less_than_sign", "m")
        picker = opened.app.screen
        assert isinstance(picker, MetricPicker)
        options = picker.query_one(OptionList)
        options.highlighted = options.get_option_index("amplify.amplification")
        await opened.press("enter")
        await opened.pilot.pause()
        assert "Amplification" in opened.text()
        value = amplify_report(modules).table("modules").rows[7]["amplification"]
        assert repr(value) in opened.words()
        assert opened.app.state.get("detail.metric", "") == "amplify.amplification"


async def test_copy_and_export_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number under the cursor, and the numbers of all modules, at full precision."""
    adapter = make_adapter(module_names(2))
    report = make_report(adapter)
    async with open_detail(adapter, analyses=[Intruders()]) as opened:
        await opened.finish(report)
        await opened.press("greater_than_sign", "greater_than_sign")
        view = opened.screen.query_one(MatrixView)
        await until(opened.pilot, lambda: view.metric is not None)
        taken: list[str] = []
        monkeypatch.setattr(opened.app, "copy_to_clipboard", taken.append)
        view.map.focus()
        await opened.press("y")
        module, value = taken[-1].splitlines()[1].split("\t")
        rows = {row["module"]: row for row in report.table("modules").rows}
        assert float(value) == rows[module]["frobenius_norm"]
        document = opened.screen.export_document()
        assert document is not None
        written: list[dict[str, Any]] = json.loads(as_json(document))
        assert [row["spectrum.frobenius_norm"] for row in written] == [row["frobenius_norm"] for row in rows.values()]
        assert not analysis_jobs(opened)


async def test_modules_without_layers_alone() -> None:
    """No grid, but their numbers."""
    adapter = make_adapter(["lm_head", "score"])
    async with open_detail(adapter) as opened:
        await opened.finish(make_report(adapter))
        await opened.press("greater_than_sign", "greater_than_sign")
        view = opened.screen.query_one(MatrixView)
        await until(opened.pilot, lambda: view.metric is not None)
        await opened.pilot.pause()
        assert not view.map.display
        assert "in no layer:" in opened.text()
        assert "score" in opened.text()
