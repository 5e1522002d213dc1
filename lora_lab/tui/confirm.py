"""Asks one question before something is lost, fetched or sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.content import Content
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.dialog import LabDialog

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import App, ComposeResult
    from textual.binding import BindingType


class Confirm(LabDialog[bool]):
    """Closes with whether the person said yes.

    Parameters
    ----------
    question : one sentence
    yes : what happens on ``y``
    """

    DEFAULT_CSS = """
    Confirm .dialog { width: 60; height: auto; padding: 1 2; }
    """
    HELP_TITLE = "Question"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("y,enter", "answer(True)", "Yes", "Do it", id="confirm.yes", show=True),
        bindings.key("n,q", "answer(False)", "No", "Stay", id="confirm.no", show=True),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self._question = question
        self._yes = yes

    def compose_dialog(self) -> ComposeResult:
        """The question and its two keys."""
        text = Content.assemble(
            safe_text(self._question),
            "\n\n",
            Content.styled("y", "bold $text-accent"),
            f" {self._yes}    ",
            Content.styled("n", "bold $text-accent"),
            " stay",
        )
        yield Static(text, classes="dialog")

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


def ask(app: App[None], question: str, yes: str, do: Callable[[], object]) -> None:
    """Ask, and do it after a yes; `yes` says in the dialogue what that is."""

    def answer(is_wanted: bool | None) -> None:
        if is_wanted:
            do()

    app.push_screen(Confirm(question, yes), answer)
