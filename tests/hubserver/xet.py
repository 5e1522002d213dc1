"""Xet's content-addressed store in a local folder: `hf_xet` itself reads and writes it through ``local://``.

The shards it leaves there say which Xet hash belongs to which sha256. A shard is a 48-byte header, then for each file
48 bytes (hash, flags, number of segments), 48 bytes for each segment, as much again when bit 31 of the flags says that
segments are verified, and 48 bytes with the sha256 when bit 30 does; a hash of all ones ends the list. A hash is four
little-endian words, written as 64 hexadecimal digits.
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubserver.wire import Reply, json_reply

if TYPE_CHECKING:
    from hubserver.server import HubServer

_RECORD = 48
_VERIFIED, _WITH_SHA = 1 << 31, 1 << 30
_LIVES_SECONDS = 3600


@dataclass(frozen=True)
class Chunked:
    """A file of the store."""

    hash: str
    size: int


class Xet:
    """The store, as the hub sees it."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self._hub = hub
        self._folder = folder
        self._lock = threading.Lock()
        self._read: set[Path] = set()
        self._files: dict[str, Chunked] = {}

    @property
    def url(self) -> str:
        """What the client is told to store in."""
        return f"local://{self._folder}"

    def hash_of(self, sha256: str) -> str | None:
        """The Xet hash of an object that came by Xet."""
        found = self._find(sha256)
        return found.hash if found else None

    def size_of(self, sha256: str) -> int | None:
        """The size of an object that came by Xet."""
        found = self._find(sha256)
        return found.size if found else None

    def rebuild(self, sha256: str, path: Path) -> bool:
        """Put an object together for a client that does not speak Xet; False when it is not there."""
        found = self._find(sha256)
        if found is None:
            return False
        import hf_xet

        group = hf_xet.XetSession().new_download_stream_group(**self._access())
        partial = path.with_suffix(".rebuilt")
        with self._lock, partial.open("wb") as file:
            for block in group.download_stream(hf_xet.XetFileInfo(found.hash, found.size)):
                file.write(block)
            partial.replace(path)
        return True

    def put(self, path: Path, sha256: str) -> None:
        """Take a file in, as a client's upload would."""
        import hf_xet

        with hf_xet.XetSession().new_upload_commit(**self._access()) as commit:
            commit.start_upload_file(str(path), sha256=sha256)

    def token(self, kind: str) -> Reply:
        """``GET /api/models/ID/xet-{read,write}-token/REV``."""
        expires = int(time.time()) + _LIVES_SECONDS
        document = {"accessToken": f"xet-{kind}", "exp": expires, "casUrl": self.url}
        return json_reply(
            document, X_Xet_Cas_Url=self.url, X_Xet_Access_Token=f"xet-{kind}", X_Xet_Token_Expiration=str(expires)
        )

    def _access(self) -> dict[str, object]:
        return {"endpoint": self.url, "token": "xet", "token_expiry_unix_secs": int(time.time()) + _LIVES_SECONDS}

    def _find(self, sha256: str) -> Chunked | None:
        with self._lock:
            if sha256 not in self._files:
                for shard in self._folder.glob("xet/xorbs/shards/*.mdb"):
                    if shard not in self._read:
                        self._read.add(shard)
                        self._files.update(_files_of(shard.read_bytes()))
            return self._files.get(sha256)


def _files_of(shard: bytes) -> dict[str, Chunked]:
    found = {}
    place = _RECORD
    while (name := shard[place : place + 32]) != b"\xff" * 32 and len(name) == 32:
        flags, segments = struct.unpack_from("<II", shard, place + 32)
        place += _RECORD
        size = sum(struct.unpack_from("<I", shard, place + index * _RECORD + 36)[0] for index in range(segments))
        place += segments * _RECORD * (2 if flags & _VERIFIED else 1)
        if flags & _WITH_SHA:
            found[_digits(shard[place : place + 32])] = Chunked(_digits(name), size)
            place += _RECORD
    return found


def _digits(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
