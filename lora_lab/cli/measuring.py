"""The commands that measure, and those that compare what was measured."""

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
from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH_HELP = "Sequences in a step of tokens, for the break-even; may be repeated.  [default: 1, 8, 32]"
_COUNT: Final = click.IntRange(min=1)
_DTYPES: Final = ("float32", "float16", "bfloat16")
_SAVE = click.option("--no-save", "save", is_flag=True, flag_value=False, default=True, help="Keep no result.")
_WHICH = "RESULT is an id or its beginning, latest, previous, or a file that --json wrote."


@click.group("bench")
def bench_group() -> None:
    """Measure on this machine, and compare with before."""


@bench_group.command("swap")
@click.argument("sources", nargs=-1, required=True, metavar="A B")
@click.option("--base", required=True, metavar="BASE", help="The model that both adapters were trained on.")
@click.option("--strategies", multiple=True, metavar="ID,…", help="Of `lora-lab strategies`.  [default: all]")
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Rounds that are kept.")
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, metavar="N", help=_BATCH_HELP)
@_SAVE
@module_option
@session_options
@output_options
def swap_command(sources: Sequence[str], base: str, strategies: Sequence[str], **options: Any) -> None:
    """Measure ways of switching a model between two adapters.

    Time, bytes moved, memory and what is left of the base's bits, and after how many tokens merging has paid off.
    """
    session = make_session(options)
    names = [name for text in strategies for name in _listed(text)]
    choices = {name: options[name] for name in ("repeats", "batches", "modules", "save")}
    report = watched(
        options,
        lambda watcher: session.bench_swap(sources, base=base, strategies=names, observer=watcher, **choices),
    )
    emit(report, options)


def _stack_options(command: Command) -> Command:
    """Options of what goes through a stack of decoder blocks."""
    return stacked(
        command,
        (
            click.option("--base", metavar="BASE", help="Whose shapes; no weights are read.  [default: GPT-2 medium]"),
            click.option("--layers", type=_COUNT, metavar="N", help="Of the stack.  [default: all, or less on a CPU]"),
            click.option("--rank", type=_COUNT, default=8, show_default=True, help="Of LoRA."),
            click.option(
                "--targets", default="q_proj,v_proj", show_default=True, metavar="NAME,…", help="What LoRA adapts."
            ),
            click.option("--dtype", type=click.Choice(_DTYPES), help="[default: the base's, float32 without one]"),
            click.option(
                "--repeats", type=_COUNT, metavar="N", help="Rounds that are kept.  [default: what two minutes allow]"
            ),
        ),
    )


_STACK: Final = ("base", "layers", "rank", "dtype", "repeats", "save")


@bench_group.command("latency")
@click.option("--grid", default="", metavar="BxL,…", help="Batch × length.  [default: 32x512,16x256,1x128, or less]")
@click.option("--bottleneck", type=_COUNT, metavar="N", help="Width of a bottleneck.  [default: the paper's share]")
@_stack_options
@_SAVE
@session_options
@output_options
def latency_command(targets: str, **options: Any) -> None:
    """Measure what adapters add to a forward pass.

    The base, LoRA merged and unmerged, and bottleneck adapters with one (Pfeiffer) and two (Houlsby) a block: table 1
    of the LoRA paper, on a stack of decoder blocks with random weights. On a CPU layers and grid are cut to about two
    minutes unless they are given.
    """
    session = make_session(options)
    choices = {name: options[name] for name in (*_STACK, "grid", "bottleneck")}
    report = watched(
        options, lambda watcher: session.bench_latency(targets=_listed(targets), observer=watcher, **choices)
    )
    emit(report, options)


@bench_group.command("mixed")
@click.option("--batch", type=_COUNT, default=32, show_default=True, help="Sequences.")
@click.option("--length", type=_COUNT, default=1, show_default=True, help="Tokens of each that go through at once.")
@click.option("--adapters", default="", metavar="N,…", help="How many in the batch.  [default: 1,2,4,8,16,32]")
@_stack_options
@_SAVE
@session_options
@output_options
def mixed_command(targets: str, adapters: str, **options: Any) -> None:
    """Measure a batch of several adapters.

    Tokens a second with all factors beside the weights, each row through its own, and with one adapter merged after
    the other; up to how many adapters switching is faster, and how many tokens a swap has to serve.
    """
    session = make_session(options)
    choices = {name: options[name] for name in (*_STACK, "batch", "length")}
    try:
        counts = [int(count) for count in _listed(adapters)]
    except ValueError as error:
        raise LoraLabError(f"--adapters got {quoted(adapters)}, expected numbers such as 1,2,4.") from error
    report = watched(
        options,
        lambda watcher: session.bench_mixed(targets=_listed(targets), adapters=counts, observer=watcher, **choices),
    )
    emit(report, options)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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


@click.command("strategies")
@session_options
@output_options
def strategies_command(**options: Any) -> None:
    """List strategies of bench swap."""
    emit(make_session(options).strategies(), options)


MEASURING: Final = (bench_group, strategies_command)
