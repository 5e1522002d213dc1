"""What a folder holds, from names alone: adapters and models, in natural order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_lab.domain.modules import natural_key
from lora_lab.errors import OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DEEPEST: Final = 6
_MOST_FOLDERS: Final = 100_000
_ADAPTER_FILES: Final = frozenset(
    {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors", "adapters.npz"}
)
_INDEX: Final = ".safetensors.index.json"
_LOOSE: Final = (".safetensors", ".gguf", ".npz")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A folder or file that looks like an adapter or a model."""

    path: Path
    name: str  # relative to the library's folder
    is_model: bool


def candidates(folder: Path) -> Iterator[Candidate]:
    """Walk `folder` for adapters and models.

    A folder with an adapter's or a model's files is one candidate, and is searched further only for adapters of
    other names that PEFT saves in folders of their own. Hidden folders and links to folders are passed over.

    Parameters
    ----------
    folder : a folder, or the file or folder of one adapter or model

    Raises
    ------
    OperationError
        the folder itself cannot be listed.
    """
    if not folder.is_dir():
        yield Candidate(folder, folder.name, is_model_name(folder.name))
        return
    try:
        folder.iterdir()
        os.scandir(folder).close()
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise OperationError(f"The folder {quoted(folder)} cannot be listed: {reason}.") from None
    remaining = [_MOST_FOLDERS]
    yield from _walk(folder, "", 0, remaining)


def is_model_name(name: str) -> bool:
    """Whether a file of this name is a checkpoint's one file or its index."""
    return name == "model.safetensors" or (name.endswith(_INDEX) and not name.startswith("adapter_model"))


def _walk(folder: Path, name: str, depth: int, remaining: list[int]) -> Iterator[Candidate]:
    remaining[0] -= 1
    try:
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    except OSError:
        return
    files = {entry for entry, is_folder in entries if not is_folder}
    folders = sorted((entry for entry, is_folder in entries if is_folder and entry[0] != "."), key=natural_key)
    kind = kind_of_names(files)
    if kind is not None:
        yield Candidate(folder, name or folder.resolve().name, kind == "model")
    elif depth > 0:
        yield from _loose(folder, name, files)
    if kind == "model" or depth >= _DEEPEST or remaining[0] <= 0:
        return
    for entry in folders:
        if entry != "__pycache__":
            yield from _walk(folder / entry, f"{name}/{entry}" if name else entry, depth + 1, remaining)
    if depth == 0 and kind is None:
        yield from _loose(folder, name, files)


def kind_of_names(files: set[str]) -> str | None:
    """What a folder with files of these names is: ``adapter``, ``model``, or None for neither."""
    if files & _ADAPTER_FILES or any(file.startswith("adapter_model") and file.endswith(_INDEX) for file in files):
        return "adapter"
    return "model" if any(is_model_name(file) for file in files) else None


def _loose(folder: Path, name: str, files: set[str]) -> Iterator[Candidate]:
    """Weights that lie about by themselves; each is a candidate of its own."""
    for file in sorted(files, key=natural_key):
        if file.endswith(_LOOSE) and file[0] != ".":
            yield Candidate(folder / file, f"{name}/{file}" if name else file, is_model=False)
