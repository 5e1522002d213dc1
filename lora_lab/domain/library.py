"""One row of a library: what a folder holds, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EntryKind(StrEnum):
    """What was found."""

    ADAPTER = "adapter"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """An adapter or a base as a list shows it; ``error`` is set, and the rest as far as known, when it is broken."""

    kind: EntryKind
    name: str  # path relative to the library's folder
    path: str
    format: str = ""
    peft_type: str | None = None
    base_model: str | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    alpha: float | None = None  # None when modules differ
    modules: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    dtype: str | None = None  # joined by "+" when mixed
    features: tuple[str, ...] = ()  # ids
    warnings: int = 0
    shards: int | None = None  # of a base
    modified_seconds: float | None = None  # since the epoch
    error: str | None = None  # one sentence
    hint: str | None = None
