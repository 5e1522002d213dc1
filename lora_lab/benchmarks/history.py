"""Results that were saved, each a JSON file of its own in the user's data folder, the newest first."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import SCHEMA
from lora_lab.domain.wire import report_from_wire, report_to_wire
from lora_lab.errors import FileFormatError, MissingFileError, OperationError, quoted
from lora_lab.storage.atomic import write_json

if TYPE_CHECKING:
    from lora_lab.domain.report import Report

_SAVED: Final = "lora-lab-benchmark/1"
_LARGEST_BYTES: Final = 64 << 20
_LATEST, _PREVIOUS = "latest", "previous"
_MOST_OF_A_SECOND: Final = 100
# What reading a file that anyone may have written can run into.
_DAMAGE: Final = (OSError, ValueError, TypeError, LookupError, RecursionError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One saved result; ``error`` says why it cannot be read.

    id : its file's name without the ending, which begins with the time in UTC
    """

    id: str
    path: Path
    report: Report | None
    error: str | None = None


class History:
    """What a folder keeps.

    Parameters
    ----------
    folder : made when the first result is saved
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, report: Report) -> Entry:
        """Keep `report`.

        Raises
        ------
        OperationError
            the disk says no.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OperationError(f"{quoted(self._folder)} cannot be made: {error.strerror or error}.") from error
        start = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{report.command.split()[-1]}"
        for place in range(_MOST_OF_A_SECOND):
            name = f"{start}-{place}" if place else start
            path = self._folder / f"{name}.json"
            if not path.exists():
                write_json(path, {"schema": _SAVED, "report": report_to_wire(report)})
                return Entry(name, path, report)
        raise OperationError(f"{quoted(self._folder)} has {_MOST_OF_A_SECOND} results of this second already.")

    def entries(self, command: str | None = None) -> list[Entry]:
        """Every result, or those of one command, the newest first; damaged ones with the reason."""
        try:
            paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stem, reverse=True)
        except OSError:
            return []
        found = [_entry(path) for path in paths]
        return [one for one in found if command is None or (one.report is not None and one.report.command == command)]

    def report(self, text: str) -> Report:
        """One saved result; `text`, and what is raised, as of :meth:`find`."""
        entry = _entry(self._path(text))
        if entry.report is None:
            raise FileFormatError(
                f"{quoted(entry.path)} is no saved result. {entry.error}", hint="lora-lab bench history lists them."
            )
        return entry.report

    def find(self, text: str) -> dict[str, Any]:
        """The JSON document of one result.

        Parameters
        ----------
        text : ``latest``, ``previous`` (of the latest's command), an id or its beginning, or a file: one of these, or
            what ``--json`` printed

        Raises
        ------
        MissingFileError
            there is none, or several begin like this.
        FileFormatError
            it is damaged, or no result.
        """
        return document_in(self._path(text))

    def _path(self, text: str) -> Path:
        if text in (_LATEST, _PREVIOUS):
            return self._by_age(text)
        fitting = [path for path in self._folder.glob("*.json") if path.stem.startswith(text)] if text else []
        exact = [path for path in fitting if path.stem == text]
        if len(exact or fitting) == 1:
            return (exact or fitting)[0]
        if len(fitting) > 1:
            raise MissingFileError(
                f"{len(fitting)} results begin with {quoted(text)}, expected one.", hint="lora-lab bench history"
            )
        if not Path(text).is_file():
            raise MissingFileError(
                f"There is no result {quoted(text)}, expected latest, previous, an id, or a file.",
                hint="lora-lab bench history lists them.",
            )
        return Path(text)

    def _by_age(self, text: str) -> Path:
        sound = [(one.report.command, one.path) for one in self.entries() if one.report is not None]
        alike = [path for command, path in sound if command == sound[0][0]]
        place = (_LATEST, _PREVIOUS).index(text)
        if place >= len(alike):
            raise MissingFileError(
                f"There is no {text} result, {len(alike)} of that kind are saved.",
                hint="lora-lab bench swap makes one.",
            )
        return alike[place]


def document_in(path: Path) -> dict[str, Any]:
    """The JSON document of the result in a file: a saved one, or what ``--json`` printed.

    Raises
    ------
    FileFormatError
        it is neither.
    """
    with suppress(*_DAMAGE):
        document = _parsed(path)
        if document.get("schema") == _SAVED:
            return report_from_wire(document["report"]).to_json()
        if document.get("schema") == SCHEMA and str(document.get("command", "")).startswith("bench "):
            return document
    raise FileFormatError(
        f"{quoted(path)} is no result of a benchmark, expected a file that was saved or printed with --json.",
        hint="lora-lab bench history lists those that were saved.",
    )


def _entry(path: Path) -> Entry:
    try:
        document = _parsed(path)
        if document["schema"] != _SAVED:
            return Entry(path.stem, path, None, f"Its schema is {quoted(document['schema'])}, expected {_SAVED}.")
        return Entry(path.stem, path, report_from_wire(document["report"]))
    except _DAMAGE as error:
        return Entry(path.stem, path, None, f"Damaged: {type(error).__name__}.")


def _parsed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_LARGEST_BYTES + 1)
    if len(raw) > _LARGEST_BYTES:
        raise ValueError(path)
    document = json.loads(raw)
    if not isinstance(document, dict):
        raise TypeError(path)
    return document
