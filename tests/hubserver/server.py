"""The server: two origins, and which route answers what."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from hubserver import clients, reading, writing
from hubserver.faults import Faults, Log
from hubserver.objects import Objects, Storage
from hubserver.store import Account, Commit, Repository, Store, Stored, is_large
from hubserver.wire import Origin, Reply, Request, json_reply, refuse
from hubserver.xet import Xet

_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_FILES = re.compile(rf"/{_ID}/(resolve)/(?P<rev>[^/]+)/(?P<path>.+)")
_CACHE = re.compile(rf"/api/resolve-cache/models/{_ID}/(?P<rev>[^/]+)/(?P<path>.+)")
_BATCH = re.compile(rf"/{_ID}\.git/info/lfs/objects/batch")
_MODEL = re.compile(rf"/api/models/{_ID}(?:/(?P<what>[\w-]+)(?:/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?)?")
_PULL = "/discussions"


class HubServer:
    """A hub in this process, on two ports of loopback.

    Parameters
    ----------
    folder : where objects, Xet's store and nothing else are kept
    part_bytes : offer uploads in parts of this size to clients without Xet; None: in one piece
    link_seconds : how long links to the storage live
    page_size : items on one page
    """

    def __init__(
        self, folder: Path, *, part_bytes: int | None = None, link_seconds: float = 3600.0, page_size: int = 1000
    ) -> None:
        self.part_bytes, self.link_seconds, self.page_size = part_bytes, link_seconds, page_size
        self.folder = folder
        self.store = Store(folder)
        self.faults, self.requests = Faults(), Log()
        self.lists_sizes = True  # some mirrors say no more than names
        self.tls: ssl.SSLContext | None = None  # of the host that a proxy is asked to reach
        self.errors: list[BaseException | None] = []  # of the server itself
        self.objects, self.storage = Objects(self), Storage(self)
        self.xet = Xet(self, folder / "cas")
        self.closing = threading.Event()
        self._origins = {name: Origin(self, name) for name in ("hub", "storage")}
        for origin in self._origins.values():
            threading.Thread(target=origin.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._origins['hub'].server_port}"

    @property
    def storage_url(self) -> str:
        """The origin that links lead to."""
        return f"http://127.0.0.1:{self._origins['storage'].server_port}"

    def close(self) -> None:
        """Stop both origins."""
        self.closing.set()
        for origin in self._origins.values():
            origin.shutdown()
            origin.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # What a test prepares

    def add_account(self, token: str, name: str, *, role: str = "write", organizations: tuple[str, ...] = ()) -> None:
        """Let `token` be that of `name`; its role is ``read``, ``write`` or ``none``."""
        self.store.accounts[token] = Account(name, role, organizations)

    def add(
        self,
        name: str,
        files: Mapping[str, bytes | str] | Path,
        *,
        private: bool = False,
        gated: str | bool = False,
        xet: bool = False,
    ) -> str:
        """Put files, or a whole folder, into a repository, which is made when it is not there; returns the commit.

        Parameters
        ----------
        xet : large files lie in Xet's store, as new ones on the Hub do
        """
        if isinstance(files, Path):
            files = {str(one.relative_to(files)): one.read_bytes() for one in sorted(files.rglob("*")) if one.is_file()}
        repository = self.store.repositories.get(name) or self.store.make(name, private=private, gated=gated)
        changes: dict[str, Stored | None] = {}
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            changes[path] = self._kept(data, xet) if is_large(path, len(data), data[:512]) else Stored(len(data), data)
        return repository.commit("main", changes, "Add files", author=name.partition("/")[0]).oid

    def _kept(self, data: bytes, xet: bool) -> Stored:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.store.object_path(sha256)
        path.write_bytes(data)
        if xet:
            self.xet.put(path, sha256)
        return Stored(len(data), None, sha256)

    def rename(self, old: str, new: str) -> None:
        """Give a repository another name; the old one redirects."""
        repository = self.store.repositories.pop(old)
        repository.id = new
        self.store.repositories[new] = repository
        self.store.renamed[old] = new

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Read what a repository holds at a revision."""
        commit = self.store.repositories[name].resolve(revision)
        assert commit is not None, f"{name} has no {revision}"
        return {path: self._bytes(stored) for path, stored in commit.files.items()}

    def _bytes(self, stored: Stored) -> bytes:
        if stored.data is not None:
            return stored.data
        path = self.objects.path_of(stored.sha256 or "")
        assert path is not None
        return path.read_bytes()

    # Code in a process of its own

    def run_python(self, code: str, *, home: Path, **settings: Any) -> clients.Ran:
        """Run code whose client talks to this server; see :func:`hubserver.clients.run_python`."""
        return clients.run_python(code, endpoint=self.url, home=home, **settings)

    def run_lab(self, *arguments: str, home: Path, **settings: Any) -> clients.Ran:
        """Run ``lora-lab`` against this server; see :func:`hubserver.clients.run_lab`."""
        return clients.run_lab(*arguments, endpoint=self.url, home=home, **settings)

    # Rights

    def may_read(self, repository: Repository, token: str | None) -> bool:
        """Whether a token sees that the repository exists."""
        account = self.store.account(token)
        return not repository.private or (account is not None and account.owns(repository.id))

    def may_write(self, repository: Repository, token: str | None) -> bool:
        """Whether a token may change it."""
        account = self.store.account(token)
        return account is not None and account.role == "write" and account.owns(repository.id)

    def _may_open(self, repository: Repository, token: str | None) -> bool:
        account = self.store.account(token)
        known = account is not None and (account.name in repository.admitted or account.owns(repository.id))
        return not repository.gated or known

    # Routes

    def route(self, origin: str, request: Request) -> Reply:
        """Find who answers."""
        if origin == "storage":
            return self.storage.route(request)
        account = self.store.account(request.token)
        if request.token is not None and account is None:
            return refuse(401, "Invalid credentials in Authorization header")
        for old, new in self.store.renamed.items():
            if re.search(rf"/{re.escape(old)}(/|\.git|$)", request.path):
                place = request.path.replace(old, new, 1)
                asked = request.exchange.path.partition("?")[2]
                return Reply(307, b"", {"Location": place + (f"?{asked}" if asked else "")})
        general = {
            ("GET", "/api/whoami-v2"): reading.who_am_i,
            ("GET", "/api/models"): reading.listing,
            ("POST", "/api/repos/create"): writing.create_repository,
            ("DELETE", "/api/repos/delete"): writing.delete_repository,
            ("POST", "/api/validate-yaml"): writing.validate_card,
        }.get((request.method, request.path))
        if general:
            return general(self, request)
        if found := re.fullmatch(r"/api/complete_multipart/([\w-]+)", request.path):
            return self.objects.complete(request, found[1])
        return self._of_repository(request)

    def _of_repository(self, request: Request) -> Reply:
        found = None
        for pattern in (_BATCH, _CACHE, _MODEL, _FILES):
            if found := pattern.fullmatch(request.path):
                break
        if found is None:
            return refuse(404, "Sorry, we can't find the page you are looking for.")
        named = found.groupdict()
        repository = self.store.repositories.get(named["id"])
        if repository is None or not self.may_read(repository, request.token):
            status = 401 if request.token is None else 404
            return refuse(status, "Repository not found", "RepoNotFound")
        if found.re is _BATCH:
            return self._guarded(request, repository) or self.objects.batch(request)
        revision = unquote(named.get("rev") or "main")
        path = unquote(named.get("path") or "")
        if found.re is _MODEL:
            return self._of_model(request, repository, named["what"] or "", revision, path)
        commit = repository.resolve(revision)
        if commit is None:
            return refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if not self._may_open(repository, request.token):
            status = 401 if request.token is None else 403
            return refuse(status, f"Access to model {repository.id} is restricted.", "GatedRepo")
        if found.re is _CACHE:
            return reading.small_file(self, request, repository, commit, path)
        return reading.resolve(self, request, repository, commit, path)

    def _guarded(self, request: Request, repository: Repository) -> Reply | None:
        """Refuse a change to who may not make it; a pull request needs a writing token, not the repository."""
        if self.may_write(repository, request.token):
            return None
        account = self.store.account(request.token)
        if account is None:
            return refuse(401, "Invalid username or password.")
        # Bytes may be sent by anyone who may write anywhere: a pull request refers to them, or nothing does.
        bytes_alone = _BATCH.fullmatch(request.path) is not None
        pull = bytes_alone or request.one("create_pr") or _PULL in request.path or "refs%2Fpr%2F" in request.path
        if pull and account.role == "write":
            return None
        what = "Your token has no write role" if account.owns(repository.id) else "You have no write access"
        return refuse(403, f"{what} to this repository")

    def _of_model(self, request: Request, repository: Repository, what: str, revision: str, path: str) -> Reply:
        get = request.method == "GET"
        if what.startswith("xet-") and get:
            kind = what.removeprefix("xet-").removesuffix("-token")
            refused = self._guarded(request, repository) if kind == "write" else None
            return refused or self.xet.token(kind)
        reads = get or what == "paths-info"
        if not reads and (refused := self._guarded(request, repository)):
            return refused
        plain = {
            ("GET", "refs"): reading.refs,
            ("PUT", "settings"): writing.settings,
            ("POST", "discussions"): writing.discuss,
        }.get((request.method, what))
        if plain:
            return plain(self, request, repository)
        if what in ("branch", "tag") and not get:
            return (writing.branch if what == "branch" else writing.tag)(self, request, repository, revision)
        if what == "discussions":
            return writing.discussion(self, request, repository, int(revision))
        if what == "lfs-verify":
            return self.objects.verify(request)
        if what == "commit":
            return writing.commit(self, request, repository, revision)
        commit = repository.resolve(revision)
        if commit is None:
            return refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self._of_commit(request, repository, commit, what, path)

    def _of_commit(self, request: Request, repository: Repository, commit: Commit, what: str, path: str) -> Reply:
        if what == "tree":
            return reading.tree(self, request, repository, commit, path)
        known = {
            "": reading.model_info,
            "revision": reading.model_info,
            "paths-info": reading.paths_info,
            "commits": reading.commits,
            "preupload": writing.preupload,
        }.get(what)
        if known is None:
            return json_reply({"error": "Not found"}, 404)
        return known(self, request, repository, commit)
