"""Declared parameters as options of a command, and values of those that are given as K=V."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_lab.domain.parameters import ParameterKind
from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.parameters import Parameter


def option_of(key: str, parameter: Parameter) -> click.Option:
    """Make an option of a declared parameter; its value is read and checked by the declaration itself.

    Parameters
    ----------
    key : what the command's function is given the value as
    """

    def read(context: click.Context, option: click.Parameter, value: Any) -> Any:
        del context, option
        try:
            return _read(parameter, value)
        except LoraLabError as error:
            raise click.BadParameter(error.message) from None

    is_flag = parameter.kind is ParameterKind.BOOLEAN
    name = "--" + parameter.id.replace("_", "-")
    return click.Option(
        [f"{name}/--no-{name[2:]}" if is_flag else name, key],
        default=None if parameter.is_repeatable else parameter.default,
        type=None if is_flag else str,
        callback=None if is_flag else read,
        multiple=parameter.is_repeatable,
        metavar=None if is_flag else "|".join(parameter.choices) or parameter.kind.value.upper(),
        help=f"{parameter.title}; may be repeated." if parameter.is_repeatable else f"{parameter.title}.",
        show_default=parameter.default is not None,
    )


def _read(parameter: Parameter, value: Any) -> Any:
    if parameter.is_repeatable:
        return tuple(parameter.parse(text) for text in value)
    return parameter.parse(value) if isinstance(value, str) else value


def parameters_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by name of parameters that are given as K=V."""
    values: dict[str, list[str]] = {}
    for key, value in map(_split, texts):
        values.setdefault(key, []).append(value)
    return values


def _split(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise LoraLabError(f"The parameter {quoted(text)} has no value, expected K=V.")
    return key, value
