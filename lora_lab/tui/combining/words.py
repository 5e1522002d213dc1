"""What would come out, in words: what fits, ranks, size, error, and what the inputs do to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from textual.content import Content

from lora_lab.domain.report import ColumnKind
from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.detail.outline import short_labels
from lora_lab.tui.detail.tables import cell_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report
    from lora_lab.tui.combining.asking import Asker

_DIM: Final = "$foreground 65%"
_LABEL: Final = 11
_ROOMY: Final = 46  # cells from which on a line has room for a bar
_BAR: Final = 10
#: Rows of each module whose signs are compared: enough for two digits of a share.
SIGN_ROWS: Final = 64
_OTHER_BASE: Final = "other_base"


def foretold(operation: str, report: Report, meeting: Asker | None, width: int) -> list[Content]:
    """The lines about a dry run.

    Parameters
    ----------
    meeting : of the inputs with each other; None where there is one alone
    width : cells of a line
    """
    rows = report.table("modules").rows
    totals = _group(report, "totals")
    checks = ["one base", "shapes fit"] if operation == "combine" and meeting is not None else []
    is_other = any(finding.code == _OTHER_BASE for finding in report.findings)
    if is_other:
        checks = ["shapes fit"]
    lines = [Content("   ").join([_good(check) for check in checks])] if checks else []
    saved = _group(report, "tensors").get("saved_modules") or totals.get("saved_modules") or []
    with_saved = f", {text.plural(len(saved), 'module', 'modules')} whole" if saved else ""
    size = sum(row["size_bytes"] for row in report.table("outputs").rows)
    before = totals.get("parameters_before")
    lines += [
        _line("modules", f"{totals['modules']}{with_saved}"),
        _line("rank", _ranks(rows)),
        _line(
            "parameters",
            cell_text(totals["parameters"], ColumnKind.INTEGER),
            f"of {cell_text(before, ColumnKind.INTEGER)}" if before else "",
        ),
        _line(
            "size",
            text.size(size),
            safe_text(totals.get("dtype") or _group(report, "").get("arguments", {}).get("dtype") or ""),
        ),
        _error(totals.get("relative_error"), rows, width),
    ]
    warnings = [
        Content.assemble(Content.styled("⚠ ", "$text-warning"), safe_text(finding.message))
        for finding in report.findings
    ]
    is_sampled = any(row["shape"][0] > SIGN_ROWS for row in rows)
    return [*lines, *(_meeting(meeting, is_sampled=is_sampled) if meeting is not None else []), *warnings]


def _group(report: Report, name: str) -> Mapping[str, Any]:
    return next((group.values for group in report.scalars if group.id == name), {})


def _good(said: str) -> Content:
    return Content.assemble(Content.styled("✓ ", "$text-success"), said)


def _line(label: str, value: str, note: str = "") -> Content:
    return Content.assemble(
        Content.styled(f"{label:<{_LABEL}}", _DIM),
        Content.styled(value, "bold"),
        Content.styled(f"  {note}" if note else "", _DIM),
    )


def _ranks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ranks before and after, each once where all modules have the same.

    Examples
    --------
    >>> _ranks([{"ranks": [8, 4], "rank": 6}, {"ranks": [8, 4], "rank": 5}])
    '8 + 4 → 5…6'
    >>> _ranks([{"rank": 16}]), _ranks([{"ranks": [8], "rank": 8}, {"ranks": [8, 4], "rank": 8}])
    ('16', '8…12 → 8')
    """
    after = _ends([row["rank"] for row in rows])
    before = {tuple(row["ranks"]) for row in rows if "ranks" in row}
    if not before:
        return after
    if len(before) == 1:
        return f"{' + '.join(map(str, next(iter(before))))} → {after}"
    return f"{_ends([sum(ranks) for ranks in before])} → {after}"


def _ends(numbers: Sequence[int]) -> str:
    return text.span(min(numbers), max(numbers))


def _error(error: float | None, rows: Sequence[Mapping[str, Any]], width: int) -> Content:
    if error is None:
        return _line("error", text.NOT_THERE, "the sum is zero")
    if error == 0.0:
        return _line("error", "0", "exact")
    known = [(row["relative_error"], row["module"]) for row in rows if row.get("relative_error") is not None]
    note = ""
    if known and len(rows) > 1:
        worst, module = max(known)
        named = dict(zip([row["module"] for row in rows], short_labels([row["module"] for row in rows]), strict=True))
        note = f"≤ {text.number(worst, 3)}"
        where = f" {safe_text(named[module], limit=24)}"
        if _LABEL + len(text.number(error)) + 2 + len(note + where) <= width:
            note += where
    bar = text.bar(min(1.0, error), _BAR) if width >= _ROOMY else ""
    return Content.assemble(
        Content.styled(f"{'error':<{_LABEL}}", _DIM),
        Content.styled(text.number(error), "bold"),
        Content.styled(f" {bar}", "$series-2") if bar.strip() else "",
        Content.styled(f"  {note}" if note else "", _DIM),
    )


class _Met(NamedTuple):
    """What a report on interference says in a line or two."""

    cosine: float | None
    energy: float | None
    conflict: float | None
    chance: float | None


def _met(report: Report) -> _Met:
    totals = _group(report, "totals")
    cosines = [row["cosine"] for row in report.table("pairs").rows if row["cosine"] is not None]
    return _Met(
        max(cosines, key=abs, default=None),
        totals.get("energy_ratio"),
        totals.get("sign_conflict"),
        totals.get("sign_conflict_random"),
    )


def _meeting(meeting: Asker, *, is_sampled: bool) -> list[Content]:
    if meeting.reason:
        return [_line("in common", text.NOT_THERE, safe_text(meeting.reason))]
    if meeting.report is None:
        return [_line("cos", text.PENDING), _line("conflict", text.PENDING)]
    met = _met(meeting.report)
    conflict = text.NOT_THERE if met.conflict is None else f"{'≈ ' if is_sampled else ''}{100 * met.conflict:.1f} %"
    chance = "" if met.chance is None else f"chance {100 * met.chance:.0f} %"
    several = len(meeting.report.table("pairs").rows) > 1
    return [
        _line("max |cos|" if several else "cos", text.number(met.cosine, 3), f"energy {text.number(met.energy, 3)}"),
        _line("conflict", conflict, chance),
    ]
