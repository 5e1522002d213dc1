"""The form: operation, inputs, method with its parameters, and what the result shall be; what is typed as a recipe."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, OptionList, Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.background import work_beside
from lora_lab.tui.base_dialog import choices_of
from lora_lab.tui.combining.fields import ChoiceField, Entry, FieldLine, Option, values_of
from lora_lab.tui.combining.method_list import MethodList, field_line
from lora_lab.tui.combining.pick import entries_of
from lora_lab.tui.combining.recipe import FROM, OPERATIONS, READS, Operation, Recipe, Source
from lora_lab.tui.combining.result import DTYPES, PLACES, SELDOM, WANTED, WHOLE, place_lines, result_lines
from lora_lab.tui.combining.sources import (
    Facts,
    MethodsRead,
    SourceList,
    SourceRead,
    letter,
    read_methods,
    read_source,
)
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.operation import OperationScreen
from lora_lab.tui.widgets.pane import Overflow, Pane
from lora_lab.tui.widgets.shell_line import ShellLine

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.parameters import Parameter

_ABOUT: Final[Mapping[Operation, str]] = {
    "combine": "one adapter out of several",
    "resize": "the best adapter of lower rank",
    "extract": "a LoRA out of a full fine-tune",
}
_HOW: Final = {
    "resize": (
        "Of each module the leading singular directions of ΔW: no other adapter of that rank comes nearer to it.\n\n"
        "A rank, a share of the energy ‖ΔW‖², a relative error, or a number of parameters says how far to go; the "
        "last is divided among the modules so that the least is lost."
    ),
    "extract": (
        "Of every matrix the best approximation of W_ft − W₀ that a rank allows, 16 when nothing is said; with an "
        "energy the smallest rank of each that keeps this share of ‖W_ft − W₀‖².\n\n"
        "Norms, biases and new modules, for which no factors stand, go along whole where you say so."
    ),
}
_FIRST_METHOD: Final = "linear"


class Words(VerticalScroll, inherit_bindings=False):
    """What the preview says; it can be scrolled where it is longer than the pane."""

    HELP_TITLE = "Preview"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.described(VerticalScroll.BINDINGS, "scroll"),
        *bindings.SCROLL,
    ]


class CombineForm(OperationScreen, inherit_bindings=False):
    """What is typed and chosen.

    Parameters
    ----------
    operation : the one to begin with
    sources : of a combination
    typed : what is known already, by field
    """

    DEFAULT_CSS = """
    CombineForm #combine-top { height: 1; }
    CombineForm #combine-top ChoiceField { width: 40; background: $background; }
    CombineForm #combine-top ChoiceField:focus { background: $primary 25%; }
    CombineForm #combine-about-operation { width: 1fr; color: $foreground 65%; text-wrap: nowrap; }
    CombineForm #combine-left { width: 1fr; max-width: 76; }
    CombineForm #combine-right { width: 1fr; }
    CombineForm.-normal #combine-right { width: 6fr; }
    CombineForm.-normal #combine-left { width: 5fr; }
    CombineForm #combine-inputs { height: auto; max-height: 45%; }
    CombineForm #combine-method { height: 1fr; min-height: 6; }
    CombineForm #combine-about { height: auto; max-height: 3; padding: 0 1; color: $foreground 80%; margin: 0; }
    CombineForm #combine-settings { height: auto; max-height: 50%; }
    CombineForm #combine-how { padding: 0 1; color: $foreground 80%; height: auto; }
    CombineForm #combine-result { height: auto; max-height: 60%; }
    CombineForm #combine-result Overflow, CombineForm #combine-inputs Overflow { height: auto; max-height: 100%; }
    CombineForm #combine-preview { height: 1fr; min-height: 5; }
    CombineForm #combine-words { height: 1fr; padding: 0 1; }
    CombineForm #combine-said { height: auto; }
    CombineForm #combine-said.-stale { color: $foreground 55%; }
    CombineForm #combine-table { display: none; height: 1fr; margin-top: 1; }
    CombineForm.-table #combine-table { display: block; margin-top: 0; }
    CombineForm.-table #combine-words { display: none; }
    CombineForm.-tall.-known #combine-table { display: block; margin-top: 1; }
    CombineForm.-tall.-known #combine-words { display: block; height: auto; max-height: 60%; }
    CombineForm #combine-compared { display: none; height: 1fr; }
    CombineForm.-methods #combine-compared { display: block; }
    CombineForm.-methods #combine-words, CombineForm.-methods #combine-table { display: none; }
    CombineForm.-tall.-methods #combine-compared { margin-top: 1; }
    CombineForm.-tall.-methods #combine-table { display: none; }
    CombineForm ShellLine { color: $foreground 75%; background: $panel; }
    """

    def __init__(self, operation: Operation, sources: Sequence[Source], typed: Mapping[str, str]) -> None:
        super().__init__(operation)
        self._first = operation
        self._sources = tuple(sources)
        self._known = dict(typed)
        self._settings: dict[Parameter, FieldLine] = {}
        self.lines = [*place_lines(typed), *result_lines(typed)]  # of the panes Inputs and Result
        self._stop: list[threading.Event] = []
        self._unreadable = ""  # why there are no methods

    # Building

    def compose_body(self) -> ComposeResult:
        """Four panes, the operation above, the command below."""
        with Horizontal(id="combine-top"):
            yield ChoiceField(tuple(Option(one, one) for one in OPERATIONS), self._first, id="combine-operation")
            yield Static("", id="combine-about-operation")
        with Horizontal():
            with Vertical(id="combine-left"):
                with Pane(title="1 Inputs", id="combine-inputs"), Overflow():
                    yield SourceList(self._sources, id="combine-sources")
                    yield from (line for line in self.lines if line.id in PLACES)
                with Pane(title="2 Method", id="combine-method"):
                    yield MethodList(id="combine-methods")
                    yield Static("", id="combine-about")
                    yield Overflow(id="combine-settings")
                    yield Static("", id="combine-how")
            with Vertical(id="combine-right"):
                with Pane(title="3 Result", id="combine-result"), Overflow():
                    yield from (line for line in self.lines if line.id not in PLACES)
                with Pane(title="4 Preview", id="combine-preview"):
                    with Words(id="combine-words"):
                        yield Static("", id="combine-said")
                    yield ReportTable(id="combine-table")
                    yield ReportTable(id="combine-compared")
        yield ShellLine(id="combine-command")

    def on_mount(self) -> None:
        """Show the fields of the first operation; read headers and methods beside the screen."""
        self._stop.append(work_beside(partial(read_methods, self.lab), self, "methods"))
        self._read_sources()
        self._show_operation()
        self._first_field().focus()

    def on_unmount(self) -> None:
        """Nobody waits any longer."""
        for stop in self._stop:
            stop.set()

    def _first_field(self) -> Any:
        if self.operation == "combine":
            rows = self.sources.rows
            return rows[0].entry if rows else self.query_one(MethodList)
        empty = [name for name in self.recipe.places if not self.recipe.typed.get(name)]
        return self.query_one(f"#combine-{empty[0]} Entry" if empty else "#combine-rank NumberEntry")

    # What is typed

    @property
    def operation(self) -> Operation:
        """The one that is chosen."""
        return self.query_one("#combine-operation", ChoiceField).value  # type: ignore[return-value]

    @property
    def sources(self) -> SourceList:
        """The inputs of a combination."""
        return self.query_one(SourceList)

    @property
    def methods(self) -> MethodList:
        """The methods."""
        return self.query_one(MethodList)

    @property
    def setting_lines(self) -> list[FieldLine]:
        """Of the parameters of the method."""
        method = self.methods.method
        return [self._settings[one] for one in method.parameters if one in self._settings] if method else []

    @property
    def recipe(self) -> Recipe:
        """All of it."""
        settings = values_of(self.setting_lines)
        return Recipe(
            self.operation,
            tuple(self.sources.sources),
            self.methods.method,
            {name.removeprefix("setting:"): typed for name, typed in settings.items()},
            values_of(self.lines),
            self.lab.session_options,
        )

    def settings_of_all(self) -> dict[str, list[str]]:
        """What is typed for the parameters of every method, as ``METHOD.NAME``, where it can be read."""
        found: dict[str, list[str]] = {}
        for method in self.methods.methods:
            lines = [self._settings[one] for one in method.parameters if one in self._settings]
            typed = {name.removeprefix("setting:"): text for name, text in values_of(lines).items()}
            recipe = Recipe("combine", method=method, settings=typed)
            if not recipe.faults():
                found |= {f"{method.id}.{name}": parts for name, parts in recipe.changed_settings().items()}
        return found

    @abstractmethod
    def changed(self) -> None:
        """Something is typed or chosen that was not."""

    @on(Input.Changed)
    @on(ChoiceField.Changed)
    def _field_changed(self, message: Input.Changed | ChoiceField.Changed) -> None:
        message.stop()
        if isinstance(message, ChoiceField.Changed) and message.field.id == "combine-operation":
            self._show_operation()
        self.changed()

    @on(SourceList.Changed)
    def _sources_changed(self) -> None:
        self._offer_saved()
        self._read_sources()
        self.changed()

    @on(OptionList.OptionHighlighted)
    def _method_changed(self) -> None:
        self._show_settings()
        self.changed()

    def show_faults(self, faults: Mapping[str, str]) -> None:
        """Mark the fields that are refused, with the reason below."""
        for line in (*self.lines, *self.setting_lines):
            line.refuse(faults)
        self.sources.draw(faults)

    # What belongs to the operation and the method

    def _show_operation(self) -> None:
        operation = self.operation
        is_combination = operation == "combine"
        self.query_one("#combine-about-operation", Static).update(Content(_ABOUT[operation]))
        # The dot of the operation chosen differs little where colours are not shown.
        self.set_header(operation, _ABOUT[operation] if self.has_class("-narrow") else "")
        self.query_one("#combine-method", Pane).entitle("2 Method" if is_combination else "2 What is done", "")
        self._explain()
        self.sources.display = is_combination
        read = (*READS[operation], *self.recipe.places)
        for line in self.lines:
            line.display = any(field.id in read for field in line.fields)
        for name in ("methods", "about", "settings"):
            self.query_one(f"#combine-{name}").display = is_combination
        how = self.query_one("#combine-how", Static)
        how.display = not is_combination
        how.update(Content(_HOW.get(operation, "")))
        dtype = self.query_one("#combine-dtype ChoiceField", ChoiceField)
        dtype.offer(DTYPES[operation])
        self._base_entry.placeholder = WANTED if operation == "extract" else SELDOM
        self._offer_saved()

    @property
    def _base_entry(self) -> Entry:
        return self.query_one("#combine-base Entry", Entry)

    def _offer_saved(self) -> None:
        """Whole modules may come from each of the inputs."""
        given = self.sources.sources
        several = [Option(f"{FROM}{one.locator}", f"from {letter(place)}") for place, one in enumerate(given)]
        self.query_one("#combine-saved ChoiceField", ChoiceField).offer((*WHOLE, *several))

    async def on_methods_read(self, message: MethodsRead) -> None:
        """Offer the methods, with a field for each of their parameters, one for those that are declared alike."""
        self._unreadable = message.reason
        every = dict.fromkeys(one for method in message.methods for one in method.parameters)
        self._settings = {one: field_line(one, number) for number, one in enumerate(every)}
        for line in self._settings.values():
            line.display = False
        await self.query_one("#combine-settings").mount_all(self._settings.values())
        self.methods.offer(message.methods, _FIRST_METHOD)
        self._show_settings()
        self.changed()

    def _show_settings(self) -> None:
        shown = self.setting_lines
        for line in self._settings.values():
            line.display = line in shown
        self._explain()

    def _explain(self, about: str = "") -> None:
        """Say what the method does, or what the parameter is that has the focus."""
        method = self.methods.method
        if about:
            said = Content(safe_text(about))
        elif method is not None:
            said = Content(safe_text(method.summary))
        else:
            said = Content(safe_text(self._unreadable or "reading which methods there are …"))
        self.query_one("#combine-about", Static).update(said)
        if self.operation == "combine" and method is not None:
            # The row of the method chosen differs in brightness alone, which not every terminal shows.
            self.query_one("#combine-method", Pane).entitle(f"2 Method: {method.id}", method.reference)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Say in a few words what the field takes."""
        about = {line_field.control: line_field.about for line in self.lines for line_field in line.fields}
        self.query_one("#combine-result", Pane).entitle("3 Result", about.get(event.widget, ""))
        settings = {one.control: one.about for line in self.setting_lines for one in line.fields}
        if event.widget in settings or self.methods in (event.widget, self.focused):
            self._explain(settings.get(event.widget, ""))

    # What headers say

    def _read_sources(self) -> None:
        names = self._names()
        for source in self.sources.sources:
            if source.locator not in self.sources.facts:
                name = names.get(source.locator) or self.sources.facts_of(source.locator).name
                self.sources.facts[source.locator] = Facts(name)
                task = partial(read_source, self.lab, source.locator, name)
                self._stop.append(work_beside(task, self, "source"))

    def _names(self) -> dict[str, str]:
        """What the library calls its rows."""
        return {entry.path: entry.name for entry in entries_of(self.lab)}

    def _base_of(self, base_model: str | None) -> str | None:
        """The base in use, or the only one of the library with the name that an adapter gives."""
        known = self.lab.bases.base_for(base_model)
        named = [one.locator for one in choices_of(entries_of(self.lab), base_model) if one.is_named]
        return known or (named[0] if len(named) == 1 else None)

    def on_source_read(self, message: SourceRead) -> None:
        """Show its rank, or why it cannot be read."""
        facts = self.sources.facts[message.locator] = message.facts
        if facts.needs_base and not self._base_entry.value:
            self._base_entry.value = self._base_of(facts.base_model) or ""
        self.sources.draw(self.recipe.faults())
