"""What is remembered of each library: filter, marks, and the adapter the cursor was on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.tui.state import State

_NAME: Final = "library.folders"
_MOST_FOLDERS: Final = 40


class Memory:
    """The part of the state that belongs to these sources.

    Parameters
    ----------
    state : of the application
    sources : as given; folders count as the same under any spelling
    """

    def __init__(self, state: State, sources: Sequence[str]) -> None:
        self._state = state
        self._key = os.pathsep.join(os.path.realpath(s) if os.path.exists(s) else s for s in sources)  # noqa: PTH110
        folders: dict[str, Any] = state.get(_NAME, {})
        mine = folders.get(self._key)
        self._values: dict[str, Any] = dict(mine) if isinstance(mine, dict) else {}

    def text(self, name: str) -> str:
        """A remembered text, or an empty one."""
        value = self._values.get(name)
        return value if isinstance(value, str) else ""

    def marks(self) -> dict[str, str]:
        """The marks and the paths they were on."""
        value = self._values.get("marks")
        marks = value if isinstance(value, dict) else {}
        return {mark: path for mark, path in marks.items() if mark in ("a", "b") and isinstance(path, str)}

    def remember(self, **values: Any) -> None:
        """Remember these; the folders used longest ago are forgotten."""
        self._values.update(values)
        known: dict[str, Any] = self._state.get(_NAME, {})
        folders = {key: value for key, value in known.items() if key != self._key}
        folders[self._key] = dict(self._values)
        self._state.set(_NAME, dict(list(folders.items())[-_MOST_FOLDERS:]))
