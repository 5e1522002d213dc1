"""A model in a repository of the Hub, of which the headers are read, and then the tensors that are asked for.

::

    listing ─▶ index.json, whole ─▶ header of every shard ─▶ Checkpoint ─▶ tensors, when they are held (spool.py)
               one small file       one range each            as of a local folder

The index and the headers are as untrusted as those of local files and go through the same checks
(:mod:`lora_lab.storage.shards`, :mod:`lora_lab.storage.header`). A header is remembered under the hash of its file, so
that it is fetched once; a shard that lies whole in the Hub's cache is read there.

How long a header is stands in its file's first eight bytes. An index says which tensors a shard has, which bounds the
length from above closely enough to ask for both at once.
"""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.modules import natural_key
from lora_lab.sources.crew import in_parallel
from lora_lab.storage.header import header_length, parsed_header, read_header
from lora_lab.storage.shards import checkpoint_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Finding
    from lora_lab.sources.ranges import RangeReader, RemoteFile
    from lora_lab.storage.cache import JsonCache
    from lora_lab.storage.header import Header
    from lora_lab.storage.shards import Checkpoint

_CONNECTIONS: Final = 6
# The first read of a header of which nothing is known holds that of most models in one file.
_UNKNOWN_BYTES: Final = 64 << 10
# An entry of a header beside its tensor's name and its two offsets, with a long dtype and three sides; what stands
# before the first entry and the spaces at the end.
_ENTRY_BYTES: Final = len('"":{"dtype":"F8_E4M3FNUZ","shape":[100000,100000],"data_offsets":[,]},')
_FRAME_BYTES: Final = 8 + len('{"__metadata__":{"format":"pt"},}') + 8 + 128
_WEIGHTS: Final = ".safetensors"
_SHA256_DIGITS: Final = 64


