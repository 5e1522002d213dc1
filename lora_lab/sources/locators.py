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
_WEB: Final = ("https://huggingface.co/", "https://hf.co/", "http://huggingface.co/")


@dataclass(frozen=True, slots=True)
class Locator:
    """A local path, or a place on the Hub."""

    text: str
    path: str = ""
    repository: str = ""  # org/name; empty for a local path
    revision: str | None = None
    subfolder: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return not self.repository


def parse(text: str) -> Locator:
    """Read a locator; a path that exists wins over a repository, ``./`` and ``hf://`` remove all doubt.

    Raises
    ------
    LoraLabError
        ``hf://`` or a web link is followed by no repository.

    Examples
    --------
    >>> parse("hf://org/name@main:adapters/a").subfolder
    'adapters/a'
    >>> parse("./org/name").is_local
    True
    """
    for prefix in (_SCHEME, *_WEB):
        if text.startswith(prefix):
            return _hub(text, unquote(urlsplit(text).path).lstrip("/") if prefix in _WEB else text[len(prefix) :])
    if os.path.lexists(text) or text.startswith((".", "/", "~")) or os.sep * 2 in text:
        return Locator(text, path=os.path.expanduser(text))  # noqa: PTH111 - a Path would lose a trailing slash
    if _REPOSITORY.fullmatch(text.partition("@")[0].partition(":")[0]):
        return _hub(text, text)
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
    if text.startswith((_SCHEME, *_WEB)):
        try:
            return parse(text)
        except LoraLabError:
            return None
    return _hub(text, text) if _REPOSITORY.fullmatch(text.partition("@")[0].partition(":")[0]) else None


def _hub(text: str, place: str) -> Locator:
    """``org/name[@revision][:subfolder]``, or ``org/name/tree/revision/subfolder`` as in a web link."""
    if "/tree/" in place:
        repository, _, rest = place.partition("/tree/")
        revision, _, subfolder = rest.partition("/")
    else:
        place, _, subfolder = place.partition(":")
        repository, _, revision = place.partition("@")
    repository = repository.strip("/")
    if not _REPOSITORY.fullmatch(repository) or ".." in subfolder.split("/"):
        raise LoraLabError(f"{quoted(text)} names no repository of the Hub, expected hf://org/name@revision:subfolder.")
    return Locator(text, repository=repository, revision=revision or None, subfolder=subfolder.strip("/"))
