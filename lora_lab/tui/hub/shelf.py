"""What the Hub screen lists: rows of the cache, of what was opened last, and of a search; without a widget."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.safetext import safe_text
from lora_lab.tui.widgets.columns import Cell, TableColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report

    Row = Mapping[str, Any]

COLUMNS: Final = (
    TableColumn("repository", "repository", 30, is_flexible=True, is_fixed=True, keeps_end=True),
    TableColumn("base_model", "base model", 24, keeps_end=True),
    TableColumn("here", "here", 8, is_right=True),
    TableColumn("downloads", "downloads", 9, is_right=True),
    TableColumn("likes", "likes", 6, is_right=True),
    TableColumn("age", "age", 5, is_right=True),
    TableColumn("access", "access", 7),
)
MOST_RECENT: Final = 12


class Shelf:
    """Rows by repository; those that are here come first."""

    def __init__(self) -> None:
        self.recent: list[str] = []
        self.query = ""
        self.cached: dict[str, Row] = {}
        self.found: dict[str, Row] = {}  # by the last search
        self.is_searched = False

    def take_cached(self, report: Report) -> None:
        """Take in what is on this machine."""
        self.cached = {row["repository"]: row for row in report.table("repositories").rows}

    def take_found(self, report: Report) -> None:
        """Take in the result of the search."""
        self.found = {row["repository"]: row for row in report.table("repositories").rows}
        self.is_searched = True

    def forget_found(self) -> None:
        """The search was for something else."""
        self.found = {}
        self.is_searched = False

    def remember_all(self, recent: Sequence[object]) -> None:
        """Know what was opened in earlier runs, the newest first."""
        self.recent = [name for name in recent if isinstance(name, str)][:MOST_RECENT]

    def remember(self, repository: str) -> None:
        """Know that it was opened."""
        self.recent = [repository, *(name for name in self.recent if name != repository)][:MOST_RECENT]

    def shown(self) -> list[str]:
        """Repositories in the order of the rows: opened last, here, found."""
        words = self.query.lower().split()
        here = [name for name in self.recent if name in self.cached]
        here += [name for name in self.cached if name not in here]
        others = [name for name in self.recent if name not in self.cached] if not self.query else []
        near = [name for name in (*here, *others) if all(word in name.lower() for word in words)]
        return list(dict.fromkeys([*near, *self.found]))

    def row(self, repository: str) -> Row:
        """Everything that is known of a repository."""
        return {"repository": repository, **self.found.get(repository, {}), **_known(self.cached.get(repository, {}))}

    def cell(self, repository: str, column: str) -> Cell:
        """What a cell shows."""
        row = self.row(repository)
        if column == "repository":
            return Cell(safe_text(repository))
        if column == "base_model":
            return Cell(safe_text(row.get("base_model") or ""), "dim")
        if column == "here":
            return Cell(figures.size(row.get("size_bytes")) if row.get("path") else "", "good")
        if column in ("downloads", "likes"):
            value = row.get(column)
            return Cell("" if value is None else figures.count(value))
        if column == "age":
            seconds = row.get("modified_seconds")
            return Cell("" if seconds is None else figures.age(max(0.0, time.time() - seconds)), "dim")
        return Cell(safe_text(row.get("access") or ""), "warn")


def _known(row: Row) -> dict[str, Any]:
    """Fields of a cached row that say something the Hub's own row does not."""
    return {key: value for key, value in row.items() if value not in (None, "") and key != "repository"}
