"""A receipt as others may read it: names where this machine's paths stood, hashes of the files as they are sent."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from lora_lab.operations.push_privacy import mapped, short_name, without_paths
from lora_lab.sources.locators import hub_locator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.sharing import Outgoing

_PLACES: Final = ("adapters", "from", "to", "base", "merged", "finetuned", "adapter", "undo")


def published(document: Mapping[str, Any], rewritten: Mapping[str, Outgoing]) -> dict[str, Any]:
    """The receipt without this machine's paths.

    Parameters
    ----------
    document : the receipt, already known to be one
    rewritten : files that are sent with other bytes than the receipt tells of, by name; it then tells of both
    """
    kept = {entry.get("locator"): _hub_place(entry) for entry in document.get("inputs") or []}
    names = {locator: place or short_name(str(locator)) for locator, place in kept.items()}
    result: dict[str, Any] = mapped(dict(document), without_paths)
    result["inputs"] = [_input(entry, names) for entry in document.get("inputs") or []]
    arguments = dict(document.get("arguments") or {})
    for key in _PLACES:
        arguments[key] = mapped(arguments.get(key), lambda place: names.get(place) or short_name(place))
    result["arguments"] = mapped(
        {key: value for key, value in arguments.items() if key in (document.get("arguments") or {})}, without_paths
    )
    result["outputs"] = [_output(entry, rewritten) for entry in document.get("outputs") or []]
    return result


def bases_of(document: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names on the Hub of the base and of the adapters that a receipt tells of, with their commits.

    Parameters
    ----------
    document : the receipt as it lies in the folder
    """
    arguments = document.get("arguments") or {}
    base: list[str] = []
    adapters: list[str] = []
    for entry in document.get("inputs") or []:
        place = _hub_place(entry)
        is_base = entry.get("locator") in (arguments.get("base"), arguments.get("merged"))
        if place is not None:
            (base if is_base else adapters).append(place)
    return base, adapters


def _hub_place(entry: Mapping[str, Any]) -> str | None:
    """``org/name@commit`` of an input that came from the Hub; a path that looks like one does not.

    What came from the Hub lies in its cache, or was read from there without being kept.
    """
    locator, path, revision = str(entry.get("locator", "")), str(entry.get("path", "")), entry.get("revision")
    found = hub_locator(locator)
    if found is None or not revision:
        return None
    if "snapshots" not in PurePosixPath(path).parts and "://" not in path:
        return None
    place = f"{found.repository}@{revision}"
    return f"{place}:{found.subfolder}" if found.subfolder else place


def _input(entry: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    name = names[entry.get("locator")]
    return {**entry, "locator": name, "path": name}


def _output(entry: Mapping[str, Any], rewritten: Mapping[str, Outgoing]) -> dict[str, Any]:
    file = rewritten.get(str(entry.get("path")))
    if file is None:
        return dict(entry)
    return {**entry, "sha256": file.sha256, "size_bytes": file.size_bytes, "sha256_before_push": entry.get("sha256")}
