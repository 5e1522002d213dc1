"""Results of unchanged files, so that looking twice reads no tensor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.wire import report_from_wire, report_to_wire
from lora_lab.storage.cache import JsonCache
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report

_CACHE_BYTES: Final = 256 << 20


class Results:
    """Reports by what they were made from.

    Parameters
    ----------
    cache_folder : None remembers nothing
    owner : plugin and version that the analysis comes from
    """

    def __init__(self, cache_folder: Path | None, owner: str) -> None:
        self._owner = owner
        self._cache = None
        if cache_folder is not None:
            self._cache = JsonCache(cache_folder / "results", limit_bytes=_CACHE_BYTES)

    def key(
        self,
        analysis: str,
        subjects: Sequence[Adapter | Base],
        parameters: Mapping[str, Any],
        modules: Sequence[str],
        device: str,
        seed: int,
    ) -> str:
        """Everything that decides the result: files as they are now, settings, version."""
        stamps = [
            [stamp.path, stamp.size_bytes, stamp.mtime_ns, stamp.inode]
            for subject in subjects
            for stamp in (subject.files if isinstance(subject, Adapter) else subject.shards)
        ]
        locators = [subject.locator for subject in subjects]
        scalings = [delta.scaling for subject in subjects if isinstance(subject, Adapter) for delta in subject.deltas]
        parts = [__version__, self._owner, analysis, locators, stamps, scalings, dict(parameters), list(modules)]
        return json.dumps([*parts, device, seed], sort_keys=True)

    def get(self, key: str) -> Report | None:
        """The Report made from the same, or None."""
        document = self._cache.get(key) if self._cache else None
        if document is None:
            return None
        try:
            return report_from_wire(document)
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, key: str, report: Report) -> None:
        """Remember `report`."""
        if self._cache:
            self._cache.put(key, report_to_wire(report))
