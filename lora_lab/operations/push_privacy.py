"""What must not leave the machine: access tokens, and paths that tell of nothing but this machine.

A token is always refused. A path is taken out where a field is known to hold one and nobody needs it; in a text that
a person wrote it is refused with its line, for that text is theirs to change.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import UnsafeFileError, quoted
from lora_lab.safetext import token_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Folders in which people, and the services that they use, keep their files.
_LOCAL_PATH: Final = re.compile(
    r"(?<![\w.:/~-])(?:file://)?(?:~/|/(?:home|Users|root|tmp|mnt|media|data|scratch|workspace|content|kaggle|private|var)/)"
    r"[^\s\"'`)<>\]}|]*|(?<!\w)[A-Za-z]:[\\/](?:[^\s\"'`)<>\]}|]+)|\\\\[\w.-]+\\[^\s\"'`]+"
)
_IS_PATH: Final = re.compile(r"(?:/|~|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\|file://)")
#: Fields of configurations that say where something was loaded from.
_PLACES: Final = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file")
_SHOWN: Final = 8  # characters of a token that say which one it is


def require_no_token(name: str, text: str) -> None:
    """Refuse a text that holds an access token.

    Raises
    ------
    UnsafeFileError
        with the line, and the first characters of the token.
    """
    found = token_in(text)
    if found is not None:
        raise UnsafeFileError(
            f"{quoted(name)} holds what looks like an access token in line {_line(text, found.start())} "
            f"({found[0][:_SHOWN]}…), and nothing was sent.",
            hint="Take it out, and revoke it: huggingface.co/settings/tokens",
        )


def require_no_path(name: str, text: str) -> None:
    """Refuse a text that tells where something lies on this machine.

    Raises
    ------
    UnsafeFileError
        with the line and the path.
    """
    found = local_path_in(text)
    if found is not None:
        raise UnsafeFileError(
            f"{quoted(name)} names a path of this machine in line {_line(text, found.start())}: {quoted(found[0])}, "
            "and nothing was sent.",
            hint="Take it out, or write what others can reach instead, such as org/name.",
        )


def local_path_in(text: str) -> re.Match[str] | None:
    """The first path of this machine that stands in `text`."""
    home = re.escape(str(Path.home()))
    own = re.search(rf"(?<![\w./-]){home}(?:/[^\s\"'`)<>\]}}|]*)?", text) if home not in ("", "/") else None
    known = _LOCAL_PATH.search(text)
    return min((found for found in (own, known) if found is not None), key=lambda found: found.start(), default=None)


def is_local_place(value: str) -> bool:
    """Whether a field that names a model holds a path and no name of the Hub.

    Examples
    --------
    >>> is_local_place("/models/base"), is_local_place("./base"), is_local_place("org/base"), is_local_place("gpt2")
    (True, True, False, False)
    """
    return bool(_IS_PATH.match(value)) or value.count("/") > 1 or "\\" in value


def short_name(place: str) -> str:
    """The last part of a path: what it is called, and not where it lies.

    Examples
    --------
    >>> short_name("/home/me/adapters/one/"), short_name("C:\\\\models\\\\base"), short_name("one")
    ('one', 'base', 'one')
    """
    path = PureWindowsPath(place) if "\\" in place else PurePosixPath(place)
    return path.name or "folder"


def without_paths(text: str) -> str:
    """`text` with each path of this machine reduced to its name."""
    while (found := local_path_in(text)) is not None:
        kept = short_name(found[0].rstrip(".,;:"))
        text = text[: found.start()] + kept + text[found.start() + len(found[0].rstrip(".,;:")) :]
    return text


def cleaned_configuration(document: Any, replaced: Mapping[str, str]) -> tuple[Any, list[str]]:
    """A configuration without the places that it was loaded from, and the fields that this changed.

    Parameters
    ----------
    document : JSON
    replaced : what stands in a field instead, by its name
    """
    changed: list[str] = []

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {}
            for key, item in value.items():
                if key in replaced and item != replaced[key]:
                    kept[key] = replaced[key]
                    changed.append(key)
                elif key in _PLACES and isinstance(item, str) and is_local_place(item):
                    changed.append(key)
                else:
                    kept[key] = clean(item)
            return kept
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean(document), changed


def texts_in(document: Any) -> Iterator[str]:
    """Every text of a JSON document, keys too."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from texts_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from texts_in(value)


def mapped(document: Any, change: Callable[[str], str]) -> Any:
    """A JSON document with every text changed, but for keys."""
    if isinstance(document, str):
        return change(document)
    if isinstance(document, dict):
        return {key: mapped(value, change) for key, value in document.items()}
    return [mapped(value, change) for value in document] if isinstance(document, list) else document


def as_json(document: Any) -> bytes:
    """A document as a file."""
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
