"""Commands that plugins bring, made from their declarations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_lab.domain.parameters import ParameterKind
from lora_lab.errors import LoraLabError

if TYPE_CHECKING:
    from lora_lab.domain.parameters import Parameter


def plugged_command(name: str) -> click.Command | None:
    """The command called `name` that a plugin declares; None when none does."""
    from lora_lab.cli.commands import plugged
    from lora_lab.session import Session

    spec = Session().registry.commands.get(name)
    return None if spec is None else plugged(spec)


def option_of(parameter: Parameter) -> click.Option:
    """A declared parameter as an option; its value is read and checked by the declaration itself."""

    def read(context: click.Context, option: click.Parameter, value: Any) -> Any:
        del context, option
        try:
            return parameter.parse(value) if isinstance(value, str) else value
        except LoraLabError as error:
            raise click.UsageError(str(error)) from None

    is_flag = parameter.kind is ParameterKind.BOOLEAN
    name = "--" + parameter.id.replace("_", "-")
    return click.Option(
        [f"{name}/--no-{name[2:]}" if is_flag else name, parameter.id],
        default=parameter.default,
        type=None if is_flag else str,
        callback=None if is_flag else read,
        help=parameter.title + ("" if is_flag else f" (default {parameter.default})."),
    )
