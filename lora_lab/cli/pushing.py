"""The command that shares what was made: shows it, asks once, sends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from lora_lab.cli.changing import exit_of_proof
from lora_lab.cli.context import emit, make_session, output_options, session_options, watched
from lora_lab.cli.exits import Exit
from lora_lab.domain import figures
from lora_lab.errors import CancelledError, LoraLabError
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.report import Report

_CHOICES: Final = ("public", "create_pr", "revision", "base_model", "licence", "message", "keep_card")
_MOST_LINES: Final = 60


@click.command("push")
@click.argument("folder", metavar="DIR")
@click.argument("repository", metavar="REPO")
@click.option("--public", is_flag=True, help="Make a new repository public; private when not given.")
@click.option("--create-pr", is_flag=True, help="Propose it as a pull request.")
@click.option("--revision", metavar="BRANCH", help="Where to; made when it is not there.")
@click.option("--base-model", metavar="ID", help="The adapted model's name on the Hub, where the files do not say.")
@click.option("--license", "licence", metavar="ID", help="Stated in the card instead of the base's.")
@click.option("--message", default="", metavar="TEXT", help="Of the commit; made from the receipt when not given.")
@click.option("--keep-card", is_flag=True, help="Send README.md as it is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and the card; send nothing.")
@session_options
@output_options
def push_command(folder: str, repository: str, *, yes: bool, dry_run: bool, **options: Any) -> Exit:
    """Push an adapter or a model to the Hub.

    One commit with an explicit list of files, a card and the receipt, private unless --public. Shows what would be
    sent and asks once. Exits 1 when something else arrived than was sent, 4 when that cannot be established.
    """
    session = make_session(options)
    choices = {name: options[name] for name in _CHOICES}

    def pushed(**more: Any) -> Report:
        work = lambda watcher: session.push(folder, repository, observer=watcher, **choices, **more)  # noqa: E731
        return watched(options, work, is_bytes=True)

    if dry_run:
        plan = pushed(dry_run=True)
        emit(plan, options)
        if not (options["as_json"] or options["exporter"]):
            print("\n".join(["", "Card", *card_lines(plan)]))
        return Exit.DONE
    expected = None
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise LoraLabError(
                "A push asks before it sends, and there is no terminal to ask on.",
                hint="Look at it with --dry-run, then pass --yes.",
            )
        expected = _asked(pushed(dry_run=True))
    report = pushed(expected=expected)
    emit(report, options)
    return exit_of_proof(report.verdict)


def card_lines(plan: Report, most: int | None = None) -> Iterator[str]:
    """The card that goes along, line by line, each harmless."""
    lines = str(plan.scalars[0].values["card"]).splitlines()
    for line in lines[:most]:
        yield f"  {safe_text(line)}".rstrip()
    if most is not None and len(lines) > most:
        yield f"  … and {len(lines) - most} more lines; --dry-run shows them"


def _asked(plan: Report) -> str:
    """Show the plan on stderr and ask; the plan's name after a yes."""
    from lora_lab.cli.rendering import render

    for line in render(plan):
        print(line, file=sys.stderr)
    print("\n".join(["", "Card", *card_lines(plan, _MOST_LINES), ""]), file=sys.stderr)
    for finding in plan.findings:
        print(f"! {safe_text(finding.message)}", file=sys.stderr)
    values = plan.scalars[0].values
    size = figures.size(values["bytes_to_send"])
    where = f"{values['visibility']} {values['repository']}"
    proposed = "as a pull request " if values["create_pr"] else ""
    question = f"Push {values['files_to_send']} files, {size}, {proposed}to the {where}?"
    if not click.confirm(safe_text(question), default=False, err=True):
        raise CancelledError("Not pushed.")
    return str(values["plan"])


PUSHING: Final = (push_command,)
