"""Commands that plugins bring, made from their declarations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_lab.cli.context import emit, make_session, output_options, session_options
from lora_lab.domain.parameters import ParameterKind
from lora_lab.errors import LoraLabError, PluginError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.contracts import CommandSpec


def plugged_command(name: str) -> click.Command | None:
    """The command called `name` that a plugin declares; None when none does."""
    from lora_lab.session import Session

    spec = Session().registry.commands.get(name)
    return None if spec is None else _command(spec)


def _command(spec: CommandSpec) -> click.Command:
    """A declared command as one of ours."""
    parameters: list[click.Parameter] = [_option(parameter) for parameter in spec.parameters]
    if spec.takes_sources:
        parameters.insert(0, click.Argument(["sources"], nargs=-1, metavar="[SRC]..."))

    def call(sources: Sequence[str] = (), **options: Any) -> None:
        session = make_session(options)
        values = {parameter.id: options[parameter.id] for parameter in spec.parameters}
        try:
            report = spec.run(session, sources, values)
        except LoraLabError:
            raise
        except Exception as error:
            owner = session.registry.owner_of("commands", spec.name)
            raise PluginError(
                f"The command {quoted(spec.name)} of the plugin {quoted(owner)} failed: "
                f"{type(error).__name__}: {error}.",
                hint="Tell the plugin's author.",
            ) from error
        emit(report, options)

    command = click.Command(spec.name, callback=call, params=parameters, help=spec.summary)
    return output_options(session_options(command))


def _option(parameter: Parameter) -> click.Option:
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
