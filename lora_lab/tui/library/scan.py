"""Reads headers beside the screen and hands them over in handfuls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.errors import LoraLabError
from lora_lab.tui.messages import EntriesFound, Inspected, ScanFailed

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from textual.message import Message

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp

_FLUSH_SECONDS: Final = 0.05
_FIRST_HANDFUL: Final = 24  # a screen full is shown without waiting for the clock


def scan(
    app: LoraLabApp,
    sources: Sequence[str],
    generation: int,
    stop: threading.Event,
    tell: Callable[[Message], bool],
) -> None:
    """Tell of every entry of `sources`; a source that cannot be looked into is told of and passed over."""
    found: list[LibraryEntry] = []
    opened: list[str] = []  # sources that are an adapter themselves
    has_told, last = False, time.monotonic()
    for source in sources:
        entries = 0
        try:
            for entry in app.session.scan(source):
                if stop.is_set():
                    return
                found.append(entry)
                entries += 1
                is_first = not has_told and len(found) >= _FIRST_HANDFUL
                if is_first or time.monotonic() - last > _FLUSH_SECONDS:
                    tell(EntriesFound(generation, tuple(found)))
                    found, last, has_told = [], time.monotonic(), True
        except LoraLabError as error:
            tell(ScanFailed(generation, source, error.message, error.hint))
        except OSError as error:
            tell(ScanFailed(generation, source, f"{source} cannot be read: {error.strerror or error}.", ""))
        except Exception as error:  # a plugin's format may raise anything; the other sources go on
            tell(ScanFailed(generation, source, f"{source} cannot be read: {type(error).__name__}: {error}.", ""))
        if (entries == 1 and not Path(source).is_dir()) or (entries == 1 and _is_adapter_folder(source)):
            opened.append(source)
    tell(EntriesFound(generation, tuple(found), is_complete=True, opened=tuple(opened)))


def _is_adapter_folder(source: str) -> bool:
    folder = Path(source)
    return any((folder / name).exists() for name in ("adapter_config.json", "adapter_model.safetensors"))


def inspect(app: LoraLabApp, path: str, stop: threading.Event, tell: Callable[[Message], bool]) -> None:
    """Tell of the header-level report of one adapter."""
    if stop.is_set():
        return
    try:
        report = app.session.inspect(path)
    except LoraLabError as error:
        tell(Inspected(path, None, str(error)))
    except OSError as error:
        tell(Inspected(path, None, f"It cannot be read: {error.strerror or error}."))
    except Exception as error:  # likewise
        tell(Inspected(path, None, f"It cannot be read: {type(error).__name__}: {error}."))
    else:
        tell(Inspected(path, report))
