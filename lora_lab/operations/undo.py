"""The undo file: what a merged model and its adapters do not say about the base, in a few hundredths of its size.

One safetensors file. Under ``residual:NAME`` it holds the coded residual of each tensor that was changed
(:mod:`~lora_lab.linalg.residuals`): its chunks one after another, the bytes of each as 32-bit numbers, and DoRA's gains
as 64-bit floats: for each band of rows those by column, then for each of its rows those by row. Under
``header:FILE`` and ``document:FILE`` it holds headers and small documents of the base that the merge wrote otherwise.
``__metadata__`` holds the ``format`` and a JSON ``document``: the recipe with the hashes of the adapters, and the
hashes of every changed tensor and every file of the base, by which the result of an unmerge is proven.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import CompatibilityError, FileFormatError, quoted
from lora_lab.linalg.residual_coding import CHUNK_ELEMENTS, Sparse, chunk_count, decode
from lora_lab.operations.layout import header_of
from lora_lab.operations.options import MergeOptions, SavedModules
from lora_lab.storage.files import changed, sha256_of, worded
from lora_lab.storage.header import parsed_header, read_header
from lora_lab.storage.reading import read_bytes
from lora_lab.storage.strict_json import JsonRefusedError, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter

FORMAT: Final = "lora_lab_undo/1"
CODED: Final = DType.U8
# A number of one type that the other holds without loss.
HELD_BY: Final = {
    DType.F16: (DType.F16, DType.F32, DType.F64),
    DType.BF16: (DType.BF16, DType.F32, DType.F64),
    DType.F32: (DType.F32, DType.F64),
    DType.F64: (DType.F64,),
}
_MOST_VALUES: Final = 2_000_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WEIGHTS: Final = re.compile(r"[^/\\\0.][^/\\\0]*\.safetensors")
_DOCUMENT: Final = re.compile(r"[^/\\\0.][^/\\\0]*\.json")
_KEPT: Final = 2  # decoded chunks of one tensor


@dataclass(frozen=True, slots=True)
class BaseFile:
    """A file of weights of the base, as it was."""

    name: str
    sha256: str
    size_bytes: int
    merged_sha256: str  # of the file of that name in the merged model
    header: TensorRef | None  # where its header is kept; None when the merged file has the same


class Residual:
    """The coded residual of one tensor, decoded a chunk at a time, from any thread.

    Parameters
    ----------
    elements : of the tensor
    gains : how many of DoRA it needs
    """

    def __init__(self, ref: TensorRef, descriptor: int, elements: int, bits: int, gains: int) -> None:
        self._ref = ref
        self._descriptor = descriptor
        self._elements = elements
        self._bits = bits
        self._lock = Lock()
        self._decoded = lru_cache(maxsize=_KEPT)(self._chunk)
        table, behind = 4 * chunk_count(elements), 8 * gains
        start = ref.size_bytes - behind - table
        if start < 0:
            raise self._damaged()
        sizes = np.frombuffer(self._read(start, table), dtype="<u4").astype(np.int64)
        self._ends = np.cumsum(sizes)
        if int(sizes.sum()) != start:
            raise self._damaged()
        self.gains = np.frombuffer(self._read(start + table, behind), dtype="<f8").astype(np.float64)

    def between(self, first: int, end: int) -> Sparse:
        """The residual of the elements from `first` to before `end`, positions counted from `first`."""
        parts = []
        for number in range(first // CHUNK_ELEMENTS, chunk_count(end)):
            with self._lock:
                whole = self._decoded(number)
            begin = number * CHUNK_ELEMENTS
            low, high = np.searchsorted(whole.positions, [first - begin, end - begin])
            parts.append(Sparse(whole.positions[low:high] + (begin - first), whole.values[low:high]))
        if len(parts) == 1:
            return parts[0]
        empty = np.zeros(0, dtype=np.int64)
        return Sparse(
            np.concatenate([empty, *(part.positions for part in parts)]),
            np.concatenate([empty, *(part.values for part in parts)]),
        )

    def _chunk(self, number: int) -> Sparse:
        begin = int(self._ends[number - 1]) if number else 0
        elements = min(CHUNK_ELEMENTS, self._elements - number * CHUNK_ELEMENTS)
        try:
            return decode(self._read(begin, int(self._ends[number]) - begin), elements, self._bits)
        except FileFormatError:
            raise self._damaged() from None

    def _read(self, offset: int, count: int) -> bytes:
        with worded(self._ref.file.path):
            found = os.pread(self._descriptor, count, self._ref.begin_bytes + offset)
        if len(found) != count:
            raise changed(self._ref.file.path)
        return found

    def _damaged(self) -> FileFormatError:
        return FileFormatError(
            f"{quoted(self._ref.name)} in {quoted(self._ref.file.path)} is damaged: it is no residual of "
            f"{self._elements} elements.",
            hint="Fetch the undo file again, or unmerge with the base.",
        )


@dataclass(frozen=True)
class Undo:
    """An undo file as its header describes it."""

    path: str
    stamp: FileStamp
    residuals: Mapping[str, TensorRef]
    tensor_sha256: Mapping[str, str]
    files: tuple[BaseFile, ...]
    documents: Mapping[str, TensorRef]
    adapters: tuple[Mapping[str, Any], ...]  # name, locator, files {name: sha256}
    options: MergeOptions

    @property
    def locators(self) -> tuple[str, ...]:
        """Where the adapters were when they were merged, in the order of the recipe."""
        return tuple(adapter["locator"] for adapter in self.adapters)

    @cached_property
    def document_bytes(self) -> dict[str, bytes]:
        """Small documents of the base as they were."""
        return {name: bytes(read_bytes(ref)) for name, ref in self.documents.items()}

    def require_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Refuse adapters that are not those of the recipe, to the byte.

        Raises
        ------
        CompatibilityError
            another number of them, or one whose files have another hash.
        """
        if len(adapters) != len(self.adapters):
            names = ", ".join(quoted(adapter["name"]) for adapter in self.adapters)
            raise CompatibilityError(
                f"Got {len(adapters)} adapters, expected the {len(self.adapters)} that {quoted(self.path)} was written "
                f"with: {names}."
            )
        for adapter, wanted in zip(adapters, self.adapters, strict=True):
            for stamp in adapter.files:
                name = Path(stamp.path).name
                if sha256_of(stamp.path) != wanted["files"].get(name):
                    raise CompatibilityError(
                        f"{quoted(stamp.path)} is not the {quoted(name)} of {quoted(wanted['name'])} that "
                        f"{quoted(self.path)} was written with: its sha256 is another one.",
                        hint="Give the same adapter as in the merge, or unmerge with the base.",
                    )

    def base_behind(self, merged: Base) -> tuple[Base, dict[str, bytes]]:
        """The base as its headers describe it, whose weights are nowhere, and the headers of its files.

        Raises
        ------
        CompatibilityError
            `merged` lacks a tensor, or has it with another shape or in a narrower type.
        FileFormatError
            a header that is kept here is damaged.
        """
        tensors: dict[str, TensorRef] = {}
        headers = {}
        shards = []
        there = {Path(stamp.path).name: stamp for stamp in merged.shards}
        for file in self.files:
            raw = self._header_before(file, there.get(file.name), merged)
            stamp = FileStamp(file.name, file.size_bytes, 0, 0, 0)
            header = parsed_header(raw[8:], stamp)
            for name, ref in header.tensors.items():
                self._require_held(merged, ref)
                tensors[name] = ref
            headers[file.name] = raw
            shards.append(stamp)
        lost = [name for name in self.residuals if name not in tensors]
        if lost:
            raise FileFormatError(f"{quoted(self.path)} has a residual of {quoted(lost[0])}, which its base lacks.")
        configuration = merged.configuration
        if "config.json" in self.documents:
            configuration = _parsed(self.document_bytes["config.json"], self.path)
        base = Base(merged.name, merged.locator, merged.path, tensors, tuple(shards), configuration)
        return base, headers

    def _header_before(self, file: BaseFile, now: FileStamp | None, merged: Base) -> bytes:
        """The header that a file of the base had, its length in front; that of the file `now` where none is kept."""
        if file.header is not None:
            raw = bytes(read_bytes(file.header))
            if int.from_bytes(raw[:8], "little") != len(raw) - 8:
                raise FileFormatError(f"The header of {quoted(file.name)} in {quoted(self.path)} is damaged.")
            return raw
        if now is None or now.size_bytes != file.size_bytes:
            what = "is not there" if now is None else f"has {now.size_bytes} bytes, expected {file.size_bytes}"
            raise CompatibilityError(
                f"{quoted(merged.name)} is not the merge that {quoted(self.path)} was written for: "
                f"{quoted(file.name)} {what}."
            )
        return header_of(now.path)

    def _require_held(self, merged: Base, ref: TensorRef) -> None:
        got = merged.tensors.get(ref.name)
        if got is None or got.shape != ref.shape or got.dtype not in (ref.dtype, *HELD_BY.get(ref.dtype, ())):
            what = "no such tensor" if got is None else f"{list(got.shape)} of {got.dtype}"
            raise CompatibilityError(
                f"{quoted(merged.name)} is not the merge that {quoted(self.path)} was written for: "
                f"{quoted(ref.name)} is {list(ref.shape)} of {ref.dtype} in its base, got {what}."
            )


