"""The application: one session, one manager of jobs, a stack of screens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import events
from textual.app import App

from lora_lab.errors import LoraLabError, quoted
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, themes
from lora_lab.tui.background import settle_memory
from lora_lab.tui.base_dialog import BaseMemory
from lora_lab.tui.bench.watching import Watched
from lora_lab.tui.confirm import ask
from lora_lab.tui.job_list import JobList
from lora_lab.tui.messages import JobUpdated
from lora_lab.tui.palette import ActionsProvider, why_not
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.state import State, state_path
from lora_lab.tui.widgets.header import HeaderBar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from textual.actions import ActionParseResult
    from textual.binding import BindingType
    from textual.dom import DOMNode

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job, JobEvent, JobManager
    from lora_lab.jobs.model import Call
    from lora_lab.session import Session


_SAVE_SECONDS: Final = 2.0
_ASKED_PRIORITY: Final = 1000


def run(session_options: dict[str, Any], sources: list[str], base: str | None) -> int:
    """Show `sources` until the person quits; the exit code.

    Parameters
    ----------
    session_options : keyword arguments of Session; ``state`` (default true) whether to remember anything, and
        ``theme`` the name of a theme, are taken out first
    sources : locators; none means the working directory
    base : locator of the base model, for analyses that need one

    Raises
    ------
    LoraLabError
        there is no theme of that name.
    """
    app = LoraLabApp(session_options, sources, base)
    app.run()
    return app.return_code or 0


class LoraLabApp(App[None], inherit_bindings=False):
    """lora-lab in a terminal.

    Parameters
    ----------
    session_options, sources, base : as :func:`run` takes them
    session : used instead of one made of `session_options`
    jobs : makes the manager of jobs, given whom to tell of its events
    """

    TITLE = "lora-lab"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS = {ActionsProvider}  # noqa: RUF012 - Textual's own declaration; its system commands are bindings here
    BINDINGS: ClassVar[list[BindingType]] = [*bindings.APP]
    HELP_TITLE = "Everywhere"
    ESCAPE_TO_MINIMIZE = False
    CSS = """
    * { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
    Input { scrollbar-size-horizontal: 0; }
    Toast { max-width: 60; }
    """

    def __init__(
        self,
        session_options: Mapping[str, Any],
        sources: Sequence[str],
        base: str | None = None,
        *,
        session: Session | None = None,
        jobs: Callable[[Callable[[JobEvent], None]], JobManager] | None = None,
    ) -> None:
        options = dict(session_options)
        self.state = State(state_path() if options.pop("state", True) else None)
        wanted_theme = options.pop("theme", None)
        super().__init__()
        self.session_options = options
        self.sources = list(sources) or ["."]
        self.base = base
        self.bases = BaseMemory(self)
        self.job_list = JobList()
        self.outcomes: dict[int, Report] = {}  # of changes that were asked for, by job
        self.watched = Watched()  # the benchmark that was begun last
        self.is_measuring = False  # the jobs' child process has been started
        self.last_compared: tuple[tuple[str, str], tuple[str, str] | None] | None = None  # locators and names
        self._jobs: JobManager | None = None
        self._make_jobs = jobs or self._own_jobs
        self._session = session
        self._session_lock = threading.Lock()
        for theme in themes.OWN_THEMES:
            self.register_theme(theme)
        if wanted_theme and wanted_theme not in self.available_themes:
            raise LoraLabError(
                f"There is no theme {quoted(wanted_theme)}.",
                hint=f"One of: {', '.join(sorted(self.available_themes))}.",
            )
        chosen = wanted_theme or self.state.get("theme", themes.DEFAULT_THEME)
        self.theme = chosen if chosen in self.available_themes else themes.DEFAULT_THEME

    # Session and jobs

    @property
    def session(self) -> Session:
        """The session for header-level calls; made on first use, from whichever thread asks first."""
        with self._session_lock:
            if self._session is None:
                from lora_lab.session import Session

                self._session = Session(**self.session_options)
            return self._session

    @property
    def jobs(self) -> JobManager:
        """The manager of long work."""
        if self._jobs is None:
            self._jobs = self._make_jobs(self.on_job_event)
        return self._jobs

    def _own_jobs(self, on_event: Callable[[JobEvent], None]) -> JobManager:
        from lora_lab.jobs import JobManager

        return JobManager(on_event, session_options=self.session_options)

    def begin(self, call: Call, arguments: Mapping[str, Any], title: str) -> Job:
        """Give the job that a person asked for; it goes before all that fills screens."""
        from lora_lab.jobs import JobRequest

        job = self.jobs.submit(JobRequest(call, arguments), title=title, priority=_ASKED_PRIORITY)
        self.job_list.add(job)
        return job

    async def on_mount(self) -> None:
        """Show the library; the rest waits for the first paint."""
        from lora_lab.tui.library.screen import LibraryScreen

        await self.push_screen(LibraryScreen(self.sources))
        self.call_after_refresh(self._after_first_paint)
        self.set_interval(_SAVE_SECONDS, self.state.save)

    async def _after_first_paint(self) -> None:
        settle_memory()
        await self.jobs.start()
        self.is_measuring = True
        for screen in self.screen_stack:
            if isinstance(screen, LabScreen) and screen.is_mounted:  # else it asks by itself
                screen.jobs_ready()

    def refresh_job_status(self) -> None:
        """Write the words about running jobs into every header."""
        status = self.job_status()
        for screen in self.screen_stack:
            if isinstance(screen, LabScreen):
                # A screen that was pushed a moment ago has no header yet; it asks for the status when it mounts.
                for header in screen.query(HeaderBar):
                    header.status = status

    def on_job_event(self, event: JobEvent) -> None:
        """Hand an event of the job manager to every screen; when they are being closed, nobody needs it."""
        if not self.is_running:
            return
        self.job_list.note(event)
        self.watched.note(event)
        if event.report is not None and event.job in self.job_list.changes():
            self.outcomes[event.job.id] = event.report
            self.library.action_rescan()
        elif event.kind == "gone" and event.job in self.job_list.asked():
            self.library.action_rescan()  # it may have been complete when it was cancelled
        for screen in self.screen_stack:
            screen.post_message(JobUpdated(event))

    def job_status(self) -> str:
        """The header's words about running jobs."""
        return self.job_list.status()

    async def on_event(self, event: events.Event) -> None:
        """Take in what happens; what was pressed and arrives when there is no screen any more is passed over."""
        if self.is_running or not isinstance(event, events.InputEvent):
            await super().on_event(event)

    async def on_unmount(self) -> None:
        """Remember, and leave no child process behind."""
        self.state.save()
        if self._jobs is not None:
            await self._jobs.shutdown()

    # Where one is

    @property
    def library(self) -> LabScreen:
        """The home screen."""
        from lora_lab.tui.library.screen import LibraryScreen

        return next(screen for screen in self.screen_stack if isinstance(screen, LibraryScreen))

    @property
    def place(self) -> LabScreen:
        """The screen one is on, whatever dialogue is open above it."""
        return next(screen for screen in reversed(self.screen_stack) if isinstance(screen, LabScreen))

    def open_detail(self, locator: str, *, overlays: tuple[str, ...] = (), name: str = "") -> None:
        """Show one adapter, instead of the one shown before."""
        from lora_lab.tui.detail.screen import DetailScreen

        self.go_home()
        self.state.set("last_adapter", locator)
        self.push_screen(DetailScreen(locator, overlays=overlays, name=name))

    def open_compare(self, locators: tuple[str, str], *, names: tuple[str, str] | None = None) -> None:
        """Show two adapters beside each other, over the screen one is on, instead of the two shown before."""
        from lora_lab.tui.compare.screen import CompareScreen
        from lora_lab.tui.jobs_screen import JobsScreen

        self.last_compared = (locators, names)
        if self._return_to(CompareScreen) or isinstance(self.place, JobsScreen):
            self.pop_screen()
        self.push_screen(CompareScreen(locators, names=names))

    def _return_to(self, kind: type[LabScreen]) -> bool:
        """Close what is above the screen of this kind; False when there is none."""
        if not any(isinstance(screen, kind) for screen in self.screen_stack):
            return False
        while not isinstance(self.screen, kind):
            self.pop_screen()
        return True

    def action_go(self, place: str) -> None:
        """Go to ``library``, ``detail``, ``compare``, ``combine``, ``bench``, ``hub`` or ``jobs``."""
        from lora_lab.tui.bench.opening import open_bench
        from lora_lab.tui.bench.screen import BenchScreen
        from lora_lab.tui.combining.opening import open_wizard
        from lora_lab.tui.combining.screen import CombineScreen
        from lora_lab.tui.compare.screen import CompareScreen
        from lora_lab.tui.detail.screen import DetailScreen
        from lora_lab.tui.hub.screen import HubScreen
        from lora_lab.tui.jobs_screen import JobsScreen
        from lora_lab.tui.library.screen import LibraryScreen

        if place == "library":
            self.go_home()
        elif place == "hub" and not self._return_to(HubScreen):
            self.push_screen(HubScreen())
        elif place == "jobs" and not isinstance(self.place, JobsScreen):
            self.push_screen(JobsScreen())
        elif place == "detail" and not self._return_to(DetailScreen):
            home = self.library
            if isinstance(home, LibraryScreen):
                home.open_last()
        elif place == "compare" and not self._return_to(CompareScreen) and self.last_compared is not None:
            locators, names = self.last_compared
            self.open_compare(locators, names=names)
        elif place == "combine" and not self._return_to(CombineScreen):
            open_wizard(self)
        elif place == "bench" and not self._return_to(BenchScreen):
            open_bench(self)

    def action_combine(self) -> None:
        """Combine, resize or extract what one is at."""
        self.action_go("combine")

    def action_budget(self) -> None:
        """Show what a rank would cost on the base model that one is at."""
        from lora_lab.tui.budget.opening import open_budget

        open_budget(self)

    def go_home(self) -> None:
        """Close every screen above the library."""
        while self.screen is not self.library:
            self.pop_screen()

    def go_back(self) -> None:
        """Close the screen; the library closes the application."""
        if self.screen is self.library:
            self.ask_to_quit()
        else:
            self.pop_screen()

    def ask_to_quit(self) -> None:
        """Quit, after a question when a job would be lost that the person asked for."""
        running = self.job_list.asked_for()
        if not running:
            self.exit()
            return
        what = "1 job runs" if len(running) == 1 else f"{len(running)} jobs run"
        ask(self, f"{what}: {running[0].title}.", "cancel and quit", self.exit)

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say why there is no adapter to go to, or no model to plan for."""
        if action == "budget":
            from lora_lab.tui.budget.opening import why_no_budget

            return why_no_budget(self)
        if action == "combine" or (action == "go" and parameters == ("combine",)):
            from lora_lab.tui.combining.opening import why_no_wizard

            return why_no_wizard(self)
        if action == "go" and parameters == ("compare",) and self.last_compared is None:
            return "compare two adapters first: mark them in the library with space, then press c"
        if action == "go" and parameters == ("detail",):
            from lora_lab.tui.jobs_screen import JobsScreen
            from lora_lab.tui.library.screen import LibraryScreen

            home = self.library
            open_screens = [screen for screen in self.screen_stack if isinstance(screen, LabScreen)]
            no_detail = all(isinstance(screen, LibraryScreen | JobsScreen) for screen in open_screens)
            if no_detail and isinstance(home, LibraryScreen) and home.last_opened is None:
                return "open an adapter first, with enter"
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey an action that is not available."""
        return None if self.unavailable(action, parameters) else True

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Do it, or say why it cannot be done."""
        if await super().run_action(action, default_namespace, namespaces):
            return True
        reason = why_not(default_namespace or self, action) if isinstance(action, str) else None
        if reason:
            self.say(f"Not now: {reason}.", severity="warning")
        return bool(reason)

    # Words and looks

    def say(self, sentence: str, *, severity: str = "information") -> None:
        """Show a toast; the sentence is plain text."""
        self.notify(safe_text(sentence), severity=severity, markup=False, timeout=4)  # type: ignore[arg-type]

    def say_if(self, sentence: str | None) -> None:
        """Show a toast when there is something to say."""
        if sentence:
            self.say(sentence)

    def picture(self) -> str:
        """The screen as SVG."""
        return self.export_screenshot(title="lora-lab")

    def action_pick_theme(self) -> None:
        """Choose a theme with a live preview."""
        from lora_lab.tui.theme_picker import ThemePicker

        own = [theme.name for theme in themes.OWN_THEMES]
        names = [*own, *sorted(set(self.available_themes) - set(own))]

        def keep(name: str | None) -> None:
            if name:
                self.state.set("theme", name)

        self.push_screen(ThemePicker(names, self.theme), keep)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours that our styles name beyond Textual's."""
        return themes.variable_defaults(dark=self.current_theme.dark)

    def get_css_variables(self) -> dict[str, str]:
        """Colours of the theme, with a selected row that can be read."""
        variables = themes.readable(super().get_css_variables())
        self.theme_variables = variables
        return variables
