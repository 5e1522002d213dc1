"""How the tab of a built-in analysis is arranged: its first columns, which curves belong together, what it means.

An analysis that is not named here is shown as its Report declares it, and lacks nothing but the sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from textual.content import Content

from lora_lab.domain.report import ColumnKind
from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.detail.outline import short_labels
from lora_lab.tui.plots.drawings import curve_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.domain.report import Column, Report, Table

_LARGE, _SMALL = 2.0, 0.5  # amplifications from and to which ΔW is stronger or weaker than W along its directions
_FEW, _MOST = 0.25, 0.75  # of what W does along its own leading directions
_AMPLIFIES: Final = "the adapter amplifies"
_HARDLY: Final = "directions that W hardly uses"
_BAR_WIDTH: Final = 16
_SIZES: Final = frozenset({"modules", "parameters", "suggested_parameters"})  # of health: no counts of what is odd
_LONGEST: Final = 24  # letters of a text among numbers


def _no_sentence(_: Report) -> str:
    return ""


def _no_lines(_row: Mapping[str, Any], _width: int) -> list[Content]:
    return []


@dataclass(frozen=True, slots=True)
class Presentation:
    """What a tab adds to a Report.

    ``curves`` are groups of columns that share an axis, a level across them included; ``about`` is one sentence on the
    whole, ``row`` a few lines on the row under the cursor.
    """

    title: str = ""  # of the tab; empty takes the analysis' own
    first: tuple[str, ...] = ()
    order: tuple[str, bool] | None = None
    curves: tuple[tuple[str, ...], ...] = ()
    said: frozenset[str] = frozenset()  # scalars that the sentence holds already
    about: Callable[[Report], str] = _no_sentence
    row: Callable[[Mapping[str, Any], int], list[Content]] = _no_lines


def curve_groups(table: Table, presentation: Presentation) -> list[tuple[Column, ...]]:
    """Columns of `table` that are drawn together, each group with the level across it.

    Where the presentation does not say, curves of one unit and kind of axis share a plot, with every level.
    """
    by_id = {column.id: column for column in table.columns}
    named = [tuple(by_id[name] for name in group if name in by_id) for group in presentation.curves]
    groups = [group for group in named if curve_columns(group)]
    if groups:
        return groups
    alike: dict[tuple[str, bool, str], list[Column]] = {}
    for column in curve_columns(table.columns):
        alike.setdefault((column.unit, column.is_logarithmic, column.index_title), []).append(column)
    markers = [column for column in table.columns if column.is_marker]
    return [(*columns, *markers) for columns in alike.values()]


def presentation_of(analysis_id: str) -> Presentation:
    """How to show the tab of this analysis."""
    return _PRESENTATIONS.get(analysis_id, Presentation())


def _name(row: Mapping[str, Any]) -> str:
    return safe_text(short_labels([str(row.get("module"))])[0], limit=40)


def _scalars(report: Report, group: str) -> Mapping[str, Any]:
    return next((scalars.values for scalars in report.scalars if scalars.id == group), {})


# Amplification.


def _directions(row: Mapping[str, Any]) -> str:
    """Say how much W uses the directions of ΔW, beside its own leading ones."""
    projected: Mapping[str, float | None] = row.get("projected") or {}
    here, most = projected.get("delta"), projected.get("base")
    if here is None or not most:
        return "its own directions"
    if here < _FEW * most:
        return _HARDLY
    return "W's own leading directions" if here > _MOST * most else "directions that W uses, though not its strongest"


def _amplified(row: Mapping[str, Any]) -> str:
    """Say in words what ‖ΔW‖ over what W does along the directions of ΔW means."""
    factor: float | None = row.get("amplification")
    if factor is None:
        return "it is undefined here: ΔW is zero, or W does nothing along its directions"
    if factor >= _LARGE:
        return f"{_AMPLIFIES} {_directions(row)}"
    if factor > _SMALL:
        return f"the adapter is about as strong as W along {_directions(row)}"
    return f"the adapter is small beside what W does along {_directions(row)}"


def _about_amplification(report: Report) -> str:
    totals = _scalars(report, "totals")
    median, largest = totals.get("median_amplification"), totals.get("largest_amplification")
    if median is None:
        return ""
    said = f"Median amplification {text.number(median)}"
    if totals.get("median_random") is not None:
        said += f" (random directions {text.number(totals['median_random'])})"
    rows = [row for table in report.tables if table.id == "modules" for row in table.rows]
    meant = sum(_amplified(row) == f"{_AMPLIFIES} {_HARDLY}" for row in rows)
    if meant:
        said += f": in {meant} of {len(rows)} modules {_AMPLIFIES} {_HARDLY}"
    said += "."
    if largest is not None:
        (module,) = short_labels([str(totals.get("largest_module"))])
        said += f" Largest: {text.number(largest)} in {module}."
    return said


def _amplification_row(row: Mapping[str, Any], width: int) -> list[Content]:
    """Table 7 of the paper for one module: ‖UᵀWV‖ along three sets of directions, and the quotients."""
    projected: Mapping[str, float | None] = row.get("projected") or {}
    largest = max((value for value in projected.values() if value is not None), default=0.0)
    factor = row.get("amplification")
    room = max(0, min(_BAR_WIDTH, width - 36))
    head = Content.assemble(
        Content.styled(f"{_name(row)}  ", "bold"),
        Content.styled("‖ΔW‖ ", "$foreground 65%"),
        text.number(row.get("delta_norm")),
        Content.styled("  ‖W‖ ", "$foreground 65%"),
        text.number(row.get("base_norm")),
        Content.styled(f"  r={row.get('rank')}", "$foreground 65%"),
    )
    title = Content.styled(f"{'directions':<11}{'‖UᵀWV‖':>9} {'':<{room}} {'‖ΔW‖/‖UᵀWV‖':>12}", "$foreground 65%")
    lines = [head, title]
    for key, label, column in (
        ("delta", "of ΔW", "amplification"),
        ("base", "of W", "amplification_base"),
        ("random", "random", "amplification_random"),
    ):
        value = projected.get(key)
        bar = text.bar(value / largest, room) if value is not None and largest > 0 else ""
        lines.append(
            Content.assemble(
                f"{label:<11}{text.number(value):>9} ",
                Content.styled(f"{bar:<{room}}", "$series-1"),
                Content.styled(f" {text.number(row.get(column)):>12}", "bold" if key == "delta" else ""),
            )
        )
    said = f"{text.number(factor)}: {_amplified(row)}."
    return [*lines, Content.styled(said, "$text-accent")]


# Intruder dimensions.


def _about_intruders(report: Report) -> str:
    totals = _scalars(report, "totals")
    modules, concerned, intruders = (totals.get(name) for name in ("modules", "modules_with_intruders", "intruders"))
    if intruders is None:
        return ""
    if not intruders:
        return "No intruder dimension: every leading direction of W+ΔW is close to one that W has."
    return (
        f"{text.plural(int(intruders), 'intruder dimension')} in {concerned} of {modules} modules: leading directions "
        "of W+ΔW that are close to none of W's."
    )


def _intruder_row(row: Mapping[str, Any], width: int) -> list[Content]:
    del width
    count, smallest, threshold = row.get("intruder_count"), row.get("smallest_cosine"), row.get("threshold")
    leading = len(row.get("max_cosines") or ())
    if count is None or smallest is None:
        return [Content.styled(f"{_name(row)}: undefined; the findings say why.", "$text-accent")]
    said = (
        f"{count} of the leading {leading} have a cosine below {text.compact(threshold)} with every direction of W"
        if count
        else f"each of the leading {leading} has a cosine of {text.number(smallest)} or more with one of W's"
    )
    said = f"{_name(row)}: {said}"
    records = row.get("intruders") or ()
    places = _spans([record["index"] for record in records if isinstance(record.get("index"), int)])
    return [Content.styled(safe_text(said + (f": k = {places}." if places else ".")), "$text-accent")]


def _spans(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as one span.

    Examples
    --------
    >>> _spans([1, 2, 3, 7, 9, 10])
    '1–3, 7, 9–10'
    """
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans)


