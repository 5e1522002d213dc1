"""What a person asks for: fields by operation, the call that they make, and the command that does the same."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from lora_lab.errors import LoraLabError, quoted
from lora_lab.tui.command_line import session_words

if TYPE_CHECKING:
    from collections.abc import Mapping

Call = Literal["merge", "unmerge", "swap", "verify"]
CALLS: Final[tuple[Call, ...]] = ("merge", "unmerge", "swap", "verify")


class Kind(StrEnum):
    """What is typed into a field."""

    ONE = "one"
    MANY = "many"  # with spaces between, quoted as in a shell
    NUMBERS = "numbers"


class FormField(NamedTuple):
    """One line of the form."""

    id: str  # the keyword of the session's method
    label: str
    flag: str  # of the command line; empty for what stands by itself
    kind: Kind
    about: str  # what is shown while it is empty
    is_needed: bool = False


_MERGED: Final = FormField("merged", "Model", "", Kind.ONE, "the merged model", is_needed=True)
_ADAPTERS: Final = FormField("adapters", "Adapters", "", Kind.MANY, "one or more, with spaces between", is_needed=True)
_BASE: Final = FormField("base", "Base", "--base", Kind.ONE, "the model they were trained on", is_needed=True)
_OUTPUT: Final = FormField("output", "Output", "-o", Kind.ONE, "the folder to appear", is_needed=True)
_STRENGTHS: Final = FormField("strengths", "Strengths", "--strength", Kind.NUMBERS, "one for each adapter; 1 each")
_DTYPE: Final = FormField("dtype", "Dtype", "--dtype", Kind.ONE, "as stored; or float32, bfloat16, float16")
_ROUNDING: Final = FormField("rounding", "Rounding", "--rounding", Kind.ONE, "nearest; or stochastic")
_UNDO: Final = FormField("undo", "Undo file", "--undo", Kind.ONE, "what merge wrote beside the model: exact")
_EXACT: Final = "it is checked, and makes the result exact"
FIELDS: Final[Mapping[Call, tuple[FormField, ...]]] = {
    "merge": (
        *(_ADAPTERS, _STRENGTHS, _BASE, _OUTPUT, _DTYPE, _ROUNDING),
        _UNDO._replace(about="a file to write, which gives the base back without the base"),
    ),
    "unmerge": (
        _MERGED,
        _BASE._replace(about=_EXACT, is_needed=False),
        _UNDO,
        _ADAPTERS._replace(flag="--adapter", about="subtracted, inexact, without base and undo file", is_needed=False),
        _STRENGTHS,
        _OUTPUT,
    ),
    "swap": (
        _MERGED,
        _ADAPTERS._replace(id="from_adapters", label="From", flag="--from", about="what is merged into the model"),
        _ADAPTERS._replace(id="to_adapters", label="To", flag="--to", about="what shall be instead"),
        _STRENGTHS._replace(id="strengths_from", label="From at", flag="--strength-from", about="strengths; 1 each"),
        _STRENGTHS._replace(id="strengths_to", label="To at", flag="--strength-to", about="strengths; 1 each"),
        _BASE._replace(about=_EXACT, is_needed=False),
        *(_UNDO, _OUTPUT, _DTYPE, _ROUNDING),
    ),
    "verify": (
        _MERGED,
        _BASE._replace(about="to check the arithmetic, not only the receipt", is_needed=False),
        _ADAPTERS._replace(flag="--adapter", about="what was merged into it", is_needed=False),
        _STRENGTHS._replace(about="as the receipt says, or 1 each"),
    ),
}


@dataclass(frozen=True)
class Form:
    """A filled form.

    Parameters
    ----------
    call : the operation
    typed : what stands in each field, by its id
    session : options of the session that will do it
    """

    call: Call
    typed: Mapping[str, str]
    session: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> str | None:
        """The sentence that asks for what is not there yet; None when nothing is missing."""
        for one in FIELDS[self.call]:
            if one.is_needed and not self._text(one):
                return f"{one.label} is empty: {one.about}."
        if self.call == "unmerge" and not any(
            self.typed.get(name, "").strip() for name in ("base", "undo", "adapters")
        ):
            return "Give the base or the undo file, which is exact, or the adapters to subtract."
        return None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the session's method.

        Raises
        ------
        LoraLabError
            a quotation has no end, or a strength is no number.
        """
        return {one.id: value for one in FIELDS[self.call] if (value := self._value(one)) not in (None, [])}

    def replaced(self) -> list[str]:
        """What is there already and would be written over: the output, and the undo file of a merge."""
        names = {"verify": (), "merge": ("output", "undo")}.get(self.call, ("output",))
        values = [self._value(one) for one in FIELDS[self.call] if one.id in names]
        return [value for value in values if value is not None and os.path.lexists(value)]

    def command(self) -> str:
        """The command that does the same, quoted for a shell.

        Raises
        ------
        LoraLabError
            as :meth:`arguments`

        Examples
        --------
        >>> Form("merge", {"adapters": "a 'b c'", "base": "m", "output": "out", "strengths": "1 -0.5"}).command()
        "lora-lab merge a 'b c' --strength 1.0 --strength -0.5 --base m -o out"
        """
        words = ["lora-lab", self.call]
        for one in FIELDS[self.call]:
            value = self._value(one)
            for part in value if isinstance(value, list) else [] if value is None else [value]:
                words += [one.flag, str(part)] if one.flag else [str(part)]
        return shlex.join([*words, *session_words(self.session)])

    def _text(self, one: FormField) -> str:
        return self.typed.get(one.id, "").strip()

    def _value(self, one: FormField) -> Any:
        typed = self._text(one)
        if not typed:
            return None
        if one.kind is Kind.ONE:
            return os.path.expanduser(typed)  # noqa: PTH111 - a locator is no path yet
        try:
            words = shlex.split(typed)
        except ValueError:
            raise LoraLabError(f"{one.label} has a quotation mark without its second: {quoted(typed)}.") from None
        if one.kind is Kind.MANY:
            return words
        try:
            return [float(word) for word in words]
        except ValueError:
            raise LoraLabError(f"{one.label} is {quoted(typed)}, expected numbers with spaces between.") from None
