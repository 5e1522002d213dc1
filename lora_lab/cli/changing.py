"""The commands that write models, and the one that proves what they wrote."""

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
from lora_lab.cli.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.cli.context import Progress
    from lora_lab.domain.report import Report

_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
_MATCHING: Final = ("partial", "skip_saved_modules", "saved_modules_from")
_HOW: Final = ("dtype", "rounding", "modules", *_MATCHING)
_WRITING: Final = ("overwrite", "resume", "dry_run")
_OUTPUT = click.option("-o", "--output", required=True, metavar="OUT", help="The folder to appear.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace OUT when it is there.")
_RESUME = click.option("--resume", is_flag=True, help="Go on with what an interrupted run has finished.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
_STRENGTH_HELP: Final = "One for each adapter, in order."


def _strength(flag: str, name: str, text: str) -> Callable[[Command], Command]:
    return click.option(flag, name, multiple=True, type=float, metavar="W", help=text)


def _matching_options(command: Command) -> Command:
    """How an adapter and a base are brought together."""
    return stacked(
        command,
        (
            click.option("--partial", is_flag=True, help="Leave out modules that the base lacks, by name."),
            click.option("--skip-saved-modules", is_flag=True, help="Leave whole modules, such as a classifier, out."),
            click.option(
                "--saved-modules-from", metavar="NAME", help="Whose whole module wins where several bring it."
            ),
        ),
    )


def _rounding_options(command: Command) -> Command:
    """What the sums become."""
    return stacked(
        command,
        (
            click.option("--dtype", type=click.Choice(_DTYPES), help="Of every weight; its own when not given."),
            click.option(
                "--rounding",
                type=click.Choice(("nearest", "stochastic")),
                default="nearest",
                show_default=True,
                help="Stochastic keeps the mean of updates too small for the dtype.",
            ),
        ),
    )


def _every_option(command: Command) -> Command:
    return stacked(command, (module_option, session_options, output_options))


def _chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names}


def _done(options: dict[str, Any], work: Callable[[Progress], Report]) -> Report:
    """Do `work`, which counts bytes, and show what came of it."""
    report = watched(options, work, is_bytes=True)
    emit(report, options)
    return report


@click.command("merge")
@click.argument("sources", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--base", required=True, metavar="BASE", help="The model that the adapters were trained on.")
@_OUTPUT
@_strength("--strength", "strengths", _STRENGTH_HELP)
@_rounding_options
@_matching_options
@click.option("--undo", metavar="FILE", help="Write what gives the base back without the base.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinity through, in weights and in factors.")
@_OVERWRITE
@_RESUME
@_DRY_RUN
@_every_option
def merge_command(sources: Sequence[str], base: str, output: str, **options: Any) -> None:
    """Merge adapters into a base, with a receipt.

    The output is divided into files as the base is; tensors that no adapter touches keep their bytes.
    """
    session = make_session(options)
    choices = _chosen(options, *_HOW, "strengths", "undo", "allow_nonfinite", *_WRITING)
    _done(options, lambda watcher: session.merge(sources, base=base, output=output, observer=watcher, **choices))


@click.command("unmerge")
@click.argument("merged", metavar="MERGED")
@_OUTPUT
@click.option("--base", metavar="BASE", help="The base itself, checked to be behind MERGED: exact.")
@click.option("--undo", metavar="FILE", help="What merge --undo wrote: exact.")
@click.option("--adapter", "adapters", multiple=True, metavar="A", help="What was merged: subtracted, inexact.")
@_strength("--strength", "strengths", "Those of the merge, one for each adapter.")
@click.option("--partial", is_flag=True, help="The merge left out modules that the base lacks.")
@click.option("--skip-saved-modules", is_flag=True, help="Leave whole modules as they are.")
@_OVERWRITE
@_RESUME
@_DRY_RUN
@_every_option
def unmerge_command(merged: str, output: str, **options: Any) -> None:
    """Give back the base that a model was merged from.

    To the bit with --base or --undo; with --adapter alone by subtraction, which says how far off it may be.
    """
    session = make_session(options)
    choices = _chosen(
        options,
        *("base", "undo", "adapters", "strengths", "modules", "partial", "skip_saved_modules", *_WRITING),
    )
    _done(options, lambda watcher: session.unmerge(merged, output=output, observer=watcher, **choices))


@click.command("swap")
@click.argument("merged", metavar="MERGED")
@click.option("--from", "from_adapters", multiple=True, required=True, metavar="A", help="What is merged into MERGED.")
@click.option("--to", "to_adapters", multiple=True, required=True, metavar="B", help="What shall be instead.")
@_OUTPUT
@_strength("--strength-from", "strengths_from", "Those of the merge, one for each --from.")
@_strength("--strength-to", "strengths_to", "One for each --to.")
@click.option("--base", metavar="BASE", help="The base itself, checked to be behind MERGED: exact.")
@click.option("--undo", metavar="FILE", help="What merge --undo wrote: exact.")
@click.option("--write-undo", metavar="FILE", help="Write what gives the base back; with --base or --undo.")
@_rounding_options
@_matching_options
@_OVERWRITE
@_RESUME
@_DRY_RUN
@_every_option
def swap_command(merged: str, output: str, **options: Any) -> None:
    """Take adapters out of a merged model and put others in.

    With --base or --undo the bytes are those of a merge into the base; without, it says how far off it may be.
    """
    session = make_session(options)
    choices = _chosen(options, *_HOW, "base", "undo", "write_undo", *_WRITING)
    choices |= _chosen(options, "from_adapters", "to_adapters", "strengths_from", "strengths_to")
    _done(options, lambda watcher: session.swap(merged, output=output, observer=watcher, **choices))


@click.command("verify")
@click.argument("merged", metavar="MERGED")
@click.option("--base", metavar="BASE", help="What it was merged from.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="A", help="What was merged into it.  [default: as the receipt says]"
)
@_strength("--strength", "strengths", "One for each adapter; as the receipt says when not given.")
@_matching_options
@_every_option
def verify_command(merged: str, **options: Any) -> Exit:
    """Prove that a merged model is what it should be.

    Its files against its receipt; with --base and --adapter every tensor against W + ΔW, whoever made it. With --base
    alone the adapters are those that its receipt names, if they are still what they were. Exits 0 when it is right, 1
    when it is not, 4 when that cannot be established.
    """
    session = make_session(options)
    choices = _chosen(options, "base", "adapters", "strengths", "modules", *_MATCHING)
    report = _done(options, lambda watcher: session.verify(merged, observer=watcher, **choices))
    return exit_of_proof(report.verdict)


@click.command("replay")
@click.argument("receipt", metavar="RECEIPT")
@_OUTPUT
@_OVERWRITE
@_RESUME
@session_options
@output_options
def replay_command(receipt: str, output: str, **options: Any) -> Exit:
    """Do again what a receipt tells of, byte for byte.

    Every input is hashed before anything is written. Exits 1 when a file comes out differently.
    """
    session = make_session(options)
    choices = _chosen(options, "overwrite", "resume")
    report = _done(options, lambda watcher: session.replay(receipt, output=output, observer=watcher, **choices))
    return exit_of_proof(report.verdict)


def exit_of_proof(verdict: bool | None) -> Exit:
    """What a proof says as an exit code; what is not established is never 0."""
    if verdict is None:
        return Exit.NOT_ESTABLISHED
    return Exit.DONE if verdict else Exit.NO


CHANGING: Final = (merge_command, unmerge_command, swap_command, verify_command, replay_command)