def open_undo(path: str | Path) -> Undo:
    """Read what an undo file says about itself.

    Raises
    ------
    FileFormatError
        it is something else, cut short, of another version, or contradicts itself.
    """
    header = read_header(path)
    if header.metadata.get("format") != FORMAT:
        found = header.metadata.get("format")
        raise FileFormatError(
            f"{quoted(path)} is no undo file that this version reads: its format is "
            f"{quoted(found) if found else 'not given'}, expected {quoted(FORMAT)}.",
            hint="merge --undo FILE writes one.",
        )
    document = _parsed(header.metadata.get("document", "").encode(), path)
    sections: dict[str, dict[str, TensorRef]] = {"residual": {}, "header": {}, "document": {}}
    for name, ref in header.tensors.items():
        kind, _, rest = name.partition(":")
        if kind not in sections or ref.dtype is not CODED or len(ref.shape) != 1:
            raise _contradiction(path, f"a section called {quoted(name)}")
        sections[kind][rest] = ref
    try:
        files = tuple(_file(entry, sections["header"]) for entry in document["files"])
        hashes = {str(name): _sha256(found) for name, found in document["tensors"].items()}
        adapters = tuple(_adapter(entry) for entry in document["recipe"]["adapters"])
        options = _options(document["recipe"], len(adapters))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _contradiction(path, "a document that lacks a part or has it in another form") from None
    if hashes.keys() != sections["residual"].keys():
        raise _contradiction(path, "other residuals than it lists")
    bad = next((name for name in sections["document"] if not _DOCUMENT.fullmatch(name)), None)
    if bad is not None:
        raise _contradiction(path, f"a document called {quoted(bad)}")
    return Undo(str(path), header.stamp, sections["residual"], hashes, files, sections["document"], adapters, options)


