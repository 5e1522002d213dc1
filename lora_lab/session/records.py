"""What was read, with the sha256 of its bytes, worked out beside the analysis itself."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import InputRecord
from lora_lab.storage.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report

# A checkpoint larger than this is known by the headers of its shards.
_HASHED_WHOLE_BYTES: Final = 1 << 30


def record_of(subject: Adapter | Base, *, headers_only: bool = False) -> InputRecord:
    """Hash what was read of `subject`.

    Parameters
    ----------
    headers_only : hash headers and configuration, not weights; the names then end in ``#header``
    """
    stamps = subject.files if isinstance(subject, Adapter) else subject.shards
    is_large = sum(stamp.size_bytes for stamp in stamps) > _HASHED_WHOLE_BYTES
    digests = {}
    for stamp in stamps:
        path = Path(stamp.path)
        if path.suffix == ".safetensors" and (headers_only or is_large):
            digests[f"{path.name}#header"] = _header_digest(path)
        else:
            digests[path.name] = sha256_of(path)
    return InputRecord(subject.locator, subject.path, digests, subject.revision)


class Hashing:
    """Hashes inputs in a thread while a ``with`` block computes; hashing releases the interpreter."""

    def __init__(self, subjects: Sequence[Adapter | Base]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hashing")
        self._records = [self._pool.submit(record_of, subject) for subject in subjects]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def records(self) -> tuple[InputRecord, ...]:
        """What was read, once all of it is hashed."""
        return tuple(record.result() for record in self._records)

    def stamp(self, report: Report, parameters: Mapping[str, Any]) -> Report:
        """`report` with its inputs and parameters filled in."""
        return replace(report, inputs=self.records(), parameters={**parameters, **report.parameters})


def _header_digest(path: Path) -> str:
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()
