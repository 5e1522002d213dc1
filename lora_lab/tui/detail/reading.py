"""Reads one adapter's headers, and which analyses there are, beside the screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from lora_lab.errors import LoraLabError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from lora_lab.domain.adapter import Adapter
    from lora_lab.extension.contracts import Analysis
    from lora_lab.tui.app import LoraLabApp


@dataclass
class AdapterRead(Message):
    """The headers of an adapter, or the reason why they cannot be read; ``generation`` tells an obsolete answer."""

    generation: int
    adapter: Adapter | None
    analyses: tuple[Analysis, ...] = ()
    reason: str = ""
    hint: str = ""


def read_adapter(
    app: LoraLabApp, locator: str, generation: int, stop: threading.Event, tell: Callable[[Message], bool]
) -> None:
    """Tell of the adapter at `locator`."""
    if stop.is_set():
        return
    try:
        adapter = app.session.adapter(locator)
        analyses = tuple(app.session.registry.analyses.values())
    except LoraLabError as error:
        tell(AdapterRead(generation, None, reason=error.message, hint=error.hint))
    except OSError as error:
        tell(AdapterRead(generation, None, reason=f"{locator} cannot be read: {error.strerror or error}."))
    except Exception as error:  # a plugin's format may raise anything
        tell(AdapterRead(generation, None, reason=f"{locator} cannot be read: {type(error).__name__}: {error}."))
    else:
        tell(AdapterRead(generation, adapter, analyses))
