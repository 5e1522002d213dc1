"""Checkpoints: one safetensors file, or many with an index that must agree with them to the last tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final, Protocol

from lora_lab.domain.modules import natural_key
from lora_lab.domain.report import Finding
from lora_lab.errors import FileFormatError, MissingFileError, UnsafeFileError, quoted
from lora_lab.storage.files import inside, read_json
from lora_lab.storage.header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.tensors import FileStamp, TensorRef
    from lora_lab.storage.header import Header

_INDEX_BYTES: Final = 50 << 20
_INDEX_SUFFIX: Final = ".safetensors.index.json"
_SUFFIX: Final = ".safetensors"
_SINGLE: Final = "model.safetensors"
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
_PICKLE_STEMS: Final = ("pytorch_model", "model", "consolidated")
_SHOWN: Final = 5


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its headers describe it; ``tensors`` are in natural order of their names."""

    path: str
    tensors: dict[str, TensorRef]
    shards: tuple[FileStamp, ...]
    metadata: dict[str, str]
    findings: tuple[Finding, ...] = ()


class Shelf(Protocol):
    """Where the files of a checkpoint lie side by side: a folder, or a part of a repository."""

    @property
    def place(self) -> str:
        """What sentences call it."""

    def names(self) -> Sequence[str]:
        """Names of the files, in natural order."""

    def index(self, name: str) -> Path:
        """A file of this machine with what the index called `name` holds."""

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are not there; one that leads elsewhere is refused."""

    def headers(self, shards: Mapping[str, Sequence[str]]) -> Mapping[str, Header]:
        """Read and check the headers of these files.

        Parameters
        ----------
        shards : name of each file to the tensors that an index puts there; none where nothing is known
        """


class Folder:
    """The shelf that a local folder is.

    Parameters
    ----------
    follow_symlinks : allow links out of the folder
    """

    def __init__(self, path: Path, *, follow_symlinks: bool = False) -> None:
        self._path = path
        self._follow_symlinks = follow_symlinks

    @property
    def place(self) -> str:
        """Its path."""
        return str(self._path)

    def names(self) -> Sequence[str]:
        """Everything in it; FileFormatError when it cannot be listed."""
        try:
            return sorted((entry.name for entry in self._path.iterdir()), key=natural_key)
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise FileFormatError(f"The folder {quoted(self._path)} cannot be listed: {reason}.") from None

    def index(self, name: str) -> Path:
        """The file itself."""
        return self._inside(name)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those that are not there, dangling links among them."""
        return [name for name in names if not self._is_there(name)]

    def headers(self, shards: Mapping[str, Sequence[str]]) -> Mapping[str, Header]:
        """Read them one after another."""
        return {shard: read_header(self._inside(shard)) for shard in shards}

    def _inside(self, name: str) -> Path:
        return inside(self._path, name, follow_symlinks=self._follow_symlinks)

    def _is_there(self, name: str) -> bool:
        try:
            return self._inside(name).exists()
        except MissingFileError:
            return False


def read_checkpoint(path: str | Path, *, follow_symlinks: bool = False) -> Checkpoint:
    """Read the headers of a checkpoint.

    Parameters
    ----------
    path : a folder, an index (``*.safetensors.index.json``) or one safetensors file
    follow_symlinks : allow links out of the folder

    Raises
    ------
    FileFormatError
        no checkpoint there, a shard missing or broken, or an index and its shards that disagree.

    Notes
    -----
    A folder's ``model.safetensors`` wins over its index, its index over a single file of another name; whatever is
    there and not used is told as a finding.
    """
    path = Path(path)
    if path.is_dir():
        return checkpoint_on(Folder(path, follow_symlinks=follow_symlinks))
    if path.name.endswith(_INDEX_SUFFIX):
        return _sharded(Folder(path.parent, follow_symlinks=follow_symlinks), path.name, (), path=str(path))
    return _checkpoint(str(path), [read_header(path)], ())


def checkpoint_on(shelf: Shelf) -> Checkpoint:
    """Read the headers of the one checkpoint on a shelf, as :func:`read_checkpoint` does of a folder."""
    names = shelf.names()
    chosen = _choose(shelf.place, names)
    findings = _unused(chosen, names)
    if chosen.endswith(_INDEX_SUFFIX):
        return _sharded(shelf, chosen, findings)
    return _checkpoint(shelf.place, list(shelf.headers({chosen: ()}).values()), findings)