# Health and the pre-flight check.


def _about_health(report: Report) -> str:
    group = next((scalars for scalars in report.scalars if scalars.id == "totals"), None)
    if group is None or group.values.get("modules") is None:
        return ""
    counted = [column for column in group.columns if column.kind is ColumnKind.INTEGER and column.id not in _SIZES]
    parts = [f"{group.values[column.id]} {column.title.lower()}" for column in counted if group.values.get(column.id)]
    modules = text.plural(int(group.values["modules"]), "module")
    said = f"Of {modules}: {', '.join(parts)}." if parts else f"Nothing odd in {modules}."
    share = group.values.get("saved_share")
    if share:
        said += f" The suggested ranks would save {100 * share:.0f} % of the parameters."
    return said


def _about_check(report: Report) -> str:
    if report.verdict is None:
        return ""
    return (
        "✓ Every module has its weight in this base."
        if report.verdict
        else "✗ This adapter does not fit this base as it is."
    )


_PRESENTATIONS: Final[Mapping[str, Presentation]] = {
    "amplify": Presentation(
        "Amplify",
        first=("amplification", "amplification_random", "amplification_base", "delta_norm", "projected.delta"),
        order=("amplification", True),
        said=frozenset({"modules", "median_amplification", "median_random", "largest_module", "largest_amplification"}),
        about=_about_amplification,
        row=_amplification_row,
    ),
    "intruders": Presentation(
        "Intruders",
        first=("intruder_count", "smallest_cosine", "threshold", "rank"),
        order=("intruder_count", True),
        curves=(("max_cosines", "threshold"), ("singular_values",)),
        said=frozenset({"modules", "modules_with_intruders", "intruders"}),
        about=_about_intruders,
        row=_intruder_row,
    ),
    "health": Presentation(
        "Health",
        first=("rank", "suggested_rank", "relative_error", "findings", "numerical_rank", "effective_rank"),
        said=frozenset(
            {
                "modules",
                "dead",
                "not_finite",
                "near_rank_one",
                "over_parametrised",
                "unused_directions",
                "outlying_norm",
                "saved_share",
            }
        ),
        about=_about_health,
    ),
    "check": Presentation(
        "Check", first=("reason", "expected", "got", "suggestions", "shape", "dtype"), about=_about_check
    ),
}


def numbers_of(report: Report, said: frozenset[str] = frozenset()) -> list[tuple[str, Any, ColumnKind]]:
    """Scalars of a report that are shown as they are, without those that a sentence has said: title, value, kind."""
    drawn = (ColumnKind.CURVE, ColumnKind.HEATMAP)
    return [
        (column.title, _short(group.values.get(column.id)), column.kind)
        for group in report.scalars
        for column in group.columns
        if column.kind not in drawn and column.id not in said and group.values.get(column.id) not in ((), [], "")
    ]


def _short(value: Any) -> Any:
    """Text of a length that a line of numbers bears; the export has the whole."""
    return f"{value[:_LONGEST]}…" if isinstance(value, str) and len(value) > _LONGEST else value
