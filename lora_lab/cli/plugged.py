"""Commands that plugins bring, made from their declarations."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from lora_lab.cli.context import emit, make_session, output_options, session_options
from lora_lab.cli.declared import option_of
from lora_lab.errors import PluginError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import CommandSpec
    from lora_lab.extension.registry import PluginRecord


def plugged_command(name: str) -> click.Command | None:
    """The command called `name` that a plugin declares; None when none does."""
    from lora_lab.session import Session

    registry = Session().registry
    spec = registry.commands.get(name)
    return None if spec is None else _command(spec, registry.plugin_of("commands", name))


def _command(spec: CommandSpec, owner: PluginRecord) -> click.Command:
    """A declared command as one of ours."""
    # Names of our own inside, so that no parameter can shadow an option that every command has.
    own = {f"parameter_{place}": parameter for place, parameter in enumerate(spec.parameters)}
    parameters: list[click.Parameter] = [option_of(name, parameter) for name, parameter in own.items()]
    if spec.takes_sources:
        parameters.insert(0, click.Argument(["sources"], nargs=-1, metavar="[SRC]..."))

    def call(sources: Sequence[str] = (), **options: Any) -> None:
        from lora_lab.session.guarded import attributed, checked_report

        session = make_session(options)
        values = {parameter.id: options[name] for name, parameter in own.items()}
        with attributed("command", spec.name, owner):
            report = spec.run(session, sources, values)
        emit(checked_report(report, "command", spec.name, owner), options)

    command = click.Command(spec.name, callback=call, params=parameters, help=spec.summary)
    command = output_options(session_options(command))
    _require_own_options(command, spec, owner)
    return command


def _require_own_options(command: click.Command, spec: CommandSpec, owner: PluginRecord) -> None:
    """Refuse a parameter whose option is taken."""
    flags = Counter(flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts))
    taken = next((flag for flag, count in flags.items() if count > 1), None)
    if taken is not None:
        raise PluginError(
            f"The command {quoted(spec.name)} of the plugin {quoted(owner.name)} declares a parameter for the option "
            f"{quoted(taken)}, which there is already.",
            hint="Tell the plugin's author.",
        )
