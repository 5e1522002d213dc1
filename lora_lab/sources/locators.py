"""What a person types: a path, or a repository of the Hub with revision and sub-folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from lora_lab.errors import LoraLabError, quoted

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SCHEME: Final = "hf://"
_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_VIEWS: Final = frozenset({"tree", "blob", "resolve", "raw"})
_OTHER_KINDS: Final = ("datasets", "spaces", "buckets", "kernels")
# What git forbids in a reference, and what would end it in a locator.
_NO_REVISION: Final = re.compile(r"[\s~^:?*\[\\\x00-\x1f\x7f]|\.\.|^[/-]|/$")
_NO_FOLDER: Final = re.compile(r"[\\\x00-\x1f\x7f]")
_LONG_REVISION: Final = re.compile(r"(refs/(?:pr|convert|heads|tags)/[^/]+)(?:/(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Locator:
    """A local path, or a place on the Hub."""

    text: str
    path: str = ""
    repository: str = ""  # org/name; empty for a local path
    revision: str | None = None
    subfolder: str = ""  # or a file in the repository

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return not self.repository


def parse(text: str) -> Locator:
    """Read a locator; a path that exists wins over a repository, ``./`` and ``hf://`` remove all doubt.

    Parameters
    ----------
    text : a path; ``org/name[@revision][:subfolder]``; ``hf://`` before it, or before ``org/name[@revision][/path]``
        as the Hub's own tools write it; a link to a page of the Hub, or of the one that HF_ENDPOINT names

    Raises
    ------
    LoraLabError
        ``hf://`` or a web link is followed by no model repository.

    Examples
    --------
    >>> parse("hf://org/name@main:adapters/a").subfolder
    'adapters/a'
    >>> parse("https://huggingface.co/org/name/tree/main/a").revision
    'main'
    >>> parse("./org/name").is_local
    True
    """
    if text.startswith(_SCHEME):
        return _uri(text)
    if text.startswith(("https://", "http://")):
        return _link(text)
    if os.path.lexists(text) or text.startswith((".", "/", "~")) or os.sep * 2 in text:
        return Locator(text, path=os.path.expanduser(text))  # noqa: PTH111 - a Path would lose a trailing slash
    if _REPOSITORY.fullmatch(text.partition("@")[0].partition(":")[0]):
        return _named(text, text)
    return Locator(text, path=text)


def hub_locator(text: str) -> Locator | None:
    """Read what can only be a name of the Hub, whatever lies on this machine; None where it is none.

    Examples
    --------
    >>> hub_locator("org/name@main").revision
    'main'
    >>> hub_locator("name") is None and hub_locator("/a/b") is None
    True
    """
    try:
        if text.startswith((_SCHEME, "https://", "http://")):
            return parse(text)
        is_name = _REPOSITORY.fullmatch(text.partition("@")[0].partition(":")[0])
        return _named(text, text) if is_name else None
    except LoraLabError:
        return None


def _uri(text: str) -> Locator:
    place = text.removeprefix(_SCHEME)
    _require_model(text, place)
    place = place.removeprefix("models/")
    name, _, rest = place.partition("@")
    if not rest:  # no revision: whatever follows the second slash is a path
        owner, _, tail = place.partition("/")
        name, slash, path = tail.partition("/")
        return _made(text, f"{owner}/{name}", None, path) if slash else _named(text, place)
    if ":" in rest:
        return _named(text, place)
    long = _LONG_REVISION.fullmatch(unquote(rest))
    revision, path = (long[1], long[2] or "") if long else (unquote(rest.partition("/")[0]), rest.partition("/")[2])
    return _made(text, name, revision, path)


def _link(text: str) -> Locator:
    """A page, a folder or a file of a repository, as a browser shows it."""
    found = urlsplit(text)
    own = urlsplit(os.environ.get("HF_ENDPOINT", ""))
    if (found.hostname or "") not in _HOSTS and found.netloc != own.netloc:
        raise LoraLabError(
            f"{quoted(text)} is no link to the Hub, expected one to {', '.join(sorted(_HOSTS))} or to HF_ENDPOINT.",
            hint="Download the files, then give their folder.",
        )
    place = found.path.strip("/")
    if found.netloc == own.netloc:
        place = place.removeprefix(own.path.strip("/")).strip("/")
    _require_model(text, place)
    owner, name, view, *rest = [*place.removeprefix("models/").split("/"), "", "", ""]
    if view and view not in _VIEWS:
        raise _no_repository(text)
    if view and "@" not in name:
        long = _LONG_REVISION.fullmatch("/".join(rest).strip("/"))
        revision, path = (long[1], long[2] or "") if long else (rest[0], "/".join(rest[1:]))
        return _made(text, f"{owner}/{name}", unquote(revision), unquote(path))
    return _named(text, unquote(f"{owner}/{name}"))


def _named(text: str, place: str) -> Locator:
    """``org/name[@revision][:subfolder]``."""
    place, _, subfolder = place.partition(":")
    repository, _, revision = place.partition("@")
    return _made(text, repository, unquote(revision) or None, subfolder)


def _made(text: str, repository: str, revision: str | None, subfolder: str) -> Locator:
    repository, subfolder = repository.strip("/"), subfolder.strip("/")
    parts = subfolder.split("/") if subfolder else []
    if not _REPOSITORY.fullmatch(repository) or any(part in ("", ".", "..") for part in parts):
        raise _no_repository(text)
    if _NO_FOLDER.search(subfolder) or (revision and _NO_REVISION.search(revision)):
        raise _no_repository(text)
    return Locator(text, repository=repository, revision=revision or None, subfolder=subfolder)


def _require_model(text: str, place: str) -> None:
    kind = place.partition("/")[0]
    if kind in _OTHER_KINDS and place.count("/") > 1:
        raise LoraLabError(f"{quoted(text)} is one of the Hub's {kind}, expected a model: hf://org/name.")


def _no_repository(text: str) -> LoraLabError:
    return LoraLabError(f"{quoted(text)} names no repository of the Hub, expected hf://org/name@revision:subfolder.")
