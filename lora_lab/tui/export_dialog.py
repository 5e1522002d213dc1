"""Asks for a format and a path, and never writes over a file without a yes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Checkbox, Input, Label, RadioButton, RadioSet, Static

from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text
from lora_lab.storage.atomic import write_bytes
from lora_lab.tui import bindings
from lora_lab.tui.dialog import LabDialog
from lora_lab.tui.export import ExportDocument, ExportFormat, as_csv, as_json, suggested_path

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

_ABOUT = {
    ExportFormat.MARKDOWN: "the whole result, for a person",
    ExportFormat.WHOLE: "the whole result, as --json prints it",
    ExportFormat.CSV: "table, comma-separated",
    ExportFormat.JSON: "table, full precision",
    ExportFormat.SVG: "picture of the screen",
}

_EXPORTERS = {ExportFormat.MARKDOWN: "markdown", ExportFormat.WHOLE: "json"}


class ExportDialog(LabDialog["str | None"]):
    """Closes with the sentence to show, or None when nothing was written.

    Parameters
    ----------
    document : the table on screen; None offers the picture alone
    picture : the screen as SVG
    """

    DEFAULT_CSS = """
    ExportDialog .dialog { width: 64; height: auto; }
    ExportDialog RadioSet { layout: vertical; width: 100%; border: none; background: $surface; padding: 0; }
    ExportDialog Input { border: none; height: 1; padding: 0 1; background: $panel; }
    ExportDialog Input:focus { border: none; }
    ExportDialog .export--row { height: 1; margin-top: 1; }
    ExportDialog .export--row Label { width: 8; color: $foreground 70%; }
    ExportDialog Checkbox { border: none; padding: 0; background: $surface; margin-top: 1; }
    ExportDialog #export-reason { color: $text-warning; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("ctrl+s", "write", "Write", "Write the file", id="export.write", show=True),
    ]
    HELP_TITLE = "Export"

    def __init__(self, document: ExportDocument | None, picture: str) -> None:
        super().__init__()
        self._document = document or ExportDocument("screen", (), ())
        self._picture = picture
        whole = (ExportFormat.MARKDOWN, ExportFormat.WHOLE)
        offered = [form for form in ExportFormat if form not in whole or self._document.report is not None]
        self._formats = offered if document else [ExportFormat.SVG]
        self._suggested = suggested_path(self._document, self._formats[0])

    def compose_dialog(self) -> ComposeResult:
        """Format, path, and the question whether a file may be replaced."""
        box = Vertical(classes="dialog")
        box.border_title = Content("Export")
        box.border_subtitle = Content("⏎ writes · tab next field · esc cancels")
        with box:
            with RadioSet(id="export-format"):
                for form in self._formats:
                    yield RadioButton(f"{form:<5} {_ABOUT[form]}", value=form is self._formats[0], name=form.value)
            with Horizontal(classes="export--row"):
                yield Label("path")
                yield Input(str(self._suggested), id="export-path", select_on_focus=False)
            yield Checkbox("replace the file that is there", id="export-overwrite")
            yield Static("", id="export-reason")

    def on_mount(self) -> None:
        """Nothing is to be replaced until something is in the way; the path is what is most often changed."""
        self.query_one(Checkbox).display = False
        self.query_one(Input).focus()

    @property
    def form(self) -> ExportFormat:
        """The format chosen."""
        return self._formats[max(0, self.query_one(RadioSet).pressed_index)]

    @on(RadioSet.Changed)
    def _format_changed(self) -> None:
        """Keep the file's ending in step, unless the person chose another name."""
        field = self.query_one(Input)
        if field.value == str(self._suggested):
            self._suggested = suggested_path(self._document, self.form)
            field.value = str(self._suggested)

    @on(Input.Submitted)
    def action_write(self) -> None:
        """Write the file, or say why not."""
        typed = self.query_one(Input).value.strip()
        box = self.query_one(Checkbox)
        if not typed:
            self._explain("Type a path.")
            return
        path = Path(typed).expanduser()
        may_replace = box.display and box.value
        if not may_replace and os.path.lexists(path):
            box.display = True
            box.focus()
            self._explain(f"{path} is there already; tick the box with space, then ctrl+s.")
            return
        try:
            write_bytes(path, self._content(), overwrite=may_replace)
        except LoraLabError as error:
            self._explain(str(error))
        except ValueError as error:  # a path that no file system takes
            self._explain(f"{path} cannot be written: {error}.")
        else:
            self.dismiss(f"Wrote {safe_text(path)}.")

    def _content(self) -> bytes:
        report = self._document.report
        if report is not None and self.form in _EXPORTERS:
            from lora_lab.tui.app import LoraLabApp

            assert isinstance(self.app, LoraLabApp)
            return self.app.session.export(report, _EXPORTERS[self.form])
        return self._text().encode("utf-8", "backslashreplace")

    def _text(self) -> str:
        if self.form is ExportFormat.SVG:
            return self._picture
        return as_csv(self._document) if self.form is ExportFormat.CSV else as_json(self._document)

    def _explain(self, sentence: str) -> None:
        self.query_one("#export-reason", Static).update(Content(safe_text(sentence)))
