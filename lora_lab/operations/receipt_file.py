"""A receipt read back: untrusted JSON until every part of it has been looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.dtypes import DType
from lora_lab.errors import FileFormatError, MissingFileError, quoted
from lora_lab.operations.options import MergeOptions, SavedModules
from lora_lab.operations.receipt import RECEIPT
from lora_lab.storage.files import inside, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SCHEMA: Final = "lora-lab/1"
_LIMIT_BYTES: Final = 256 << 20
_DIGEST: Final = frozenset("0123456789abcdef")
_LONGEST: Final = 4096  # of a path or a name
_LARGEST: Final = 1 << 53  # of a whole number that a float holds


@dataclass(frozen=True, slots=True)
class Input:
    """What an operation read, as its receipt says."""

    locator: str
    path: str
    sha256: Mapping[str, str]  # name to digest; a name ending in #header stands for the header alone
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What an operation wrote, as its receipt says."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class ReceiptFile:
    """What a receipt says."""

    path: str
    operation: str
    arguments: Mapping[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)  # distribution to version


def find_receipt(place: str | Path) -> Path | None:
    """The receipt of an output: in its folder, or beside its one file."""
    folder = Path(place)
    folder = folder if folder.is_dir() else folder.parent
    return inside(folder, RECEIPT) if (folder / RECEIPT).exists() else None


def read_receipt(path: str | Path) -> ReceiptFile:
    """Read a receipt.

    Raises
    ------
    FileFormatError
        not JSON, not a receipt, or a part of it is not of the type that receipts have.
    MissingFileError
        nothing is there.
    """
    try:
        document = read_json(path, limit_bytes=_LIMIT_BYTES)
    except MissingFileError as error:
        raise MissingFileError(
            error.message, hint=f"Give a {RECEIPT} of this machine, or the folder that it lies in."
        ) from None
    if not isinstance(document, dict) or "operation" not in document or "outputs" not in document:
        raise FileFormatError(
            f"{quoted(path)} is no receipt: it has no operation or no outputs.",
            hint=f"A receipt is called {RECEIPT} and lies in the folder that lora-lab wrote.",
        )
    if document.get("schema") != _SCHEMA:
        raise FileFormatError(
            f"{quoted(path)} has the schema {quoted(document.get('schema'))}, expected {_SCHEMA}.",
            hint="It was written by another version of lora-lab.",
        )
    parts = _Parts(path)
    outputs = tuple(parts.output(entry) for entry in parts.many(document["outputs"], "outputs"))
    if len({output.path for output in outputs}) != len(outputs):
        raise parts.wrong("outputs", "each file once")
    return ReceiptFile(
        str(path),
        parts.text(document["operation"], "operation"),
        parts.mapping(document.get("arguments"), "arguments"),
        tuple(parts.input(entry) for entry in parts.many(document.get("inputs", []), "inputs")),
        outputs,
        parts.texts(document.get("versions", {}), "versions"),
        parts.texts(document.get("plugins", {}), "plugins"),
    )


def checked_arguments(receipt: ReceiptFile) -> dict[str, Any]:
    """The arguments of a receipt that can be replayed, each of its type and none beside those that it has.

    Raises
    ------
    FileFormatError
        one is of another type, unknown, or not there; or the operation is another.
    """
    parts = _Parts(receipt.path)
    given = dict(receipt.arguments)
    known = _ARGUMENTS.get(receipt.operation)
    if known is None:
        raise parts.wrong("operation", f"one of {', '.join(_ARGUMENTS)}")
    unknown = given.keys() - known
    if unknown:
        raise parts.wrong(f"arguments.{min(unknown)}", f"an argument of {receipt.operation}")
    missing = (_REQUIRED & known) - given.keys()
    if receipt.operation == "unmerge":
        missing -= {"base", "adapters"}
    if receipt.operation in ("swap", "combine", "resize"):
        missing -= {"base"}
    if missing:
        raise parts.wrong(f"arguments.{min(missing)}", _KINDS[min(missing)][0])
    for name in sorted(given):
        expected, is_right = _KINDS[name]
        if not is_right(given[name]):
            raise parts.wrong(f"arguments.{name}", expected)
    return given


def merge_options(receipt: ReceiptFile) -> MergeOptions:
    """How the merge was made that a receipt tells of.

    Raises
    ------
    FileFormatError
        an argument is not of the type that a merge's has, or there is one that no merge has.
    """
    given = checked_arguments(receipt)
    return MergeOptions(
        strengths=tuple(given.get("strengths", ())),
        dtype=DType(given["dtype"]) if given.get("dtype") else None,
        rounding=given.get("rounding", "nearest"),
        seed=given.get("seed", 0),
        modules=tuple(given.get("modules", ())),
        is_partial=given.get("partial", False),
        saved_modules=SavedModules.SKIP if given.get("skip_saved_modules") else SavedModules.TAKE,
        saved_modules_from=given.get("saved_modules_from"),
        allow_nonfinite=given.get("allow_nonfinite", False),
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and len(item) <= _LONGEST for item in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(item) for item in value)


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= _LARGEST)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST


def _are_plain(values: Iterable[Any]) -> bool:
    """Values of a method's parameters."""
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return all(item is None or type(item) is bool or _is_number(item) or isinstance(item, str) for item in items)


