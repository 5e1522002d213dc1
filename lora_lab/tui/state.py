"""What is remembered between runs: one small JSON file, versioned, of no consequence when it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final, TypeVar

VERSION: Final = 1
_LARGEST_BYTES: Final = 1 << 20

T = TypeVar("T")


def state_path() -> Path:
    """Where the file is: ``LORA_LAB_STATE_DIR``, or the user's state folder of the platform."""
    folder = os.environ.get("LORA_LAB_STATE_DIR")
    if folder:
        return Path(folder) / "tui.json"
    from platformdirs import user_state_path

    return user_state_path("lora-lab", appauthor=False) / "tui.json"


class State:
    """Values under dotted names; :meth:`save` writes them when they have changed.

    A file that is missing, corrupt, of another version or unreadable is as good as none; one that cannot be written
    is no error either.

    Parameters
    ----------
    path : the file; None remembers nothing beyond this run
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values = _read(path) if path else {}
        self._is_changed = False

    def get(self, name: str, default: T) -> T:
        """Value under `name`; `default` when there is none or it has another type."""
        value = self._values.get(name, default)
        return value if type(value) is type(default) else default

    def set(self, name: str, value: Any) -> None:
        """Remember `value`, which JSON must be able to say."""
        if name in self._values and self._values[name] == value:
            return
        self._values[name] = value
        self._is_changed = True

    def save(self) -> None:
        """Write the file if there is something new to remember."""
        if self._path and self._is_changed:
            _write(self._path, self._values)
        self._is_changed = False


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return {}
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return {}
    values = document.get("values")
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tui-", suffix=".json")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"version": VERSION, "values": values}, file, ensure_ascii=True, indent=1)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
