"""What every command shares: options, the session they make, progress, and the way a Report goes out."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from lora_lab.cli.output import read_by_someone
from lora_lab.domain import figures
from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Report
    from lora_lab.session import Session

OpenApplication = Callable[[dict[str, Any], list[str], str | None], int]
Command = TypeVar("Command", bound=Callable[..., Any])

DRY_RUN_HELP = "Say how many bytes of a model on the Hub would be fetched; compute nothing."
_BAR_SECONDS = 0.1
_SESSION_OPTIONS = (
    "device",
    "seed",
    "offline",
    "allow_pickle",
    "follow_symlinks",
    "alpha",
    "cache",
    "plugins",
    "send_token_to",
)


def session_options(command: Command) -> Command:
    """Options that decide what a session may do."""
    return stacked(
        command,
        (
            click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps."),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all randomness."),
            click.option("--offline", is_flag=True, help="Never ask the Hub; use what is cached."),
            click.option("--allow-pickle", is_flag=True, help="Convert .bin files, weights only, in a process apart."),
            click.option("--follow-symlinks", is_flag=True, help="Read through links that leave an adapter's folder."),
            click.option("--alpha", type=float, help="lora_alpha of an adapter that does not say."),
            click.option(
                "--send-token-to",
                multiple=True,
                metavar="HOST",
                help="Another Hub that may see your token, over https.",
            ),
            click.option("--no-cache", "cache", is_flag=True, flag_value=False, default=True, help="Remember nothing."),
            click.option(
                "--no-plugins", "plugins", is_flag=True, flag_value=False, default=True, help="Built-ins only."
            ),
        ),
    )


def output_options(command: Command) -> Command:
    """Options that decide what is shown."""
    return stacked(
        command,
        (
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
            click.option("--format", "exporter", metavar="ID", help="Print what an exporter makes of it: csv, json, …"),
            click.option("--quiet", is_flag=True, help="No warnings on stderr."),
            click.option("--no-progress", is_flag=True, help="No progress on stderr."),
        ),
    )


def stacked(command: Command, options: Sequence[Callable[[Any], Any]]) -> Command:
    """`command` with `options` in their order: a function is given its last one first, a made command its first."""
    for option in options if isinstance(command, click.Command) else reversed(options):
        command = option(command)
    return command


module_option = click.option("--module", "modules", multiple=True, metavar="GLOB", help="Only these; may be repeated.")


def dry_run_option() -> click.Option:
    """Of commands that read models, which may be read in parts."""
    return click.Option(["--dry-run"], is_flag=True, help=DRY_RUN_HELP)


def picked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options that a Session takes."""
    return {name: options[name] for name in _SESSION_OPTIONS}


def make_session(options: Mapping[str, Any]) -> Session:
    """The session that the options describe."""
    from lora_lab.session import Session

    session = Session(**picked(options))
    if options.get("exporter"):
        session.require_exporter(options["exporter"])  # before the work, not after it
    return session


def emit(report: Report, options: Mapping[str, Any]) -> None:
    """Print a Report to stdout, as JSON or for a person, and its warnings to stderr."""
    with read_by_someone():
        _print(report, options)
    if options["exporter"] or options["as_json"] or options["quiet"]:
        return
    from lora_lab.domain.folding import folded

    for finding, more in folded(report.findings):
        others = f" And {more} more like this; --json lists them." if more else ""
        print(f"! {safe_text(finding.message)}{others}", file=sys.stderr)


def _print(report: Report, options: Mapping[str, Any]) -> None:
    if options["exporter"]:
        content = make_session(options).export(report, options["exporter"])
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
    elif options["as_json"]:
        print(_json(report))
    else:
        from lora_lab.cli.rendering import render

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # an encoding without × or α shows their codes
        for line in render(report):
            print(line)


def _json(report: Report) -> str:
    """One document on one line; in escapes where stdout's encoding, or the name of a file, allows nothing else."""
    document = report.to_json()
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, default=_fault)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False, default=_fault)
    return text


def _fault(value: object) -> None:
    raise LoraLabError(f"A result of type {type(value).__name__} cannot be written as JSON.")


class Progress:
    """A line on stderr with count, rate and time left; nothing where stderr is no terminal.

    Parameters
    ----------
    is_bytes : whether what is counted are bytes
    """

    def __init__(self, options: Mapping[str, Any], *, is_bytes: bool = False) -> None:
        self._said: Callable[[int], str] = figures.size if is_bytes else str
        self._is_shown = sys.stderr.isatty() and not options["no_progress"] and not options["quiet"]
        self._start = time.monotonic()
        self._last = 0.0
        self._was_shown = False
        self._is_stopping = False

    def advance(self, done: int, total: int, what: str = "") -> None:
        """Redraw, at most ten times a second."""
        now = time.monotonic()
        if not self._is_shown or (done < total and now - self._last < _BAR_SECONDS):
            return
        self._last, self._was_shown = now, True
        spent = max(now - self._start, 1e-9)
        rate = done / spent
        left = f"{(total - done) / rate:.0f} s left  " if rate else ""
        print(
            f"\r\x1b[K{self._said(done)}/{self._said(total)}  {self._said(round(rate))}/s  {left}"
            f"{safe_text(what, limit=40)}",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Printed with the rest."""

    def is_cancelled(self) -> bool:
        """Whether there was a Ctrl-C: threads that wait for something look here, while the first one leaves."""
        return self._is_stopping

    def interrupt(self, *_: object) -> NoReturn:
        """End the work at a Ctrl-C."""
        self._is_stopping = True
        raise KeyboardInterrupt

    def clear(self) -> None:
        """Take the line away."""
        if self._was_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def watched(options: Mapping[str, Any], work: Callable[[Progress], Report], *, is_bytes: bool = False) -> Report:
    """Do `work` with progress on stderr, which is taken away at the end."""
    progress = Progress(options, is_bytes=is_bytes)
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, progress.interrupt)
    try:
        return work(progress)
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        progress.clear()
