"""Two configurations key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Column, ColumnKind

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS: Final = (
    Column("key", "Key", ColumnKind.TEXT, formula="nested ones with dots; one that is absent counts as null"),
    Column("a", "A", ColumnKind.VALUE),
    Column("b", "B", ColumnKind.VALUE),
)
# Settings that PEFT holds as sets and writes in whatever order these have.
_SETS: Final = frozenset({"target_modules", "exclude_modules", "modules_to_save", "target_parameters"})


def setting_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The settings that differ, in the order of their keys.

    A key that is absent and one that is null or an empty mapping say the same. Lists that stand for sets are compared
    as sets.

    Returns
    -------
    rows of key, a and b; nested keys joined by dots

    Examples
    --------
    >>> setting_differences({"r": 8, "rank_pattern": {"q": 4}}, {"r": 8, "rank_pattern": {}, "bias": None})
    ({'key': 'rank_pattern.q', 'a': 4, 'b': None},)
    """
    ours, theirs = dict(_flat(a)), dict(_flat(b))
    return tuple(
        {"key": key, "a": ours.get(key), "b": theirs.get(key)}
        for key in sorted(ours.keys() | theirs.keys())
        if not _is_same(key, ours.get(key), theirs.get(key))
    )


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _is_same(key: str, a: Any, b: Any) -> bool:
    """Whether two values say the same; 1 and 1.0 do, 1 and true do not."""
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    if key in _SETS and isinstance(a, list) and isinstance(b, list):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    return bool(a == b)
