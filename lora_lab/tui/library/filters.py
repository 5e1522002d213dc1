"""The filter's language.

===============  ============================================================
``word``         name, base model, type, format or a feature contains it
``-word``        … does not
``base:qwen``    the base model's name contains it
``type:lora``    likewise the type; ``type:base`` lists base models
``tag:dora``     has that feature; ``tag:broken``, ``tag:warning``
``r>=16``        compares; also ``alpha params size norm eff modules``
===============  ============================================================

Comparisons are ``>= <= > < = !=``; numbers may end in ``k``, ``M`` or ``G``. All parts must hold. A part that is not
finished yet (``r>=``) is passed over, so that one can filter while typing.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Final

from lora_lab.domain.library import EntryKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.tui.library.rows import Row

    Predicate = Callable[[Row], bool]

_COMPARISON: Final = re.compile(r"(r|rank|alpha|params|size|norm|eff|modules)(>=|<=|!=|>|<|=)(.*)", re.DOTALL)
_NUMBER: Final = re.compile(r"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?)([kmg]?)b?", re.IGNORECASE)
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    "!=": operator.ne,
}


def compile_filter(typed: str) -> Predicate:
    """Turn what a person typed into a test of a row."""
    parts = [part for part in map(_part, typed.split()) if part is not None]
    return lambda row: all(part(row) for part in parts)


def uses_measures(typed: str) -> bool:
    """Whether the outcome changes as measures arrive."""
    return any(match[1] in ("norm", "eff") for match in map(_COMPARISON.fullmatch, typed.casefold().split()) if match)


def _part(word: str) -> Predicate | None:
    word = word.casefold()
    if word.startswith("-"):
        inner = _part(word[1:]) if len(word) > 1 else None
        return None if inner is None else lambda row: not inner(row)
    comparison = _COMPARISON.fullmatch(word)
    if comparison:
        return _comparison(comparison[1], comparison[2], comparison[3])
    field, colon, wanted = word.partition(":")
    if colon and field in ("base", "type", "tag"):
        return _field(field, wanted) if wanted else None
    return lambda row: word in row.haystack


def _field(field: str, wanted: str) -> Predicate:
    if field == "base":
        return lambda row: wanted in (row.entry.base_model or "").casefold()
    if field == "type":
        return lambda row: wanted in row.type.casefold()
    return lambda row: any(wanted in tag for tag in _tags(row))


def _tags(row: Row) -> list[str]:
    entry = row.entry
    tags = [feature.casefold() for feature in entry.features]
    if entry.error or row.failure:
        tags.append("broken")
    if entry.warnings:
        tags.append("warning")
    if entry.kind == EntryKind.BASE:
        tags.append("base")
    return tags


def _comparison(field: str, sign: str, typed: str) -> Predicate | None:
    match = _NUMBER.fullmatch(typed)
    if match is None:
        return None
    limit = float(match[1]) * _FACTORS[match[2].casefold()]
    compare = _COMPARE[sign]
    if field in ("r", "rank"):
        return lambda row: _rank_holds(row, sign, compare, limit)

    def holds(row: Row) -> bool:
        value = row.entry.modules if field == "modules" else row.value(field)
        return value is not None and compare(value, limit)

    return holds


def _rank_holds(row: Row, sign: str, compare: Callable[[float, float], bool], limit: float) -> bool:
    """Whether some module has such a rank."""
    low, high = row.entry.rank_min, row.entry.rank_max
    if low is None or high is None:
        return False
    if sign == "=":
        return low <= limit <= high
    if sign == "!=":
        return not low == limit == high
    return compare(high if sign in (">", ">=") else low, limit)
