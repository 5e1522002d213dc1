"""The header of a safetensors file: read within limits, every range checked, without torch or numpy.

Layout: eight bytes N (little-endian), N bytes of JSON beginning with ``{``, then the data. The JSON maps each tensor's
name to ``{"dtype", "shape", "data_offsets"}`` and ``__metadata__`` to texts; the ranges follow each other without
hole or overlap and end where the file ends. Source: the safetensors format's description and its Rust reader.

A header is read on one of two ways. Nearly every file is plain, and :func:`_plain` accepts only such, in one tight
loop; whatever it does not accept goes to :mod:`~lora_lab.storage.header_rules`, which alone decides and words refusals.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, NoReturn

from lora_lab.domain.dtypes import BITS, DType
from lora_lab.domain.tensors import TensorRef
from lora_lab.errors import FileFormatError, quoted
from lora_lab.storage.files import changed, opened, read_at, require_unchanged, stamp_of
from lora_lab.storage.header_rules import (
    MOST_DIMENSIONS,
    MOST_ELEMENTS_A_SIDE,
    HeaderRefusedError,
    Rules,
    refused_start,
    require_few_tensors,
)
from lora_lab.storage.names import suspicious_names
from lora_lab.storage.strict_json import (
    JsonRefusedError,
    decode,
    parse_json,
    refuse_constant,
    require_few_values,
    run_decoder,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.domain.report import Finding
    from lora_lab.domain.tensors import FileStamp


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """What a header may hold; models of 400 billion parameters stay below a sixteenth of it."""

    header_bytes: int = 16 << 20  # metadata included
    tensors: int = 200_000


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself; ``tensors`` keep the file's order."""

    stamp: FileStamp
    metadata: dict[str, str]
    tensors: dict[str, TensorRef]
    findings: tuple[Finding, ...] = ()


_DEFAULT_LIMITS: Final = HeaderLimits()
_FIRST_READ_BYTES: Final = 128 << 10  # holds the whole header of most adapters

# A matrix has eight commas and brackets in its entry: a limit on them bounds the memory of parsing before it begins.
_SEPARATORS_A_TENSOR: Final = 10
# What may spell a colon or half a surrogate pair, or a value that equals an integer without being one.
_UNUSUAL: Final = (b"\\u", b"true", b"false", b"null")
_MINUS_ZERO: Final = re.compile(rb"[\[,:\s]-0")
# The slots of a frozen dataclass, written directly: its own constructor takes three times as long, and a library of a
# thousand adapters has half a million tensors.
_new_ref = TensorRef.__new__
_set_file, _set_name, _set_dtype, _set_shape, _set_begin, _set_end = (
    vars(TensorRef)[slot].__set__ for slot in ("file", "name", "dtype", "shape", "begin_bytes", "end_bytes")
)


def read_header(path: str | Path, *, limits: HeaderLimits = _DEFAULT_LIMITS) -> Header:
    """Read and check the header of one safetensors file; no weight is read.

    Parameters
    ----------
    path : a regular file, whatever its name ends in
    limits : most bytes and tensors of a header

    Raises
    ------
    FileFormatError
        with one sentence, when the file is something else, cut short, too long, or contradicts itself. Whatever
        the safetensors library refuses is refused.

    Notes
    -----
    Time and memory grow with the header alone. Names that a terminal would obey, or that look like paths, are kept
    as they are and told as findings; they are never used as paths.
    """
    with opened(path) as descriptor:
        stamp = stamp_of(descriptor, path)
        raw = _header_bytes(descriptor, path, stamp.size_bytes, limits)
        require_unchanged(stamp, stamp_of(descriptor, path))
    return parsed_header(raw, stamp, limits=limits)


def header_length(first: bytes, path: str | Path, size: int, *, limits: HeaderLimits = _DEFAULT_LIMITS) -> int:
    """Bytes of the header's JSON, as the first bytes of a file announce them.

    Parameters
    ----------
    first : at least ten bytes from its beginning, if it has so many
    size : bytes of the whole file

    Raises
    ------
    FileFormatError
        the file begins like none, or its header would not be within the file and the limits.
    """
    length = int.from_bytes(first[:8], "little")
    if len(first) < 10 or first[8] != 0x7B or length < 2 or length > min(size - 8, limits.header_bytes):
        raise refused_start(path, first, size, limits.header_bytes)
    return length


def parsed_header(raw: bytes, stamp: FileStamp, *, limits: HeaderLimits = _DEFAULT_LIMITS) -> Header:
    """Check a header that is in memory.

    Parameters
    ----------
    raw : its JSON
    stamp : the file that it is said to be of; nothing of it is read

    Raises
    ------
    FileFormatError
        as :func:`read_header`.
    """
    path = stamp.path
    try:
        metadata, tensors, findings = _parse(raw, stamp, limits)
    except JsonRefusedError as error:
        raise FileFormatError(f"The header of {quoted(path)} {error}.") from None
    except HeaderRefusedError as error:
        raise FileFormatError(f"In {quoted(path)}, {error}.", hint=error.hint) from None
    return Header(stamp, metadata, tensors, findings)


