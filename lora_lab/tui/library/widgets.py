"""The library's table, its filter line, and what stands there when there is nothing to list."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.content import Content
from textual.widgets import Input, Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.binding import BindingType

_FILTER_HELP = (
    "A filter takes words, -word, base:qwen, type:lora, tag:dora and r>=16 (also alpha params size norm eff modules)."
)


class LibraryTable(LabTable, inherit_bindings=False):
    """Adapters and base models."""

    HELP_TITLE = "Library"
    HELP = _FILTER_HELP
    BINDINGS: ClassVar[list[BindingType]] = [
        *LabTable.BINDINGS,
        bindings.key(
            "space", "screen.mark", "Mark", "Mark as A, then as B; again to unmark", id="library.mark", show=True
        ),
        bindings.key("slash", "screen.filter", "Filter", "Filter as you type", id="filter", show=True),
        bindings.key(
            "s",
            "screen.sort",
            "Sort",
            "Sort by the column the cursor is in (h and l choose it); again: the other way round",
            id="library.sort",
            show=True,
        ),
        bindings.key("Y", "screen.copy_all", "Copy all", "Copy every row shown", id="library.copy_all"),
    ]


class FilterInput(Input, inherit_bindings=False):
    """Where the filter is typed."""

    HELP_TITLE = "Filter"
    HELP = _FILTER_HELP
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key(
            "enter", "submit", "Keep", "Keep the filter and go back to the table", id="filter.keep", show=True
        ),
        bindings.key(
            "escape", "screen.leave", "Undo", "Go back to the filter and the row of before", id="filter.undo", show=True
        ),
        *(binding for binding in bindings.described(Input.BINDINGS, "filter") if binding.key != "enter"),
    ]
    DEFAULT_CSS = """
    FilterInput { display: none; dock: bottom; height: 1; border: none; padding: 0 1; background: $panel; }
    FilterInput:focus { border: none; }
    """


class Emptiness(Static):
    """Why there is nothing to see, and what to do about it."""

    DEFAULT_CSS = """
    Emptiness {
        display: none; width: 1fr; height: 1fr; padding: 0 2;
        content-align: center middle; text-align: center; color: $foreground 85%;
    }
    """

    def explain(
        self, sources: Sequence[str], failures: Sequence[tuple[str, str]], typed: str, total: int, *, is_complete: bool
    ) -> None:
        """Choose the words: a source that failed, a scan that runs, a filter that keeps nothing, an empty folder."""
        if total:
            lines = [f"None of {total} matches “{typed}”.", "", "esc clears the filter"]
        elif failures:
            lines = [line for failure in failures for line in failure if line]
        elif not is_complete:
            lines = ["Reading headers…"]
        else:
            lines = [
                f"No adapters in {' '.join(sources)}",
                "",
                "Put a folder with adapter_config.json there and press r,",
                "open another folder:  lora-lab open FOLDER",
                "or an adapter of the Hub:  lora-lab open org/name",
            ]
        self.update(Content("\n").join([Content(safe_text(line)) for line in lines]))
