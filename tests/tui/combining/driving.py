"""The wizard on jobs that are answered in this process, by a real session, when a test says so."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Static
from tui.fakes import FakeJob, FakeJobs, point_at, ready, screen_text, until

from lora_lab import Session
from lora_lab.domain.progress import Unwatched
from lora_lab.errors import LoraLabError
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.changing.outcome import OutcomeScreen
from lora_lab.tui.combining.screen import CombineScreen
from lora_lab.tui.widgets.pane import Pane

TURNS = 6_000


class Driven:
    """The wizard, and who answers it."""

    def __init__(self, app: LoraLabApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot
        self.session = app.session
        assert isinstance(app.screen, CombineScreen)
        self.wizard = app.screen

    def waiting(self) -> list[FakeJob]:
        """What was asked and is not answered, but for the library's own measures."""
        jobs: Any = self.app.jobs
        return [job for job in jobs.waiting() if job.request.call != "spectrum"]

    @staticmethod
    def is_reading() -> bool:
        """Whether a thread beside the screen has still to tell what it reads, which is asked about again."""
        return any(thread.name.startswith("lora-lab ") for thread in threading.enumerate())

    async def answer(self) -> list[str]:
        """Answer all that is asked, and all that follows; which calls that were."""
        jobs: Any = self.app.jobs
        answered, quiet = [], 0
        for _ in range(1000):
            await self.pilot.pause(0.02)
            quiet = 0 if self.waiting() or self.wizard._is_typing or self.is_reading() else quiet + 1
            if quiet == 3:
                break
            for job in self.waiting():
                answered.append(job.request.call)
                try:
                    report = getattr(self.session, job.request.call)(**job.request.arguments, observer=Unwatched())
                except LoraLabError as error:
                    jobs.fail(job, error.message, error.hint)
                else:
                    jobs.finish(job, report)
        await self.pilot.pause()
        return answered

    async def press(self, *keys: str) -> None:
        """Type, and let all be answered."""
        await self.pilot.press(*keys)
        await self.answer()

    async def fill(self, **typed: str) -> None:
        """Write into fields; ``setting_density`` is that of a parameter; and let all be answered."""
        lines = (*self.wizard.lines, *self.wizard.setting_lines)
        fields = {field.id.replace(":", "_"): field for line in lines for field in line.fields}
        for name, value in typed.items():
            fields[name].control.value = value  # type: ignore[attr-defined]
        await self.answer()

    async def choose(self, method: str) -> None:
        """Go to a method."""
        self.wizard.methods.choose(method)
        await self.answer()

    async def outcome(self) -> OutcomeScreen:
        """Let what was begun come to its end."""
        await until(self.pilot, lambda: isinstance(self.app.screen, OutcomeScreen))
        screen = self.app.screen
        assert isinstance(screen, OutcomeScreen)
        await self.answer()
        return screen

    @property
    def text(self) -> str:
        """The screen."""
        return screen_text(self.app)

    @property
    def said(self) -> str:
        """The preview."""
        return str(self.wizard.query_one("#combine-said", Static).content)

    @property
    def note(self) -> str:
        """What stands below the preview."""
        return str(self.wizard.query_one("#combine-preview", Pane).border_subtitle)

    @property
    def command(self) -> str:
        """The command, without its prompt."""
        return str(self.wizard.query_one("#combine-command", Static).content).removeprefix("$ ")

    @property
    def sources(self) -> list[str]:
        """Inputs in their order."""
        return [one.locator for one in self.wizard.sources.sources]

    def refusal(self) -> str:
        """Why it cannot be run; nothing when it can."""
        return self.wizard.unavailable("run", ()) or ""


@asynccontextmanager
async def opened(
    *names: str, size: tuple[int, int] = (80, 24), session: Session | None = None
) -> AsyncIterator[Driven]:
    """The wizard, opened from the library on adapters that are marked, or with the cursor on a single row."""
    app = LoraLabApp({"state": False, "cache": False}, ["."], session=session or Session(cache=False), jobs=FakeJobs)  # type: ignore[arg-type]
    async with app.run_test(size=size) as pilot:
        await enter(app, pilot, names)
        driven = Driven(app, pilot)
        await until(pilot, lambda: driven.wizard.methods.method is not None, turns=TURNS)
        await driven.answer()
        yield driven


async def enter(app: LoraLabApp, pilot: Pilot[None], names: tuple[str, ...]) -> None:
    """Mark and press the key."""
    await ready(pilot)
    for name in names:
        point_at(app, name)
        if len(names) > 1:
            await pilot.press("space")
    await pilot.press("a")
    await until(pilot, lambda: isinstance(app.screen, CombineScreen))
