"""What is known of the row under the cursor."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any, ClassVar

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from lora_lab.domain.library import EntryKind
from lora_lab.domain.modules import layer_of, natural_key, projection_of
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.leaving import Leaving
from lora_lab.tui.library.digest import all_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report
    from lora_lab.tui.library.rows import Row

_LABEL_WIDTH = 9
_MOST_FINDINGS = 8


class SidePanel(Leaving, VerticalScroll, inherit_bindings=False):
    """Facts about one row: from its headers at once, from its spectrum when that has come."""

    HELP_TITLE = "Facts about the row"
    ALLOW_MAXIMIZE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.described(VerticalScroll.BINDINGS, "scroll"),
        *bindings.SCROLL,
    ]
    DEFAULT_CSS = """
    SidePanel { padding: 0 1; background: $background; }
    SidePanel > Static { width: 1fr; height: auto; }
    """

    def __init__(self) -> None:
        super().__init__(id="side")
        self._row: Row | None = None
        self._inspection: Report | None = None

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static("", id="side-text")

    def show(self, row: Row | None, inspection: Report | None) -> None:
        """Show `row`; `inspection` is its header-level report, as soon as it is there."""
        if row is None or self._row is None or row.entry.path != self._row.entry.path:
            self.scroll_to(y=0, animate=False)
        self._row, self._inspection = row, inspection
        self.draw()

    def on_resize(self) -> None:
        """Lines are cut and bars scaled to the width."""
        self.draw()

    def draw(self) -> None:
        """Write the text anew."""
        width = max(20, self.scrollable_content_region.width or 30)
        lines = [] if self._row is None else facts(self._row, self._inspection, width)
        self.query_one("#side-text", Static).update(Content("\n").join(lines))


def facts(row: Row, inspection: Report | None, width: int) -> list[Content]:
    """Lines of the panel, of at most `width` cells where they are not sentences."""
    entry = row.entry
    if entry.error:
        return [*_wrapped_error(row), Content(""), *_where(row)]
    lines: list[Content] = []
    if entry.kind == EntryKind.ADAPTER:
        lines += _adapter_lines(row, inspection, width)
    else:
        lines += [_line("kind", "base model"), _line("params", text.count(entry.parameters))]
        if entry.shards is not None:
            lines.append(_line("shards", str(entry.shards)))
    lines.append(_line("size", f"{text.size(entry.size_bytes)}  {safe_text(entry.dtype or '')}".rstrip()))
    lines += _spectrum_lines(row, width)
    lines += _finding_lines(row, inspection)
    return [*lines, Content(""), *_where(row)]


def _adapter_lines(row: Row, inspection: Report | None, width: int) -> list[Content]:
    entry = row.entry
    modules = _modules(inspection)
    lines = [_line("base", safe_text(entry.base_model or text.NOT_THERE)), _line("type", row.type)]
    if entry.rank_max is not None:
        alpha = "mixed" if row.has_mixed_alpha else text.compact(entry.alpha)
        lines.append(_line("rank", f"{row.cell('r').text}   α {alpha}"))
    scalings = sorted({module["scaling"] for module in modules if module.get("scaling") is not None})
    if scalings:
        span = text.compact(scalings[0])
        if len(scalings) > 1:
            span += f" … {text.compact(scalings[-1])}"
        lines.append(_line("scaling", span))
    targets = sorted({projection_of(str(module["module"])) for module in modules}, key=natural_key)
    if targets:
        first, *rest = textwrap.wrap(" ".join(map(safe_text, targets)), width - _LABEL_WIDTH - 1)
        lines += [_line("targets", first), *(_line("", more) for more in rest)]
    if entry.modules is not None:
        layers = len({layer_of(str(module["module"])) for module in modules} - {None})
        lines.append(_line("modules", f"{entry.modules}" + (f" in {text.plural(layers, 'layer')}" if layers else "")))
    lines.append(_line("params", text.count(entry.parameters)))
    return lines


def _spectrum_lines(row: Row, width: int) -> list[Content]:
    if row.failure:
        return [Content(""), Content.styled("No spectrum", "bold $text-error"), Content(safe_text(row.failure))]
    if row.digest is None:
        return []
    lines = [
        Content(""),
        _line("‖ΔW‖_F", text.number(row.value("norm")), strong=True),
        _line("eff. rank", f"{text.number(row.value('eff'))} mean", strong=True),
    ]
    if len(row.digest.layers) > 1:
        lines += [Content(""), _heading("‖ΔW‖ per layer"), *_layer_bars(row.digest.layers, width)]
    if row.digest.top:
        lines += [Content(""), _heading("largest modules"), *_top_modules(row.digest.top, width)]
    return lines


def _layer_bars(layers: Mapping[int, float], width: int) -> list[Content]:
    """Bars as wide as the panel allows, and the numbers of the first and the last layer under them."""
    values: list[float | None] = list(layers.values())
    first, last = min(layers), max(layers)
    wide = max(1, width // len(values))
    if len(values) > width:  # more layers than cells: each cell shows the largest of its layers
        step = math.ceil(len(values) / width)
        values = [max(v for v in values[i : i + step] if v is not None) for i in range(0, len(values), step)]
    drawn = "".join(bar * min(wide, 3) for bar in text.bars(values))
    scale = str(first) + str(last).rjust(max(1, len(drawn) - len(str(first))))
    return [Content.styled(drawn, "$text-primary"), Content.styled(scale, "$foreground 65%")]


def _top_modules(top: Sequence[tuple[str, float]], width: int) -> list[Content]:
    names = [safe_text(short_module(module)) for module, _ in top]
    room = min(max(map(len, names)), width - 9)
    bar_width = max(0, min(10, width - room - 9))
    largest = top[0][1] or 1.0
    return [
        Content.assemble(
            f"{safe_text(name, limit=room):<{room}} {text.number(norm):>7} ",
            Content.styled(text.bar(norm / largest, bar_width), "$text-primary"),
        )
        for name, (_, norm) in zip(names, top, strict=True)
    ]


def short_module(module: str) -> str:
    """Name a module by its layer and what it is there.

    Examples
    --------
    >>> short_module("model.layers.11.self_attn.v_proj"), short_module("lm_head")
    ('L11 v_proj', 'lm_head')
    """
    layer = layer_of(module)
    return projection_of(module) if layer is None else f"L{layer} {projection_of(module)}"


def _finding_lines(row: Row, inspection: Report | None) -> list[Content]:
    lines: list[Content] = []
    if row.entry.features:
        lines.append(_line("features", " ".join(map(safe_text, row.entry.features))))
    messages = all_messages([inspection, row.digest])
    lines += [
        Content.assemble(Content.styled("⚠ ", "bold $text-warning"), safe_text(message))
        for message in messages[:_MOST_FINDINGS]
    ]
    if len(messages) > _MOST_FINDINGS:
        lines.append(Content.styled(f"  and {len(messages) - _MOST_FINDINGS} more, in the adapter's own screen", "dim"))
    if not messages and row.entry.warnings:
        lines.append(Content.styled(f"⚠ {text.plural(row.entry.warnings, 'warning')}", "$text-warning"))
    return [Content(""), *lines] if lines else []


def _wrapped_error(row: Row) -> list[Content]:
    lines = [Content.styled("✗ cannot be read", "bold $text-error"), Content(safe_text(row.entry.error))]
    if row.entry.hint:
        lines += [Content(""), Content.assemble(Content.styled("→ ", "$text-accent"), safe_text(row.entry.hint))]
    return lines


def _where(row: Row) -> list[Content]:
    return [Content.styled(safe_text(row.entry.path), "$foreground 60%")]


def _heading(title: str) -> Content:
    return Content.styled(title, "$foreground 65%")


def _line(label: str, value: str, *, strong: bool = False) -> Content:
    shown = Content.styled(value, "bold $text-primary") if strong else Content(value)
    return Content.assemble(Content.styled(f"{label:<{_LABEL_WIDTH}} ", "$foreground 65%"), shown)


def _modules(inspection: Report | None) -> list[Mapping[str, Any]]:
    if inspection is None:
        return []
    return [row for table in inspection.tables if table.id == "modules" for row in table.rows]
