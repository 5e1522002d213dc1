"""The numbers of one alternative in words and bars; every number is the report's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from textual.content import Content

from lora_lab.domain.report import ColumnKind
from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.detail.tables import cell_text
from lora_lab.tui.widgets.table import TableColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Column, Report

_LABEL_WIDTH: Final = 13
_PAIR_WIDTH: Final = 17
_NUMBER_WIDTH: Final = 7
_LONGEST_BAR: Final = 40
_NUMERIC: Final = (ColumnKind.INTEGER, ColumnKind.NUMBER, ColumnKind.BYTES)


def facts(row: Mapping[str, Any], report: Report, width: int) -> list[Content]:
    """What one alternative costs: LoRA's figure above the full one, with bars on one scale."""
    model = next((group.values for group in report.scalars if not group.id), {})
    number = int(model.get("tasks") or 1)
    tasks = "1 task" if number == 1 else f"{text.count(number)} tasks"
    lines = [
        _line("parameters", cell_text(row.get("parameters"), ColumnKind.INTEGER), strong=True),
        _line("share", f"{percent(row.get('share'))} of {text.count(model.get('model_parameters'))}"),
        _line("compression", f"{times(row.get('compression'))} in {row.get('matrices')} matrices"),
        _line("adapter", f"{text.size(row.get('bytes'))}{_dtype(model)}"),
    ]
    if model.get("head"):
        trained = cell_text(row.get("trained"), ColumnKind.INTEGER)
        lines.insert(1, _line("with head", f"{trained} trained"))
    stored = (row.get("bytes_for_tasks"), row.get("full_bytes_for_tasks"))
    trained_in = (row.get("training_bytes"), row.get("full_training_bytes"))
    return [
        *lines,
        *_pair((f"{tasks}, LoRA", f"{tasks}, full"), stored, width),
        *_pair(("training, LoRA", "training, full"), trained_in, width),
    ]


def _dtype(model: Mapping[str, Any]) -> str:
    dtype, width = model.get("dtype"), model.get("bytes_per_parameter")
    said = safe_text(dtype, limit=12) if dtype else "dtype not said"
    return f"  {said}, {width} bytes each" if width else ""


def _pair(labels: tuple[str, str], values: tuple[int | None, int | None], width: int) -> list[Content]:
    """Two numbers of bytes with bars of one scale."""
    largest = max((value for value in values if value), default=0)
    room = max(0, min(_LONGEST_BAR, width - _PAIR_WIDTH - 1 - _NUMBER_WIDTH))
    lines = []
    for label, value, colour in zip(labels, values, ("$series-1", "$series-2"), strict=True):
        bar = text.bar(value / largest, room) if value else ""
        lines.append(
            Content.assemble(
                Content.styled(f"{label:<{_PAIR_WIDTH}}", "$foreground 65%"),
                f"{text.size(value):>{_NUMBER_WIDTH}} ",
                Content.styled(bar, colour),
            )
        )
    return lines


def _line(label: str, value: str, *, strong: bool = False) -> Content:
    shown = Content.styled(value, "bold $text-primary") if strong else Content(value)
    return Content.assemble(Content.styled(f"{label:<{_LABEL_WIDTH}}", "$foreground 65%"), shown)


def percent(share: float | None) -> str:
    """Write a share in percent.

    Examples
    --------
    >>> percent(0.035232), percent(None)
    ('3.52 %', '—')
    """
    return text.NOT_THERE if share is None else f"{text.number(100 * share, 3)} %"


def times(factor: float | None) -> str:
    """Write how many times.

    Examples
    --------
    >>> times(25.0909), times(None)
    ('25.1×', '—')
    """
    return text.NOT_THERE if factor is None else f"{factor:.3g}×"


def columns_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[TableColumn, ...]:
    """Columns of the table of ranks: the rank first, then what the report declares, without what all rows share."""
    chosen = [column for column in columns if column.kind in _NUMERIC and column.id not in ("rank", "matrices")]
    chosen.sort(key=lambda column: column.is_wide)
    shown = [TableColumn("rank", "r", max(4, *(len(str(row["rank"])) for row in rows)) if rows else 4, is_right=True,
                         is_fixed=True)]  # fmt: skip
    for column in chosen:
        widest = max((len(shown_cell(row, column)) for row in rows), default=4)
        title = safe_text(column.title, limit=20)
        shown.append(TableColumn(column.id, title, max(len(title), widest), is_right=True))
    return tuple(shown)


def shown_cell(row: Mapping[str, Any], column: Column) -> str:
    """One cell of the table of ranks."""
    value = row.get(column.id)
    return percent(value) if column.id == "share" else cell_text(value, column.kind)
