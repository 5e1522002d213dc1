"""The command that makes an adapter out of two checkpoints."""

from __future__ import annotations

from typing import Any, Final

import click

from lora_lab.cli.context import emit, make_session, module_option, output_options, session_options, watched

_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
_CHOICES: Final = ("output", "rank", "energy", "save_others", "dtype", "modules", "overwrite", "dry_run")


@click.command("extract")
@click.argument("base", metavar="BASE")
@click.argument("finetuned", metavar="FINETUNED")
@click.option("-o", "--output", required=True, metavar="OUT", help="The folder to appear.")
@click.option("--rank", type=click.IntRange(min=1), metavar="R", help="Of every module; 16 when nothing is given.")
@click.option(
    "--energy",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    metavar="E",
    help="The smallest rank of each module that keeps this share of ‖W_ft − W₀‖²; --rank is then the most.",
)
@click.option("--save-others", is_flag=True, help="Take norms, biases and new modules along whole.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="float32", show_default=True, help="Of the factors.")
@click.option("--overwrite", is_flag=True, help="Replace OUT when it is there.")
@click.option("--dry-run", is_flag=True, help="Compute everything, and write nothing.")
@module_option
@session_options
@output_options
def extract_command(base: str, finetuned: str, **options: Any) -> None:
    """Make a LoRA of a full fine-tune.

    Of every matrix, each expert's too, the best approximation of W_ft − W₀ that its rank allows, with the error that is
    left and a bound of how far it is above the least there is. Everything is computed on the processor, in float64.
    """
    session = make_session(options)
    choices = {name: options[name] for name in _CHOICES}
    report = watched(
        options, lambda watcher: session.extract(base, finetuned, observer=watcher, **choices), is_bytes=True
    )
    emit(report, options)
