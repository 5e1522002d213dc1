"""Every key that the help lists can be pressed, on every screen, and nothing falls over."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import write_adapter
from tui.fakes import press_each, reached, ready, until

from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.library.screen import LibraryScreen

LEAVES = {"ctrl+q", "q", "1", "2", "3", "7", "c"}


@pytest.mark.parametrize("place", ["library", "detail"])
async def test_every_key(place: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Pressed one after the other, whatever each opens is left by esc, and the screen is still there."""
    for number in range(3):
        write_adapter(tmp_path / "library" / f"task-{number}", seed=number)
    app = LoraLabApp({"device": "cpu"}, [str(tmp_path / "library")])
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        home = app.library
        assert isinstance(home, LibraryScreen)
        if place == "detail":
            app.open_detail(str(tmp_path / "library" / "task-0"), overlays=(str(tmp_path / "library" / "task-1"),))
            detail = await reached(pilot, DetailScreen)
            await until(pilot, lambda: bool(detail.feed.report and detail.query("SpectrumPlot")), turns=6000)
        assert len(app.screen.active_bindings) > 30
        await press_each(pilot, app.screen.focused, LEAVES, is_home=place == "library")
        assert app.is_running
