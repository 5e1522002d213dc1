"""What the bench begins with: two adapters that are marked or compared, on the base in use; else latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.tui.bench.screen import BenchScreen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.bench.form import Kind


def open_bench(lab: LoraLabApp) -> None:
    """Show the bench."""
    entries = _entries(lab)
    pair = _pair(lab)
    first = next((entry for entry in entries if pair and entry.path == pair[0]), None)
    named = None if first is None else first.base_model
    base = lab.bases.base_for(named) or _named_here(entries, named) or ""
    kind: Kind = "swap" if len(pair) == 2 else "latency"
    typed = {"base": base, **dict(zip("ab", pair, strict=False))}
    lab.push_screen(BenchScreen(kind, typed))


def _named_here(entries: Sequence[LibraryEntry], named: str | None) -> str | None:
    """The one model of the library that has the name which an adapter gives its base."""
    from lora_lab.tui.base_dialog import choices_of

    found = [choice.locator for choice in choices_of(entries, named) if choice.is_named] if named else []
    return found[0] if len(found) == 1 else None


def _entries(lab: LoraLabApp) -> list[LibraryEntry]:
    """What the library holds."""
    from lora_lab.tui.library.screen import LibraryScreen

    home = lab.library
    if not isinstance(home, LibraryScreen) or not home.is_mounted:
        return []
    return [row.entry for row in home.library.rows.values()]


def _pair(lab: LoraLabApp) -> list[str]:
    """Locators of adapters that one is at."""
    from lora_lab.tui.compare.screen import CompareScreen
    from lora_lab.tui.library.screen import LibraryScreen

    if isinstance(lab.place, CompareScreen):
        return [lab.place.compared.a, lab.place.compared.b]
    home = lab.library
    if not isinstance(home, LibraryScreen) or not home.is_mounted:
        return []
    marks = home.library.marks
    return list(home.library.pair(home.table.cursor_key) or [marks[mark] for mark in sorted(marks)])
