"""What the bench begins with: two adapters that are marked or compared, on the base in use; else latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.tui.bench.screen import BenchScreen

if TYPE_CHECKING:
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.bench.form import Kind


def open_bench(lab: LoraLabApp) -> None:
    """Show the bench."""
    pair, named = _pair(lab)
    base = lab.bases.base_for(named) or ""
    kind: Kind = "swap" if len(pair) == 2 else "latency"
    typed = {"base": base, **dict(zip("ab", pair, strict=False))}
    lab.push_screen(BenchScreen(kind, typed))


def _pair(lab: LoraLabApp) -> tuple[list[str], str | None]:
    """Locators of adapters that one is at, and the name of the model that the first was trained on."""
    from lora_lab.tui.compare.screen import CompareScreen
    from lora_lab.tui.library.screen import LibraryScreen

    home, place = lab.library, lab.place
    if not isinstance(home, LibraryScreen) or not home.is_mounted:
        return [], None
    key = home.table.cursor_key
    marked = list(home.library.pair(key) or [home.library.marks[mark] for mark in sorted(home.library.marks)])
    if isinstance(place, CompareScreen):
        marked = [place.compared.a, place.compared.b]
    entries = {row.entry.path: row.entry for row in home.library.rows.values()}
    first = entries.get(marked[0]) if marked else None
    return marked, None if first is None else first.base_model
