"""Opening from the Hub: what is here without a network, a search that never holds the screen, downloads as jobs."""

from __future__ import annotations

import os
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hubserver import HubServer
from textual.pilot import Pilot
from textual.widgets import Input, Static
from tui.fakes import FakeSession, make_app, press_each, ready, screen_text, small_library, until, write_adapter

from lora_lab.domain.report import Column, ColumnKind, Report, Scalars, Table
from lora_lab.errors import HubError
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.hub import shelf
from lora_lab.tui.hub.screen import HubScreen

GOLDEN = Path(__file__).parents[1] / "golden"
NOW = 1_700_500_000.0


def repositories(*rows: dict[str, Any]) -> Report:
    """A report as the session makes it."""
    return Report("search_hub", "", (Table("repositories", "", (), rows, key="repository"),))


class Shelves(FakeSession):
    """A cache with two adapters, and a Hub that answers when it is let."""

    def __init__(self) -> None:
        super().__init__(small_library())
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.refusal: HubError | None = None

    def cached_hub(self) -> Report:
        here = {"path": "/cache/me--sql", "size_bytes": 8_130_000, "modified_seconds": NOW - 7200, "is_adapter": True}
        return repositories(
            {"repository": "me/sql-expert", "base_model": "Qwen/Qwen2.5-0.5B", **here},
            {"repository": "org/chat-de", "base_model": None, **here, "path": "/cache/org--chat"},
        )

    def search_hub(self, query: str) -> Report:
        self.asked.append(query)
        self.may_answer.wait(10.0)
        if self.refusal is not None:
            raise self.refusal
        found = {
            "base_model": "meta-llama/Llama-3.2-1B",
            "downloads": 15_300,
            "likes": 42,
            "modified_seconds": NOW - 90_000,
        }
        return repositories(
            {"repository": f"far/{query}-large", **found, "access": ""},
            {"repository": f"far/{query}-gated", **found, "access": "gated"},
        )


@asynccontextmanager
async def opened(size: tuple[int, int]) -> AsyncIterator[tuple[LoraLabApp, Pilot[None], HubScreen, Shelves]]:
    """The screen, on stand-ins."""
    session = Shelves()
    app = make_app(session=session, state=False)
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await pilot.press("6")
        await until(pilot, lambda: isinstance(app.screen, HubScreen) and bool(app.screen.table.keys))
        assert isinstance(app.screen, HubScreen)
        yield app, pilot, app.screen, session


def said(screen: HubScreen) -> str:
    return str(screen.query_one("#hub-said", Static).content)


def pulls(app: LoraLabApp) -> list[Any]:
    return [job for job in app.jobs.jobs if job.request.call == "pull"]  # type: ignore[attr-defined]


def pulled(path: str, *names: str) -> Report:
    """What a pull reports."""
    place = Scalars("", "", (Column("path", "Path", ColumnKind.TEXT),), {"path": path})
    return Report("pull", "", (Table("files", "", (), tuple({"name": name} for name in names), key="name"),), (place,))


async def test_what_is_here_and_what_is_found(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached rows at once; a search after the last key, one for all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shelf.time, "time", lambda: NOW)
    async with opened(size) as (app, pilot, screen, session):
        assert screen.table.keys == ("me/sql-expert", "org/chat-de")
        await pilot.press(*"sql")
        await until(pilot, lambda: len(screen.table.keys) == 3)
        assert session.asked == ["sql"]
        assert screen.table.keys == ("me/sql-expert", "far/sql-large", "far/sql-gated")
        assert "2 adapters on the Hub" in said(screen)
        await pilot.pause()
        text = screen_text(app) + "\n"
        path = GOLDEN / f"hub_{size[0]}x{size[1]}.txt"
        if os.environ.get("LORA_LAB_GOLDEN") == "write":
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")
        await pilot.press("escape")
        await until(pilot, lambda: screen.table.keys == ("me/sql-expert", "org/chat-de"))


async def test_a_hub_that_does_not_answer_holds_nothing_up(size: tuple[int, int]) -> None:
    """Keys work while it is asked, and an answer to an old question is passed over."""
    async with opened(size) as (_, pilot, screen, session):
        session.may_answer.clear()
        await pilot.press(*"old")
        await until(pilot, lambda: session.asked == ["old"])
        assert "asking the Hub" in said(screen)
        field = screen.query_one("#hub-query", Input)
        await pilot.press("backspace", "backspace", "backspace", *"new")
        assert field.value == "new"
        session.may_answer.set()
        await until(pilot, lambda: "far/new-large" in screen.table.keys)
        assert "far/old-large" not in screen.table.keys