def _header_bytes(descriptor: int, path: str | Path, size: int, limits: HeaderLimits) -> bytes:
    """The JSON of the header, once its length is known to be within the file and the limits."""
    first = read_at(descriptor, path, 0, _FIRST_READ_BYTES)
    length = header_length(first, path, size, limits=limits)
    raw = first[8 : 8 + length]
    while len(raw) < length:
        more = os.pread(descriptor, length - len(raw), 8 + len(raw))
        if not more:
            raise changed(path)
        raw += more
    return raw


def _parse(
    raw: bytes, stamp: FileStamp, limits: HeaderLimits
) -> tuple[dict[str, str], dict[str, TensorRef], tuple[Finding, ...]]:
    # Inside a string its quotes would be escaped: this is a key, or a text that is just this word.
    require_few_tensors(raw.count(b'"data_offsets"'), limits.tensors)
    text = decode(raw)
    require_few_values(raw, _SEPARATORS_A_TENSOR * limits.tensors)
    document = _simple(raw, text)
    if document is not None:
        metadata = document.pop("__metadata__", None)
        is_complete = _is_complete(document, metadata, raw.count(b":"))
        tensors = _plain(document, stamp, 8 + len(raw)) if is_complete else None
        if tensors is not None:
            return metadata or {}, tensors, suspicious_names(tensors)
        # A header that breaks a rule is refused whether or not a key was lost; one that breaks none, and says no
        # more than it must, has lost none if it is complete.
        rules = Rules(document, metadata, stamp, 8 + len(raw), limits.tensors)
        tensors = rules.tensors()
        if is_complete and not rules.findings:
            return rules.metadata, tensors, suspicious_names(tensors)
        del document, metadata, rules, tensors
    document = parse_json(raw, most_values=len(raw), encoding="utf-8")
    rules = Rules(document, document.pop("__metadata__", None), stamp, 8 + len(raw), limits.tensors)
    tensors = rules.tensors()
    return rules.metadata, tensors, (*rules.findings, *suspicious_names(tensors))


class _RealNumberError(Exception):
    """The text holds a real number, which might equal an integer."""


def _real_number(_: str) -> NoReturn:
    raise _RealNumberError


_DECODER: Final = json.JSONDecoder(parse_constant=refuse_constant, parse_float=_real_number)


def _simple(raw: bytes, text: str) -> dict[str, Any] | None:
    """The document, where its text is such that equal values are the same value; None otherwise."""
    if any(sign in raw for sign in _UNUSUAL) or (b"-0" in raw and _MINUS_ZERO.search(raw)):
        return None
    try:
        document: dict[str, Any] = run_decoder(_DECODER, text)
    except _RealNumberError:
        return None
    return document


def _is_complete(document: dict[str, Any], metadata: Any, colons: int) -> bool:
    """Whether no key was lost to a second one of the same name, if every tensor has three; and metadata holds texts.

    A parser keeps the last of two equal keys and drops the other with everything below it. Every key of the text has
    one colon after it, every other colon is part of a string; so the text has exactly as many colons as what was kept
    only if nothing was dropped.
    """
    expected = 4 * len(document) + "".join(document).count(":")
    if metadata is not None:
        if type(metadata) is not dict:
            return False
        expected += 1 + len(metadata)
        for key, value in metadata.items():
            if type(value) is not str:
                return False
            expected += key.count(":") + value.count(":")
    return expected == colons


def _plain(document: dict[str, Any], stamp: FileStamp, data_start: int) -> dict[str, TensorRef] | None:
    """Every tensor of a header whose ranges follow each other in its own order; None when anything is unusual.

    The text holds no truth value, null or real number, so whatever equals an integer here is one. The header is
    complete, so an entry with these three fields has no other.
    """
    tensors: dict[str, TensorRef] = {}
    layouts: dict[tuple[Any, ...], tuple[DType, tuple[int, ...], int]] = {}
    position = data_start
    try:
        for name, entry in document.items():
            key = (entry["dtype"], *entry["shape"])
            begin, end = entry["data_offsets"]
            layout = layouts.get(key)
            if layout is None:
                layout = layouts[key] = _layout(*key)
            dtype, shape, size = layout
            if data_start + begin != position or data_start + end != position + size:
                return None
            ref = _new_ref(TensorRef)
            _set_file(ref, stamp)
            _set_name(ref, name)
            _set_dtype(ref, dtype)
            _set_shape(ref, shape)
            _set_begin(ref, position)
            position += size
            _set_end(ref, position)
            tensors[name] = ref
    except (TypeError, ValueError, LookupError):
        return None
    return tensors if position == stamp.size_bytes else None


def _layout(dtype: Any, *shape: Any) -> tuple[DType, tuple[int, ...], int]:
    """Type, shape and bytes of a plain tensor; ValueError for any other."""
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError
    if not all(type(side) is int and 0 <= side <= MOST_ELEMENTS_A_SIDE for side in shape):
        raise ValueError
    known = DType(dtype)
    size, rest = divmod(prod(shape) * BITS[known], 8)
    # With a side of 0 the product says nothing of the partial ones, which another reader may find too large.
    if rest or prod(side or 1 for side in shape) > MOST_ELEMENTS_A_SIDE:
        raise ValueError
    return known, shape, size
