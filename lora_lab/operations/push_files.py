"""Which files of a folder are sent: an explicit list, and the reason for each file that is not on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from lora_lab.domain.modules import natural_key
from lora_lab.errors import OperationError, UnsafeFileError, quoted
from lora_lab.operations.receipt import RECEIPT
from lora_lab.storage.files import inside, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CARD", "Chosen", "LeftOut", "choose"]

CARD: Final = "README.md"
_INDEX: Final = ".safetensors.index.json"
_TOKENIZER: Final = frozenset(
    """tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json added_tokens.json vocab.json
    vocab.txt merges.txt spiece.model sentencepiece.bpe.model chat_template.jinja chat_template.json
    preprocessor_config.json processor_config.json""".split()
)
_MODEL: Final = frozenset({"config.json", "generation_config.json"})
_LICENCES: Final = frozenset({"LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt"})
_PICTURES: Final = (".png", ".svg", ".jpg", ".jpeg", ".webp")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CODE: Final = (".py", ".sh", ".ipynb", ".so", ".pyc", ".js")
_LINK: Final = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img[^>]*\bsrc\s*=\s*[\"']([^\"']+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A file that goes along."""

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that stays, and why."""

    name: str
    reason: str


def choose(
    folder: Path, weights: Sequence[str], *, is_model: bool, card: str | None
) -> tuple[list[Chosen], list[LeftOut]]:
    """List what is sent of `folder`, weights first, and what is not.

    Parameters
    ----------
    folder : of one adapter or one model
    weights : names of the files that hold its tensors
    is_model : whether it is a whole model
    card : text of its README.md; the pictures that it shows go along

    Raises
    ------
    UnsafeFileError
        a file that belongs to the adapter or model is a link that leads out of the folder, or no regular file.
    MissingFileError
        a file that belongs to it is a link that leads nowhere.
    """
    there = set(_names(folder))
    index = f"{'model' if is_model else 'adapter_model'}{_INDEX}"
    first = [*weights, *([index] if index in there and len(weights) > 1 else [])]
    pictures = frozenset(_pictures(card or ""))
    own = _MODEL if is_model else frozenset({"adapter_config.json"})
    wanted = _TOKENIZER | _LICENCES | {CARD, RECEIPT} | own | pictures
    there |= {name for name in pictures if os.path.lexists(folder / name)}
    others = sorted(there - set(first), key=natural_key)
    chosen = [_taken(folder, name) for name in [*first, *(name for name in others if name in wanted)]]
    left_out = [LeftOut(name, _reason(folder / name, name)) for name in others if name not in wanted]
    return chosen, left_out


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            for entry in found:
                yield f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise OperationError(f"The folder {quoted(folder)} cannot be listed: {reason}.") from None


def _taken(folder: Path, name: str) -> Chosen:
    try:
        path = inside(folder, name)
    except UnsafeFileError as error:
        raise UnsafeFileError(error.message, hint="Put the file itself there; links are not followed.") from None
    return Chosen(name, path, stamp(path).size_bytes)


def _pictures(card: str) -> Iterator[str]:
    """Names of the pictures that a card shows and that may lie beside it."""
    for first, second in _LINK.findall(card):
        name = (first or second).partition("?")[0].partition("#")[0]
        path = PurePosixPath(name)
        is_beside = ":" not in name and not path.is_absolute() and not {"..", "."} & set(path.parts)
        if is_beside and path.suffix.lower() in _PICTURES and not any(part.startswith(".") for part in path.parts):
            yield str(path)


_REASONS: Final[tuple[tuple[str, Callable[[str], bool]], ...]] = (
    ("hidden files are never sent", lambda name: name.startswith(".")),
    ("another folder; push it by itself", lambda name: name.endswith("/")),
    ("a pickle can run code on whoever opens it", lambda name: name.lower().endswith(_PICKLES)),
    ("code is not sent", lambda name: name.lower().endswith(_CODE)),
    ("README.md does not show it", lambda name: name.lower().endswith(_PICTURES)),
)


def _reason(path: Path, name: str) -> str:
    for reason, applies in _REASONS:
        if applies(name):
            return reason
    if path.is_symlink():
        return "a link to something else"
    if name.endswith((".safetensors", _INDEX)):
        return "weights that are not read when this folder is opened"
    return "not a file that an adapter or model has"
