"""Which rows the Hub screen has, and in which order."""

from __future__ import annotations

from typing import Any

from lora_lab.domain.report import Report, Table
from lora_lab.tui.hub.shelf import COLUMNS, MOST_RECENT, Shelf


def rows(*names: str, **values: Any) -> Report:
    """A report as the session makes it."""
    table = Table("repositories", "", (), tuple({"repository": name, **values} for name in names), key="repository")
    return Report("search_hub", "", (table,))


def test_what_is_here_comes_first_and_what_was_opened_last_before_it() -> None:
    shelf = Shelf()
    shelf.remember_all(["gone/x", "me/b", 7])
    shelf.take_cached(rows("me/a", "me/b", path="/cache", size_bytes=5))
    assert shelf.shown() == ["me/b", "me/a", "gone/x"]
    shelf.query = "A"
    assert shelf.shown() == ["me/a"]
    shelf.take_found(rows("far/a", "me/a", downloads=1500, likes=3, access="gated"))
    assert shelf.shown() == ["me/a", "far/a"]
    assert shelf.cell("me/a", "here").text == "5 B"
    assert shelf.cell("me/a", "downloads").text == "1500"
    assert shelf.cell("far/a", "here").text == ""
    assert shelf.cell("far/a", "access").text == "gated"
    shelf.forget_found()
    assert shelf.shown() == ["me/a"]


def test_names_are_shown_and_not_obeyed() -> None:
    shelf = Shelf()
    shelf.take_found(rows("me/[red]\x1b[31m", base_model="x\ny"))
    for column in COLUMNS:
        assert "\x1b" not in shelf.cell("me/[red]\x1b[31m", column.id).text
        assert "\n" not in shelf.cell("me/[red]\x1b[31m", column.id).text


def test_only_so_many_are_remembered() -> None:
    shelf = Shelf()
    for number in range(40):
        shelf.remember(f"me/{number}")
    shelf.remember("me/39")
    assert len(shelf.recent) == MOST_RECENT
    assert shelf.recent[0] == "me/39"
    assert len(set(shelf.recent)) == MOST_RECENT
