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
from lora_lab.cli.declared import parameters_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
_KEPT: Final = ("rank", "energy", "error", "parameters", "dtype", "modules", "base")
_WRITING: Final = ("overwrite", "dry_run", "output")
_WHOLE: Final = ("average_saved_modules", "skip_saved_modules", "saved_modules_from")


def _kept_options(command: Command) -> Command:
    """How much is kept."""
    return stacked(
        command,
        (
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
            click.option(
                "--base",
                metavar="BASE",
                help="The model behind DoRA or PiSSA, which are then taken for what they really do to it.",
            ),
            module_option,
        ),
    )


def _written_options(command: Command) -> Command:
    """Where it goes."""
    return stacked(
        command,
        (
            click.option("-o", "--output", required=True, metavar="OUT", help="The folder to appear."),
            click.option("--overwrite", is_flag=True, help="Replace OUT when it is there."),
            click.option("--dry-run", is_flag=True, help="Compute everything, and write nothing."),
        ),
    )


def _strength_options(command: Command) -> Command:
    """How much of each adapter, and what becomes of modules that they bring whole."""
    return stacked(
        command,
        (
            click.option(
                "--strength",
                "strengths",
                multiple=True,
                type=float,
                metavar="W",
                help="One for each adapter, in order; a negative one subtracts.",
            ),
            click.option("--average-saved-modules", is_flag=True, help="The mean of modules that several bring whole."),
            click.option("--skip-saved-modules", is_flag=True, help="Leave whole modules, such as a classifier, out."),
            click.option(
                "--saved-modules-from", metavar="NAME", help="Whose whole module wins where several bring it."
            ),
        ),
    )


def _chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names}


@click.command("combine")
@click.argument("sources", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--method", default="linear", show_default=True, metavar="ID", help="What `lora-lab methods` lists.")
@click.option("--param", "settings", multiple=True, metavar="K=V", help="A parameter of the method; may be repeated.")
@click.option("--density", metavar="D", help="Short for --param density=D, the share of entries that a method keeps.")
@_strength_options
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="W,W…",
    help="Strengths of one output, OUT-W-W…, one for each adapter; may be repeated. FROM:TO:STEP makes a grid.",
)
@_kept_options
@_written_options
@session_options
@output_options
def combine_command(
    sources: Sequence[str], settings: Sequence[str], density: str | None, sweeps: Sequence[str], **options: Any
) -> None:
    """Make one adapter out of several.

    By the change of weights that each of them is, whatever its rank and scaling. `lora-lab methods A B --rank R` says
    before what each method would lose, `lora-lab interference A B` where they meet. To add an adapter to a model there
    is merge; full checkpoints are not combined (task arithmetic on bases): extract makes adapters of them first.
    Everything is computed on the processor, in float64.
    """
    from lora_lab.domain.sweeps import sets_of_strengths

    if sweeps and options["strengths"]:
        raise click.UsageError("--strength is of one output and --sweep of several: give one of them.")
    session = make_session(options)
    if density is not None:
        settings = (*settings, f"density={density}")
    choices = _chosen(options, "method", *_WHOLE, *_KEPT, *_WRITING) | {"settings": parameters_of(settings)}
    if sweeps:
        sets = sets_of_strengths(sweeps)
        report = watched(options, lambda watcher: session.sweep(sources, strengths=sets, observer=watcher, **choices))
    else:
        choices |= _chosen(options, "strengths")
        report = watched(options, lambda watcher: session.combine(sources, observer=watcher, **choices))
    emit(report, options)


@click.command("resize")
@click.argument("source", metavar="ADAPTER")
@_kept_options
@_written_options
@session_options
@output_options
def resize_command(source: str, **options: Any) -> None:
    """Make the best adapter of lower rank.

    With the error that it costs in every module. With --base it makes a plain adapter of DoRA or PiSSA. Everything is
    computed on the processor, in float64.
    """
    session = make_session(options)
    choices = _chosen(options, *_KEPT, *_WRITING)
    emit(watched(options, lambda watcher: session.resize(source, observer=watcher, **choices)), options)


@click.command("methods")
@click.argument("sources", nargs=-1, metavar="[ADAPTER]...")
@click.option("--method", "methods", multiple=True, metavar="ID", help="Only these; may be repeated.")
@click.option(
    "--param",
    "settings",
    multiple=True,
    metavar="K=V",
    help="Of every method that has it, or METHOD.K=V of one; may be repeated.",
)
@_strength_options
@_kept_options
@session_options
@output_options
def methods_command(sources: Sequence[str], settings: Sequence[str], **options: Any) -> None:
    """List methods of combine, or what each would lose of some adapters.

    Without adapters every method with its parameters. With them all methods are computed, and nothing is written: the
    rank and the size that come out, what is lost of what the method itself says, and how far it is from the exact sum.
    --module GLOB makes a sample of large ones.
    """
    session = make_session(options)
    choices = _chosen(options, "methods", "strengths", *_WHOLE, *_KEPT)
    given = parameters_of(settings)
    if not sources:
        if given or any(choices.values()):
            raise click.UsageError("These options are about adapters, and none was given.")
        emit(session.methods(), options)
        return
    emit(
        watched(options, lambda watcher: session.compare_methods(sources, settings=given, observer=watcher, **choices)),
        options,
    )


ARRANGING: Final = (combine_command, resize_command, methods_command)
