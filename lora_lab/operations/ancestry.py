"""Whether a model was merged from a base: what no adapter touched is equal, what one touched was what it was."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, FileFormatError, quoted
from lora_lab.operations.execution import raw_bytes, torch_type
from lora_lab.operations.receipt import RECEIPT
from lora_lab.storage.files import inside, opened, read_json, require_unchanged, stamp_of
from lora_lab.storage.hashing import Hasher
from lora_lab.storage.reading import torch_dtype
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.tensors import FileStamp, TensorRef

_ELEMENTS: Final = 1 << 20
_RECEIPT_BYTES: Final = 64 << 20
_SHOWN: Final = 3


@dataclass(frozen=True)
class Told:
    """What the receipt of a merged model says that undoing it needs."""

    # The sha256 that each changed tensor had in the base; None where it was not the base that was changed.
    touched: Mapping[str, str | None] = field(default_factory=dict)
    added: tuple[str, ...] = ()  # tensors that the base has none for


def told_by(merged: Base) -> Told | None:
    """Read the receipt beside `merged`; None when there is none.

    Raises
    ------
    FileFormatError
        it is no receipt.
    """
    place = Path(merged.path)
    folder = place if place.is_dir() else place.parent
    if not (folder / RECEIPT).exists():
        return None
    path = inside(folder, RECEIPT)
    document = read_json(path, limit_bytes=_RECEIPT_BYTES)
    try:
        rows = {_text(row["tensor"]): _text(row["base_sha256"]) for row in _rows(document, "modules")}
        is_over_base = document["operation"] == "merge" or document["proof"]["exact"] is True
        doubted = [_text(row["tensor"]) for row in _rows(document, "doubts")]  # by a swap without the base
        touched = dict.fromkeys(doubted) | {name: sha256 if is_over_base else None for name, sha256 in rows.items()}
        added = tuple(_text(row["tensor"]) for row in _rows(document, "added"))
    except (KeyError, TypeError, AttributeError):
        raise FileFormatError(
            f"{quoted(path)} is not what a receipt is: modules or added have another form.",
            hint="Move it away to do without it.",
        ) from None
    return Told(touched, added)


def _rows(document: Any, table: str) -> list[Any]:
    rows = document.get(table, [])
    if not isinstance(rows, list):
        raise TypeError
    return rows


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def require_behind(
    base: Base, merged: Base, told: Told | None, touched: Sequence[str], observer: Observer
) -> list[Finding]:
    """Refuse a base that `merged` was not made from.

    Parameters
    ----------
    told : what the receipt says, which then decides what was touched
    touched : tensors that adapters at hand change, where there is no receipt

    Returns
    -------
    what could not be established

    Raises
    ------
    CompatibilityError
        a tensor is missing, has another shape, was touched and had another sha256, or was not touched and differs.

    Notes
    -----
    Reads both models once.
    """
    lost = [name for name, ref in base.tensors.items() if not _is_there(merged, ref)]
    if lost:
        raise CompatibilityError(
            f"{quoted(merged.name)} was not merged from {quoted(base.name)}: it has no {quoted(lost[0])} of the shape "
            f"{list(base.tensors[lost[0]].shape)}.",
            hint="Give the base of that merge.",
        )
    hashes = dict(told.touched) if told is not None else {}
    known = set(hashes) | set(touched)
    differing = _differing(base, merged, hashes, known, observer)
    if not differing:
        return []
    shown = ", ".join(quoted(name) for name in differing[:_SHOWN]) + (" …" if len(differing) > _SHOWN else "")
    if known:
        raise CompatibilityError(
            f"{len(differing)} tensors of {quoted(merged.name)} differ from {quoted(base.name)} although no adapter "
            f"changed them: {shown}.",
            hint="It was changed after the merge, or this is not its base.",
        )
    return [
        Finding(
            "no_receipt",
            f"{len(differing)} of {len(base.tensors)} tensors of {quoted(merged.name)} differ from "
            f"{quoted(base.name)}: {shown}; without a receipt or adapters nothing says which of them should.",
        )
    ]


def _differing(
    base: Base, merged: Base, hashes: Mapping[str, str | None], known: set[str], observer: Observer
) -> list[str]:
    """Tensors that differ although they are not among `known`; those with a hash are held against it."""
    differing = []
    with ExitStack() as stack:
        files: dict[FileStamp, int] = {}
        for name, ref in base.tensors.items():
            stop_if_cancelled(observer)
            wanted = hashes.get(name)
            if wanted is not None and _sha256(ref, _descriptor(ref, files, stack)) != wanted:
                raise CompatibilityError(
                    f"{quoted(name)} of {quoted(base.name)} is not what {quoted(merged.name)} was merged from: the "
                    "receipt has another sha256 for it.",
                    hint="Give the base of that merge.",
                )
            if name not in known and not _is_equal(ref, merged.tensors[name], files, stack):
                differing.append(name)
        for stamp, descriptor in files.items():
            require_unchanged(stamp, stamp_of(descriptor, stamp.path))
    return differing


def _is_there(merged: Base, ref: TensorRef) -> bool:
    found = merged.tensors.get(ref.name)
    return found is not None and found.shape == ref.shape


def _descriptor(ref: TensorRef, files: dict[FileStamp, int], stack: ExitStack) -> int:
    if ref.file not in files:
        descriptor = stack.enter_context(opened(ref.file.path))
        require_unchanged(ref.file, stamp_of(descriptor, ref.file.path))
        files[ref.file] = descriptor
    return files[ref.file]


def _pieces(ref: TensorRef, descriptor: int) -> Iterator[torch.Tensor]:
    elements = prod(ref.shape)
    for first in range(0, elements, _ELEMENTS):
        yield read_rows(descriptor, ref, first, min(elements, first + _ELEMENTS), 1)


def _sha256(ref: TensorRef, descriptor: int) -> str:
    hasher = Hasher()
    try:
        for piece in _pieces(ref, descriptor):
            hasher.update(raw_bytes(piece))
        return hasher.hexdigest()
    finally:
        hasher.close()


def _is_equal(ref: TensorRef, other: TensorRef, files: dict[FileStamp, int], stack: ExitStack) -> bool:
    """Whether `other` holds the bytes of `ref`, or its values rounded into another type."""
    if torch_dtype(ref.dtype) is None:
        one, two = _descriptor(ref, files, stack), _descriptor(other, files, stack)
        return ref.dtype is other.dtype and _is_same_range(ref, one, other, two)
    pairs = zip(
        _pieces(ref, _descriptor(ref, files, stack)), _pieces(other, _descriptor(other, files, stack)), strict=True
    )
    dtype = torch_type(other.dtype)
    return all(torch.equal(_codes(one.to(dtype)), _codes(two)) for one, two in pairs)


def _codes(piece: torch.Tensor) -> torch.Tensor:
    return piece.contiguous().view(torch.uint8)


def _is_same_range(ref: TensorRef, one: int, other: TensorRef, two: int) -> bool:
    step = _ELEMENTS
    return all(
        os.pread(one, min(step, ref.size_bytes - at), ref.begin_bytes + at)
        == os.pread(two, min(step, ref.size_bytes - at), other.begin_bytes + at)
        for at in range(0, ref.size_bytes, step)
    )
