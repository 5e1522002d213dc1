"""Results of unchanged files, so that looking twice reads no tensor."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.wire import report_from_wire, report_to_wire
from lora_lab.storage.cache import JsonCache
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report
    from lora_lab.extension.contracts import ArrayStore

_CACHE_BYTES: Final = 256 << 20


class Results:
    """Reports by what they were made from.

    Parameters
    ----------
    cache_folder : None remembers nothing
    owner : plugin and version that the analysis comes from, and the :func:`code_stamp` of its code
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
            stamp.identity
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


def with_store(report: Report, store: ArrayStore | None) -> Report:
    """A remembered `report` with the size of the store as it is now: a fact about the disk, not about the inputs."""
    if store is None or not any("cache_bytes" in group.values for group in report.scalars):
        return report
    now = {"cache_bytes": store.size_bytes, "cache_limit_bytes": store.limit_bytes}
    scalars = tuple(
        replace(group, values={**group.values, **now}) if "cache_bytes" in group.values else group
        for group in report.scalars
    )
    return replace(report, scalars=scalars)


@cache
def code_stamp(module: str) -> str:
    """Digest of size and time of every source file of the package that `module` belongs to.

    An analysis that was edited, or upgraded under the same version, is another one: what it once said is forgotten.
    """
    package = sys.modules.get(module.partition(".")[0])
    if package is None or package.__file__ is None:
        return ""
    file = Path(package.__file__)
    sources = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.sha256()
    for source in sources:
        try:
            status = source.stat()
        except OSError:
            continue
        digest.update(f"{source} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
