"""The command that does the same as a screen."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from lora_lab.safetext import safe_text


class ShellLine(Static):
    """A command behind a prompt; two or three lines where it is long."""

    DEFAULT_CSS = """
    ShellLine { height: auto; max-height: 3; padding: 0 1; color: $foreground 70%; }
    """

    def tell(self, command: str, instead: str = "") -> None:
        """Show `command`; while there is none, the sentence `instead`."""
        prompt = Content.assemble(Content.styled("$ ", "$text-accent"), safe_text(command))
        self.update(prompt if command else Content(safe_text(instead)))