def _choose(folder: str, names: Sequence[str]) -> str:
    """Name of the file that stands for the folder's weights."""
    if _SINGLE in names:
        return _SINGLE
    indices = [name for name in names if name.endswith(_INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]
    for found, what in ((indices, "indices"), (files, "safetensors files and no index")):
        if len(found) == 1:
            return found[0]
        if found:
            raise FileFormatError(
                f"{quoted(folder)} holds {len(found)} {what} ({_some(found)}), expected one checkpoint.",
                hint="Name one of the files.",
            )
    pickles = _pickles(names)
    if pickles:
        raise UnsafeFileError(
            f"{quoted(folder)} holds its weights as pickles only ({_some(pickles)}), expected safetensors.",
            hint="A pickle can run code when it is loaded; fetch the safetensors version.",
        )
    raise MissingFileError(f"{quoted(folder)} holds no safetensors file.")


def _unused(chosen: str, names: Sequence[str]) -> tuple[Finding, ...]:
    """What else could have been the checkpoint, and is not read."""
    findings = []
    pickles = _pickles(names)
    if pickles:
        findings.append(
            Finding(
                "pickle_ignored", f"{quoted(chosen)} is used, the pickled weights beside it are not: {_some(pickles)}."
            )
        )
    indices = [name for name in names if name.endswith(_INDEX_SUFFIX) and name != chosen]
    if indices:
        findings.append(
            Finding("index_ignored", f"{quoted(chosen)} is used, the index beside it is not: {_some(indices)}.")
        )
    return tuple(findings)


def _pickles(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith(_PICKLE_SUFFIXES) and name.startswith(_PICKLE_STEMS)]


def _checkpoint(path: str, headers: Sequence[Header], findings: Sequence[Finding]) -> Checkpoint:
    tensors = {name: ref for header in headers for name, ref in header.tensors.items()}
    metadata: dict[str, str] = {}
    for header in reversed(headers):  # of two values of a key the first shard's stays
        metadata.update(header.metadata)
    return Checkpoint(
        path=path,
        tensors={name: tensors[name] for name in sorted(tensors, key=natural_key)},
        shards=tuple(header.stamp for header in headers),
        metadata=metadata,
        findings=(*findings, *(finding for header in headers for finding in header.findings)),
    )


def _sharded(shelf: Shelf, name: str, findings: Sequence[Finding], *, path: str = "") -> Checkpoint:
    """The checkpoint of an index; the shards that are missing are named together, before any of them is read."""
    index = f"{shelf.place}/{name}"
    weight_map = _weight_map(shelf.index(name))
    shards: dict[str, list[str]] = {shard: [] for shard in sorted(set(weight_map.values()), key=natural_key)}
    for tensor, shard in weight_map.items():
        shards[shard].append(tensor)
    missing = shelf.missing(list(shards))
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(shards)} shards of {quoted(index)} are missing: {_some(missing)}.",
            hint="Fetch the missing files.",
        )
    headers = shelf.headers(shards)
    _require_bijection(index, weight_map, headers)
    return _checkpoint(path or shelf.place, [headers[shard] for shard in shards], findings)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor to shard, every shard's name checked to be that of a safetensors file in the same folder."""
    document = read_json(index, limit_bytes=_INDEX_BYTES)
    weight_map: Any = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise FileFormatError(f"The index {quoted(index)} has no weight_map, expected an object from tensors to files.")
    if not weight_map:
        raise FileFormatError(f"The weight_map of the index {quoted(index)} is empty.")
    checked: set[str] = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FileFormatError(f"The index {quoted(index)} gives no file name for the tensor {quoted(tensor)}.")
        if shard in checked:
            continue
        # Read as Windows would, where more separators and drives count: what is one plain name there is one everywhere.
        if PureWindowsPath(shard).name != shard or not shard.endswith(_SUFFIX) or shard.startswith("."):
            raise UnsafeFileError(
                f"The index {quoted(index)} names the shard {quoted(shard)}, expected a .safetensors file beside it."
            )
        checked.add(shard)
    return weight_map


def _require_bijection(index: str, weight_map: Mapping[str, str], headers: Mapping[str, Header]) -> None:
    """Every tensor of the index is in the shard it names, and every tensor of a shard is in the index, once."""
    absent = [name for name, shard in weight_map.items() if name not in headers[shard].tensors]
    holders: dict[str, str] = {}
    for shard, header in headers.items():
        for name in header.tensors:
            if name in holders:
                raise FileFormatError(
                    f"The tensor {quoted(name)} is in two shards of {quoted(index)}, {quoted(holders[name])} and "
                    f"{quoted(shard)}."
                )
            holders[name] = shard
    if absent:
        raise FileFormatError(
            f"The index {quoted(index)} lists {_count(absent)} missing from the shards: {_some(absent)}, expected in "
            f"{quoted(weight_map[absent[0]])}."
        )
    unlisted = [name for name in holders if name not in weight_map]
    if unlisted:
        raise FileFormatError(
            f"The shards of {quoted(index)} hold {_count(unlisted)} missing from the index: {_some(unlisted)}."
        )


def _count(names: Sequence[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    shown = ", ".join(quoted(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
