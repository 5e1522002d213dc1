"""Reads of the Hub that are tried again where it fails for a moment; its client tries them once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from lora_lab.sources.hub_words import status_of

if TYPE_CHECKING:
    from collections.abc import Callable

_WAITS_SECONDS: Final = (0.3, 1.0, 2.5)
T = TypeVar("T")


def retrying(call: Callable[[], T]) -> T:
    """Call a read, up to four times while the Hub is busy or fails; never anything that changes something."""
    for wait in _WAITS_SECONDS:
        try:
            return call()
        except Exception as error:
            status = status_of(error)
            if status not in (429, 500, 502, 503, 504):
                raise
        time.sleep(wait)
    return call()
