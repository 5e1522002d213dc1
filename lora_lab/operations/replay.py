"""The same operation again, from its receipt: the same inputs by their hashes, and the same bytes out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import (
    CompatibilityError,
    FileFormatError,
    MissingFileError,
    OperationError,
    PluginError,
    quoted,
)
from lora_lab.extension.registry import PluginState
from lora_lab.operations.receipt import versions
from lora_lab.operations.receipt_file import checked_arguments, read_receipt
from lora_lab.operations.verdict import listed
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.report import InputRecord
    from lora_lab.extension.registry import PluginRecord
    from lora_lab.operations.receipt_file import Input, ReceiptFile

# What a receipt may ask for; nothing else that a session can do is reached by a name from a file.
REPLAYED: Final = ("merge", "unmerge", "swap", "extract", "combine", "resize")
_LOCATORS: Final = ("merged", "base", "finetuned", "adapter", "adapters", "from", "to")
_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OF_SESSION: Final = ("seed", "device", "alpha", "allow_pickle")
_SHOWN: Final = 3
# What pip takes for a name; anything else from a receipt is not put into a command.
_DISTRIBUTION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")

SUMMARY: Final = (
    Column("ok", "The same bytes", ColumnKind.VALUE),
    Column("operation", "Operation", ColumnKind.TEXT),
    Column("arguments", "Arguments", ColumnKind.VALUE, is_wide=True),
    Column("versions", "Versions then", ColumnKind.VALUE, is_wide=True),
    Column("versions_now", "Versions now", ColumnKind.VALUE, is_wide=True),
)
FILES: Final = (
    Column("path", "File", ColumnKind.TEXT),
    Column("ok", "The same", ColumnKind.VALUE),
    Column("expected", "sha256 in the receipt", ColumnKind.TEXT, is_wide=True),
    Column("sha256", "sha256 now", ColumnKind.TEXT, is_wide=True),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is to be done again.

    operation : one of :data:`REPLAYED`
    arguments : as the receipt has them, each locator replaced by the one under which the input was found
    """

    operation: str
    arguments: Mapping[str, Any]

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments by which a session merges, whose seed, device and ways of opening inputs are its own.

        Examples
        --------
        >>> Recipe("merge", {"adapters": ["a"], "base": "b", "dtype": "F32", "seed": 0}).keywords
        {'adapters': ['a'], 'base': 'b', 'dtype': 'float32'}
        """
        given = {name: value for name, value in self.arguments.items() if name not in _OF_SESSION}
        if given.get("dtype") in _DTYPES:
            given["dtype"] = _DTYPES[given["dtype"]]
        return given


def replay(
    receipt: Path,
    output: Path,
    *,
    record: Callable[[str, str | None], InputRecord],
    run: Callable[[Recipe, Path], Report],
    plugins: Sequence[PluginRecord] = (),
) -> Report:
    """Do what a receipt says, and compare the hash of every file with the receipt's.

    Parameters
    ----------
    receipt : the file
    output : the folder to appear
    record : opens what a locator stands for, at the revision that was read, and hashes it
    run : carries the recipe out into a folder, and returns its receipt
    plugins : what is installed

    Returns
    -------
    ``verdict`` True where every file has the same bytes; a difference is named

    Raises
    ------
    FileFormatError, MissingFileError
        the receipt cannot be read, or an input is no longer where it was.
    CompatibilityError
        an input is no longer what it was; nothing has been written.
    OperationError
        the operation is none that is replayed, or it failed.
    PluginError
        a plugin that took part is not there; nothing has been written.
    """
    said = read_receipt(receipt)
    if said.operation not in REPLAYED:
        raise OperationError(
            f"The operation in {quoted(receipt)} is {quoted(said.operation)}, expected one of: {', '.join(REPLAYED)}.",
            hint="Receipts of other commands are not replayed.",
        )
    arguments = checked_arguments(said)  # every one is of its type before any is used
    if not said.inputs:
        raise FileFormatError(
            f"{quoted(receipt)} lists no inputs, so that nothing says what the operation read.",
            hint="Run the command itself, with its arguments.",
        )
    _require_listed(arguments, said)
    _require_plugins(said, plugins)
    found = {entry.locator: _found(entry, record, receipt) for entry in said.inputs}
    again = run(Recipe(said.operation, _placed(arguments, found)), output)
    return _compared(said, again)


def _found(entry: Input, record: Callable[[str, str | None], InputRecord], receipt: Path) -> str:
    """The locator under which an input is what it was: as typed, else where it lay."""
    known = dict(entry.sha256)
    if not known:
        raise FileFormatError(
            f"{quoted(receipt)} has no sha256 of the input {quoted(entry.locator)}, expected one for each file.",
            hint="Run the command itself, with its arguments.",
        )
    locator = entry.locator
    try:
        now = record(locator, entry.revision)
    except MissingFileError:
        if entry.path == locator:
            raise
        locator = entry.path
        now = record(locator, entry.revision)
    for name in sorted(known.keys() | now.sha256.keys()):
        if known.get(name) != now.sha256.get(name):
            what = "is not the one" if name in known and name in now.sha256 else "is not there in both"
            told = f"{quoted(name)} of {quoted(locator)} {what} that {quoted(receipt)} tells of"
            raise CompatibilityError(f"{told}: {_digests(known.get(name), now.sha256.get(name))}.", hint=_hint(entry))
    return locator


def _digests(before: str | None, now: str | None) -> str:
    return f"expected sha256 {before or 'none'}, got {now or 'none'}"


def _hint(entry: Input) -> str:
    if entry.revision:
        return f"It was read at the revision {entry.revision}; fetch that one."
    return "The input has changed since; find the files that it was made from."


def _require_listed(arguments: Mapping[str, Any], said: ReceiptFile) -> None:
    """Refuse what would be read without having been hashed."""
    listed = {entry.locator for entry in said.inputs}
    for name in _LOCATORS:
        for locator in _many(arguments.get(name, [])):
            if locator not in listed:
                raise FileFormatError(
                    f"{quoted(f'arguments.{name}')} in {quoted(said.path)} is {quoted(locator)}, expected one of its "
                    f"inputs: {', '.join(quoted(text) for text in sorted(listed)[:_SHOWN])}.",
                    hint="The receipt is damaged or was not written by lora-lab.",
                )


def _require_plugins(said: ReceiptFile, plugins: Sequence[PluginRecord]) -> None:
    """Refuse what was made with a plugin that is not there, before anything is read."""
    for name, version in sorted(said.plugins.items()):
        # As the index of packages compares names: PEP 503.
        there = [plugin for plugin in plugins if _normal(plugin.distribution) == _normal(name)]
        if any(plugin.state is PluginState.LOADED for plugin in there):
            continue
        told = f"{quoted(said.path)} was made with the plugin {quoted(name)} {safe_text(version, limit=40)}"
        if there:
            raise PluginError(
                f"{told}, which is installed but {there[0].state.value}.", hint="lora-lab plugins says more about it."
            )
        hint = f"If you trust it: pip install {name}" if _DISTRIBUTION.fullmatch(name) else ""
        raise PluginError(f"{told}, which is not installed.", hint=hint)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _many(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _placed(arguments: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, Any]:
    """`arguments` with every locator replaced by the one under which it was found; names and patterns stay."""
    placed = dict(arguments)
    for name in _LOCATORS:
        if isinstance(placed.get(name), str):
            placed[name] = found[placed[name]]
        elif name in placed:
            placed[name] = [found[locator] for locator in placed[name]]
    return placed


def _compared(said: ReceiptFile, again: Report) -> Report:
    before = {output.path: output.sha256 for output in said.outputs}
    now = {row["path"]: row["sha256"] for row in again.table("outputs").rows}
    rows = [
        {
            "path": path,
            "ok": path in before and before[path] == now.get(path),
            "expected": before.get(path),
            "sha256": now.get(path),
        }
        for path in sorted(before.keys() | now.keys())
    ]
    bad = [row for row in rows if not row["ok"]]
    findings = list(again.findings)
    plugins: Mapping[str, str] = next((group.values.get("plugins", {}) for group in again.scalars if not group.id), {})
    then, here = {**said.versions, **said.plugins}, {**versions(), **plugins}
    other = {name: text for name, text in here.items() if then.get(name, text) != text}
    if bad:
        who = "A file" if len(bad) == 1 else f"{len(bad)} files"
        told = listed([_named(row) for row in bad])
        findings.append(Finding("other_bytes", f"{who} came out differently, of {len(rows)}: {told}."))
    if other:
        shown = ", ".join(f"{name} {quoted(then[name])} then, {text} now" for name, text in other.items())
        findings.append(Finding("other_versions", f"The operation was run with other versions: {shown}."))
    values = {
        "ok": not bad,
        "operation": said.operation,
        "arguments": dict(said.arguments),
        "versions": then,
        "versions_now": here,
    }
    return replace(
        again,
        command="replay",
        title=f"Replay of {said.operation}",
        tables=(Table("files", "Files", FILES, tuple(rows), key="path"), *again.tables),
        scalars=(Scalars("", "Replay", SUMMARY, values), *(group for group in again.scalars if group.id)),
        findings=tuple(findings),
        verdict=not bad,
    )


def _named(row: Mapping[str, Any]) -> str:
    if row["expected"] is None:
        return f"{quoted(row['path'])} (new)"
    return f"{quoted(row['path'])} ({'missing' if row['sha256'] is None else 'other bytes'})"
