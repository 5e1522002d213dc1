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


class Stage:
    """Whoever watches a piece of work in several parts of one length, seen by one of the parts.

    Parameters
    ----------
    place : of the part, from 0
    units : that each part counts for
    name : stands before what is said of its progress
    """

    def __init__(self, observer: Observer, place: int, parts: int, units: int, name: str) -> None:
        self._observer = observer
        self._place = place
        self._parts = parts
        self._units = units
        self._name = name

    def advance(self, done: int, total: int, what: str = "") -> None:
        """Pass it on as a share of the whole."""
        here = self._units * done // max(1, total)
        self._observer.advance(self._place * self._units + here, self._parts * self._units, f"{self._name}: {what}")

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ignore: tables of a part are no tables of the whole."""

    def is_cancelled(self) -> bool:
        """As of the whole."""
        return self._observer.is_cancelled()


def stop_if_cancelled(observer: Observer) -> None:
    """Raise CancelledError when the observer asks for it."""
    if observer.is_cancelled():
        raise CancelledError("Cancelled.", hint="Nothing was changed.")
