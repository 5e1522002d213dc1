"""What the wizard begins with: adapters that are marked, two that are compared, the one that is shown, a fine-tune."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lora_lab.domain.library import EntryKind
from lora_lab.tui.base_dialog import choices_of
from lora_lab.tui.combining.recipe import Source, proposed_output
from lora_lab.tui.combining.screen import CombineScreen

if TYPE_CHECKING:
    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.combining.recipe import Operation
    from lora_lab.tui.library.screen import LibraryScreen


def why_no_wizard(lab: LoraLabApp) -> str | None:
    """Reason why there is nothing to begin with; None when there is."""
    if any(isinstance(screen, CombineScreen) for screen in lab.screen_stack):
        return None
    found = _subject(lab)
    return found if isinstance(found, str) else None


def open_wizard(lab: LoraLabApp) -> None:
    """Show the wizard."""
    found = _subject(lab)
    if isinstance(found, str):
        return
    operation, locators = found
    typed = {
        "output": proposed_output(operation, locators),
        "seed": str(lab.session_options.get("seed") or 0),
        "adapter": locators[0] if operation != "extract" else "",
    }
    if operation == "extract":
        typed |= dict(zip(("base", "finetuned"), locators, strict=True))
    sources = [Source(locator) for locator in locators] if operation != "extract" else []
    lab.push_screen(CombineScreen(operation, sources, typed))


def _subject(lab: LoraLabApp) -> tuple[Operation, list[str]] | str:
    from lora_lab.tui.compare.screen import CompareScreen
    from lora_lab.tui.finetune.screen import FineTuneScreen
    from lora_lab.tui.library.screen import LibraryScreen

    place = lab.place
    if isinstance(place, LibraryScreen):
        return _of_library(lab, place)
    if isinstance(place, CompareScreen):
        return "combine", [place.compared.a, place.compared.b]
    if isinstance(place, FineTuneScreen):
        return "extract", list(place.models)
    adapter = getattr(place, "adapter", None)
    if adapter is not None:
        return "resize", [adapter.locator]
    return "it is about adapters: mark some in the library with space"


def _of_library(lab: LoraLabApp, home: LibraryScreen) -> tuple[Operation, list[str]] | str:
    key = home.table.cursor_key if home.is_mounted else None
    marked = [home.library.marks[mark] for mark in sorted(home.library.marks)]
    pair = home.library.pair(key)
    if pair is not None:
        return "combine", list(pair)
    if marked:
        return "resize", marked
    row = home.library.rows.get(key) if key else None
    if row is None:
        return "there is no row"
    if row.entry.error is not None:
        return "this row cannot be read"
    if row.entry.kind == EntryKind.BASE:
        return "extract", [_base_behind(lab, home, row.entry), row.entry.path]
    return "resize", [row.entry.path]


def _base_behind(lab: LoraLabApp, home: LibraryScreen, model: LibraryEntry) -> str:
    """The other model that it may have been trained from: the one in use, or the only other one that is here."""
    used = lab.bases.base_for(None)
    if used and os.path.abspath(used) != os.path.abspath(model.path):  # noqa: PTH100 - as typed
        return used
    entries = [row.entry for row in home.library.rows.values()]
    others = [choice.locator for choice in choices_of(entries, None) if choice.locator != model.path]
    return others[0] if len(others) == 1 else ""
