"""The rows of the library: found by scans, filtered, sorted, marked, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.library import EntryKind
from lora_lab.tui import text
from lora_lab.tui.export import ExportDocument
from lora_lab.tui.library.digest import digest
from lora_lab.tui.library.filters import compile_filter, uses_measures
from lora_lab.tui.library.rows import BASE_WIDTH, EXPORT_NAMES, MEASURED, NAME_WIDTH, Row, short_base, sort_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.domain.report import Report


class Library:
    """All rows by path, and which of them are shown in what order."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.shown: tuple[str, ...] = ()
        self.sort: tuple[str, bool] = ("name", False)
        self.filter = ""
        self.marks: dict[str, str] = {}  # "a" and "b" to path
        self._seen: set[str] = set()

    # Scans

    def begin_scan(self) -> None:
        """What is not found again from here on is gone; what could not be measured is tried again."""
        self._seen = set()
        for row in self.rows.values():
            row.failure = ""

    def add(self, entries: Iterable[LibraryEntry]) -> list[str]:
        """Take in what a scan found; paths of those whose files changed since they were measured."""
        changed = []
        for entry in entries:
            self._seen.add(entry.path)
            known = self.rows.get(entry.path)
            if known is not None and known.entry == entry:
                continue
            if known is not None:
                changed.append(entry.path)
            self.rows[entry.path] = Row(entry)
        return changed

    def end_scan(self) -> None:
        """Forget what is gone."""
        for path in [path for path in self.rows if path not in self._seen]:
            del self.rows[path]
        self.marks = {mark: path for mark, path in self.marks.items() if path in self.rows}

    # Measures

    def measured(self, path: str, report: Report | None, failure: str = "") -> bool:
        """Take in a spectrum, or the reason why there is none; whether the order of rows may have changed."""
        row = self.rows.get(path)
        if row is None:
            return False
        row.digest, row.failure = digest(report) if report else None, failure
        return self.sort[0] in MEASURED or uses_measures(self.filter) or "tag:" in self.filter

    def is_waiting(self, path: str) -> bool:
        """Whether a row's spectrum can be had and is not there."""
        row = self.rows.get(path)
        return row is not None and row.is_measurable and row.digest is None and not row.failure

    # What is shown

    def arrange(self) -> tuple[str, ...]:
        """Filter and sort; the paths in the order of the screen."""
        holds = compile_filter(self.filter)
        kept = [row for row in self.rows.values() if holds(row)]
        column, is_descending = self.sort
        ordered = sort_rows(kept, column, is_descending=is_descending)
        self.shown = tuple(row.entry.path for row in ordered)
        return self.shown

    def widths(self) -> tuple[int, int]:
        """Cells for names and for base models: what the bases do not need is the names'."""
        rows = self.rows.values()
        bases = {short_base(row.entry.base_model) for row in rows}
        base = min(BASE_WIDTH, max((len("base"), *map(len, bases))))
        longest = max((len(row.name) for row in rows), default=NAME_WIDTH)
        return max(NAME_WIDTH, min(longest, NAME_WIDTH + BASE_WIDTH - base)), base

    def summary(self) -> str:
        """How many there are of what."""
        entries = [row.entry for row in self.rows.values()]
        adapters = [entry for entry in entries if entry.kind == EntryKind.ADAPTER]
        bases = len(entries) - len(adapters)
        broken = sum(entry.error is not None for entry in entries)
        parts = [text.plural(len(adapters), "adapter")]
        if bases:
            parts.append(text.plural(bases, "base"))
        if broken:
            parts.append(f"{broken} broken")
        total = sum(entry.size_bytes or 0 for entry in entries)
        if total:
            parts.append(text.size(total))
        return " · ".join(parts)

    # Marks

    def mark(self, path: str) -> str | None:
        """Mark a row as A, then B; a second time takes the mark away; the reason when it cannot be marked."""
        row = self.rows[path]
        if not row.is_measurable:
            return "only an adapter that can be read can be marked"
        mine = self.mark_of(path)
        if mine:
            del self.marks[mine]
        elif "a" not in self.marks:
            self.marks["a"] = path
        else:
            self.marks["b"] = path
        return None

    def mark_of(self, path: str) -> str:
        """``a``, ``b`` or nothing."""
        return next((mark for mark, marked in self.marks.items() if marked == path), "")

    def pair(self, cursor: str | None) -> tuple[str, str] | None:
        """A and B, or the one that is marked and the row of the cursor; None when that is not two adapters."""
        marked = [self.marks[mark] for mark in sorted(self.marks)]
        if len(marked) == 1 and cursor is not None and cursor != marked[0] and self.rows[cursor].is_measurable:
            marked.append(cursor)
        return (marked[0], marked[1]) if len(marked) == 2 else None

    def restore_marks(self, marks: Mapping[str, str]) -> None:
        """Put marks back on rows that are still there."""
        self.marks = {mark: path for mark, path in marks.items() if path in self.rows and self.rows[path].is_measurable}


def document_of(library: Library, paths: Sequence[str]) -> ExportDocument:
    """The rows of these paths at full precision."""
    ids = list(EXPORT_NAMES)
    rows = [library.rows[path] for path in paths]
    cells = [[*map(row.value, ids), row.entry.path, row.entry.error] for row in rows]
    return ExportDocument("library", [*EXPORT_NAMES.values(), "path", "error"], cells)
