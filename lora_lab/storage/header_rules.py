"""The rules of a safetensors header, one sentence for each way to break them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.dtypes import BITS, DType
from lora_lab.domain.report import Finding
from lora_lab.domain.tensors import TensorRef
from lora_lab.errors import FileFormatError, quoted
from lora_lab.storage.kinds import HEAD_BYTES, TITLES, FileKind, kind_of, lfs_pointer

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.domain.tensors import FileStamp

MOST_DIMENSIONS: Final = 8
MOST_ELEMENTS_A_SIDE: Final = 1 << 40
_LARGEST_INTEGER: Final = (1 << 64) - 1  # what other readers hold a size in
_FIELDS: Final = ("dtype", "shape", "data_offsets")
_MOST_FIELDS: Final = 32
_SHOWN: Final = 3
_DOWNLOAD_HINT: Final = "The download was probably interrupted; fetch it again."

_KIND_HINTS: Final = {
    FileKind.HTML: "A download saved an error or login page under this name; fetch it again.",
    FileKind.JSON: "A download saved an error message under this name; fetch it again.",
    FileKind.GZIP: "Unpack it first.",
    FileKind.TAR: "Unpack it first.",
    FileKind.ZIP: "Files of torch.save end in .bin or .pt; under this name it is not read.",
    FileKind.PICKLE: "A pickle can run code when it is loaded; it is not read.",
}


class HeaderRefusedError(ValueError):
    """Why a header is refused: a sentence without its end, and the next step."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def refused_start(path: str | Path, first: bytes, size: int, limit: int) -> FileFormatError:
    """Word why a file of `size` bytes that begins with `first` has no readable header."""
    shown = quoted(path)
    if size == 0:
        return FileFormatError(f"{shown} is empty (0 bytes), expected a safetensors file.", hint=_DOWNLOAD_HINT)
    kind = kind_of(first[:HEAD_BYTES], size)
    if kind is FileKind.LFS_POINTER:
        pointer = lfs_pointer(first[:HEAD_BYTES])
        stands_for = "" if pointer.size_bytes is None else f" of {pointer.size_bytes} bytes"
        return FileFormatError(
            f"{shown} is a Git LFS pointer to a file{stands_for} ({quoted(pointer.oid)}), not that file itself.",
            hint="Run `git lfs pull` in its repository, or download the file itself.",
        )
    if kind not in (FileKind.SAFETENSORS, FileKind.UNKNOWN):
        return FileFormatError(
            f"{shown} is {TITLES[kind]}, expected a safetensors file.", hint=_KIND_HINTS.get(kind, "")
        )
    if size < 10:
        return FileFormatError(f"{shown} holds {size} bytes, too few for a safetensors file.", hint=_DOWNLOAD_HINT)
    length = int.from_bytes(first[:8], "little")
    begins = first[8:9] == b"{"
    if length < 2:
        return FileFormatError(f"{shown} is not a safetensors file: its header would have {length} bytes.")
    if begins and limit < length <= size - 8:
        return FileFormatError(f"The header of {shown} has {length} bytes, more than the limit of {limit}.")
    if begins and length > size - 8 and length <= limit:
        return FileFormatError(
            f"{shown} is cut short: its header has {length} bytes, of which {length - (size - 8)} are missing.",
            hint=_DOWNLOAD_HINT,
        )
    if length > size - 8:
        return FileFormatError(
            f"{shown} is not a safetensors file: it would have a header of {length} bytes in a file of {size}."
        )
    return FileFormatError(f"The header of {shown} begins with byte 0x{first[8]:02x}, expected '{{'.")


def require_few_tensors(count: int, most: int) -> None:
    """Refuse a header of more than `most` tensors."""
    if count > most:
        raise HeaderRefusedError(f"the header lists {count} tensors, more than the limit of {most}")


