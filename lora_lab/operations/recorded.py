"""The adapters that the receipt of a merge names: opened where they were read, if they are what they were."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.domain.report import Finding
from lora_lab.errors import CancelledError, LoraLabError, quoted
from lora_lab.storage.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.domain.adapter import Adapter
    from lora_lab.operations.receipt_file import Input, ReceiptFile


def recorded_adapters(
    receipt: ReceiptFile, opened: Callable[[str, str | None], Adapter]
) -> tuple[list[Adapter], list[Finding]]:
    """Find what a model was merged from, each adapter with the very bytes that were read then.

    Parameters
    ----------
    opened : opens an adapter by its locator, at the revision that was read

    Returns
    -------
    all of them, in their order, and no finding; or none, and a finding for each that is not to be found. None and no
    finding where the operation put nothing into a base
    """
    if receipt.operation == "swap":
        said = "The receipt is of a swap, which does not say alone how each tensor was made: give --adapter."
        return [], [Finding("adapters_not_named", said)]
    if receipt.operation != "merge":
        return [], []
    named: Any = receipt.arguments.get("adapters")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    entries = {entry.locator: entry for entry in receipt.inputs}
    adapters: list[Adapter] = []
    missing: list[Finding] = []
    for name in names:
        found = _found(entries[name], opened) if name in entries else "it is not among its inputs"
        if isinstance(found, str):
            missing.append(_not_found(name, found))
        else:
            adapters.append(found)
    if not names:
        missing.append(Finding("adapter_not_found", "The receipt names no adapter: give what was merged by --adapter."))
    return ([], missing) if missing else (adapters, [])


def _found(entry: Input, opened: Callable[[str, str | None], Adapter]) -> Adapter | str:
    """The adapter, as typed then or where it lay; or why there is none."""
    why = ""
    for place in dict.fromkeys((entry.path, entry.locator)):
        try:
            adapter = opened(place, entry.revision)
            if {Path(stamp.path).name: sha256_of(stamp.path) for stamp in adapter.files} == dict(entry.sha256):
                return adapter
        except CancelledError:
            raise
        except LoraLabError as error:
            why = why or error.message.rstrip(".")
        else:
            why = why or f"{quoted(place)} has other bytes now"
    return why


def _not_found(name: str, why: str) -> Finding:
    return Finding(
        "adapter_not_found",
        f"The adapter {quoted(name)}, which the receipt names, is not to be found as it was: {why}; what it makes of "
        "the changed tensors could not be established, give it with --adapter.",
    )
