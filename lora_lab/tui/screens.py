"""The base of every screen: header, key bar, help, jump mode, maximise, copy, export, and the message when too small.

A screen overrides :meth:`LabScreen.compose_body`, and as much of the following as it has:
:meth:`~LabScreen.copy_value`, :meth:`~LabScreen.export_document`, ``action_filter``, ``action_find_next``,
``action_find_previous``, ``action_rescan``, :meth:`~LabScreen.leave`, :meth:`~LabScreen.unavailable`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Container
from textual.screen import Screen

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.detail.feed import JobDesk
from lora_lab.tui.help import HelpScreen, sections_of
from lora_lab.tui.jump import JumpScreen, letters_for
from lora_lab.tui.leaving import AbstractMeta, Leaving
from lora_lab.tui.palette import ActionsProvider
from lora_lab.tui.widgets.footer import KeyBar
from lora_lab.tui.widgets.header import HeaderBar
from lora_lab.tui.widgets.too_small import TooSmall

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.widget import Widget

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.export import Copied, ExportDocument
    from lora_lab.tui.messages import JobUpdated

#: Actions that a screen has only when it defines them, and what to say when it does not.
_OPTIONAL = {
    "filter": "nothing on this screen can be filtered",
    "find_next": "nothing on this screen can be searched",
    "find_previous": "nothing on this screen can be searched",
    "rescan": "nothing on this screen is read from files",
}


class LabScreen(Leaving, Screen[None], metaclass=AbstractMeta, inherit_bindings=False):
    """A screen with the keys of :data:`lora_lab.tui.bindings.SCREEN`.

    Parameters
    ----------
    crumb : where one is, at the left of the header
    """

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (140, "-wide")]  # noqa: RUF012 - Textual's own
    BINDINGS: ClassVar[list[BindingType]] = [*bindings.of_screen()]
    COMMANDS = {ActionsProvider}  # noqa: RUF012 - Textual's own declaration
    ALLOW_IN_MAXIMIZED_VIEW = "HeaderBar, KeyBar, TooSmall"
    ESCAPE_GOES_BACK: ClassVar[bool] = False
    ESCAPE_TO_MINIMIZE = False  # esc is the action "leave", which does that among other things
    DEFAULT_CSS = """
    LabScreen { background: $background; }
    LabScreen > #body { height: 1fr; width: 1fr; }
    """

    def __init__(self, crumb: str = "") -> None:
        super().__init__()
        self._first_crumb = crumb
        self.desk: JobDesk | None = None

    @property
    def lab(self) -> LoraLabApp:
        """The application, under its own type."""
        from lora_lab.tui.app import LoraLabApp

        app = self.app
        assert isinstance(app, LoraLabApp)
        return app

    def compose(self) -> ComposeResult:
        """Frame the body."""
        header = HeaderBar()
        header.set_reactive(HeaderBar.crumb, safe_text(self._first_crumb))
        yield header
        with Container(id="body"):
            yield from self.compose_body()
        yield KeyBar()
        yield TooSmall()

    @abstractmethod
    def compose_body(self) -> ComposeResult:
        """Yield what is between the header and the key bar."""

    def set_header(self, crumb: str, note: str | None = None) -> None:
        """Say where one is and, when given, something about it; both are shown as plain text."""
        header = self.query_one(HeaderBar)
        header.crumb = safe_text(crumb)
        if note is not None:
            header.note = safe_text(note)

    def on_mount(self) -> None:
        """Look at the size and at the jobs once before anything is shown."""
        self.query_one(TooSmall).fit(self.app.size)
        self.query_one(HeaderBar).status = self.lab.job_status()

    def on_screen_resume(self) -> None:
        """Catch up with the jobs."""
        self.query_one(HeaderBar).status = self.lab.job_status()

    def on_resize(self, event: events.Resize) -> None:
        """Cover the screen when there is no room for it."""
        self.query_one(TooSmall).fit(event.size)

    def on_job_updated(self, _message: JobUpdated) -> None:
        """Show the running jobs in the header."""
        self.query_one(HeaderBar).status = self.lab.job_status()

    # What a screen may override.

    def on_unmount(self) -> None:
        """Nothing goes on for a screen that is gone."""
        if self.desk is not None:
            self.desk.drop_all()

    def open_desk(self) -> JobDesk | None:
        """Give the place to ask for what is shown here; None while no jobs can be given."""
        if self.desk is None and self.lab.is_measuring:
            self.desk = JobDesk(self.lab.jobs, self.lab.job_list)
        return self.desk

    def jobs_ready(self) -> None:
        """Do what waited for the manager of jobs to have started."""

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:  # noqa: ARG002
        """Reason why `action` cannot be done now, as a clause; None when it can.

        The key is then greyed, the help and the palette show the reason, and pressing the key tells it.
        A screen that overrides this asks ``super().unavailable(...)`` for the rest.
        """
        if action in _OPTIONAL and getattr(type(self), f"action_{action}") is getattr(LabScreen, f"action_{action}"):
            return _OPTIONAL[action]
        if action == "copy" and type(self).copy_value is LabScreen.copy_value:
            return "nothing on this screen can be copied"
        return None

    def copy_value(self) -> Copied | None:
        """What ``y`` copies now; None when there is nothing under the cursor."""
        return None

    def export_document(self) -> ExportDocument | None:
        """What ``x`` writes as csv or json; None leaves the picture of the screen."""
        return None

    def jump_targets(self) -> list[Widget]:
        """Widgets that jump mode puts letters on: all that can be focused."""
        return [widget for widget in self.focus_chain if widget.is_on_screen]

    def leave(self) -> bool:
        """Leave a transient state (a filter, an overlay); False when there was none."""
        return False

    def action_filter(self) -> None:
        """Open the filter."""

    def action_find_next(self) -> None:
        """Move to the next match."""

    def action_find_previous(self) -> None:
        """Move to the match before."""

    def action_rescan(self) -> None:
        """Read the files again."""

    # What every screen does.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey an action that is not available."""
        return None if self.unavailable(action, parameters) else True

    def action_help(self) -> None:
        """Show the keys of the focused pane and of the screen."""
        self.app.push_screen(HelpScreen(sections_of(self)))

    def action_jump(self) -> None:
        """Put letters on the panes and focus the one that is typed."""

        def focus(widget: Widget | None) -> None:
            if widget is not None:
                widget.focus()

        self.app.push_screen(JumpScreen(letters_for(self.jump_targets())), focus)

    def action_maximise(self) -> None:
        """Give the focused pane the whole screen, or take it back."""
        if self.maximized is not None:
            self.minimize()
        elif self.focused is None or not self.maximize(self.focused):
            self.lab.say("This pane cannot be made larger.")
        self.refresh_bindings()

    def action_leave(self) -> None:
        """Leave the filter, the overlay or the maximised pane; else the screen, where esc does that."""
        if not self.leave() and (self.maximized is not None or self.ESCAPE_GOES_BACK):
            self.action_back()

    def action_back(self) -> None:
        """Go to the screen before this one."""
        if self.maximized is not None:
            self.minimize()
        else:
            self.lab.go_back()

    def action_copy(self) -> None:
        """Copy the value under the cursor, and say what was copied."""
        copied = self.copy_value()
        if copied is None:
            self.lab.say("There is nothing to copy here.")
            return
        self.app.copy_to_clipboard(copied.tsv)
        self.lab.say(f"Copied {copied.what}.")

    def action_export(self) -> None:
        """Ask where to write what is on screen."""
        from lora_lab.tui.export_dialog import ExportDialog

        self.app.push_screen(ExportDialog(self.export_document(), self.lab.picture()), self.lab.say_if)

    def action_screenshot_svg(self) -> None:
        """Ask where to write the picture of the screen."""
        from lora_lab.tui.export_dialog import ExportDialog

        self.app.push_screen(ExportDialog(None, self.lab.picture()), self.lab.say_if)
