"""The library over real files, a real session and a real child process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from tui.fakes import ready, screen_text, until, write_adapter

from lora_lab.session import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.library.rows import Row
from lora_lab.tui.library.screen import LibraryScreen
from lora_lab.tui.text import number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two adapters, and one that is cut short."""
    write_adapter(tmp_path / "library" / "task-2", rank=2, seed=2)
    write_adapter(tmp_path / "library" / "task-10", rank=4, layers=3, seed=1)
    broken = write_adapter(tmp_path / "library" / "cut", seed=3) / "adapter_model.safetensors"
    os.truncate(broken, 100)
    return tmp_path / "library"


def all_measured(rows: Mapping[str, Row]) -> bool:
    """Whether every adapter that can be read has its numbers."""
    return all(row.digest for row in rows.values() if row.is_measurable)


async def test_library_shows_what_the_session_says(folder: Path) -> None:
    """The digits on screen are those of Session.spectrum; the second time they come from the cache; nothing is left."""
    for _ in range(2):
        app = LoraLabApp({"device": "cpu"}, [str(folder)])
        async with app.run_test(size=(120, 36)) as pilot:
            await ready(pilot)
            screen = app.library
            assert isinstance(screen, LibraryScreen)
            rows = {row.name: row for row in screen.library.rows.values()}
            assert list(rows) != []
            assert [screen.library.rows[path].name for path in screen.table.keys] == ["cut", "task-2", "task-10"]
            await until(pilot, partial(all_measured, rows), turns=3000)
            await pilot.pause()
            text = screen_text(app)
            child = app.jobs._child
        assert child is not None
        assert child.returncode is not None
        for name in ("task-2", "task-10"):
            totals = Session(device="cpu").spectrum(str(folder / name)).to_json()["totals"]
            assert rows[name].value("norm") == totals["frobenius_norm"]
            assert rows[name].value("eff") == totals["mean_effective_rank"]
            line = next(line for line in text.splitlines() if f" {name} " in line)
            assert number(totals["frobenius_norm"]) in line
            assert number(totals["mean_effective_rank"]) in line
        assert rows["cut"].entry.error
        assert "✗" in text
