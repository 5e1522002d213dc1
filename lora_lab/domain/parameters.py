"""Parameters that an analysis, a method or a command declares once and every shell renders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ParameterKind(StrEnum):
    """What a parameter's value is."""

    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TEXT = "text"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One typed parameter; ``minimum`` and ``maximum`` are inclusive.

    A default of None means that nothing was given. The value of a repeatable one is a tuple, empty when not given.
    """

    id: str
    title: str
    kind: ParameterKind
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    is_repeatable: bool = False

    def parse(self, text: str) -> Any:
        """Read a value as a person types it.

        Raises
        ------
        LoraLabError
            the text is no value of this kind, out of range, or not among the choices.
        """
        return self.check(self._converted(text))

    def check(self, value: Any) -> Any:
        """Give `value` back when it is one this parameter takes."""
        if self.kind is ParameterKind.CHOICE and value not in self.choices:
            raise self._refusal(value, f"one of {', '.join(self.choices)}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_small = self.minimum is not None and value < self.minimum
            too_large = self.maximum is not None and value > self.maximum
            if too_small or too_large or not math.isfinite(value):
                raise self._refusal(value, self._range())
        return value

    def _converted(self, text: str) -> Any:
        try:
            if self.kind is ParameterKind.INTEGER:
                return int(text)
            if self.kind is ParameterKind.NUMBER:
                return float(text)
            if self.kind is ParameterKind.BOOLEAN:
                return {
                    "true": True,
                    "yes": True,
                    "1": True,
                    "false": False,
                    "no": False,
                    "0": False,
                }[text.lower()]
        except (ValueError, KeyError):
            raise self._refusal(text, f"a value of kind {self.kind}") from None
        return text

    def _range(self) -> str:
        low = "-∞" if self.minimum is None else _plain(self.minimum)
        high = "∞" if self.maximum is None else _plain(self.maximum)
        return f"a finite {self.kind} from {low} to {high}"

    def _refusal(self, value: object, expected: str) -> LoraLabError:
        return LoraLabError(
            f"The parameter {self.id} is {quoted(value)}, expected {expected}.",
            hint="" if self.default is None else f"Its default is {self.default}.",
        )


def _plain(bound: float) -> str:
    """A bound as one types it: all digits of a whole number."""
    return str(int(bound)) if float(bound).is_integer() and abs(bound) < 1e15 else f"{bound:g}"


def parse_parameters(declared: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for all of `declared`: those of `given`, read and checked, and the defaults.

    Parameters
    ----------
    given : texts as a person types them, or values; a list of them for a repeatable parameter; None is not given

    Raises
    ------
    LoraLabError
        `given` names a parameter that is not declared, or a value does not fit.
    """
    known = {parameter.id: parameter for parameter in declared}
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise LoraLabError(f"There is no parameter {quoted(name)} here, expected one of: {listed}.")
    return {parameter.id: _value(parameter, given.get(parameter.id)) for parameter in declared}


def _value(parameter: Parameter, given: Any) -> Any:
    if given is None or (isinstance(given, list | tuple) and not given):
        return tuple(parameter.default or ()) if parameter.is_repeatable else parameter.default
    if parameter.is_repeatable:
        several = given if isinstance(given, list | tuple) else (given,)
        return tuple(parameter.parse(str(one)) for one in several)
    if isinstance(given, list | tuple):
        if len(given) > 1:
            raise LoraLabError(f"The parameter {parameter.id} was given {len(given)} times, expected once.")
        given = given[0]
    return parameter.parse(str(given))
