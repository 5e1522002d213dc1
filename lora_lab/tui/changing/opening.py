"""Which form is opened for what is marked, and what is known already."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from lora_lab.domain.library import EntryKind
from lora_lab.tui.changing.screen import ChangeScreen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.changing.form import Call

_RECEIPT = "lora_lab_receipt.json"


def open_form(lab: LoraLabApp, entry: LibraryEntry | None, marked: Sequence[LibraryEntry]) -> None:
    """Show the form: a model that was merged is verified first, adapters are merged.

    Parameters
    ----------
    entry : the row under the cursor
    marked : adapters that are marked, which go before the one under the cursor
    """
    model = entry if entry is not None and entry.kind == EntryKind.BASE else None
    adapters = list(marked) or ([entry] if entry is not None and model is None else [])
    named = next((adapter.base_model for adapter in adapters if adapter.base_model), None)
    is_merged = model is not None and os.path.lexists(os.path.join(model.path, _RECEIPT))  # noqa: PTH118
    paths = shlex.join(adapter.path for adapter in adapters)
    base = lab.bases.base_for(named) if named or not model else None
    known = {
        "adapters": paths,
        "from_adapters": shlex.join(adapter.path for adapter in adapters[:1]),
        "to_adapters": shlex.join(adapter.path for adapter in adapters[1:2]),
        "base": base if base or is_merged or model is None else model.path,
        "merged": model.path if model is not None else None,
        "output": None,
    }
    call: Call = "verify" if is_merged else "merge"
    lab.push_screen(ChangeScreen(call, {name: value for name, value in known.items() if value}))
