"""Names of tensors that someone may have chosen to mislead: told, kept as they are, never used as paths."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Finding
from lora_lab.errors import quoted
from lora_lab.safetext import is_suspicious

if TYPE_CHECKING:
    from collections.abc import Iterable

_MARKUP: Final = re.compile(r"\[[/@#a-zA-Z]")
_LONGEST: Final = 1000
_SHOWN: Final = 3

_REASONS: Final = (
    ("unprintable_name", "characters that a terminal would obey or not show"),
    ("markup_name", "what looks like markup"),
    ("path_name", "what looks like a path"),
    ("empty_name", "no character"),
    ("long_name", f"more than {_LONGEST} characters"),
)


def suspicious_names(names: Iterable[str]) -> tuple[Finding, ...]:
    """One finding for each kind of suspicious name, with the first few of them.

    Examples
    --------
    >>> suspicious_names(["model.layers.0.q_proj.lora_A.weight"])
    ()
    >>> suspicious_names(["../../etc/passwd"])[0].message
    "1 tensor name holds what looks like a path: '../../etc/passwd'."
    """
    together = " ".join(names)
    is_plain = together.isascii() and together.isprintable() and not any(mark in together for mark in "[/\\:")
    if is_plain and ".." not in together and _lengths_are_usual(names):
        return ()
    found: dict[str, list[str]] = {}
    for name in names:
        for reason in _reasons(name):
            found.setdefault(reason, []).append(name)
    return tuple(_finding(code, holds, found[code]) for code, holds in _REASONS if code in found)


def _lengths_are_usual(names: Iterable[str]) -> bool:
    lengths = [len(name) for name in names]
    return not lengths or (min(lengths) > 0 and max(lengths) <= _LONGEST)


def _reasons(name: str) -> Iterable[str]:
    if not name:
        yield "empty_name"
    if len(name) > _LONGEST:
        yield "long_name"
    if is_suspicious(name):
        yield "unprintable_name"
    if _MARKUP.search(name):
        yield "markup_name"
    if name.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", name) or PureWindowsPath(name).drive:
        yield "path_name"


def _finding(code: str, holds: str, names: list[str]) -> Finding:
    shown = ", ".join(quoted(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    subject = "1 tensor name holds" if len(names) == 1 else f"{len(names)} tensor names hold"
    return Finding(code, f"{subject} {holds}: {shown}.")
