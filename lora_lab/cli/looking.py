"""One command for each built-in analysis, made from its declaration."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import click

from lora_lab.cli.context import (
    dry_run_option,
    emit,
    make_session,
    module_option,
    output_options,
    session_options,
    watched,
)
from lora_lab.cli.declared import option_of
from lora_lab.cli.exits import Exit
from lora_lab.extension.contracts import Need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report
    from lora_lab.extension.contracts import Analysis

# What the inputs are called where their number alone would not say it.
_INPUTS: Final = {"intrinsic": "BASE FINETUNED", "budget": "[BASE|config.json]"}
# A difference is a finding, not a failure, unless one asks for it.
_ASKED: Final = frozenset({"diff"})


@cache
def declared() -> Mapping[str, Analysis]:
    """The built-in analyses by id; no plugin is loaded."""
    from lora_lab.analyses.catalogue import BUILT_IN

    return {analysis.id: analysis for analysis in BUILT_IN}


def looking_command(id: str) -> click.Command | None:  # noqa: A002 - the field's own name
    """The command of the analysis called `id`; None when there is none."""
    analysis = declared().get(id)
    return None if analysis is None else _command(analysis)


def exit_of_verdict(report: Report, *, is_asked: bool = False) -> Exit:
    """What a check says as an exit code."""
    is_no = report.verdict is False and (is_asked or report.command not in _ASKED)
    return Exit.NO if is_no else Exit.DONE


def _command(analysis: Analysis) -> click.Command:
    own = {f"parameter_{place}": parameter for place, parameter in enumerate(analysis.parameters)}
    has_base = analysis.base is not Need.NO
    fewest, most = analysis.subjects
    inputs = click.Argument(
        ["sources"], nargs=1 if fewest == most == 1 else -1, required=fewest > 0, metavar=_metavar(analysis)
    )
    parameters: list[click.Parameter] = [inputs]
    if has_base:
        need = "needed" if analysis.base is Need.REQUIRED else "optional"
        parameters.append(click.Option(["--base"], metavar="BASE", help=f"The base model; {need}."))
    parameters += [option_of(name, parameter) for name, parameter in own.items()]
    if has_base or analysis.takes_models:
        parameters.append(dry_run_option())
    if analysis.id in _ASKED:
        parameters.append(click.Option(["--exit-code"], is_flag=True, help="Exit 1 when they differ."))

    def call(
        sources: str | Sequence[str],
        modules: Sequence[str],
        base: str | None = None,
        exit_code: bool = False,
        dry_run: bool = False,
        **options: Any,
    ) -> int:
        session = make_session(options)
        report = watched(
            options,
            lambda watcher: session.analyze(
                analysis.id,
                [sources] if isinstance(sources, str) else sources,
                base=base,
                parameters={parameter.id: options[name] for name, parameter in own.items()},
                modules=modules,
                dry_run=dry_run,
                observer=watcher,
            ),
        )
        emit(report, options)
        return exit_of_verdict(report, is_asked=exit_code)

    summary = f"{analysis.summary}\n\nSource: {analysis.reference}." if analysis.reference else analysis.summary
    command = click.Command(analysis.id, callback=call, params=parameters, help=summary, short_help=analysis.summary)
    return output_options(session_options(module_option(command)))


def _metavar(analysis: Analysis) -> str:
    if analysis.id in _INPUTS:
        return _INPUTS[analysis.id]
    fewest, most = analysis.subjects
    if (fewest, most) == (1, 1):
        return "SRC"
    return "A B" if most == 2 else "A B..."
