"""Paths of one module that differ by what stands in front: one change of prefix for all of them.

A task model calls ``bert.encoder.layer.0…`` what the plain model calls ``encoder.layer.0…``. Numbers are never part of
a prefix: layer 1 is not layer 11.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Move = tuple[str, str]  # components taken from the front, components put there; dotted
IDENTITY: Final[Move] = ("", "")
_MOST_VOTERS: Final = 64


def moves_between(paths: Iterable[str], known: Iterable[str]) -> set[Move]:
    """Changes of prefix that put at least one of `paths` on one of `known`; of paths of one pattern the last is asked.

    Examples
    --------
    >>> moves_between(["bert.layer.0.query"], ["layer.0.query", "layer.1.query"])
    {('bert', '')}
    """
    by_ending: defaultdict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for path in known:
        parts = path.split(".")
        by_ending[_ending(parts)].append(parts)
    voters = {pattern_of(path): path for path in paths}
    moves = set()
    for path in list(voters.values())[:_MOST_VOTERS]:
        parts = path.split(".")
        for other in by_ending.get(_ending(parts), ()):
            shared = _shared_ending(parts, other)
            front, behind = parts[: len(parts) - shared], other[: len(other) - shared]
            if not any(part.isdigit() for part in (*front, *behind)):
                moves.add((".".join(front), ".".join(behind)))
    return moves


def moved(path: str, move: Move) -> str | None:
    """`path` with another prefix; None when it has not the one to be taken away.

    Examples
    --------
    >>> moved("bert.layer.0", ("bert", "model.text")), moved("layer.0", ("bert", ""))
    ('model.text.layer.0', None)
    """
    stripped, added = move
    if stripped:
        if not path.startswith(f"{stripped}."):
            return None
        path = path[len(stripped) + 1 :]
    return f"{added}.{path}" if added else path


def pattern_of(path: str) -> str:
    """`path` with every number as ``#``.

    Examples
    --------
    >>> pattern_of("h.11.attn")
    'h.#.attn'
    """
    return ".".join("#" if part.isdigit() else part for part in path.split("."))


def _ending(parts: Sequence[str]) -> tuple[str, ...]:
    """What two paths of one module agree in: the numbers on the way and the last component."""
    return (*(part for part in parts if part.isdigit()), parts[-1])


def _shared_ending(first: Sequence[str], second: Sequence[str]) -> int:
    """Components that two paths agree in, from the last backwards."""
    shared = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        shared += 1
    return shared
