"""What is sent to the Hub, and what the Hub said about the place it goes to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.tensors import FileStamp

DEFAULT_BRANCH = "main"


class Origin(StrEnum):
    """Where the bytes of a file come from."""

    FOLDER = "folder"  # as they lie there
    REWRITTEN = "rewritten"  # the folder's, without what is no one else's business
    MADE = "made"  # of this push: the card, a figure


class FileState(StrEnum):
    """What a push does to a file of the repository."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    UNKNOWN = "unknown"  # nobody was asked


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file of a push: at a path, where it is sent as it lies, or a few bytes in memory."""

    name: str  # in the repository
    size_bytes: int
    sha256: str
    origin: Origin = Origin.FOLDER
    path: str = ""
    stamp: FileStamp | None = None
    content: bytes | None = None
    git_sha1: str | None = None  # of what may be stored small


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository: the sha256 where it is stored large, git's hash where it is stored small."""

    size_bytes: int | None
    sha256: str | None
    git_sha1: str | None

    def is_of(self, file: Outgoing) -> bool | None:
        """Whether it has the bytes of `file`; None where the hashes cannot tell."""
        if self.sha256 is not None:
            return self.sha256 == file.sha256
        if self.git_sha1 is None or file.git_sha1 is None:
            return False if self.size_bytes not in (None, file.size_bytes) else None
        return self.git_sha1 == file.git_sha1


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a token speaks for."""

    name: str
    role: str  # write, read or fineGrained
    organisations: tuple[str, ...] = ()

    @property
    def can_write(self) -> bool:
        """Whether the token may write anything at all."""
        return self.role != "read"


@dataclass(frozen=True)
class Target:
    """Where a push goes, as it was when the Hub was asked."""

    repository: str
    endpoint: str
    revision: str = DEFAULT_BRANCH
    account: Account | None = None
    exists: bool | None = None  # None: nobody was asked
    is_private: bool | None = None
    is_new_branch: bool = False
    parent: str | None = None  # the commit on top of which the push goes
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    card: str | None = None  # README.md as it is there

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{self.repository}"

    def state_of(self, file: Outgoing) -> FileState:
        """What sending `file` does."""
        if self.exists is None:
            return FileState.UNKNOWN
        there = self.files.get(file.name)
        if there is None:
            return FileState.NEW
        return FileState.SAME if there.is_of(file) else FileState.CHANGED


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the page of another repository says that a card may inherit."""

    repository: str
    commit: str | None = None
    licence: Mapping[str, str] = field(default_factory=dict)  # license, license_name, license_link


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of a push."""

    commit: str
    url: str
    pull_request: str | None = None


def git_sha1(content: bytes) -> str:
    """The hash by which git knows a file's bytes.

    Examples
    --------
    >>> git_sha1(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
