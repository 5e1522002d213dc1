"""From where one is to the base model whose budget is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lora_lab.domain.library import EntryKind
from lora_lab.domain.modules import projection_of
from lora_lab.tui.base_dialog import ask_for_base, choices_of

if TYPE_CHECKING:
    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp


class Subject(NamedTuple):
    """What the budget is opened on: a model, or an adapter whose base it is to be."""

    name: str
    base: str | None  # locator; None when the adapter's base is still to be found
    base_model: str | None = None
    path: str = ""
    rank: int | None = None  # of the adapter
    targets: tuple[str, ...] = ()  # its projections


def why_no_budget(lab: LoraLabApp) -> str | None:
    """Reason why there is nothing to plan for; None when there is."""
    found = _subject(lab)
    return found if isinstance(found, str) else None


def open_budget(lab: LoraLabApp) -> None:
    """Open the budget of the model under the cursor, or of the adapter's base; ask for it where it is not known."""
    found = _subject(lab)
    if isinstance(found, str):
        return
    from lora_lab.tui.budget.screen import BudgetScreen

    def show(base: str) -> None:
        lab.push_screen(BudgetScreen(base, found))

    base = found.base or lab.bases.base_for(found.base_model) or _named_base(lab, found)
    if base is not None:
        show(base)
    else:
        ask_for_base(lab, found.name, found.base_model, found.path, show)


def _subject(lab: LoraLabApp) -> Subject | str:
    from lora_lab.tui.library.screen import LibraryScreen

    place = lab.place
    if isinstance(place, LibraryScreen):
        key = place.table.cursor_key if place.is_mounted else None
        row = place.library.rows.get(key) if key else None
        return "there is no row" if row is None else _of_entry(row.entry)
    adapter: Adapter | None = getattr(place, "adapter", None)
    if adapter is not None:
        targets = tuple(dict.fromkeys(map(projection_of, adapter.modules)))
        return Subject(adapter.name, None, adapter.base_model, adapter.path, adapter.ranks[1], targets)
    return "it is about a base model or an adapter: go to one in the library"


def _of_entry(entry: LibraryEntry) -> Subject | str:
    if entry.error is not None:
        return "this row cannot be read"
    if entry.kind == EntryKind.BASE:
        return Subject(entry.name, entry.path)
    return Subject(entry.name, None, entry.base_model, entry.path, entry.rank_max)


def _named_base(lab: LoraLabApp, subject: Subject) -> str | None:
    """The one base of the library that has the name the adapter gives: only headers of it are read."""
    from lora_lab.tui.library.screen import LibraryScreen

    home = lab.library
    entries = [row.entry for row in home.library.rows.values()] if isinstance(home, LibraryScreen) else []
    named = [choice for choice in choices_of(entries, subject.base_model, subject.path) if choice.is_named]
    return named[0].locator if len(named) == 1 else None
