"""A first look at a path: the names in a folder, the start of a configuration, the tensor names of one header.

Every format is asked about every path, so what they look at is looked up once: the last few headers are remembered as
long as their files stay the same.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from lora_lab.errors import LoraLabError
from lora_lab.storage.files import FileKind, opened, read_at, sniff
from lora_lab.storage.header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
INDEX: Final = "adapter_model.safetensors.index.json"
PICKLE: Final = "adapter_model.bin"
PEFT_FILES: Final = (WEIGHTS, INDEX, PICKLE)
_HEAD_BYTES: Final = 64 << 10
_MOST_FILES: Final = 16
_SUFFIXES: Final = (".safetensors", ".npz", ".gguf")


def exists(folder: Path, name: str) -> bool:
    """Whether the name is there, a dangling link included: what is broken is for the reader to say."""
    return os.path.lexists(os.path.join(folder, name))  # noqa: PTH118 - asked of every candidate of a library


def configuration_start(folder: Path) -> bytes | None:
    """First 64 KiB of the folder's ``adapter_config.json``; empty when unreadable, None when there is none."""
    if not exists(folder, CONFIG):
        return None
    return file_start(folder / CONFIG)


def file_start(path: Path) -> bytes:
    """First 64 KiB of a file; empty when it cannot be read."""
    try:
        with opened(path) as descriptor:
            return read_at(descriptor, path, 0, _HEAD_BYTES)
    except LoraLabError:
        return b""


def kind(path: Path) -> FileKind | None:
    """What the file's first bytes say; None when it cannot be read."""
    try:
        return sniff(path)
    except LoraLabError:
        return None


def header_names(path: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Tensor names and metadata of a safetensors file; nothing when it has no sound header."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return (), {}
    return _header_names(str(path), found.st_mtime_ns, found.st_size, found.st_ino)


def loose_files(folder: Path) -> list[Path]:
    """Files in `folder` that might be an adapter of some format, a few of them, in order."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(_SUFFIXES) and entry.name[0] != "."]
    except OSError:
        return []
    return [folder / name for name in sorted(names)[:_MOST_FILES]]


@lru_cache(maxsize=16)
def _header_names(path: str, *_stamp: int) -> tuple[tuple[str, ...], Mapping[str, str]]:
    try:
        header = read_header(path)
    except LoraLabError:
        return (), {}
    return tuple(header.tensors), header.metadata
