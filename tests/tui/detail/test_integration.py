"""The screen on a real session and real jobs: the same digits as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tui.detail.made import Opened
from tui.fakes import reached, until

from lora_lab.session import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.detail.screen import DetailScreen

RANK = 6


def write_adapter(folder: Path, layers: int = 3) -> Path:
    """A small PEFT adapter; the last layer is zero."""
    generator = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = generator.standard_normal((RANK, 24)).astype(np.float32)
            weight = generator.standard_normal((16, RANK)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = weight * np.float32(layer < layers - 1)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    configuration = {"peft_type": "LORA", "r": RANK, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    return folder


async def test_screen_and_json_have_the_same_digits(tmp_path: Path) -> None:
    """Every row on the screen equals the session's, and the status line shows it in full."""
    folder = write_adapter(tmp_path / "small")
    app = LoraLabApp({}, [str(tmp_path)])
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.is_measuring, turns=3000)
        app.open_detail(str(folder))
        screen = await reached(pilot, DetailScreen)
        await until(pilot, lambda: screen.feed.report is not None and screen.query("SpectrumPlot"), turns=6000)
        wanted = Session(cache=False).spectrum(str(folder)).to_json()
        assert [dict(row) for row in screen.feed.rows.values()] == wanted["modules"]
        opened = Opened(app, pilot, screen)
        await opened.press("right_square_bracket", "enter", "end")
        assert f"k={RANK}  σ={wanted['modules'][1]['singular_values'][-1]!r}  cumulative 100.00 %" in opened.text()
        screen.tree_view.select("model.layers.2.self_attn.q_proj")
        await pilot.pause()
        assert "ΔW is zero" in opened.words()
