"""From the row under the cursor to the form of its push."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.tui.hub.push_screen import PushScreen

if TYPE_CHECKING:
    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp

_NOT_IN_NAMES: Final = re.compile(r"[^\w.-]+", re.ASCII)


def why_no_push(entry: LibraryEntry | None) -> str | None:
    """Reason why the row cannot be pushed; None when it can."""
    if entry is None:
        return "there is no row"
    if entry.error is not None:
        return "this row cannot be read"
    return None if Path(entry.path).is_dir() else "a file by itself is not pushed, only a folder"


def open_push(lab: LoraLabApp, entry: LibraryEntry) -> None:
    """Show the form, with the row's own name as the repository's."""
    name = _NOT_IN_NAMES.sub("-", Path(entry.path).name).strip("-.")
    lab.push_screen(PushScreen(entry.path, entry.name, {"repository": name}))
