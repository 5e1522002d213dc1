"""The methods that are installed, and fields for their parameters as they are declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option as Line

from lora_lab.domain.parameters import ParameterKind
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.combining.fields import ChoiceField, Entry, Field, FieldLine, NumberEntry, Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.binding import BindingType
    from textual.widget import Widget

    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.contracts import MergeMethod

_MOST_NAME: Final = 20
_NUMBERS: Final = (ParameterKind.INTEGER, ParameterKind.NUMBER)


class MethodList(OptionList, inherit_bindings=False):
    """Methods; the one under the cursor is the one that is chosen."""

    HELP_TITLE = "Methods"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            binding
            for binding in bindings.described(OptionList.BINDINGS, "options")
            if not binding.action.endswith("select")
        ),
        bindings.key("enter,space", "app.focus_next", "Parameters", "Move on to its parameters", id="options.select"),
        *bindings.OPTIONS,
    ]
    DEFAULT_CSS = """
    MethodList {
        height: auto; min-height: 3; max-height: 60%; border: none; background: $background; padding: 0 1;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    MethodList:focus { border: none; background-tint: $background 0%; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.methods: tuple[MergeMethod, ...] = ()

    @property
    def method(self) -> MergeMethod | None:
        """The one that is chosen; None until it is known which there are."""
        return self.methods[self.highlighted] if self.methods and self.highlighted is not None else None

    def offer(self, methods: Sequence[MergeMethod], chosen: str) -> None:
        """Offer these, and go to the one whose id is `chosen`."""
        self.methods = tuple(methods)
        width = min(_MOST_NAME, max((len(method.id) for method in methods), default=0))
        self.clear_options()
        self.add_options([Line(_line(method, width), id=str(place)) for place, method in enumerate(methods)])
        self.choose(chosen)

    def choose(self, name: str) -> None:
        """Go to the method whose id is `name`, or the first."""
        places = [place for place, method in enumerate(self.methods) if method.id == name]
        self.highlighted = places[0] if places else 0 if self.methods else None


def _line(method: MergeMethod, width: int) -> Content:
    return Content.assemble(
        f"{safe_text(method.id, limit=_MOST_NAME):<{width}}  ",
        Content.styled(safe_text(method.title), "$foreground 65%"),
    )


def field_line(parameter: Parameter, number: int) -> FieldLine:
    """A field for one declared parameter: a number with its range, a choice, yes or no, or text."""
    label, hint = parameter.id.replace("_", " "), ""
    usual = "" if parameter.default is None or parameter.is_repeatable else str(parameter.default)
    if parameter.is_repeatable:
        control: Widget = Entry(" ".join(map(str, parameter.default or ())), placeholder="with spaces between")
    elif parameter.kind is ParameterKind.CHOICE:
        control = ChoiceField(_options(parameter.choices, parameter.default), usual)
    elif parameter.kind is ParameterKind.BOOLEAN:
        control = ChoiceField(_options(("true", "false"), parameter.default, yes="yes", no="no"), usual.lower())
    elif parameter.kind in _NUMBERS:
        control, hint = NumberEntry(usual, placeholder=_unset(parameter)), range_of(parameter)
    else:
        control = Entry(usual, placeholder=_unset(parameter))
    about = parameter.title
    return FieldLine(Field(f"setting:{parameter.id}", label, control, hint, about), id=f"combine-setting-{number}")


def _options(values: Sequence[str], default: object, *, yes: str = "true", no: str = "false") -> list[Option]:
    """The values, and before them that nothing is said where that is the default."""
    labels = {"true": yes, "false": no}
    unset = [Option("", "not given")] if default is None else []
    return [*unset, *(Option(value, labels.get(value, value)) for value in values)]


def _unset(parameter: Parameter) -> str:
    return "not given" if parameter.default is None else str(parameter.default)


def range_of(parameter: Parameter) -> str:
    """What a number may be, or nothing where it may be any.

    Examples
    --------
    >>> from lora_lab.domain.parameters import Parameter, ParameterKind
    >>> range_of(Parameter("density", "", ParameterKind.NUMBER, 0.5, 0.0, 1.0))
    '0…1'
    >>> range_of(Parameter("rank", "", ParameterKind.INTEGER, 4, 1))
    '≥ 1'
    """
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        return f"{low:g}…{high:g}"
    if low is not None:
        return f"≥ {low:g}"
    return f"≤ {high:g}" if high is not None else ""
