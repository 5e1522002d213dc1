"""The command that brings an adapter or a model from the Hub."""

from __future__ import annotations

from typing import Any

import click

from lora_lab.cli.context import emit, make_session, output_options, session_options, watched


@click.command("pull")
@click.argument("source", metavar="SRC")
@click.option("--revision", metavar="REV", help="Branch, tag or commit; main when not given.")
@click.option("-o", "--output", metavar="DIR", help="An ordinary folder to appear, beside the copy in the cache.")
@click.option("--overwrite", is_flag=True, help="Replace DIR when it is there.")
@click.option("--dry-run", is_flag=True, help="Say which files and how many bytes, and fetch nothing.")
@session_options
@output_options
def pull_command(
    source: str, revision: str | None, output: str | None, *, overwrite: bool, dry_run: bool, **options: Any
) -> None:
    """Fetch an adapter or a model from the Hub.

    Safetensors, JSON, tokenizer files and the card; what is there already stays. Every file is checked against the
    hash that the Hub lists, and it says where they are: in the Hub's own cache, and in DIR when one is given.
    """
    session = make_session(options)
    report = watched(
        options,
        lambda watcher: session.pull(
            source, revision=revision, output=output, overwrite=overwrite, dry_run=dry_run, observer=watcher
        ),
        is_bytes=True,
    )
    emit(report, options)
