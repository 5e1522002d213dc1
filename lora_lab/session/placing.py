"""Where the files that a locator stands for are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.domain.progress import Unwatched
from lora_lab.errors import MissingFileError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Finding
    from lora_lab.sources.locators import Locator


@dataclass(frozen=True, slots=True)
class Place:
    """Files on this machine, and how they came there."""

    path: Path
    commit: str | None = None  # of the Hub
    findings: tuple[Finding, ...] = ()
    name: str = ""  # by which it is known; empty where its path says it


def existing(locator: Locator) -> Path:
    """The path of a local locator.

    Raises
    ------
    MissingFileError
        nothing is there.
    """
    if not os.path.lexists(locator.path):
        raise MissingFileError(
            f"{quoted(locator.text)} does not exist.",
            hint="Give a folder or file that is there; hf:// in front of org/name asks the Hub.",
        )
    return Path(locator.path)


class InMebibytes:
    """Tells an observer that counts something else of bytes that are fetched first."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer or Unwatched()

    def advance(self, done: int, total: int, what: str = "") -> None:
        """Whole mebibytes; what is left of the last one counts as one."""
        self._observer.advance(done >> 20, -(-total >> 20), f"MiB of {what}" if what else "MiB")

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """There are none."""

    def is_cancelled(self) -> bool:
        """As the observer says."""
        return self._observer.is_cancelled()
