"""How one comes to the screen and leaves it, and the whole way through real jobs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from builders import write_adapter
from tui.compare.pairs import A, B, Opened, open_pair
from tui.detail.made import make_adapter, module_names, open_detail
from tui.fakes import reached, until

from lora_lab.session import Session
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.compare.naming import pair_names
from lora_lab.tui.compare.report_view import ReportView
from lora_lab.tui.compare.screen import CompareScreen


async def test_from_one_adapter_to_the_marked_one(size: tuple[int, int]) -> None:
    """c on the screen of an adapter; q and 2 go back to it; without a mark the key says how to get there."""
    first, second = make_adapter(module_names()), make_adapter(module_names(), rank=8, locator="/library/chat-de")
    async with open_detail(first, size=size, others=[second]) as opened:
        await opened.press("c")
        shown = opened.app.screen
        assert isinstance(shown, CompareScreen)
        assert shown.compared[:2] == (first.locator, second.locator)
        assert shown.names == ("sql-expert", "chat-de")
        await opened.press("2")
        assert opened.app.screen is opened.screen
        await opened.press("c", "q")
        assert opened.app.screen is opened.screen
        await opened.press("3")
        assert isinstance(opened.app.screen, CompareScreen)
        assert opened.screen in opened.app.screen_stack
    async with open_detail(first, size=size) as alone:
        await alone.press("c")
        assert alone.app.screen is alone.screen
        assert "mark one in the library" in (alone.screen.unavailable("compare", ()) or "")


async def test_another_pair_takes_the_place_of_the_first() -> None:
    """There is one such screen, never a pile."""
    async with open_pair() as opened:
        opened.app.open_compare((B, A))
        await until(opened.pilot, lambda: opened.app.screen is not opened.screen)
        assert sum(isinstance(screen, CompareScreen) for screen in opened.app.screen_stack) == 1


@pytest.mark.parametrize(
    ("locators", "names"),
    [
        (("runs/sql", "runs/chat"), ("sql", "chat")),
        (("seed0/out", "seed1/out/"), ("seed0/out", "seed1/out")),
        (("/library/one", "/library/one"), ("one", "one")),
        (("org/name", "other/name@main"), ("name", "name@main")),
        (("/", "."), ("/", ".")),
    ],
)
def test_names(locators: tuple[str, str], names: tuple[str, str]) -> None:
    """As short as tells them apart."""
    assert pair_names(locators) == names


def test_the_screen_loads_neither_torch_nor_numpy() -> None:
    """A heatmap is text."""
    names = "[name.partition('.')[0] for name in sys.modules]"
    code = f"import lora_lab.tui.compare.screen, json, sys\nprint(json.dumps({names}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) & {"torch", "numpy", "scipy", "textual_plot", "safetensors"} == set()


async def test_screen_and_json_have_the_same_digits(tmp_path: Path, size: tuple[int, int]) -> None:
    """Two adapters named on the command line: rows, grid, differences and interference as the session gives them."""
    folders = [
        str(write_adapter(tmp_path / name, seed=seed, rank=rank)) for name, seed, rank in (("one", 0, 4), ("two", 1, 6))
    ]
    app = LoraLabApp({"device": "cpu", "state": False}, folders)
    session = Session(cache=False, device="cpu")
    async with app.run_test(size=size) as pilot:
        screen = await reached(pilot, CompareScreen, turns=6000)
        await until(pilot, lambda: screen.feed.report and screen.overlap.shown, turns=6000)
        opened = Opened(app, pilot, screen)
        for side in ("right", "left"):
            await until(pilot, lambda: screen.feed.report and screen.overlap.shown, turns=6000)
            wanted = session.analyze("overlap", folders, parameters={"side": side}).to_json()["modules"]
            grids = {row["module"]: (row.pop("phi"), row.pop("phi_random")) for row in wanted}
            assert sorted(screen.feed.rows) == sorted(grids)
            assert [dict(screen.feed.rows[row["module"]]) for row in wanted] == wanted
            assert list(screen.list_view.keys) == sorted(grids, key=lambda name: -screen.feed.rows[name]["phi_full"])
            assert screen.module is not None
            phi, chance = grids[screen.module]
            await opened.press("enter", "home", "down", "down", "right")
            assert f"i=3 j=2 φ={phi[2][1]!r}" in opened.words()
            assert screen.overlap.grid is not None
            assert math.isclose(screen.overlap.grid.random[2][1] or 0.0, chance[2][1])
            await opened.press("v")
        for place, analysis in enumerate(("diff", "interference")):
            screen.list_view.focus()
            screen.query_one("TabbedContent").active = f"tab-{analysis}"  # type: ignore[attr-defined]
            view = screen.query(ReportView)[place]
            await until(pilot, lambda view=view: view.report or view.reason, turns=6000)  # type: ignore[misc]
            assert view.report is not None, view.reason
            table = session.analyze(analysis, folders).table("modules")
            assert {row["module"]: dict(row) for row in view.report.table("modules").rows} == {
                row["module"]: dict(row) for row in table.rows
            }


async def test_adapters_that_share_no_module(tmp_path: Path) -> None:
    """The session's own sentence, and its hint, in the place of the grid."""
    import torch

    one = write_adapter(tmp_path / "one")
    generator = torch.Generator().manual_seed(0)
    other = {
        "base_model.model.h.0.attn.lora_A.weight": torch.randn(4, 12, generator=generator),
        "base_model.model.h.0.attn.lora_B.weight": torch.randn(10, 4, generator=generator),
    }
    two = write_adapter(tmp_path / "two", other, target_modules=["attn"])
    app = LoraLabApp({"device": "cpu", "state": False}, [str(one), str(two)])
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await reached(pilot, CompareScreen, turns=6000)
        await until(pilot, lambda: screen.feed.reason, turns=6000)
        await pilot.pause()
        shown = Opened(app, pilot, screen).words()
        assert screen.feed.hint
        assert " ".join(screen.feed.reason.split()) in shown
        assert f"→ {' '.join(screen.feed.hint.split())}" in shown