_TEXT: Final = ("a text", _is_text)
_TEXTS: Final = ("a list of texts", _are_texts)
_NUMBERS: Final = ("a list of finite numbers", _are_numbers)
_TRUTH: Final = ("true or false", lambda value: type(value) is bool)
_KINDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "merged": _TEXT,
    "base": _TEXT,
    "undo": _TEXT,
    "adapter": _TEXT,
    "method": _TEXT,
    "adapters": _TEXTS,
    "from": _TEXTS,
    "to": _TEXTS,
    "strengths": _NUMBERS,
    "strengths_from": _NUMBERS,
    "strengths_to": _NUMBERS,
    "dtype": ("a float type or null", lambda value: value in (None, "F64", "F32", "F16", "BF16")),
    "rounding": ("nearest or stochastic", lambda value: value in ("nearest", "stochastic")),
    "seed": ("a whole number", lambda value: type(value) is int),
    "modules": _TEXTS,
    "finetuned": _TEXT,
    "rank": ("a rank or null", lambda value: value is None or (type(value) is int and 0 < value <= _LARGEST)),
    "energy": ("a share or null", lambda value: value is None or (_is_number(value) and 0 < value <= 1)),
    "error": ("an error or null", lambda value: value is None or (_is_number(value) and 0 < value < 1)),
    "parameters": ("a number or null", lambda value: value is None or (type(value) is int and 0 < value <= _LARGEST)),
    "settings": ("an object of plain values", lambda value: isinstance(value, dict) and _are_plain(value.values())),
    "save_others": _TRUTH,
    "average_saved_modules": _TRUTH,
    "partial": _TRUTH,
    "skip_saved_modules": _TRUTH,
    "allow_nonfinite": _TRUTH,
    "allow_pickle": _TRUTH,
    "alpha": ("a number", _is_number),
    "device": ("cpu, cuda or mps", lambda value: value in ("cpu", "cuda", "mps")),
    "saved_modules_from": ("a text or null", lambda value: value is None or isinstance(value, str)),
}
_REQUIRED: Final = frozenset({"merged", "base", "finetuned", "adapter", "adapters", "method", "from", "to"})
_WORDS: Final = frozenset({"alpha", "allow_pickle"})  # by which the inputs were opened
_HOW: Final = _WORDS | frozenset(
    {"dtype", "rounding", "seed", "device", "modules", "partial", "skip_saved_modules", "saved_modules_from"}
)
_CUT: Final = _WORDS | frozenset({"rank", "energy", "error", "parameters", "dtype", "seed", "modules", "base"})
_WHOLE: Final = frozenset({"average_saved_modules", "skip_saved_modules", "saved_modules_from"})
_ARGUMENTS: Final[Mapping[str, frozenset[str]]] = {
    "merge": _HOW | {"adapters", "base", "strengths", "allow_nonfinite"},
    "unmerge": _HOW | {"merged", "adapters", "base", "undo", "strengths"},
    "extract": frozenset({"base", "finetuned", "rank", "energy", "save_others", "dtype", "seed", "modules"}),
    "combine": _CUT | _WHOLE | {"adapters", "method", "settings", "strengths"},
    "resize": _CUT | {"adapter"},
    "swap": _HOW | {"merged", "from", "to", "base", "undo", "strengths_from", "strengths_to"},
}


class _Parts:
    """Checks parts of one document; what is wrong is told with the place."""

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def wrong(self, where: str, expected: str) -> FileFormatError:
        return FileFormatError(
            f"{quoted(where)} in {quoted(self._path)} is not what a receipt has there, expected {expected}.",
            hint="The receipt is damaged or was not written by lora-lab.",
        )

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value or len(value) > _LONGEST:
            raise self.wrong(where, f"a text of at most {_LONGEST} characters")
        return value

    def many(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong(where, "a list")
        return value

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, "an object")
        return value

    def texts(self, value: Any, where: str) -> dict[str, str]:
        return {name: self.text(item, f"{where}.{name}") for name, item in self.mapping(value, where).items()}

    def digest(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) != 64 or not set(value) <= _DIGEST:
            raise self.wrong(where, "a sha256 of 64 hexadecimal digits")
        return value

    def output(self, entry: Any) -> Output:
        entry = self.mapping(entry, "outputs")
        size = entry.get("size_bytes")
        if type(size) is not int or size < 0:
            raise self.wrong("outputs.size_bytes", "a number of bytes")
        digest = self.digest(entry.get("sha256"), "outputs.sha256")
        return Output(self.text(entry.get("path"), "outputs.path"), digest, size)

    def input(self, entry: Any) -> Input:
        entry = self.mapping(entry, "inputs")
        digests = self.mapping(entry.get("sha256"), "inputs.sha256")
        revision = entry.get("revision")
        return Input(
            self.text(entry.get("locator"), "inputs.locator"),
            self.text(entry.get("path"), "inputs.path"),
            {name: self.digest(digest, "inputs.sha256") for name, digest in digests.items()},
            None if revision is None else self.text(revision, "inputs.revision"),
        )
