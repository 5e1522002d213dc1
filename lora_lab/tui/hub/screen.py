"""Open from the Hub: search it, or take what is on this machine; downloads are jobs, and the screen never waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text
from lora_lab.sources.locators import hub_locator
from lora_lab.tui import bindings, text
from lora_lab.tui.background import work_beside
from lora_lab.tui.compare.words import refusal
from lora_lab.tui.export import Copied, ExportDocument
from lora_lab.tui.hub.shelf import COLUMNS, Shelf
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.table import Cell, LabTable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.timer import Timer

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.messages import JobUpdated

_SEARCH_SECONDS: Final = 0.4  # after the last key
_TICK_SECONDS: Final = 0.5
_BAR_WIDTH: Final = 24
_ACTIVE: Final = ("queued", "running")
_STATE: Final = "hub.recent"


@dataclass
class Answered(Message):
    """What was asked beside the screen has an answer; ``generation`` tells an old question from the newest."""

    generation: int
    is_search: bool
    report: Report | None = None
    reason: str = ""
    hint: str = ""


class QueryInput(Input, inherit_bindings=False):
    """Where words, a name or a link are typed."""

    HELP_TITLE = "Search"
    HELP = "Words search the Hub's adapters as you type; org/name, hf:// or a link is opened by enter."
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("enter", "submit", "Open", "Open what is named, or go to the rows", id="hub.submit", show=True),
        bindings.key("down", "screen.rows", "Rows", "Go to the rows", id="hub.rows"),
        bindings.key("escape", "screen.leave", "Clear", "Clear the search, then leave it", id="hub.clear", show=True),
        *(binding for binding in bindings.described(Input.BINDINGS, "search") if binding.key != "enter"),
    ]


class HubScreen(LabScreen, inherit_bindings=False):
    """Adapters of the Hub, and what is here of it."""

    HELP_TITLE = "Hub screen"
    ESCAPE_GOES_BACK = True
    HELP = "Nothing is fetched before enter; what is marked as here opens without the network."
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen("filter"),
        bindings.key("slash", "filter", "Search", "Search the Hub", id="filter", show=True),
        bindings.key("c", "cancel", "Cancel", "Stop the download; nothing half-made stays", id="hub.cancel", show=True),
    ]
    DEFAULT_CSS = """
    HubScreen Input { border: none; height: 1; padding: 0 1; background: $panel; }
    HubScreen Input:focus { border: none; background: $primary 25%; }
    HubScreen LabTable { height: 1fr; min-height: 3; margin-top: 1; }
    HubScreen #hub-said { height: auto; max-height: 5; padding: 0 1; color: $foreground 70%; }
    HubScreen #hub-progress { height: auto; max-height: 4; padding: 0 1; background: $panel; }
    """

    def __init__(self) -> None:
        super().__init__("the Hub")
        self.shelf = Shelf()
        self._generation = 0
        self._timer: Timer | None = None
        self._stop: threading.Event | None = None
        self._is_searching = False
        self._refusal: Content | None = None
        self._job: Job | None = None  # the download that was asked for here
        self._wanted = ""  # its locator

    # Building

    def compose_body(self) -> ComposeResult:
        """Search line, rows, and a line about each of them."""
        with Pane(title="Open from the Hub", id="hub-pane"):
            yield QueryInput(placeholder="words of a name; or org/name, hf://…, a link", id="hub-query")
            yield LabTable(COLUMNS, self._cell, id="hub-table")
            yield Static("", id="hub-said")
            yield Static("", id="hub-progress")

    def on_mount(self) -> None:
        """Show what is here, which needs no network."""
        super().on_mount()
        self.shelf.remember_all(self.lab.state.get(_STATE, []))
        self.query_one(QueryInput).focus()
        self.query_one("#hub-progress").display = False
        self.set_interval(_TICK_SECONDS, self._tell_progress)
        self.action_rescan()

    @property
    def table(self) -> LabTable:
        """The rows."""
        return self.query_one(LabTable)

    def _cell(self, key: str, column: str) -> Cell:
        return self.shelf.cell(key, column)

    # Asking beside the screen

    def action_rescan(self) -> None:
        """Look into the cache again, and search again where there is something to search for."""
        self._beside(is_search=False, ask=lambda lab: lab.session.cached_hub())
        if self.shelf.query:
            self._search()

    def _beside(self, *, is_search: bool, ask: Callable[[LoraLabApp], Report]) -> threading.Event:
        lab, generation = self.lab, self._generation

        def work(stop: threading.Event, tell: Callable[[Message], bool]) -> None:
            if stop.is_set():
                return
            try:
                tell(Answered(generation, is_search, ask(lab)))
            except LoraLabError as error:
                tell(Answered(generation, is_search, None, error.message, error.hint))
            except Exception as error:  # the client's own, which nobody foresaw: the screen stays
                tell(Answered(generation, is_search, None, f"{type(error).__name__}: {error}", ""))

        return work_beside(work, self, "hub")

    @on(Input.Changed, "#hub-query")
    def _typed(self, message: Input.Changed) -> None:
        if self._timer is not None:
            self._timer.stop()
        self.shelf.query = " ".join(message.value.split())
        self.shelf.forget_found()
        self._refusal = None
        self._is_searching = False
        self._generation += 1
        if self._stop is not None:
            self._stop.set()
        if self.shelf.query and not self._is_locator():
            self._timer = self.set_timer(_SEARCH_SECONDS, self._search)
        self._show()

    def _is_locator(self) -> bool:
        """Whether what is typed is a place, and no words."""
        return "/" in self.shelf.query and hub_locator(self.shelf.query) is not None

    def _search(self) -> None:
        query = self.shelf.query
        if not query or self._is_locator():
            return
        self._is_searching = True
        self._stop = self._beside(is_search=True, ask=lambda lab: lab.session.search_hub(query))
        self._say()

    def on_answered(self, message: Answered) -> None:
        """Show what was found, or why nothing could be."""
        if message.is_search and message.generation != self._generation:
            return
        if message.is_search:
            self._is_searching = False
        if message.report is None:
            self._refusal = refusal(message.reason, message.hint)
        elif message.is_search:
            self.shelf.take_found(message.report)
        else:
            self.shelf.take_cached(message.report)
        self._show()

    def _show(self) -> None:
        self.table.set_rows(self.shelf.shown())
        self._say()
        self.refresh_bindings()

    def _say(self) -> None:
        said = self._refusal if self._refusal is not None else Content(self._standing())
        self.query_one("#hub-said", Static).update(said)

    def _standing(self) -> str:
        rows = len(self.shelf.shown())
        if self._is_locator():
            return f"⏎ opens {safe_text(self.shelf.query, limit=60)}."
        if self._is_searching:
            return "asking the Hub …"
        if self.shelf.is_searched:
            found = text.plural(len(self.shelf.found), "adapter")
            return f"{found} on the Hub for {safe_text(self.shelf.query, limit=40)}; ⏎ fetches one and opens it."
        if self.shelf.query:
            return "…"
        return "On this machine; type to search the Hub." if rows else "Nothing of the Hub is here yet; type to search."

    # Opening

    @on(Input.Submitted, "#hub-query")
    def _submitted(self) -> None:
        if self._is_locator():
            self.open_locator(self.shelf.query)
        else:
            self.action_rows()

    def action_rows(self) -> None:
        """Go to the rows, when there are any."""
        if self.table.keys:
            self.table.focus()

    @on(LabTable.Opened, "#hub-table")
    def _row_opened(self, message: LabTable.Opened) -> None:
        row = self.shelf.row(message.key)
        if row.get("path") and row.get("is_adapter"):
            self._opened(message.key)
            self.lab.open_detail(str(row["path"]), name=message.key)
        else:
            self.open_locator(message.key)

    def open_locator(self, locator: str) -> None:
        """Fetch what a locator stands for, as a job, and open it."""
        if self._job is not None and self._job.state in _ACTIVE:
            self.lab.say("One download at a time: c stops the one that runs.", severity="warning")
            return
        if not self.lab.is_measuring:
            return
        self._wanted = locator
        self._job = self.lab.begin("pull", {"locator": locator}, f"pull {locator}")
        self._tell_progress()
        self.refresh_bindings()

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show how far the download is; open what it brought."""
        super().on_job_updated(message)
        event = message.event
        if self._job is None or event.job is not self._job:
            return
        self._tell_progress()
        if event.kind == "result" and event.report is not None:
            self._job = None
            self._arrived(event.report)
        elif event.kind == "failed":
            self._refusal = refusal(event.job.error or "", event.job.hint or "")
            self._show()
        elif event.kind == "cancelled":
            self._refusal = Content("Cancelled. What had arrived whole stays in the cache.")
            self._show()
        self.refresh_bindings()

    def _arrived(self, report: Report) -> None:
        from lora_lab.tui.library.screen import LibraryScreen

        path = str(next(group.values["path"] for group in report.scalars if not group.id))
        is_adapter = any(row["name"].endswith("adapter_config.json") for row in report.table("files").rows)
        found = hub_locator(self._wanted)
        name = found.repository if found is not None else self._wanted
        self._opened(name)
        if not is_adapter:
            home = self.lab.library
            assert isinstance(home, LibraryScreen)
            home.add_source(path)
            self.lab.say(f"{name} is here, and in the library.")
            self.action_rescan()
        elif self.app.screen is self:
            self.lab.open_detail(path, name=name)
        else:
            self.lab.say(f"{name} is here; 6 opens it.")
            self.action_rescan()

    def _opened(self, repository: str) -> None:
        self.shelf.remember(repository)
        self.lab.state.set(_STATE, self.shelf.recent)

    def _tell_progress(self) -> None:
        box = self.query_one("#hub-progress", Static)
        job = self._job
        box.display = job is not None and job.state in _ACTIVE
        if job is None or job.state not in _ACTIVE:
            return
        if job.state == "queued" or not job.total:
            about = "waits for the job before it …" if job.state == "queued" else "asks for its files …"
            box.update(Content(f"{safe_text(self._wanted, limit=60)}  {about}"))
            return
        left = self.lab.job_list.eta_seconds(job)
        rate = self.lab.job_list.rate(job)
        parts = [f"{text.size(job.done)} of {text.size(job.total)}"]
        parts += [f"{text.size(round(rate))}/s"] if rate else []
        parts += [f"{text.duration(left)} left"] if left is not None else []
        head = f"{text.bar(job.done / job.total, _BAR_WIDTH):<{_BAR_WIDTH}}  {'  ·  '.join(parts)}"
        box.update(Content("\n").join([Content(safe_text(self._wanted, limit=60)), Content(head)]))

    # Keys

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a row, or a download."""
        if action == "cancel" and (self._job is None or self._job.state not in _ACTIVE):
            return "nothing is being fetched"
        if action in ("copy", "export") and self.is_mounted and not self.table.keys:
            return "there is no row"
        return super().unavailable(action, parameters)

    def action_cancel(self) -> None:
        """Stop the download."""
        if self._job is not None:
            self.lab.jobs.cancel(self._job)

    def action_filter(self) -> None:
        """Go to the search line."""
        self.query_one(QueryInput).focus()

    def leave(self) -> bool:
        """Clear the search, then leave its line for the rows."""
        field = self.query_one(QueryInput)
        if field.value:
            field.value = ""
        elif field.has_focus and self.table.keys:
            self.table.focus()
        else:
            return False
        return True

    def copy_value(self) -> Copied | None:
        """The name of the repository under the cursor."""
        key = self.table.cursor_key
        return Copied("the name", key) if key else None

    def export_document(self) -> ExportDocument | None:
        """The rows shown."""
        names = ["repository", "base_model", "downloads", "likes", "path", "size_bytes"]
        rows = [[self.shelf.row(key).get(name) for name in names] for key in self.table.keys]
        return ExportDocument("hub", names, rows)
