"""Whole screens as plain text, at both sizes.

``LORA_LAB_GOLDEN=write pytest tests/tui/test_golden.py`` takes over a change that is meant; it is read in the diff.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tui.fakes import make_app, ready, screen_text, spectrum_report, until

from lora_lab.tui.library import rows
from lora_lab.tui.library.screen import LibraryScreen

FOLDER = Path(__file__).parent / "golden"

VIEWS = {
    "library": ["j", "space", "j", "space"],
    "facts": ["G", "k"],
    "filter": ["slash", "r", ">", "=", "1", "6"],
    "help": ["question_mark"],
    "jobs": ["7"],
    "export": ["x"],
    "jump": ["ctrl+o"],
}


def is_settled(home: LibraryScreen) -> bool:
    """Whether the facts beside the list are all that will come for the row under the cursor."""
    key = home.table.cursor_key
    row = home.library.rows.get(key) if key else None
    return row is None or not row.is_measurable or key in home._inspections


@pytest.mark.parametrize("view", VIEWS)
async def test_screen(view: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The screen is the one in the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "time", SimpleNamespace(time=lambda: 1_700_500_000.0))
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        jobs: Any = app.jobs
        waiting = sorted(jobs.waiting(), key=lambda job: job.title)
        for norm, job in enumerate(waiting[1:], start=1):
            jobs.finish(job, spectrum_report(norm * 1.375, layers=24))
        jobs.begin(waiting[0], 42, 100)
        home = app.library
        assert isinstance(home, LibraryScreen)
        if view == "jobs":
            monkeypatch.setattr(app.job_list, "eta_seconds", lambda job: 65.0)
        await pilot.press(*VIEWS[view])
        if view == "facts" and size[0] < 100:
            await pilot.press("i")
        await until(pilot, lambda: is_settled(home))
        await pilot.pause()
        text = screen_text(app) + "\n"
    lines = text.splitlines()
    assert len(lines) == size[1]
    path = FOLDER / f"{view}_{size[0]}x{size[1]}.txt"
    if os.environ.get("LORA_LAB_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
