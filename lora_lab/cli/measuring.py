"""The commands that measure, and those that compare what was measured."""

from __future__ import annotations

from typing import Any

import click

from lora_lab.cli.context import emit, make_session, output_options, session_options

_WHICH = "RESULT is an id or its beginning, latest, previous, or a file that --json wrote."


@click.group("bench")
def bench_group() -> None:
    """Measure on this machine, and compare with before."""


@bench_group.command("history")
@click.argument("result", required=False, metavar="[RESULT]")
@session_options
@output_options
def history_command(result: str | None, **options: Any) -> None:
    """List what was measured, or show one result again.

    RESULT is an id or its beginning, latest or previous.
    """
    session = make_session(options)
    emit(session.bench_history() if result is None else session.bench_result(result), options)


@bench_group.command("compare", epilog=_WHICH)
@click.argument("before", default="previous", metavar="[RESULT]")
@click.argument("after", default="latest", metavar="[RESULT]")
@session_options
@output_options
def compare_command(before: str, after: str, **options: Any) -> None:
    """Compare two results; the latest two when none is given.

    What got faster or slower by more than chance, and which settings differ.
    """
    emit(make_session(options).bench_compare(before, after), options)
