"""What screens, dialogues and views share as receivers of messages: nothing reaches them once they are leaving.

Textual tells a widget that it is mounted, and hands it what was sent before, also when the application or its screen
was closed in the middle of that: some of its parts were then never made, or have no parts of their own.
"""

from __future__ import annotations

from abc import ABCMeta
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from textual.message_pump import _MessagePumpMeta

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from textual.message import Message
    from textual.widget import Widget

    _Widget = Widget
else:
    _Widget = object  # Textual takes the style sheet of the first base that is a widget, which has to be the real one

_TEXTUAL = "textual."


class AbstractMeta(_MessagePumpMeta, ABCMeta):
    """Of classes that cannot be made while one of their abstract methods is missing."""


class Leaving(_Widget):
    """Stands before Textual's class among the bases; ``on_unmount`` is called all the same."""

    @property
    def is_staying(self) -> bool:
        """Whether its parts are there, or will be: not once it, its screen or the application is being closed."""
        return self.is_attached and self.app.is_running and not (self._pruning or self._closing)

    def _get_dispatch_methods(
        self, method_name: str, message: Message
    ) -> Iterable[tuple[type, Callable[[Message], Awaitable[Any]]]]:
        for owner, method in super()._get_dispatch_methods(method_name, message):
            if self.is_staying or method_name == "on_unmount" or owner.__module__.startswith(_TEXTUAL):
                yield owner, method

    def call_after_refresh(self, callback: Callable[..., Any], *arguments: Any, **options: Any) -> bool:
        """Call it after the next repaint if this is there still; Textual calls it for one that is gone, too."""

        async def call() -> None:
            if self.is_staying:
                found = callback(*arguments, **options)
                if isawaitable(found):
                    await found

        return super().call_after_refresh(call)
