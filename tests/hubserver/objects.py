"""Large files: the LFS protocol in one piece or in parts, links that expire, and Xet's local store."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hubserver.wire import BrokenOffError, Reply, Request, json_reply, refuse

if TYPE_CHECKING:
    from hubserver.server import HubServer

_SECRET = b"storage"


class Objects:
    """Objects by sha256, whichever way they came."""

    def __init__(self, hub: HubServer) -> None:
        self._hub = hub
        self._uploads: dict[str, dict[int, Path]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def size_of(self, sha256: str) -> int | None:
        """How many bytes an object has; None when it is not there."""
        path = self._hub.store.object_path(sha256)
        if path.exists():
            return path.stat().st_size
        return self._hub.xet.size_of(sha256)

    def path_of(self, sha256: str) -> Path | None:
        """A file with its bytes; what came by Xet is put together once."""
        path = self._hub.store.object_path(sha256)
        if not path.exists() and not self._hub.xet.rebuild(sha256, path):
            return None
        return path

    def keep(self, request: Request, path: Path) -> str:
        """Write a request's body to `path`, whole or not at all; returns its sha256."""
        digest = hashlib.sha256()
        partial = path.with_name(f"{path.name}.{next(self._numbers)}.partial")
        try:
            with partial.open("wb") as file:
                for block in request.blocks():
                    digest.update(block)
                    file.write(block)
            partial.replace(path)
        except BrokenOffError:
            partial.unlink()
            raise
        return digest.hexdigest()

    def batch(self, request: Request) -> Reply:
        """``POST /ID.git/info/lfs/objects/batch``."""
        hub = self._hub
        wanted = request.json()
        several = hub.part_bytes and "multipart" in wanted.get("transfers", [])
        answers = []
        for asked in wanted["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if self.size_of(asked["oid"]) is None:
                repository = request.path.partition(".git/")[0].lstrip("/")
                actions = {"verify": {"href": f"{hub.url}/api/models/{repository}/lfs-verify"}}
                if several and asked["size"] > (hub.part_bytes or 0):
                    actions["upload"] = self._in_parts(asked["oid"], asked["size"])
                else:
                    actions["upload"] = {"href": hub.storage.signed(f"/upload/{asked['oid']}")}
                answer["actions"] = actions
            answers.append(answer)
        return json_reply({"transfer": "multipart" if several else "basic", "objects": answers})

    def _in_parts(self, oid: str, size: int) -> dict[str, object]:
        hub, each = self._hub, self._hub.part_bytes or 1
        with self._lock:
            upload = f"{oid}-{next(self._numbers)}"
            self._uploads[upload] = {}
        header = {"chunk_size": str(each)}
        for number in range(1, -(-size // each) + 1):
            header[f"{number:05}"] = hub.storage.signed(f"/part/{upload}/{number}")
        return {"href": f"{hub.url}/api/complete_multipart/{upload}", "header": header}

    def complete(self, request: Request, upload: str) -> Reply:
        """``POST`` the list of parts; they become one object."""
        wanted = request.json()
        parts = self._uploads.get(upload)
        if parts is None or [part["partNumber"] for part in wanted["parts"]] != sorted(parts):
            return refuse(400, "The list of parts is not what was uploaded")
        digest = hashlib.sha256()
        path = self._hub.store.object_path(wanted["oid"])
        partial = path.with_name(f"{upload}.whole.partial")
        with partial.open("wb") as file:
            for number in sorted(parts):
                data = parts[number].read_bytes()
                digest.update(data)
                file.write(data)
                parts[number].unlink()
        if digest.hexdigest() != wanted["oid"]:
            partial.unlink()
            return refuse(400, "The parts do not have the hash that was announced")
        partial.replace(path)
        return json_reply({"success": True})

    def verify(self, request: Request) -> Reply:
        """``POST`` the object's hash and size after an upload."""
        wanted = request.json()
        if self.size_of(wanted["oid"]) != wanted["size"]:
            return refuse(404, "Object does not exist")
        return json_reply({})

    def part(self, request: Request, upload: str, number: int) -> Reply:
        """``PUT`` one part."""
        if upload not in self._uploads:
            return refuse(404, "NoSuchUpload")
        path = self._hub.store.object_path(f"{upload}.{number}")
        etag = self.keep(request, path)
        self._uploads[upload][number] = path
        return Reply(200, b"", {"ETag": f'"{etag[:32]}"'})

    def whole(self, request: Request, oid: str) -> Reply:
        """``PUT`` an object in one piece."""
        partial = self._hub.store.object_path(f"{oid}.{next(self._numbers)}.incoming")
        found = self.keep(request, partial)
        if found != oid:
            partial.unlink()
            return refuse(400, "BadDigest")
        partial.replace(self._hub.store.object_path(oid))
        return Reply(200, b"", {"ETag": f'"{found[:32]}"'})


class Storage:
    """The origin that the hub redirects to: no tokens, signed links only."""

    def __init__(self, hub: HubServer) -> None:
        self._hub = hub

    def signed(self, path: str, seconds: float = 3600.0) -> str:
        """A link to this origin that works for so long."""
        expires = str(int((time.time() + seconds) * 1000))
        return f"{self._hub.storage_url}{path}?Expires={expires}&Signature={_sign(path, expires)}"

    def link(self, sha256: str, name: str, seconds: float) -> str:
        """A link to an object, under the name that it was asked for by."""
        told = quote(f'inline; filename="{name.rpartition("/")[2]}"', safe="")
        return self.signed(f"/object/{sha256}", seconds) + f"&response-content-disposition={told}"

    def route(self, request: Request) -> Reply:
        """Answer a request to this origin."""
        if request.token is not None:
            return refuse(400, "Only one auth mechanism allowed")
        expires = request.one("Expires")
        if request.one("Signature") != _sign(request.path, expires):
            return refuse(403, "SignatureDoesNotMatch")
        if int(expires) < time.time() * 1000 or request.fault.expire:
            return refuse(403, "Request has expired")
        objects = self._hub.objects
        if found := re.fullmatch(r"/object/([0-9a-f]{64})", request.path):
            path = objects.path_of(found[1])
            headers = {"ETag": f'"{found[1]}"', "Accept-Ranges": "bytes"}
            return refuse(404, "NoSuchKey") if path is None else Reply(200, path, headers)
        if request.method == "PUT" and (found := re.fullmatch(r"/upload/([0-9a-f]{64})", request.path)):
            return objects.whole(request, found[1])
        if request.method == "PUT" and (found := re.fullmatch(r"/part/([\w-]+)/(\d+)", request.path)):
            return objects.part(request, found[1], int(found[2]))
        return refuse(404, "NoSuchKey")


def _sign(path: str, expires: str) -> str:
    return hmac.new(_SECRET, f"{path} {expires}".encode(), "sha256").hexdigest()
