"""Opening what lies at a path: the format that recognises it reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.base import Base
from lora_lab.errors import AdapterError, FileFormatError, MissingFileError, quoted
from lora_lab.extension.contracts import Recognition
from lora_lab.storage.files import read_json, stamp
from lora_lab.storage.shards import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.extension.contracts import AdapterFormat, ReadOptions
    from lora_lab.storage.shards import Checkpoint

_CONFIGURATION: Final = "config.json"


def open_adapter(path: Path, formats: Iterable[AdapterFormat], options: ReadOptions) -> Adapter:
    """Open the adapter at `path` with the one format that reads it.

    Raises
    ------
    MissingFileError
        nothing is there.
    UnsupportedFormatError
        a format knows it by name only.
    AdapterError
        no format knows it, or several want to read it.
    """
    if not path.exists():
        stamp(path)  # words why
    recognised = [(found.recognise(path), found) for found in formats]
    readable = [found for recognition, found in recognised if recognition is Recognition.READABLE]
    if len(readable) > 1:
        names = ", ".join(found.id for found in readable)
        raise AdapterError(f"{quoted(path)} is recognised by several formats, {names}, expected one.")
    named = [found for recognition, found in recognised if recognition is Recognition.NAMED]
    for found in (*readable, *named):
        return found.read(path, options)
    if path.is_file():
        from lora_lab.storage.header import read_header

        tensors = read_header(path).tensors  # words what is wrong with the file itself
        raise AdapterError(
            f"{quoted(path)} holds {len(tensors)} tensors and no LoRA adapter that is known.",
            hint="An adapter of PEFT is a folder with adapter_config.json and adapter_model.safetensors.",
        )
    raise MissingFileError(
        f"{quoted(path)} holds no adapter, expected adapter_config.json and adapter_model.safetensors.",
        hint="lora-lab ls lists what a folder holds.",
    )


def open_base(path: Path, *, locator: str = "", name: str = "", follow_symlinks: bool = False) -> Base:
    """Open the checkpoint at `path`: headers of all its shards, and ``config.json`` when there is one.

    Raises
    ------
    FileFormatError
        as :func:`~lora_lab.storage.shards.read_checkpoint`.
    """
    checkpoint = read_checkpoint(path, follow_symlinks=follow_symlinks)
    folder = path if path.is_dir() else path.parent
    config = folder / _CONFIGURATION
    return base_of(
        checkpoint,
        config if config.is_file() else None,
        locator=locator or str(path),
        name=name or folder.resolve().name,
    )


def base_of(
    checkpoint: Checkpoint, config: Path | None, *, locator: str, name: str, revision: str | None = None
) -> Base:
    """Make a Base of a checkpoint whose headers are read, and of the ``config.json`` beside it, where there is one.

    Raises
    ------
    FileFormatError
        `config` is no JSON object.
    """
    return Base(
        name=name,
        locator=locator,
        path=checkpoint.path,
        tensors=checkpoint.tensors,
        shards=checkpoint.shards,
        configuration={} if config is None else _settings(config),
        metadata=checkpoint.metadata,
        findings=checkpoint.findings,
        revision=revision,
    )


def open_configuration(path: Path, *, locator: str = "") -> Base:
    """Open a model's ``config.json`` alone: a Base without tensors, of which shapes can be told but no weights read.

    Parameters
    ----------
    path : the file, or the folder that holds it

    Raises
    ------
    FileFormatError
        it is no JSON object.
    """
    config = path / _CONFIGURATION if path.is_dir() else path
    document = _settings(config)
    folder = config.parent.resolve()
    return Base(folder.name, locator or str(path), str(config), {}, (stamp(config),), document)


def is_configuration(path: Path) -> bool:
    """Whether `path` is a model's ``config.json``, or a folder that holds one and no adapter."""
    if path.is_dir():
        return (path / _CONFIGURATION).is_file() and not (path / "adapter_config.json").exists()
    return path.name == _CONFIGURATION


def _settings(config: Path) -> dict[str, Any]:
    document = read_json(config)
    if not isinstance(document, dict):
        raise FileFormatError(f"{quoted(config)} is no object of settings, expected a model's config.json.")
    return document
