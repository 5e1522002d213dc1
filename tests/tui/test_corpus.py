"""A library of nothing but trouble on the screen: every row is there with its reason, and nothing is obeyed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from builders import factors, write_adapter
from corpus.adapter_cases import CASES as ADAPTERS
from corpus.storage_cases import CASES
from tui.fakes import reached, ready, screen_text, until

from lora_lab.safetext import is_suspicious
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.library.screen import LibraryScreen

FILES = [case for case in CASES if case.reader == "file" and not (case.needs_user and os.geteuid() == 0)]
HOSTILE = "layers.0.[@click=app.quit]x[/].\x1b]52;c;QQ\x07\u202eq_proj"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Every broken file and adapter of the corpus, one that is whole, and one whose names are hostile."""
    for case in FILES:
        case.build(write_adapter_folder(tmp_path / f"file-{case.number}-{case.id}"))
    for adapter in ADAPTERS:
        adapter.build(tmp_path / f"adapter-{adapter.number}-{adapter.id}")
    write_adapter(tmp_path / "whole")
    write_adapter(tmp_path / "[b]hostile[/nope]", factors({HOSTILE: (8, 8)}))
    return tmp_path


def write_adapter_folder(folder: Path) -> Path:
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    return folder


async def test_every_row_is_there_with_its_reason(library: Path) -> None:
    """Broken rows carry one harmless sentence, shown beside them; the whole one is measured all the same."""
    app = LoraLabApp({"device": "cpu"}, [str(library)])
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        screen = app.library
        assert isinstance(screen, LibraryScreen)
        rows = {row.name: row for row in screen.library.rows.values()}
        # A file that was never written has no folder of its own to be broken: it lists as an adapter without weights.
        assert len(rows) == len(FILES) + len(ADAPTERS) + 2
        told = {adapter.id for adapter in ADAPTERS if adapter.finding}
        for name, row in rows.items():
            is_fine = name == "whole" or "hostile" in name or name.rpartition("-")[2] in told
            assert is_fine == (row.entry.error is None), name
            assert row.entry.error is None or not is_suspicious(row.entry.error)
        await until(pilot, lambda: bool(rows["whole"].digest), turns=6000)
        for key in list(screen.table.keys)[::7]:
            screen.table.move_to(key)
            await pilot.pause()
            assert not any(is_suspicious(line) for line in screen_text(app).splitlines())


async def test_hostile_module_names_are_shown_in_the_detail(library: Path) -> None:
    """The adapter opens, its module is listed with every character spelled out, and no click action came of it."""
    app = LoraLabApp({"device": "cpu"}, [str(library)])
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        app.open_detail(str(library / "[b]hostile[" / "nope]"))
        detail = await reached(pilot, DetailScreen)
        await until(pilot, lambda: detail.feed.report is not None, turns=6000)
        await pilot.pause()
        text = screen_text(app)
        assert "[@click=app.quit]" in text or r"\x1b]52" in text
        assert not any(is_suspicious(line) for line in text.splitlines())
        assert app.is_running


async def test_broken_checkpoints_and_pickles_are_rows_like_others(tmp_path: Path) -> None:
    """Every refused one that a listing sees has its sentence on screen, and the whole one beside them is measured."""
    others = [case for case in CASES if case.reader != "file" and case.expect == "refused"]
    for case in others:
        folder = tmp_path / f"{case.reader}-{case.number}-{case.id}"
        folder.mkdir()
        case.build(folder)
        if case.reader == "pickle":
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    write_adapter(tmp_path / "whole")
    app = LoraLabApp({"device": "cpu", "allow_pickle": False}, [str(tmp_path)])
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        screen = app.library
        assert isinstance(screen, LibraryScreen)
        rows = {row.name: row for row in screen.library.rows.values()}
        broken = {f"{case.reader}-{case.number}-{case.id}" for case in others}
        listed = {name for name in rows if name in broken}
        assert len(listed) > len(broken) // 2
        for name in listed:
            error = rows[name].entry.error
            assert error, name
            assert not is_suspicious(error)
        assert rows["whole"].entry.error is None
        await until(pilot, lambda: bool(rows["whole"].digest), turns=6000)
        for key in list(screen.table.keys)[::3]:
            screen.table.move_to(key)
            await pilot.pause()
            assert not any(is_suspicious(line) for line in screen_text(app).splitlines())
