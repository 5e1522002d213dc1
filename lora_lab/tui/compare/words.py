"""What is said about two adapters' subspaces: numbers with their random baseline, reasons, findings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from textual.content import Content

from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.compare.feed import SIDES
from lora_lab.tui.detail.tables import cell_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.domain.report import Finding, Report
    from lora_lab.tui.compare.feed import Compared, Grid

_DIM: Final = "$foreground 65%"
_MOST_FINDINGS: Final = 3
_MOST_NAMES: Final = 200


def _labelled(label: str, value: str) -> Content:
    return Content.assemble(Content.styled(f"{label} ", _DIM), Content.styled(value, "bold"))


def cursor_parts(grid: Grid, at: tuple[int, int]) -> list[Content]:
    """The value under the cursor with the digits of the report, and random subspaces' value beside it."""
    row, column = at
    phi, chance = grid.at(row, column)
    said = "undefined" if phi is None else repr(phi)
    times = f"  φ is {text.number(phi / chance, 3)}× that" if phi is not None and chance else ""
    return [
        Content.assemble(
            Content.styled(f"i={row + 1} j={column + 1}  ", "$text-accent"),
            Content.styled("φ=", _DIM),
            Content.styled(said, "bold $text-accent"),
        ),
        Content.assemble(_labelled("random", text.number(chance)), Content.styled(times, _DIM)),
    ]


def fact_parts(row: Mapping[str, Any], digits: int = 4) -> list[Content]:
    """The numbers of one module, each with its label, with so many significant digits."""
    rank_a, rank_b = cell(row.get("rank_a")), cell(row.get("rank_b"))

    def said(column: str) -> str:
        return text.number(row.get(column), digits)

    return [
        Content.assemble(
            _labelled(f"φ({rank_a},{rank_b})", said("phi_full")), "  ", _labelled("random", said("phi_full_random"))
        ),
        _labelled("ranks", f"{rank_a}, {rank_b}"),
        _labelled("cos ΔW", said("cosine")),
        _labelled("projection", said("projection_distance")),
        _labelled("Grassmann", said("grassmann_distance")),
        _labelled("angles", angles(row.get("principal_angles_radians"), digits)),
        _labelled("d", cell(row.get("dimension"))),
    ]


def cell(value: Any) -> str:
    """A whole number, or a dash."""
    return text.NOT_THERE if value is None else safe_text(value)


def angles(radians: Sequence[float | None] | None, digits: int = 4) -> str:
    """The smallest and the largest of the principal angles, in degrees and in radians.

    Examples
    --------
    >>> angles([0.5, 1.0]), angles([]), angles([0.25])
    ('28.65°…57.30° (0.5000…1.000 rad)', '—', '14.32° (0.2500 rad)')
    """
    known = [angle for angle in radians or () if angle is not None and math.isfinite(angle)]
    if not known:
        return text.NOT_THERE
    ends = sorted({min(known), max(known)})
    degrees = "…".join(f"{text.number(math.degrees(angle), digits)}°" for angle in ends)
    return f"{degrees} ({'…'.join(text.number(angle, digits) for angle in ends)} rad)"


def undefined_reason(row: Mapping[str, Any], findings: Sequence[Finding] = ()) -> str:
    """Why a module has no φ; nothing when it has one."""
    if row.get("phi_full") is not None:
        return ""
    module = row.get("module")
    said = [finding.message for finding in findings if finding.module == module]
    if said:
        return " ".join(said)
    zero = [name for name, rank in (("A", row.get("rank_a")), ("B", row.get("rank_b"))) if rank == 0]
    if zero:
        verb = "is" if len(zero) == 1 else "are"
        return f"ΔW of {' and '.join(zero)} {verb} zero here: it spans no direction, and φ is undefined."
    return "φ is undefined in this module."


def finding_lines(findings: Sequence[Finding], *, about: str = "", more: str = "") -> list[Content]:
    """The first three, and how many more there are; and `about` the report before that."""
    lines = [
        Content.assemble(Content.styled("⚠ ", "$text-warning"), safe_text(finding.message))
        for finding in findings[:_MOST_FINDINGS]
    ]
    left = len(findings) - _MOST_FINDINGS
    others = f"and {text.plural(left, 'more finding', 'more findings')}{more}" if left > 0 else ""
    last = " · ".join(filter(None, (safe_text(about), others)))
    return [*lines, Content.styled(f"  {last}", _DIM)] if last else lines


def refusal(reason: str, hint: str) -> Content:
    """A sentence about what went wrong, and the next step."""
    said = Content.assemble(Content.styled("✗ ", "$text-error"), safe_text(reason))
    return Content.assemble(said, "\n", Content.styled("→ ", "$text-accent"), safe_text(hint)) if hint else said


def only_in(report: Report) -> dict[str, list[str]]:
    """Modules that one of the two alone has, under ``A`` and ``B``."""
    values: dict[str, Any] = next((dict(group.values) for group in report.scalars if not group.id), {})
    return {name: [str(one) for one in values.get(f"only_in_{name.lower()}") or ()] for name in ("A", "B")}


def alone(report: Report) -> str:
    """How many modules are not in both; nothing when all are.

    A module that one of the two lacks has no change there, and no subspace to compare.
    """
    parts = [f"{len(modules)} only in {name}" for name, modules in only_in(report).items() if modules]
    return " · ".join(parts)


def scalar_parts(report: Report) -> list[Content]:
    """Every number about the whole that fits into a line."""
    drawn = ("curve", "heatmap", "list")
    return [
        _labelled(safe_text(column.title), cell_text(group.values.get(column.id), column.kind))
        for group in report.scalars
        for column in group.columns
        if column.kind not in drawn and column.id != "side" and not column.is_wide
    ]


def about_lines(compared: Compared, names: tuple[str, str], report: Report | None) -> list[Content]:
    """Everything about the comparison but its tables."""
    lines = [
        _labelled("A", f"{safe_text(names[0])}  {safe_text(compared.a)}"),
        _labelled("B", f"{safe_text(names[1])}  {safe_text(compared.b)}"),
        _labelled("side", f"{compared.side}: {SIDES[compared.side]}"),
    ]
    if report is None:
        return lines
    lines += [_heading("All modules together"), *scalar_parts(report)]
    lines += [_heading(f"Findings ({len(report.findings)})")]
    lines += [
        Content.assemble(Content.styled("⚠ ", "$text-warning"), safe_text(one.message)) for one in report.findings
    ] or [Content("none")]
    for name, modules in only_in(report).items():
        if modules:
            lines += [_heading(f"Only in {name} ({len(modules)})")]
            lines += [Content(safe_text(module)) for module in modules[:_MOST_NAMES]]
            if len(modules) > _MOST_NAMES:
                lines.append(Content.styled(f"and {len(modules) - _MOST_NAMES} more", _DIM))
    lines += [_heading("What the numbers are"), *_formulas(report)]
    return lines


def _heading(title: str) -> Content:
    return Content.assemble("\n", Content.styled(title, "bold $text-accent"))


def _formulas(report: Report) -> Iterator[Content]:
    for table in report.tables:
        for column in table.columns:
            if column.formula:
                source = f"  {column.reference}" if column.reference else ""
                yield Content.assemble(
                    Content.styled(f"{safe_text(column.title)}  ", "bold"),
                    safe_text(column.formula),
                    Content.styled(safe_text(source), _DIM),
                )
