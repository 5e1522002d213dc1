"""The Config tab: what the files say, what is done with it, and what is odd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from lora_lab.domain.adapter import Effect
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.detail.tables import cell_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.report import Finding, Scalars
    from lora_lab.domain.tensors import TensorRef

_LONGEST_VALUE: Final = 4096  # characters of one value
_MOST_LINES: Final = 400  # of one section
_EFFECTS: Final = {
    Effect.HONOURED: ("✓ honoured", "$text-success"),
    Effect.OUTSIDE: ("○ outside ΔW", "$text-warning"),
    Effect.REFUSED: ("✗ refused", "$text-error"),
}
_DIM: Final = "$foreground 65%"


class TextView(VerticalScroll, can_focus=True, inherit_bindings=False):
    """Plain text that scrolls."""

    ALLOW_MAXIMIZE = True
    HELP_TITLE = "Text"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("down,j", "scroll_down", "Down", "Scroll down", id="scroll.down"),
        bindings.key("up,k", "scroll_up", "Up", "Scroll up", id="scroll.up"),
        bindings.key("pagedown,space", "page_down", "Page down", "Scroll down by a page", id="scroll.page_down"),
        bindings.key("pageup", "page_up", "Page up", "Scroll up by a page", id="scroll.page_up"),
        bindings.key("home,g", "scroll_home", "Top", "Scroll to the top", id="scroll.home"),
        bindings.key("end,G", "scroll_end", "Bottom", "Scroll to the bottom", id="scroll.end"),
    ]
    DEFAULT_CSS = """
    TextView { height: 1fr; width: 1fr; background: $background; padding: 0 1; }
    TextView > Static { height: auto; width: 1fr; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.shown = Content("")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(self.shown)

    def show(self, lines: Sequence[Content]) -> None:
        """Show these lines."""
        self.shown = Content("\n").join(lines)
        self.query_one(Static).update(self.shown)


def config_lines(
    adapter: Adapter, findings: Sequence[Finding] = (), totals: Scalars | None = None, failure: str = ""
) -> list[Content]:
    """Everything about an adapter but its numbers, module by module.

    Parameters
    ----------
    adapter : as its headers say
    findings : of reports on it, beyond its own
    totals : of its spectrum, when it is there
    failure : why there is none
    """
    lines = [*_identity(adapter)]
    if failure:
        lines += [_heading("No spectrum"), Content.styled(safe_text(failure), "$text-error")]
    lines += [_heading("What changes ΔW beyond lora_A, lora_B and alpha / rank"), *_features(adapter)]
    everything = list(dict.fromkeys([*adapter.findings, *findings]))
    lines += [_heading(f"Findings ({len(everything)})"), *_capped([_finding(one) for one in everything])]
    if not everything:
        lines.append(Content("none"))
    if totals is not None:
        lines += [_heading("Totals of the spectrum"), *_totals(totals)]
    lines += [_heading("Configuration"), *_capped(list(_json_lines(dict(adapter.configuration))))]
    lines += [_heading(f"Other tensors in the file ({len(adapter.saved)})"), *_capped(_saved(adapter))]
    lines += [_heading("Header metadata"), *_capped(_metadata(adapter))]
    return lines


def _identity(adapter: Adapter) -> list[Content]:
    low, high = adapter.ranks
    pairs = [
        ("path", adapter.path),
        ("format", adapter.format),
        ("type", adapter.peft_type),
        ("base model", adapter.base_model),
        ("revision", adapter.revision),
        ("modules", str(len(adapter.deltas))),
        ("rank", str(high) if low == high else f"{low} … {high}"),
        ("parameters", text.count(adapter.parameters)),
        ("size", text.size(adapter.size_bytes)),
    ]
    return [_pair(label, value) for label, value in pairs if value]


def _features(adapter: Adapter) -> list[Content]:
    if not adapter.features:
        return [Content("nothing")]
    lines = []
    for feature in adapter.features:
        word, colour = _EFFECTS[feature.effect]
        concerned = f" ({text.plural(feature.modules, 'module')})" if feature.modules else ""
        lines.append(
            Content.assemble(
                Content.styled(f"{word:<13}", colour), Content.styled(safe_text(feature.title), "bold"), concerned
            )
        )
        if feature.detail:
            lines.append(Content(f"  {safe_text(feature.detail)}"))
    return lines


def _finding(finding: Finding) -> Content:
    return Content.assemble(
        Content.styled("⚠ ", "$text-warning"),
        safe_text(finding.message),
        Content.styled(f"  {safe_text(finding.code)}", _DIM),
    )


def _totals(totals: Scalars) -> list[Content]:
    return [_pair(column.title, cell_text(totals.values.get(column.id), column.kind), 20) for column in totals.columns]


def _saved(adapter: Adapter) -> list[Content]:
    if not adapter.saved:
        return [Content("none")]
    return [
        Content.assemble(
            safe_text(saved.tensor.name, limit=200),
            Content.styled(f"  {_shape(saved.tensor)}  {safe_text(saved.tensor.dtype)}  {saved.role}", _DIM),
        )
        for saved in adapter.saved
    ]


def _shape(tensor: TensorRef) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _metadata(adapter: Adapter) -> list[Content]:
    if not adapter.metadata:
        return [Content("none")]
    return [_pair(key, value) for key, value in adapter.metadata.items()]


def _pair(label: str, value: str, width: int = 12) -> Content:
    shown = safe_text(value, limit=_LONGEST_VALUE)
    return Content.assemble(Content.styled(f"{safe_text(label, limit=80):<{width}} ", _DIM), shown)


def _heading(title: str) -> Content:
    return Content.assemble("\n", Content.styled(title, "bold $text-accent"))


def _json_lines(value: Any) -> Iterator[Content]:
    """Pretty JSON, line by line; every line is made safe on its own."""
    if not value:
        yield Content("none: there is no adapter_config.json")
        return
    for line in json.dumps(_shortened(value), ensure_ascii=False, indent=2, default=str).split("\n"):
        key, colon, rest = line.partition('": ')
        if colon:
            yield Content.assemble(
                Content.styled(safe_text(key + '"'), "$text-primary"), ": ", safe_text(rest, limit=_LONGEST_VALUE)
            )
        else:
            yield Content(safe_text(line, limit=_LONGEST_VALUE))


def _shortened(value: Any) -> Any:
    """Lists of plain values on one line each."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list) and all(not isinstance(item, dict | list) for item in value):
        return json.dumps(value, ensure_ascii=False) if len(value) > 8 else value
    return value


def _capped(lines: list[Content]) -> list[Content]:
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[:_MOST_LINES], Content.styled(f"… and {len(lines) - _MOST_LINES} more lines", _DIM)]