class Rules:
    """One header, looked at rule by rule."""

    def __init__(
        self, entries: dict[str, Any], metadata: Any, stamp: FileStamp, data_start: int, most_tensors: int
    ) -> None:
        self.metadata = _metadata(metadata)
        require_few_tensors(len(entries), most_tensors)
        self.findings: list[Finding] = []
        self._entries = entries
        self._stamp = stamp
        self._data_start = data_start

    def tensors(self) -> dict[str, TensorRef]:
        """Every tensor, in the file's order; HeaderRefusedError for the first rule broken."""
        found = {}
        for name, entry in self._entries.items():
            dtype, shape, begin, end = _tensor(name, entry)
            found[name] = TensorRef(self._stamp, name, dtype, shape, self._data_start + begin, self._data_start + end)
        self._require_contiguous(list(found.values()))
        self._tell_extra_fields()
        return found

    def _require_contiguous(self, refs: list[TensorRef]) -> None:
        """No hole, no overlap: sorted by their ranges, each tensor begins where the one before it ended."""
        refs.sort(key=lambda ref: (ref.begin_bytes, ref.end_bytes))
        position, before = self._data_start, ""
        for ref in refs:
            if ref.begin_bytes < position:
                raise HeaderRefusedError(f"the tensors {quoted(before)} and {quoted(ref.name)} overlap")
            if ref.begin_bytes > position:
                raise HeaderRefusedError(
                    f"{ref.begin_bytes - position} bytes before the tensor {quoted(ref.name)} belong to no tensor"
                )
            position, before = ref.end_bytes, ref.name
        self._require_whole_file(position)

    def _require_whole_file(self, end: int) -> None:
        """The last tensor ends where the file ends."""
        described, present = end - self._data_start, self._stamp.size_bytes - self._data_start
        if described > present:
            raise HeaderRefusedError(
                f"{described - present} of {described} bytes of data are missing: it is cut short",
                hint=_DOWNLOAD_HINT,
            )
        if described < present:
            raise HeaderRefusedError(f"there are {present - described} extra bytes after the last tensor")

    def _tell_extra_fields(self) -> None:
        extra = {
            field: name
            for name, entry in self._entries.items()
            if len(entry) > 3
            for field in entry
            if field not in _FIELDS
        }
        if extra:
            shown = ", ".join(f"{quoted(field)} of {quoted(name)}" for field, name in list(extra.items())[:_SHOWN])
            self.findings.append(
                Finding("extra_header_field", f"The header says more about a tensor than is understood: {shown}.")
            )


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HeaderRefusedError(f"__metadata__ is {_kind(value)}, expected an object of texts")
    for key, text in value.items():
        if not isinstance(text, str):
            raise HeaderRefusedError(f"{quoted(key)} in __metadata__ is {_kind(text)}, expected a text")
    return value


@dataclass(frozen=True, slots=True)
class _Subject:
    """The tensor that a sentence is about, worded only when there is a sentence."""

    name: str

    def __str__(self) -> str:
        return f"the tensor {quoted(self.name)}"


def _tensor(name: str, entry: Any) -> tuple[DType, tuple[int, ...], int, int]:
    """Type, shape and range of one entry, in agreement with each other."""
    of = _Subject(name)
    if not isinstance(entry, dict):
        raise HeaderRefusedError(f"{of} is described by {_kind(entry)}, expected an object")
    if len(entry) > _MOST_FIELDS:
        raise HeaderRefusedError(f"{of} has {len(entry)} fields, more than the limit of {_MOST_FIELDS}")
    for field in _FIELDS:
        if field not in entry:
            raise HeaderRefusedError(f"{of} has no {field}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str):
        raise HeaderRefusedError(f"the dtype of {of} is {_kind(dtype)}, expected a text")
    try:
        known = DType(dtype)
    except ValueError:
        raise HeaderRefusedError(
            f"{of} has the unsupported dtype {quoted(dtype)}", hint="A newer version may know it."
        ) from None
    shape = _shape(of, entry["shape"])
    begin, end = _range(of, entry["data_offsets"])
    bits = BITS[known] * _elements(of, shape)
    if bits % 8:
        raise HeaderRefusedError(f"{of} of {bits} bits (dtype {dtype}) does not end on a whole byte")
    if bits // 8 != end - begin:
        raise HeaderRefusedError(
            f"{of} of shape {list(shape)} and dtype {dtype} takes {bits // 8} bytes, but its range has {end - begin}"
        )
    return known, shape, begin, end


def _shape(of: _Subject, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list):
        raise HeaderRefusedError(f"the shape of {of} is {_kind(shape)}, expected a list of integers")
    if len(shape) > MOST_DIMENSIONS:
        raise HeaderRefusedError(f"{of} has {len(shape)} dimensions, more than the limit of {MOST_DIMENSIONS}")
    for side in shape:
        if type(side) is not int or side < 0:
            raise HeaderRefusedError(f"the shape of {of} holds {_shown(side)}, expected integers from 0")
        if side > MOST_ELEMENTS_A_SIDE:
            raise HeaderRefusedError(f"the shape of {of} holds {side}, more than the limit of 2^40")
    return tuple(shape)


def _elements(of: _Subject, shape: tuple[int, ...]) -> int:
    """Product of the sides; like a reader with 64-bit sizes, refuses when any partial product overflows."""
    count = 1
    for side in shape:
        count *= side
        if count > _LARGEST_INTEGER:
            raise HeaderRefusedError(f"the shape {list(shape)} of {of} has more elements than 64 bits can count")
    return count


def _range(of: _Subject, offsets: Any) -> tuple[int, int]:
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise HeaderRefusedError(f"the data_offsets of {of} are {_kind(offsets)}, expected a list of two integers")
    for offset in offsets:
        if type(offset) is not int or not 0 <= offset <= _LARGEST_INTEGER:
            raise HeaderRefusedError(f"the data_offsets of {of} hold {_shown(offset)}, expected integers from 0")
    begin, end = offsets
    if end < begin:
        raise HeaderRefusedError(f"the data_offsets of {of} end at {end}, before their begin at {begin}")
    return begin, end


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return "a text" if isinstance(value, str) else "a number"


def _shown(value: Any) -> str:
    """A scalar as it stands in the file; anything larger by its kind."""
    return quoted(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else _kind(value)
