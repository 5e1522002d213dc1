"""What the screen loads before its first plot."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "textual_plot", "textual_hires_canvas", "safetensors"}


def loaded_by(module: str) -> set[str]:
    """Top-level modules in a fresh interpreter after importing `module`."""
    code = f"import {module}, json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_screen_loads_no_plotting_library() -> None:
    """Its first paint needs neither numpy nor torch."""
    assert loaded_by("lora_lab.tui.detail.screen") & HEAVY == set()


@pytest.mark.parametrize("module", ["lora_lab.tui.plots.spectrum", "lora_lab.tui.plots.generic"])
def test_a_plot_does(module: str) -> None:
    """The test above can fail; torch stays out even then."""
    loaded = loaded_by(module)
    assert "textual_plot" in loaded
    assert "torch" not in loaded
