"""What a repository holds at one commit: names, sizes and hashes, and which of its files are wanted."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Finding
from lora_lab.errors import HubError, NotOnHubError, quoted
from lora_lab.safetext import is_suspicious
from lora_lab.sources.hub_access import quiet_client
from lora_lab.sources.hub_cache import COMMIT, cached_files, known_commit, note_commit
from lora_lab.sources.hub_refusals import is_transient, persistently, refusal_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lora_lab.sources.hub_access import HubAccess
    from lora_lab.sources.locators import Locator
    from lora_lab.storage.cache import JsonCache

MEBIBYTE: Final = 1 << 20
_MAIN: Final = "main"
_WEIGHTS: Final = (".safetensors",)
_PICKLES: Final = ("adapter_model.bin",)
# What may be fetched, the most bytes of it, and whether it is worth a word when a repository has more.
_TEXTS: Final = (
    ("README.md", 4 * MEBIBYTE),
    ("tokenizer*", 512 * MEBIBYTE),
    ("vocab.json", 512 * MEBIBYTE),
    ("vocab.txt", 512 * MEBIBYTE),
    ("merges.txt", 512 * MEBIBYTE),
    ("*.tiktoken", 512 * MEBIBYTE),
    ("spiece.model", 512 * MEBIBYTE),
    ("sentencepiece*.model", 512 * MEBIBYTE),
    ("chat_template.jinja", 4 * MEBIBYTE),
    ("*.json", 64 * MEBIBYTE),
)
_NEVER: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".so", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as the Hub lists it."""

    name: str  # in the repository, with forward slashes
    size_bytes: int
    sha256: str | None = None  # of a large file
    blob: str | None = None  # what git calls a small one

    @property
    def etag(self) -> str | None:
        """The name of its bytes in the cache."""
        return self.sha256 or self.blob


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    repository: str  # as the Hub calls it now
    commit: str
    files: tuple[ListedFile, ...]
    findings: tuple[Finding, ...] = ()

    def below(self, place: str) -> tuple[ListedFile, ...]:
        """Files in the folder `place` and under it; all of them for an empty one."""
        return tuple(file for file in self.files if not place or file.name.startswith(f"{place}/"))

    def beside(self, place: str) -> tuple[ListedFile, ...]:
        """Files in the folder `place` itself."""
        prefix = f"{place}/" if place else ""
        return tuple(file for file in self.below(place) if "/" not in file.name[len(prefix) :])

    def file(self, name: str) -> ListedFile | None:
        """The file called `name`."""
        return next((file for file in self.files if file.name == name), None)

    def place_of(self, locator: Locator) -> str:
        """The folder that a locator means: itself, or the one that the file it names lies in.

        Raises
        ------
        NotOnHubError
            the repository has neither.
        """
        if not locator.subfolder or self.below(locator.subfolder):
            return locator.subfolder
        if self.file(locator.subfolder) is not None:
            return locator.subfolder.rpartition("/")[0]
        folders = sorted({file.name.rpartition("/")[0] for file in self.files} - {""})
        known = f" It has {', '.join(quoted(folder) for folder in folders[:5])}." if folders else ""
        raise NotOnHubError(
            f"{quoted(self.repository)} has nothing called {quoted(locator.subfolder)} at {self.commit[:12]}.",
            hint=f"Check the part after the colon.{known}",
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a repository is fetched, and what is not and why."""

    files: tuple[ListedFile, ...]
    findings: tuple[Finding, ...]


def wanted(files: Iterable[ListedFile], *, allow_pickle: bool = False) -> Wanted:
    """Choose safetensors, JSON, tokenizer files and the card; nothing that is code, and no pickle unless allowed.

    Parameters
    ----------
    allow_pickle : take ``adapter_model.bin`` too, in a folder that has no safetensors
    """
    chosen: list[ListedFile] = []
    unsafe, large, other = [], [], []
    files = tuple(files)
    with_weights = {file.name.rpartition("/")[0] for file in files if file.name.endswith(_WEIGHTS)}
    for file in files:
        folder, _, name = file.name.rpartition("/")
        limit = None if is_hidden(file.name) else _limit(name)
        if name in _PICKLES and allow_pickle and folder not in with_weights:
            limit = -1
        if not is_plain_name(file.name):
            unsafe.append(file.name)
        elif limit is None:
            if not is_hidden(file.name):
                other.append(file.name)
        elif 0 <= limit < file.size_bytes:
            large.append(file.name)
        else:
            chosen.append(file)
    findings = [
        Finding(code, f"{_counted(names)} not fetched, {why}: {_some(names)}.")
        for code, why, names in (
            ("unsafe_file_name", "for a name that leads out of a folder or cannot be shown", unsafe),
            ("oversized_file", "for being larger than such a file can be", large),
            ("files_left_out", "being neither weights nor their description", other),
        )
        if names
    ]
    return Wanted(tuple(chosen), tuple(findings))


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder on the way to it, is one that listings leave out."""
    return any(part.startswith(".") for part in name.split("/"))


def is_plain_name(name: str) -> bool:
    """Whether a file of this name stays inside a folder on any system, and says what it is."""
    parts = name.split("/")
    is_relative = bool(name) and "\\" not in name and not PureWindowsPath(name).drive
    is_inside = not any(part in ("", ".", "..") or part.endswith((" ", ".")) for part in parts)
    is_usual = not PureWindowsPath(name).is_reserved() and ".git" not in parts and len(name) <= 512
    return is_relative and is_inside and is_usual and not is_suspicious(name) and not PurePosixPath(name).is_absolute()


def _limit(name: str) -> int | None:
    """The most bytes of a file called `name`; −1 for any number, None for a file that is not wanted."""
    if name.endswith(_NEVER):
        return None
    if name.endswith(_WEIGHTS):
        return -1
    return next((limit for pattern, limit in _TEXTS if fnmatchcase(name, pattern)), None)


def _counted(names: list[str]) -> str:
    return "1 file was" if len(names) == 1 else f"{len(names)} files were"


def _some(names: list[str]) -> str:
    shown = ", ".join(quoted(name) for name in names[:3])
    return f"{shown}, …" if len(names) > 3 else shown


# Asking, and remembering what was said.


def ask(
    locator: Locator, access: HubAccess, cache: JsonCache | None, *, is_cancelled: Callable[[], bool] = lambda: False
) -> Listing:
    """List a repository: one request, which settles the commit too; from the cache when the Hub cannot be reached.

    Raises
    ------
    HubError
        not found, not allowed, or neither reachable nor in the cache; one sentence each.
    """
    if access.is_offline:
        return from_cache(locator, access, cache, reason="the Hub was not asked")
    from huggingface_hub import constants

    api, patience = access.api(), constants.HF_HUB_ETAG_TIMEOUT
    revision = locator.revision or _MAIN

    def look() -> Listing:
        info = api.model_info(locator.repository, revision=revision, files_metadata=True, timeout=patience)
        files: list[Any] = list(info.siblings or ())
        if any(file.size is None for file in files):  # a mirror that lists names alone tells sizes only of the tree
            tree = api.list_repo_tree(info.id, revision=info.sha, recursive=True)
            files = [file for file in tree if hasattr(file, "blob_id")]
        return _listing(info, files, locator, access)

    try:
        with quiet_client():
            listing = persistently(look, is_cancelled=is_cancelled)
    except Exception as error:
        refusal = refusal_of(error, locator.text, access)
        if not is_transient(error) or status_of(error) in (408, 429):
            raise refusal from None
        try:
            found = from_cache(locator, access, cache, reason="the Hub was not reached")
        except HubError:
            raise refusal from None
        said = f"{refusal.message} The copy of {found.commit[:12]} in the cache is used, which may not be the newest."
        return replace(found, findings=(Finding("hub_unreachable", said),))
    _remember(listing, locator, access, cache)
    return listing


def _listing(info: Any, listed: Iterable[Any], locator: Locator, access: HubAccess) -> Listing:
    commit = str(info.sha or "")
    if not COMMIT.fullmatch(commit):
        raise HubError(
            f"{quoted(access.host)} names no commit for {quoted(locator.text)}, as a Hub does.",
            hint="Check HF_ENDPOINT and the proxy.",
        )
    files = []
    for one in listed:
        large = one.lfs
        size = large.size if large is not None else one.size
        if isinstance(size, int) and size >= 0:
            sha256 = str(large.sha256).lower() if large is not None else None
            files.append(ListedFile(str(one.rfilename), size, sha256, one.blob_id))
    findings = list(access.findings())
    repository = str(info.id or locator.repository)
    if repository.lower() != locator.repository.lower():
        said = f"{quoted(locator.repository)} is now called {quoted(repository)}; the name it was asked for redirects."
        findings.insert(0, Finding("renamed", said))
    return Listing(repository, commit, tuple(files), findings=tuple(findings))


def _remember(listing: Listing, locator: Locator, access: HubAccess, cache: JsonCache | None) -> None:
    """Keep the listing, and in the Hub's own cache which commit the revision is, as its client does."""
    if cache is not None:
        known = {"repository": listing.repository, "files": [asdict(file) for file in listing.files]}
        cache.put(_key(access, locator.repository, listing.commit), known)
    revision = locator.revision or _MAIN
    if COMMIT.fullmatch(revision):
        return
    note_commit(locator.repository, revision, listing.commit)


def _key(access: HubAccess, repository: str, commit: str) -> str:
    return f"listing {access.endpoint} {repository} {commit}"


def from_cache(locator: Locator, access: HubAccess, cache: JsonCache | None, *, reason: str) -> Listing:
    """List what the Hub's cache has of a repository, with what is remembered of the rest.

    Raises
    ------
    HubError
        nothing of it is there, with `reason` why nobody was asked.
    """
    commit = known_commit(locator.repository, locator.revision or _MAIN)
    known = None if cache is None or not commit else cache.get(_key(access, locator.repository, commit))
    repository, files = _remembered(known, locator)
    there = cached_files(repository, commit) if commit else {}
    if commit is None or not (there or files):
        which = f" at {quoted(locator.revision)}" if locator.revision else ""
        raise HubError(
            f"{quoted(locator.repository)}{which} is not in the cache, and {reason}.",
            hint="Connect, or drop --offline and HF_HUB_OFFLINE." if access.is_offline else "Look at the network.",
        )
    if not files:
        files = tuple(ListedFile(name, _size(path), *_hash_names(path)) for name, path in sorted(there.items()))
    return Listing(repository, commit, files)


def _remembered(known: Any, locator: Locator) -> tuple[str, tuple[ListedFile, ...]]:
    """The name that a repository had and its files, of a listing that was kept; nothing of one of another shape."""
    try:
        return str(known["repository"]), tuple(ListedFile(**file) for file in known["files"])
    except (TypeError, KeyError):
        return locator.repository, ()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _hash_names(path: Path) -> tuple[str | None, str | None]:
    """The sha256 or git name of a cached file, which its blob is called by."""
    name = path.readlink().name if path.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name, None
    return None, name if COMMIT.fullmatch(name) else None
