"""The commands; each parses, asks the session and prints."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_lab.cli.arranging import ARRANGING
from lora_lab.cli.changing import CHANGING
from lora_lab.cli.context import (
    DRY_RUN_HELP,
    OpenApplication,
    emit,
    make_session,
    module_option,
    output_options,
    picked,
    session_options,
    watched,
)
from lora_lab.cli.declared import parameters_of
from lora_lab.cli.exits import ClosedOutput, Exit
from lora_lab.cli.extracting import extract_command
from lora_lab.cli.looking import exit_of_verdict
from lora_lab.cli.measuring import MEASURING
from lora_lab.cli.pulling import pull_command
from lora_lab.cli.pushing import PUSHING
from lora_lab.errors import LoraLabError, quoted
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_OUTPUT_HELP = "FILE.html is the page; FILE.png, .svg or .pdf one figure."


class Program(click.Group):
    """The built-in commands, those of analyses among them, and those of plugins.

    Analyses are loaded when one is asked for or all are listed, plugins only when a name is none of ours.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the built-in commands, in alphabetical order."""
        from lora_lab.cli.looking import declared

        return sorted({*super().list_commands(ctx), *declared()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command: ours first, then a plugin's."""
        from lora_lab.cli.looking import looking_command

        ours = super().get_command(ctx, cmd_name)
        if ours is None and not cmd_name.startswith("-"):
            ours = looking_command(cmd_name)
        if ours is not None or cmd_name.startswith("-"):
            return ours
        from lora_lab.cli.plugged import plugged_command

        return plugged_command(cmd_name)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse, which prints help and version."""
        with _pipe_may_close():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _pipe_may_close():
            return super().invoke(ctx)


@contextmanager
def _pipe_may_close() -> Iterator[None]:
    """Take a closed pipe out of click's hands, which would end the program with the code that says "no" here."""
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedOutput from error


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Plugins may add commands: lora-lab plugins lists them.",
)
@click.version_option(__version__, "--version", prog_name="lora-lab")
def program() -> None:
    """Look into, compare and change LoRA adapters.

    SRC is a folder, a file, org/name, org/name@revision:subfolder or hf://….
    """


@program.command("open")
@click.argument("sources", nargs=-1, metavar="[SRC]...")
@click.option("--base", metavar="BASE", help="The base model, for analyses that need one.")
@click.option("--theme", metavar="NAME", help="Colours; t inside shows what there is.")
@click.option(
    "--no-state", "state", is_flag=True, flag_value=False, default=True, help="Remember nothing between runs."
)
@session_options
@click.pass_obj
def open_command(
    open_application: OpenApplication, /, sources: Sequence[str], base: str | None, theme: str | None, **options: Any
) -> int:
    """Browse a folder of adapters, or one, in the terminal."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise LoraLabError("open needs a terminal, and there is none here.", hint="For a script: lora-lab ls --json")
    from lora_lab.sources.locators import parse

    for source in sources:
        found = parse(source)
        if found.is_local and not os.path.lexists(found.path):
            raise LoraLabError(f"{quoted(source)} does not exist.", hint="Give a folder or an adapter that is there.")
    chosen = {**picked(options), "state": options["state"], **({"theme": theme} if theme else {})}
    return open_application(chosen, list(sources), base)


@program.command("ls")
@click.argument("source", default=".", metavar="[SRC]")
@session_options
@output_options
def ls_command(source: str, **options: Any) -> None:
    """List adapters and bases; broken ones with the reason."""
    emit(make_session(options).ls(source), options)


@program.command("inspect")
@click.argument("source", metavar="SRC")
@click.option("--strict", is_flag=True, help="Exit 1 when there is a warning.")
@module_option
@session_options
@output_options
def inspect_command(source: str, *, strict: bool, modules: Sequence[str], **options: Any) -> int:
    """Show configuration, shapes and what changes ΔW."""
    report = make_session(options).inspect(source, modules=modules)
    emit(report, options)
    return Exit.NO if strict and report.findings else Exit.DONE


@program.command("report")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help=_OUTPUT_HELP)
@click.option("--base", metavar="BASE", help="The base model, for amplification and intruder dimensions.")
@click.option("--figure", metavar="NAME", help="Which figure .png, .svg or .pdf shows.")
@click.option("--overwrite", is_flag=True, help="Replace FILE when it is there.")
@module_option
@session_options
@output_options
def report_command(
    sources: Sequence[str],
    output: Path,
    base: str | None,
    figure: str | None,
    *,
    overwrite: bool,
    modules: Sequence[str],
    **options: Any,
) -> None:
    """Write one page, or one figure, about adapters."""
    session = make_session(options)
    report = watched(
        options,
        lambda watcher: session.report(
            sources, output=output, base=base, figure=figure, modules=modules, overwrite=overwrite, observer=watcher
        ),
    )
    emit(report, options)


@program.command("analyze")
@click.argument("analysis", metavar="ID")
@click.argument("sources", nargs=-1, metavar="[SRC]...")
@click.option("--base", metavar="BASE", help="The base model.")
@click.option("--param", "parameters", multiple=True, metavar="K=V", help="A parameter; may be repeated.")
@click.option("--dry-run", is_flag=True, help=DRY_RUN_HELP)
@module_option
@session_options
@output_options
def analyze_command(
    analysis: str,
    sources: Sequence[str],
    base: str | None,
    parameters: Sequence[str],
    modules: Sequence[str],
    *,
    dry_run: bool,
    **options: Any,
) -> int:
    """Run any analysis, a plugin's too."""
    session = make_session(options)
    values = parameters_of(parameters)
    report = watched(
        options,
        lambda watcher: session.analyze(
            analysis,
            sources,
            base=base,
            parameters=values,
            modules=modules,
            dry_run=dry_run,
            observer=watcher,
        ),
    )
    emit(report, options)
    return exit_of_verdict(report)


@program.command("plugins")
@session_options
@output_options
def plugins_command(**options: Any) -> None:
    """List plugins, what they add, and what went wrong."""
    emit(make_session(options).plugins(), options)


@program.command("analyses")
@session_options
@output_options
def analyses_command(**options: Any) -> None:
    """List analyses with their parameters."""
    emit(make_session(options).analyses(), options)


for command in (*CHANGING, *ARRANGING, *PUSHING, pull_command, extract_command, *MEASURING):
    program.add_command(command)
