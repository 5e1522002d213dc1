"""Two results side by side: what got faster, what slower, and whether the difference is more than chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from lora_lab.benchmarks.columns import NAMES
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Table
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A difference smaller than this is nothing to anybody, however sure it is.
_LEAST_CHANGE: Final = 0.02
# What is different each time, or busy rather than another machine.
_PASSING: Final = ("measured_at", "load", "sm_clock", "memory_clock")
_ROWS: Final = (
    Column("name", "What", ColumnKind.TEXT),
    Column("before_seconds", "Before", unit="s", formula="median"),
    Column("after_seconds", "After", unit="s", formula="median"),
    Column("ratio", "After/before", formula="after / before"),
    Column("verdict", "Verdict", ColumnKind.TEXT, formula="same where the 95 % intervals of both medians meet"),
)
_DIFFERENCES: Final = (
    Column("key", "Setting", ColumnKind.TEXT),
    Column("before", "Before", ColumnKind.VALUE),
    Column("after", "After", ColumnKind.VALUE),
)


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Report:
    """Compare two JSON documents of one benchmark, row by row.

    Raises
    ------
    CompatibilityError
        they are of two different benchmarks.

    Examples
    --------
    >>> row = {"id": "fused", "p50_seconds": 2.0, "low_seconds": 1.9, "high_seconds": 2.1}
    >>> once = {"command": "bench swap", "strategies": [row]}
    >>> half = {key: value if key == "id" else value / 2 for key, value in row.items()}
    >>> again = {"command": "bench swap", "strategies": [half]}
    >>> [(row["name"], row["ratio"], row["verdict"]) for row in compared(once, again).table("rows").rows]
    [('fused', 0.5, 'faster')]
    """
    if before.get("command") != after.get("command"):
        raise CompatibilityError(
            f"One result is of {quoted(before.get('command'))}, the other of {quoted(after.get('command'))}, expected "
            "two of one benchmark.",
            hint="lora-lab bench history lists them.",
        )
    old, new = dict(_measured(before)), dict(_measured(after))
    rows = tuple(
        _row(name, old.get(name), new.get(name)) for name in [*old, *(name for name in new if name not in old)]
    )
    differences = tuple(_differences(before, after))
    said = [f"{row['key']}: {row['before']} → {row['after']}" for row in differences]
    findings = (Finding("other_environment", f"Not measured under the same conditions: {'; '.join(said)}."),)
    return Report(
        "bench compare",
        f"{before.get('command')}, before and after",
        tables=(
            Table("rows", "Before and after", _ROWS, rows, key="name"),
            Table("differences", "What else differs", _DIFFERENCES, differences, key="key"),
        ),
        findings=findings if said else (),
    )


def _measured(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row that holds a time, under what tells it apart."""
    for rows in document.values():
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and _time(row.get("p50_seconds")) is not None:
                yield " ".join(str(row[name]) for name in NAMES if name in row), row


def _row(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> dict[str, Any]:
    before, after = (None if row is None else row["p50_seconds"] for row in (old, new))
    ratio = after / before if before and after is not None else None
    if old is None or new is None:
        verdict = "only after" if old is None else "only before"
    else:
        (low, high), (new_low, new_high) = _interval(old), _interval(new)
        is_apart = new_low > high or new_high < low
        is_more = ratio is not None and abs(ratio - 1.0) >= _LEAST_CHANGE
        verdict = "same" if ratio is None or not (is_apart and is_more) else "faster" if ratio < 1.0 else "slower"
    return {"name": name, "before_seconds": before, "after_seconds": after, "ratio": ratio, "verdict": verdict}


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    median = row["p50_seconds"]
    low, high = (_time(row.get(name)) for name in ("low_seconds", "high_seconds"))
    return median if low is None else low, median if high is None else high


def _time(value: object) -> float | None:
    """`value` where it is a number that a time can be: a file may hold anything."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if 0 <= value < math.inf else None


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings and environment that are not the same; what was asked for and is of the workload too is told once."""
    told = []
    for group in ("environment", "parameters", "workload"):
        old, new = (one.get(group) for one in (before, after))
        old, new = (one if isinstance(one, dict) else {} for one in (old, new))
        for key in [*old, *(key for key in new if key not in old)]:
            row = {"key": key, "before": old.get(key), "after": new.get(key)}
            if key not in _PASSING and row["before"] != row["after"] and row not in told:
                told.append(row)
                yield row
