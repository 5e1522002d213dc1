"""What a file is, from its first bytes: the name alone proves nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

HEAD_BYTES: Final = 1024  # enough for a Git LFS pointer, whose specification allows no more


class FileKind(StrEnum):
    """What the first bytes say."""

    SAFETENSORS = "safetensors"
    LFS_POINTER = "lfs_pointer"
    HTML = "html"
    JSON = "json"
    GZIP = "gzip"
    ZIP = "zip"  # torch.save since 1.6, and .npz
    NPZ = "npz"
    PICKLE = "pickle"
    TAR = "tar"
    GGUF = "gguf"
    EMPTY = "empty"
    UNKNOWN = "unknown"


TITLES: Final = {
    FileKind.SAFETENSORS: "a safetensors file",
    FileKind.LFS_POINTER: "a Git LFS pointer",
    FileKind.HTML: "an HTML page",
    FileKind.JSON: "a JSON document",
    FileKind.GZIP: "a gzip archive",
    FileKind.ZIP: "a zip archive",
    FileKind.NPZ: "a NumPy .npz archive",
    FileKind.PICKLE: "a Python pickle",
    FileKind.TAR: "a tar archive",
    FileKind.GGUF: "a GGUF file",
    FileKind.EMPTY: "an empty file",
    FileKind.UNKNOWN: "of no known format",
}

_LFS_START = b"version https://git-lfs.github.com/spec/"
_LFS_OID = re.compile(rb"^oid (\S+)$", re.MULTILINE)
_LFS_SIZE = re.compile(rb"^size ([0-9]{1,19})$", re.MULTILINE)
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|body|\?xml|!--)", re.IGNORECASE)
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\{\s*[\"}]|\[\s*(?:[\[\]{\"0-9-]|true|false|null))")
_TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True, slots=True)
class LfsPointer:
    """What a Git LFS pointer stands for."""

    oid: str
    size_bytes: int | None


def kind_of(head: bytes, size_bytes: int) -> FileKind:
    r"""Name the format of a file of `size_bytes` that begins with `head`.

    Examples
    --------
    >>> kind_of(b"\x02\x00\x00\x00\x00\x00\x00\x00{}", 10).value, kind_of(b"<!DOCTYPE html>", 15).value
    ('safetensors', 'html')
    """
    if size_bytes == 0:
        return FileKind.EMPTY
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size_bytes - 8:
        return FileKind.SAFETENSORS
    for start, kind in _STARTS:
        if head.startswith(start):
            return FileKind.NPZ if kind is FileKind.ZIP and b".npy" in head[:256] else kind
    if head[0:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind.PICKLE
    if head[_TAR_MAGIC] == b"ustar":
        return FileKind.TAR
    if _HTML.match(head):
        return FileKind.HTML
    return FileKind.JSON if _JSON.match(head) else FileKind.UNKNOWN


def lfs_pointer(head: bytes) -> LfsPointer:
    r"""Read a Git LFS pointer.

    Examples
    --------
    >>> lfs_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    LfsPointer(oid='sha256:ab', size_bytes=12)
    """
    oid = _LFS_OID.search(head)
    size = _LFS_SIZE.search(head)
    return LfsPointer(
        oid=oid[1].decode("utf-8", "replace") if oid else "unknown", size_bytes=int(size[1]) if size else None
    )


_STARTS: Final = (
    (_LFS_START, FileKind.LFS_POINTER),
    (b"\x1f\x8b", FileKind.GZIP),
    (b"PK\x03\x04", FileKind.ZIP),
    (b"PK\x05\x06", FileKind.ZIP),
    (b"GGUF", FileKind.GGUF),
)
