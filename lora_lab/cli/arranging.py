"""The commands that make adapters out of adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from lora_lab.cli.context import (
    Command,
    emit,
    make_session,
    module_option,
    output_options,
    session_options,
    stacked,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
_CUT: Final = ("rank", "energy", "error", "parameters", "dtype", "modules", "overwrite", "dry_run", "output")
_HOW: Final = ("method", "strengths", "average_saved_modules", "skip_saved_modules", "saved_modules_from")


def _cut_options(command: Command) -> Command:
    """How much is kept, and where it goes."""
    return stacked(
        command,
        (
            click.option("-o", "--output", required=True, metavar="OUT", help="The folder to appear."),
            click.option("--rank", type=click.IntRange(min=1), metavar="R", help="The most of every module."),
            click.option(
                "--energy",
                type=click.FloatRange(0.0, 1.0, min_open=True),
                metavar="E",
                help="The smallest rank of each module that keeps this share of ‖ΔW‖².",
            ),
            click.option(
                "--error",
                type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
                metavar="e",
                help="The smallest rank of each module within this relative error.",
            ),
            click.option(
                "--parameters",
                type=click.IntRange(min=1),
                metavar="N",
                help="Of all modules together, divided so that the least is lost.",
            ),
            click.option("--dtype", type=click.Choice(_DTYPES), help="Of the factors; the widest of the inputs."),
            click.option("--overwrite", is_flag=True, help="Replace OUT when it is there."),
            click.option("--dry-run", is_flag=True, help="Compute everything, and write nothing."),
            module_option,
            session_options,
            output_options,
        ),
    )


@click.command("combine")
@click.argument("sources", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--method", default="linear", show_default=True, metavar="ID", help="What `lora-lab methods` lists.")
@click.option(
    "--strength",
    "strengths",
    multiple=True,
    type=float,
    metavar="W",
    help="One for each adapter, in order; a negative one subtracts.",
)
@click.option("--param", "settings", multiple=True, metavar="K=V", help="A parameter of the method; may be repeated.")
@click.option("--average-saved-modules", is_flag=True, help="The mean of modules that several bring whole.")
@click.option("--skip-saved-modules", is_flag=True, help="Leave whole modules, such as a classifier, out.")
@click.option("--saved-modules-from", metavar="NAME", help="Whose whole module wins where several bring it.")
@_cut_options
def combine_command(sources: Sequence[str], settings: Sequence[str], **options: Any) -> None:
    """Make one adapter out of several.

    By the change of weights that each of them is, whatever its rank and scaling. To add an adapter to a model there is
    merge; full checkpoints are not combined.
    """
    from lora_lab.cli.commands import parameters_of

    session = make_session(options)
    choices = {name: options[name] for name in (*_HOW, *_CUT)}
    values = parameters_of(settings)
    emit(
        watched(options, lambda watcher: session.combine(sources, settings=values, observer=watcher, **choices)),
        options,
    )


@click.command("resize")
@click.argument("source", metavar="ADAPTER")
@_cut_options
def resize_command(source: str, **options: Any) -> None:
    """Make the best adapter of lower rank.

    With the error that it costs in every module.
    """
    session = make_session(options)
    choices = {name: options[name] for name in _CUT}
    emit(watched(options, lambda watcher: session.resize(source, observer=watcher, **choices)), options)


@click.command("methods")
@session_options
@output_options
def methods_command(**options: Any) -> None:
    """List methods of combine with their parameters."""
    emit(make_session(options).methods(), options)


ARRANGING: Final = (combine_command, resize_command, methods_command)