class RemoteModel:
    """The checkpoint in one folder of a repository at one commit; a shelf, as a local folder is.

    Parameters
    ----------
    repository, commit : org/name, and the commit that its revision was
    subfolder : of the repository; empty is its top
    files : everything in that folder, by name from the top of the repository
    reader : of the Hub
    fetch : gives a file of this machine with a small file of the repository, by name
    cached : gives the file of the Hub's own cache that holds one of the repository's, or None
    headers : remembers headers; None remembers nothing
    findings : what a person should know of the repository
    """

    def __init__(
        self,
        repository: str,
        commit: str,
        subfolder: str,
        files: Mapping[str, RemoteFile],
        *,
        reader: RangeReader,
        fetch: Callable[[str], Path],
        cached: Callable[[str], Path | None],
        headers: JsonCache | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        self.commit = commit
        self.name = (subfolder or repository).rpartition("/")[2]
        self.reader = reader
        self.findings = findings
        self.header_sha256: dict[str, str] = {}  # of those that were read, by the path of the file
        self._repository = repository
        self._prefix = f"{subfolder}/" if subfolder else ""
        self._fetch = fetch
        self._cached = cached
        self._remembered = headers
        self._files = {name.removeprefix(self._prefix): file for name, file in files.items()}

    @property
    def place(self) -> str:
        """What sentences and records call it."""
        return f"hf://{self._repository}@{self.commit}/{self._prefix}".rstrip("/")

    @property
    def files(self) -> Mapping[str, RemoteFile]:
        """Its files, by the path that tensors know them by."""
        return {file.place: file for file in self._files.values()}

    @property
    def weights_bytes(self) -> int:
        """Bytes of all its files of weights."""
        return sum(file.size_bytes for name, file in self._files.items() if name.endswith(_WEIGHTS))

    @property
    def missing_bytes(self) -> int:
        """Of those, bytes of the files that do not lie whole in the Hub's cache."""
        weights = {name: file for name, file in self._files.items() if name.endswith(_WEIGHTS)}
        return sum(file.size_bytes for name, file in weights.items() if self._cached(self._prefix + name) is None)

    def checkpoint(self, observer: Observer) -> Checkpoint:
        """Read the index and the headers of all shards.

        Raises
        ------
        FileFormatError
            as :func:`~lora_lab.storage.shards.read_checkpoint`.
        HubError
            a header could not be fetched.
        CancelledError
            the observer asked to stop.
        """
        return checkpoint_on(_Shelf(self, observer))

    def document(self, name: str) -> Path | None:
        """A file of this machine with a small file of the folder; None where there is none."""
        return self._fetch(self._prefix + name) if name in self._files else None

    def names(self) -> Sequence[str]:
        """Names of the files in its folder, in natural order."""
        return sorted(self._files, key=natural_key)

    def header(self, name: str, tensors: Sequence[str], stop: threading.Event) -> Header:
        """Read the header of one file: where it lies whole, from what is remembered, or by one range or two."""
        local = self._cached(self._prefix + name)
        if local is not None:
            return read_header(local)
        file = self._files[name]
        raw = self._known(file)
        if raw is None:
            raw = self._fetched(file, _expected_bytes(tensors, file.size_bytes), stop)
        header = parsed_header(raw, file.stamp)
        digest = hashlib.sha256(len(raw).to_bytes(8, "little") + raw).hexdigest()
        self.header_sha256[file.place] = digest
        if self._remembered is not None:
            self._remembered.put(_key(file), {"raw": raw.decode(), "sha256": digest})
        return header

    def _fetched(self, file: RemoteFile, expected_bytes: int, stop: threading.Event) -> bytes:
        """Header's JSON; the length is looked at before more of it is asked for."""
        end = min(expected_bytes, file.size_bytes)
        first = self._range(file, 0, end, stop)
        length = header_length(first, file.place, file.size_bytes)
        raw = first[8 : 8 + length]
        if len(raw) < length:
            raw += self._range(file, end, 8 + length, stop)
        return raw

    def _range(self, file: RemoteFile, begin: int, end: int, stop: threading.Event) -> bytes:
        pieces: list[bytes] = []
        self.reader.read(file, begin, end, lambda _, piece: pieces.append(piece), stop)
        return b"".join(pieces)

    def _known(self, file: RemoteFile) -> bytes | None:
        """The header that is remembered for these very bytes, if it is whole."""
        found: Any = None if self._remembered is None else self._remembered.get(_key(file))
        if not isinstance(found, dict) or not isinstance(found.get("raw"), str):
            return None
        raw: bytes = found["raw"].encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(len(raw).to_bytes(8, "little") + raw).hexdigest()
        return raw if digest == found.get("sha256") else None


class _Shelf:
    """A remote model as :func:`~lora_lab.storage.shards.checkpoint_on` reads it, while somebody watches."""

    def __init__(self, model: RemoteModel, observer: Observer) -> None:
        self._model = model
        self._observer = observer
        self.place = model.place

    def names(self) -> Sequence[str]:
        return self._model.names()

    def index(self, name: str) -> Path:
        found = self._model.document(name)
        assert found is not None
        return found

    def missing(self, names: Sequence[str]) -> list[str]:
        there = set(self._model.names())
        return [name for name in names if name not in there]

    def headers(self, shards: Mapping[str, Sequence[str]]) -> Mapping[str, Header]:
        """Read headers side by side, and stop all when one fails or nobody wants them any more."""
        stop = threading.Event()

        def give_up() -> None:
            stop.set()
            self._model.reader.interrupt()

        tasks = [partial(self._model.header, name, has, stop) for name, has in shards.items()]
        headers = in_parallel(tasks, _CONNECTIONS, self._observer, give_up)
        return dict(zip(shards, headers, strict=True))


def _expected_bytes(tensors: Sequence[str], size_bytes: int) -> int:
    """Bytes that hold the header of a file with `tensors`, and seldom many more; a guess where nothing is known.

    Examples
    --------
    >>> _expected_bytes(["model.embed_tokens.weight"], 10_000)
    282
    """
    if not tensors:
        return _UNKNOWN_BYTES
    offsets = 2 * len(str(size_bytes))
    return _FRAME_BYTES + sum(len(name.encode("utf-8", "replace")) + _ENTRY_BYTES + offsets for name in tensors)


def _key(file: RemoteFile) -> str:
    """What a header is remembered under: the hash of its file, or its place where the Hub gives no such hash."""
    known = file.etag if len(file.etag) == _SHA256_DIGITS else f"{file.place} {file.etag}"
    return f"header {known} {file.size_bytes}"
