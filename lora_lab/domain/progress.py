"""How long work tells of itself, and how it is asked to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lora_lab.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Observer(Protocol):
    """Whoever watches a piece of work; called from the thread that does it."""

    def advance(self, done: int, total: int, what: str = "") -> None:
        """`done` of `total` units are finished."""

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of the table with this id are ready before the rest."""

    def is_cancelled(self) -> bool:
        """Whether the work should stop at the next unit."""


class Unwatched:
    """Nobody watches; nobody cancels."""

    def advance(self, done: int, total: int, what: str = "") -> None:
        """Ignore."""

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ignore."""

    def is_cancelled(self) -> bool:
        """Never."""
        return False


def stop_if_cancelled(observer: Observer) -> None:
    """Raise CancelledError when the observer asks for it."""
    if observer.is_cancelled():
        raise CancelledError("Cancelled.", hint="Nothing was changed.")