async def test_a_refusal_leaves_what_is_here() -> None:
    async with opened((80, 24)) as (_, pilot, screen, session):
        session.refusal = HubError("The Hub is not searched while offline.", hint="Drop --offline.")
        await pilot.press(*"sql")
        await until(pilot, lambda: "while offline" in said(screen))
        assert screen.table.keys == ("me/sql-expert",)


async def test_what_is_here_opens_without_a_job() -> None:
    async with opened((80, 24)) as (app, pilot, _, _session):
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
        assert pulls(app) == []


async def test_a_download_is_a_job_with_progress_that_can_be_cancelled() -> None:
    async with opened((80, 24)) as (app, pilot, screen, _):
        await pilot.press(*"org/new", "enter")
        await until(pilot, lambda: bool(pulls(app)))
        job = pulls(app)[0]
        assert job.request.arguments == {"locator": "org/new"}
        app.jobs.begin(job, 3_000_000, 12_000_000)  # type: ignore[attr-defined]
        await until(pilot, lambda: "3.00 MB of 12.0 MB" in str(screen.query_one("#hub-progress", Static).content))
        await pilot.press("escape", *"org/other", "enter")
        await pilot.pause()
        assert pulls(app) == [job]  # one at a time
        await pilot.press("escape", "down", "c")
        await until(pilot, lambda: job.state == "cancelled")
        assert not screen.query_one("#hub-progress").display


async def test_an_adapter_that_arrived_is_opened_and_remembered(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "snapshot")
    async with opened((80, 24)) as (app, pilot, screen, _):
        await pilot.press(*"org/new@main", "enter")
        await until(pilot, lambda: bool(pulls(app)))
        app.jobs.finish(pulls(app)[0], pulled(str(adapter), "adapter_config.json"))  # type: ignore[attr-defined]
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
        assert screen.shelf.recent == ["org/new"]
        await pilot.press("6")
        await until(pilot, lambda: isinstance(app.screen, HubScreen))


async def test_a_model_that_arrived_is_in_the_library(tmp_path: Path) -> None:
    async with opened((80, 24)) as (app, pilot, screen, _):
        await pilot.press(*"org/base", "enter")
        await until(pilot, lambda: bool(pulls(app)))
        app.jobs.finish(pulls(app)[0], pulled(str(tmp_path), "config.json"))  # type: ignore[attr-defined]
        await until(pilot, lambda: str(tmp_path) in app.library.sources)  # type: ignore[attr-defined]
        assert app.screen is screen


def test_from_the_search_to_the_spectrum_through_the_real_client(hub: HubServer, tmp_path: Path) -> None:
    """Search, fetch, open; and once more without a network."""
    adapter = write_adapter(tmp_path / "adapter")
    card = "---\nbase_model: org/tiny\ntags:\n- lora\n---\n"
    hub.add("far/sql", {"README.md": card, **{path.name: path.read_bytes() for path in adapter.iterdir()}})
    code = """
        import asyncio
        from tui.fakes import until
        from lora_lab.tui.app import LoraLabApp
        from lora_lab.tui.detail.screen import DetailScreen
        from lora_lab.tui.hub.screen import HubScreen

        async def look():
            app = LoraLabApp({"state": False, "cache": False}, ["."])
            async with app.run_test(size=(120, 36)) as pilot:
                await until(pilot, lambda: app.is_measuring, turns=6000)
                await pilot.press("6")
                await until(pilot, lambda: isinstance(app.screen, HubScreen))
                screen = app.screen
                if SEARCH:
                    await pilot.press(*"sql")
                await until(pilot, lambda: "far/sql" in screen.table.keys, turns=6000)
                print(screen.shelf.row("far/sql")["base_model"], bool(screen.shelf.row("far/sql").get("path")))
                await pilot.press("down", "enter")
                await until(pilot, lambda: isinstance(app.screen, DetailScreen), turns=6000)
                detail = app.screen
                await until(pilot, lambda: detail.adapter is not None, turns=6000)
                print(len(detail.adapter.deltas))

        asyncio.run(look())
    """
    for search, offline in ((True, False), (False, True)):
        script = textwrap.dedent(code).replace("SEARCH", str(search))
        ran = hub.run_python(script, home=tmp_path / "home", offline=offline, more={"TEXTUAL_ANIMATIONS": "none"}).ok()
        base = "org/tiny" if search else "tiny"  # of the card, of the configuration
        assert ran.out.split() == [base, str(offline), "4"]


async def test_every_key_of_the_screen(size: tuple[int, int]) -> None:
    """Pressed one after the other on the rows, whatever each opens is left, and the screen is still there."""
    async with opened(size) as (_, pilot, screen, _):
        leaves = {"ctrl+q", "q", "1", "2", "3", "4", "7", "enter", "escape", "tab", "shift+tab", "slash"}
        await press_each(pilot, screen.table, leaves)
