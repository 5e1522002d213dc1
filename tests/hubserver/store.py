"""What a hub keeps: accounts, repositories, commits, and objects by their sha256."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

GIT_ATTRIBUTES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("safetensors", "bin", "pt", "gguf", "png", "npz")
).encode()
_TICKS = itertools.count()


@dataclass(frozen=True)
class Stored:
    """One file of one commit: small ones carry their bytes, large ones the sha256 of an object."""

    size: int
    data: bytes | None = None
    sha256: str | None = None

    @property
    def pointer(self) -> bytes:
        """The text that git keeps in place of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def oid(self) -> str:
        """The name git gives to what it keeps."""
        kept = self.pointer if self.data is None else self.data
        return hashlib.sha1(b"blob %d\x00" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        """What the hub calls the content: sha256 of a large file, git's name of a small one."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """The whole tree at one moment."""

    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    author: str
    files: dict[str, Stored]


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and what it may do: ``read``, ``write`` or ``none``."""

    name: str
    role: str
    organizations: tuple[str, ...]

    def owns(self, repository: str) -> bool:
        """Whether the name before the slash is this account's, or one of its organisations'."""
        return repository.partition("/")[0] in (self.name, *self.organizations)


@dataclass
class Discussion:
    """A discussion; a pull request has commits under ``refs/pr/N``."""

    number: int
    title: str
    description: str
    author: str
    is_pull_request: bool
    date: str


@dataclass
class Repository:
    """A model repository: references and the commits they name."""

    id: str
    private: bool = False
    gated: str | bool = False
    refs: dict[str, str] = field(default_factory=dict)  # branch, tag or refs/pr/N: commit
    tags: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    admitted: set[str] = field(default_factory=set)  # accounts with access although it is gated
    downloads: int = 0
    likes: int = 0
    created: str = ""

    def resolve(self, revision: str) -> Commit | None:
        """Find the commit of a branch, tag, pull request or commit id."""
        return self.commits.get(self.refs.get(revision, revision))

    def commit(
        self, ref: str, changes: dict[str, Stored | None], title: str, *, message: str = "", author: str = "nobody"
    ) -> Commit:
        """Put `changes` (None deletes) on top of `ref`."""
        parent = self.commits.get(self.refs.get(ref, ""))
        files = dict(parent.files) if parent else {}
        for path, stored in changes.items():
            if stored is None:
                files.pop(path, None)
            else:
                files[path] = stored
        date = now()
        said = repr((parent and parent.oid, sorted((p, s.oid) for p, s in files.items()), title, next(_TICKS)))
        oid = hashlib.sha1(said.encode()).hexdigest()
        made = Commit(oid, parent.oid if parent else None, title, message, date, author, dict(sorted(files.items())))
        self.commits[oid] = made
        self.refs[ref] = oid
        return made

    def history(self, commit: Commit) -> list[Commit]:
        """`commit` and those before it, newest first."""
        found = [commit]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found


class Store:
    """Everything the server knows; the one lock is held while a repository changes."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self._objects = folder / "objects"
        self._objects.mkdir(parents=True, exist_ok=True)

    def object_path(self, sha256: str) -> Path:
        """Where an object's bytes are, or will be."""
        return self._objects / sha256

    def account(self, token: str | None) -> Account | None:
        """Whose token it is."""
        return self.accounts.get(token or "")

    def make(self, name: str, *, private: bool = False, gated: str | bool = False) -> Repository:
        """Make a repository with the first commit that every one has."""
        with self.lock:
            made = Repository(name, private, gated, created=now())
            self.repositories[name] = made
            stored = Stored(len(GIT_ATTRIBUTES), GIT_ATTRIBUTES)
            made.commit("main", {".gitattributes": stored}, "initial commit", author=name.partition("/")[0])
            return made


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is kept as an object: by name, by size, or because it is no text."""
    by_name = any(f"*.{path.rpartition('.')[2]} " in line for line in GIT_ATTRIBUTES.decode().splitlines())
    return by_name or size > 10 * 2**20 or b"\x00" in sample


def now() -> str:
    """The time, as the Hub writes it."""
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
