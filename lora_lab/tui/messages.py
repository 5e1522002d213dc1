"""What the application tells its screens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from lora_lab.domain.library import LibraryEntry
    from lora_lab.domain.report import Report
    from lora_lab.jobs import JobEvent


@dataclass
class JobUpdated(Message):
    """Something happened to a job; posted to every screen of the stack."""

    event: JobEvent


@dataclass
class EntriesFound(Message):
    """A scan found more; ``generation`` tells an obsolete scan from the current one."""

    generation: int
    entries: tuple[LibraryEntry, ...]
    is_complete: bool = False
    opened: tuple[str, ...] = ()  # sources that are themselves an adapter; known when the scan is complete


@dataclass
class Inspected(Message):
    """The header-level report of one adapter arrived; ``reason`` when it cannot be made."""

    path: str
    report: Report | None
    reason: str = ""


@dataclass
class ScanFailed(Message):
    """A source could not be looked into at all."""

    generation: int
    source: str
    reason: str
    hint: str
