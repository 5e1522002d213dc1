"""One name for one module: adapters whose modules are called differently by a prefix alone.

One trained on a task model calls ``bert.encoder.layer.0…`` what another calls ``encoder.layer.0…``; the same goes for
``base_model.model.…`` of factors written by hand. One change of prefix for a whole adapter is looked for, and only one
that adds or drops components: ``encoder`` is never taken for ``decoder``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_lab.domain.modules import natural_key
from lora_lab.domain.report import Finding
from lora_lab.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.domain.adapter import Adapter

_Move = tuple[str, str]  # components taken from the front, components put there; dotted
_IDENTITY: Final[_Move] = ("", "")
_MOST_VOTERS: Final = 64


def aligned(adapters: Sequence[Adapter]) -> tuple[tuple[Adapter, ...], tuple[Finding, ...]]:
    """Call every module as the first adapter that has it does.

    Returns
    -------
    the adapters, with their modules renamed where a prefix was changed, and what was done or could not be decided

    Notes
    -----
    A change of prefix is made when it puts more modules on ones of their own shape than the names as they are, and more
    than any other change. O(modules·prefixes) time; no weight is read.
    """
    known: dict[str, tuple[int, ...]] = {}
    done: list[Adapter] = []
    findings: list[Finding] = []
    for adapter in adapters:
        moves = _best(adapter, known)
        if len(moves) == 1 and moves[0] != _IDENTITY:
            move = moves[0]
            moved = _renamed(adapter, move)
            common = sum(known.get(delta.module) == delta.shape for delta in moved.deltas)
            findings.append(
                Finding("prefix_changed", f"{quoted(adapter.name)}: {_said(move)} to match {common} modules.")
            )
            adapter = moved
        elif len(moves) > 1:
            shown = " and ".join(quoted(_moved(adapter.modules[0], move) or adapter.modules[0]) for move in moves[:2])
            message = (
                f"{quoted(adapter.modules[0])} of {quoted(adapter.name)} may be {shown} of the adapters before it: "
                "modules are matched by their names as they are."
            )
            findings.append(Finding("prefix_ambiguous", message))
        for delta in adapter.deltas:
            known.setdefault(delta.module, delta.shape)
        done.append(adapter)
    return tuple(done), tuple(findings)


def _best(adapter: Adapter, known: Mapping[str, tuple[int, ...]]) -> list[_Move]:
    """The changes that put most modules on known ones of their shape; no change where that is as good."""
    shapes = {delta.module: delta.shape for delta in adapter.deltas}
    scores = {
        move: sum(known.get(_moved(module, move) or "") == shape for module, shape in shapes.items())
        for move in (_IDENTITY, *_moves(tuple(shapes), known))
    }
    most = max(scores.values())
    if scores[_IDENTITY] == most:
        return [_IDENTITY]
    return sorted(move for move, score in scores.items() if score == most)


def _moves(modules: Sequence[str], known: Mapping[str, tuple[int, ...]]) -> Iterator[_Move]:
    """Changes of prefix that put at least one module on a known one; numbers are never part of a prefix."""
    by_ending: defaultdict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for path in known:
        by_ending[_ending(path.split("."))].append(path.split("."))
    voters = {tuple("#" if part.isdigit() else part for part in path.split(".")): path for path in modules}
    moves = set()
    for path in list(voters.values())[:_MOST_VOTERS]:
        parts = path.split(".")
        for other in by_ending.get(_ending(parts), ()):
            shared = _shared(parts, other)
            front, behind = parts[: len(parts) - shared], other[: len(other) - shared]
            if not any(part.isdigit() for part in (*front, *behind)) and _is_part(front, behind):
                moves.add((".".join(front), ".".join(behind)))
    yield from sorted(moves - {_IDENTITY})


def _is_part(front: Sequence[str], behind: Sequence[str]) -> bool:
    """Whether one is the other with components left out."""
    short, long = sorted((front, behind), key=len)
    rest = iter(long)
    return all(part in rest for part in short)


def _ending(parts: Sequence[str]) -> tuple[str, ...]:
    return (*(part for part in parts if part.isdigit()), parts[-1])


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """Components that two paths agree in, from the last backwards."""
    shared = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _moved(path: str, move: _Move) -> str | None:
    """`path` with another prefix; None when it has not the one to be taken away."""
    stripped, added = move
    if stripped:
        if not path.startswith(f"{stripped}."):
            return None
        path = path[len(stripped) + 1 :]
    return f"{added}.{path}" if added else path


def _renamed(adapter: Adapter, move: _Move) -> Adapter:
    """`adapter` with every module that has the prefix under its other name, saved tensors and findings included."""

    def name(module: str) -> str:
        return _moved(module, move) or module

    if len({name(module) for module in adapter.modules}) < len(adapter.modules):
        return adapter
    deltas = sorted(
        (replace(delta, module=name(delta.module)) for delta in adapter.deltas),
        key=lambda delta: natural_key(delta.module),
    )
    saved = tuple(replace(one, module=name(one.module)) for one in adapter.saved)
    findings = tuple(replace(one, module=name(one.module)) if one.module else one for one in adapter.findings)
    return replace(adapter, deltas=tuple(deltas), saved=saved, findings=findings)


def _said(move: _Move) -> str:
    stripped, added = move
    if stripped and added:
        return f"the prefix {quoted(f'{stripped}.')} of its modules was replaced by {quoted(f'{added}.')}"
    if stripped:
        return f"the prefix {quoted(f'{stripped}.')} of its modules was left out"
    return f"the prefix {quoted(f'{added}.')} was put before its modules"