def _file(entry: Any, headers: Mapping[str, TensorRef]) -> BaseFile:
    name, size = entry["name"], entry["size_bytes"]
    if not _WEIGHTS.fullmatch(name) or type(size) is not int or size < 0:
        raise ValueError
    return BaseFile(name, _sha256(entry["sha256"]), size, _sha256(entry["merged_sha256"]), headers.get(name))


def _adapter(entry: Any) -> dict[str, Any]:
    files = {str(name): _sha256(found) for name, found in entry["files"].items()}
    return {"name": str(entry["name"]), "locator": str(entry["locator"]), "files": files}


def _options(recipe: Any, count: int) -> MergeOptions:
    strengths = tuple(float(strength) for strength in recipe["strengths"])
    winner = recipe["saved_modules_from"]
    if len(strengths) != count or type(recipe["partial"]) is not bool or not isinstance(winner, str | None):
        raise ValueError
    return MergeOptions(
        strengths=strengths,
        modules=tuple(str(pattern) for pattern in recipe["modules"]),
        is_partial=recipe["partial"],
        saved_modules=SavedModules(recipe["saved_modules"]),
        saved_modules_from=winner,
    )


def _sha256(found: Any) -> str:
    if not isinstance(found, str) or not _SHA256.fullmatch(found):
        raise ValueError
    return found


def _parsed(raw: bytes, path: str | Path) -> dict[str, Any]:
    try:
        document = parse_json(raw, most_values=_MOST_VALUES)
    except JsonRefusedError as error:
        raise FileFormatError(f"The document in {quoted(path)} {error}.") from None
    if not isinstance(document, dict):
        raise _contradiction(path, "a document that is no object")
    return document


def _contradiction(path: str | Path, what: str) -> FileFormatError:
    return FileFormatError(f"The undo file {quoted(path)} holds {what}.", hint="Fetch it again.")
