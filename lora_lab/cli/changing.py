"""The commands that write models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_lab.cli.context import emit, make_session, module_option, output_options, session_options, watched

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES = ("float32", "bfloat16", "float16", "float64")


@click.command("merge")
@click.argument("sources", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--base", required=True, metavar="BASE", help="The model that the adapters were trained on.")
@click.option("-o", "--output", required=True, metavar="OUT", help="The folder to appear.")
@click.option(
    "--strength",
    "strengths",
    multiple=True,
    type=float,
    metavar="W",
    help="One for each adapter, in order.",
)
@click.option("--dtype", type=click.Choice(_DTYPES), help="Of every weight; its own when not given.")
@click.option(
    "--rounding",
    type=click.Choice(("nearest", "stochastic")),
    default="nearest",
    show_default=True,
    help="Stochastic keeps the mean of updates too small for the dtype.",
)
@click.option("--partial", is_flag=True, help="Leave out modules that the base lacks, by name.")
@click.option("--skip-saved-modules", is_flag=True, help="Leave whole modules, such as a classifier, out.")
@click.option("--saved-modules-from", metavar="NAME", help="Whose whole module wins where several bring it.")
@click.option("--overwrite", is_flag=True, help="Replace OUT when it is there.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run has finished.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@module_option
@session_options
@output_options
def merge_command(sources: Sequence[str], base: str, output: str, **options: Any) -> None:
    """Merge adapters into a base, with a receipt.

    The output is divided into files as the base is; tensors that no adapter touches keep their bytes.
    """
    session = make_session(options)
    choices = {
        name: options[name]
        for name in (
            "strengths",
            "dtype",
            "rounding",
            "modules",
            "partial",
            "skip_saved_modules",
            "saved_modules_from",
            "overwrite",
            "resume",
            "dry_run",
        )
    }
    report = watched(
        options, lambda watcher: session.merge(sources, base=base, output=output, observer=watcher, **choices)
    )
    emit(report, options)
