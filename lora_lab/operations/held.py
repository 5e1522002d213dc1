"""What the receipt of a merged model says it holds, against the adapters that are to be taken out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Finding
from lora_lab.errors import quoted
from lora_lab.operations.receipt_file import checked_arguments, find_receipt, read_receipt
from lora_lab.operations.verdict import listed
from lora_lab.storage.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.operations.receipt_file import Input, ReceiptFile

_HOLDING: Final = {"merge": ("adapters", "strengths"), "swap": ("to", "strengths_to")}


def is_of(entry: Input, adapter: Adapter) -> bool:
    """Whether an input of a receipt has the bytes of `adapter`."""
    files = {Path(stamp.path).name: stamp.path for stamp in adapter.files}
    own = {name: digest for name, digest in entry.sha256.items() if name in files}
    return bool(own) and all(sha256_of(files[name]) == digest for name, digest in own.items())


def taken_amiss(
    merged: Base, adapters: Sequence[Adapter], strengths: Sequence[float], *, is_all: bool
) -> tuple[Finding, ...]:
    """Say where adapters to be taken out of `merged` are not what its receipt says is in it.

    Parameters
    ----------
    strengths : one for each adapter
    is_all : everything goes, as it does over the base, so that what is not named is lost; else what is not named stays

    Returns
    -------
    one finding ``other_inputs``, or nothing: without a receipt of a merge or swap nothing is known. It is no error: an
    adapter may have come in with an earlier merge, or have changed since

    Raises
    ------
    FileFormatError
        the receipt is not one.
    """
    place = find_receipt(merged.path)
    receipt = None if place is None else read_receipt(place)
    if receipt is None or receipt.operation not in _HOLDING:
        return ()
    held = _held(receipt)
    left = list(held)
    strange = []
    for adapter, strength in zip(adapters, strengths, strict=True):
        found = next((item for item in left if item[1] == strength and is_of(item[0], adapter)), None)
        if found is None:
            strange.append(_at(adapter.name, strength))
        else:
            left.remove(found)
    if not strange and not (is_all and left):
        return ()
    inside = listed([_at(Path(entry.locator).name, strength) for entry, strength in held])
    out = listed([_at(adapter.name, strength) for adapter, strength in zip(adapters, strengths, strict=True)])
    what = "over the base all of it goes" if is_all else "what is not in it is subtracted all the same"
    return (
        Finding(
            "other_inputs",
            f"The receipt of {quoted(merged.name)} says that it holds {inside}, got {out} to take out: {what}.",
        ),
    )


def _held(receipt: ReceiptFile) -> list[tuple[Input, float]]:
    """The adapters that went in last, whose inputs come after those of the adapters that went out."""
    names, weights = _HOLDING[receipt.operation]
    arguments = checked_arguments(receipt)
    first = len(arguments.get("from", ()))
    count = len(arguments[names])
    strengths = arguments.get(weights) or [1.0] * count
    return list(zip(receipt.inputs[first : first + count], strengths, strict=False))


def _at(name: str, strength: float) -> str:
    return f"{quoted(name)} at strength {strength:g}"
