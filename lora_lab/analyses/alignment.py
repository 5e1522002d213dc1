"""One name for one module: adapters whose modules are called differently by a prefix alone.

One trained on a task model calls ``bert.encoder.layer.0…`` what another calls ``encoder.layer.0…``; the same goes for
``base_model.model.…`` of factors written by hand. One change of prefix for a whole adapter is looked for, and only one
that adds or drops components: ``encoder`` is never taken for ``decoder``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_lab.domain.modules import natural_key
from lora_lab.domain.prefixes import IDENTITY, moved, moves_between
from lora_lab.domain.report import Finding
from lora_lab.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.prefixes import Move


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
        if len(moves) == 1 and moves[0] != IDENTITY:
            move = moves[0]
            renamed = _renamed(adapter, move)
            common = sum(known.get(delta.module) == delta.shape for delta in renamed.deltas)
            findings.append(
                Finding("prefix_changed", f"{quoted(adapter.name)}: {_said(move)} to match {common} modules.")
            )
            adapter = renamed
        elif len(moves) > 1:
            shown = " and ".join(quoted(moved(adapter.modules[0], move) or adapter.modules[0]) for move in moves[:2])
            message = (
                f"{quoted(adapter.modules[0])} of {quoted(adapter.name)} may be {shown} of the adapters before it: "
                "modules are matched by their names as they are."
            )
            findings.append(Finding("prefix_ambiguous", message))
        for delta in adapter.deltas:
            known.setdefault(delta.module, delta.shape)
        done.append(adapter)
    return tuple(done), tuple(findings)


def _best(adapter: Adapter, known: Mapping[str, tuple[int, ...]]) -> list[Move]:
    """The changes that put most modules on known ones of their shape; no change where that is as good."""
    shapes = {delta.module: delta.shape for delta in adapter.deltas}
    scores = {
        move: sum(known.get(moved(module, move) or "") == shape for module, shape in shapes.items())
        for move in (IDENTITY, *filter(_is_part, moves_between(shapes, known)))
    }
    most = max(scores.values())
    if scores[IDENTITY] == most:
        return [IDENTITY]
    return sorted(move for move, score in scores.items() if score == most)


def _is_part(move: Move) -> bool:
    """Whether one prefix is the other with components left out."""
    short, long = sorted((part.split(".") if part else [] for part in move), key=len)
    rest = iter(long)
    return all(part in rest for part in short)


def _renamed(adapter: Adapter, move: Move) -> Adapter:
    """`adapter` with every module that has the prefix under its other name, saved tensors and findings included."""

    def name(module: str) -> str:
        return moved(module, move) or module

    if len({name(module) for module in adapter.modules}) < len(adapter.modules):
        return adapter
    deltas = sorted(
        (replace(delta, module=name(delta.module)) for delta in adapter.deltas),
        key=lambda delta: natural_key(delta.module),
    )
    saved = tuple(replace(one, module=name(one.module)) for one in adapter.saved)
    findings = tuple(replace(one, module=name(one.module)) if one.module else one for one in adapter.findings)
    return replace(adapter, deltas=tuple(deltas), saved=saved, findings=findings)


def _said(move: Move) -> str:
    stripped, added = move
    if stripped and added:
        return f"the prefix {quoted(f'{stripped}.')} of its modules was replaced by {quoted(f'{added}.')}"
    if stripped:
        return f"the prefix {quoted(f'{stripped}.')} of its modules was left out"
    return f"the prefix {quoted(f'{added}.')} was put before its modules"
