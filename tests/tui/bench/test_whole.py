"""A measurement in a real child process: its samples come in while it runs, and cancelling ends it at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

from textual.widgets import Input
from tui.fakes import reached, ready, until

from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.bench.screen import BenchScreen

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 8,
}
SECONDS_TO_CANCEL = 1.0


async def test_it_is_measured_and_cancelled(tmp_path: Path) -> None:
    """Latency of one small layer; then very many rounds of it, cut short."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "library").mkdir()
    app = LoraLabApp({"device": "cpu", "state": False}, [str(tmp_path / "library")], str(tmp_path / "config.json"))
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("5")
        screen = await reached(pilot, BenchScreen)
        assert screen.form.value("base") == str(tmp_path / "config.json")
        fields = {one.id: one.control for line in screen.lines for one in line.fields}
        for name, typed in {"grid": "1x2", "layers": "1", "repeats": "2"}.items():
            field = fields[name]
            assert isinstance(field, Input)
            field.value = typed
        dtype = fields["dtype"]
        dtype.value = "float32"  # type: ignore[attr-defined]
        await pilot.pause()
        await pilot.press("ctrl+g")
        await until(pilot, lambda: not app.watched.is_running, turns=12_000)
        assert app.watched.report is not None, app.watched.job and app.watched.job.error
        assert {row["runs"] for row in app.watched.report.table("rows").rows} == {2}
        assert {len(samples) for samples in app.watched.live.samples.values()} == {2}
        fields["repeats"].value = "1000000"  # type: ignore[attr-defined]
        await pilot.pause()
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.watched.live.samples, turns=12_000)
        child = app.jobs._child
        assert child is not None
        begun = time.monotonic()
        await pilot.press("c")
        assert app.watched.job is not None
        assert app.watched.job.state == "cancelled"
        await child.wait()
        assert time.monotonic() - begun < SECONDS_TO_CANCEL
