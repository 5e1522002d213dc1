"""The Hub's own cache on this machine: which commit a revision was last, which files of it are there, letting one go.

Layout, of the client's documentation: ``models--org--name/{refs/REVISION, snapshots/COMMIT/FILE, blobs/ETAG}``, where
the files of a snapshot are links to blobs.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_lab.errors import OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT: Final = re.compile(r"models--[^/\\]+[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\]|$)")


def commit_of(path: Path) -> str | None:
    """The commit that a path is of, where it lies in the Hub's cache; nobody is asked and nothing looked up.

    Examples
    --------
    >>> commit_of(Path("hub/models--org--name/snapshots") / ("ab" * 20) / "sub") == "ab" * 20
    True
    >>> commit_of(Path("models/name")) is None
    True
    """
    found = _SNAPSHOT.search(os.path.abspath(path))  # noqa: PTH100 - as named, not where a link leads
    return found[1] if found else None


def cache_root() -> Path:
    """The folder that the client keeps repositories in."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(repository: str) -> Path:
    """The folder of a model repository."""
    return cache_root() / f"models--{repository.replace('/', '--')}"


def known_commit(repository: str, revision: str) -> str | None:
    """The commit that a revision was when the Hub was last asked; a commit is its own."""
    if COMMIT.fullmatch(revision):
        return revision
    with suppress(OSError, UnicodeDecodeError):
        commit = (repository_folder(repository) / "refs" / revision).read_text("ascii").strip()
        if COMMIT.fullmatch(commit):
            return commit
    return None


def note_commit(repository: str, revision: str, commit: str) -> None:
    """Let the cache know which commit a revision is; where it cannot be written, it is not known offline."""
    import tempfile

    place = repository_folder(repository) / "refs" / revision
    with suppress(OSError):
        if place.is_file() and place.read_text("ascii", errors="replace") == commit:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
        with os.fdopen(descriptor, "w") as file:
            file.write(commit)
        Path(temporary).replace(place)


def snapshot(repository: str, commit: str) -> Path:
    """The folder with the files of one commit."""
    return repository_folder(repository) / "snapshots" / commit


def cached_files(repository: str, commit: str) -> dict[str, Path]:
    """The files of one commit that are there, by name in the repository."""
    root = snapshot(repository, commit)
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file():  # a link whose blob is gone is none
                found[path.relative_to(root).as_posix()] = path
    return found


def forget(path: Path) -> None:
    """Remove a cached file with the bytes behind it, so that it is fetched anew.

    Raises
    ------
    OperationError
        it may not be removed.
    """
    root = Path(os.path.realpath(cache_root()))
    place = path
    try:
        for _ in range(4):  # snapshot, blob, and the store that repositories share
            target = Path(os.path.normpath(place.parent / place.readlink())) if place.is_symlink() else None
            place.unlink(missing_ok=True)
            if target is None or not Path(os.path.realpath(target.parent)).is_relative_to(root):
                return
            place = target
    except OSError as error:
        raise OperationError(
            f"{quoted(place)} has other bytes than the Hub says, and may not be removed: {error.strerror}.",
            hint="Remove it, then try again.",
        ) from None


def unfinished(repository: str, etag: str) -> set[Path]:
    """Files in which a download of the bytes called `etag` is, or was, going on, in any process."""
    return set((repository_folder(repository) / "blobs").glob(f"{etag}.*.incomplete"))


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove those of `paths` that this process has open, or all where the system does not say which it has."""
    try:
        own = {os.readlink(f"/proc/self/fd/{name}") for name in _descriptors()}  # noqa: PTH115 - many, and soon gone
        mine = [path for path in paths if os.path.realpath(path) in own]
    except OSError:
        mine = list(paths)
    for path in mine:
        with suppress(OSError):
            path.unlink()


def _descriptors() -> list[str]:
    """Names of the open files of this process, but for the one that lists them."""
    folder = "/proc/self/fd"
    return [name for name in os.listdir(folder) if os.path.lexists(f"{folder}/{name}")]  # noqa: PTH208


def free_bytes() -> int:
    """How much may still be written where the cache is, or will be."""
    import shutil

    place = Path(os.path.abspath(cache_root()))  # noqa: PTH100 - as named, not where a link leads
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free
