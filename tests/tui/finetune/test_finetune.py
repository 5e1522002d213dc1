"""A full fine-tune beside its base, opened from the library."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import MODULES, write_adapter, write_base
from tui.fakes import reached, ready, until

from lora_lab import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.base_dialog import BaseDialog
from lora_lab.tui.finetune.screen import FineTuneScreen


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    write_base(folder / "base")
    write_base(folder / "tuned", seed=4)
    write_adapter(folder / "adapter")
    return folder


def row_of(app: LoraLabApp, name: str) -> str:
    return next(key for key, row in app.library.library.rows.items() if row.name == name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_c_on_a_model_shows_what_was_changed(size: tuple[int, int], library: Path) -> None:
    """It asks for the base, runs the analysis in a job, and shows the digits that the library computes."""
    app = LoraLabApp({"state": False, "cache": False}, [str(library)])
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        app.library.table.move_to(row_of(app, "tuned"))  # type: ignore[attr-defined]
        await pilot.press("c")
        await until(pilot, lambda: isinstance(app.screen, BaseDialog))
        await pilot.press("enter")  # the first of the models that are here
        screen = await reached(pilot, FineTuneScreen)
        await until(pilot, lambda: screen.view.report is not None, turns=20_000)
        expected = Session(cache=False).analyze("intrinsic", [str(library / "base"), str(library / "tuned")])
        assert screen.view.report is not None
        assert screen.view.report.table("modules").rows == expected.table("modules").rows
        assert len(screen.view.table.rows) == len(MODULES)
        copied = screen.copy_value()
        assert copied is not None
        document = screen.export_document()
        assert document is not None
        shown = screen.view.table.rows
        await pilot.press("m")
        await until(pilot, lambda: screen.view.table.rows is not shown)
        await pilot.press("m", "w", "r")
        await until(pilot, lambda: screen.view.report is not None, turns=20_000)
        await pilot.press("q")
        assert app.screen is app.library


async def test_c_on_an_adapter_still_wants_a_mark(library: Path) -> None:
    """Without a mark there is nothing to compare an adapter with, and the key says so."""
    app = LoraLabApp({"state": False, "cache": False}, [str(library)])
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        app.library.table.move_to(row_of(app, "adapter"))  # type: ignore[attr-defined]
        assert app.library.unavailable("compare", ()) == "mark two adapters with space first"
        app.library.table.move_to(row_of(app, "base"))  # type: ignore[attr-defined]
        assert app.library.unavailable("compare", ()) is None
