"""From arguments to an exit code: every error becomes one sentence on stderr, and no traceback is ever shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from lora_lab.cli.exits import Exit, exit_of
from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.cli.context import OpenApplication

_DEBUG_VARIABLE = "LORA_LAB_DEBUG"


def run(arguments: Sequence[str], *, open_application: OpenApplication) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : without the program's name
    open_application : starts the terminal application; the command ``open`` calls it

    Returns
    -------
    the exit code, one of :class:`~lora_lab.cli.exits.Exit`
    """
    from lora_lab.cli.commands import program

    try:
        result = program.main(args=list(arguments), prog_name="lora-lab", standalone_mode=False, obj=open_application)
    except LoraLabError as error:
        return _say(error.message, error.hint, exit_of(error))
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"Try: {context.command_path} --help" if context else "Try: lora-lab --help"
        return _say(error.format_message(), hint, Exit.WRONG_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _say("Cancelled.", "", Exit.CANCELLED)
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except Exception as error:
        if os.environ.get(_DEBUG_VARIABLE):
            raise
        fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _say(f"An unexpected fault: {fault}", f"Set {_DEBUG_VARIABLE}=1 to see where.", Exit.FAILED)
    return result if isinstance(result, int) else Exit.DONE


def _say(sentence: str, hint: str, code: Exit) -> int:
    """One sentence on stderr, the next step below it."""
    text = safe_text(sentence)
    print(f"lora-lab: {text}" if text.endswith((".", "!", "?")) else f"lora-lab: {text}.", file=sys.stderr)
    if hint:
        print(f"  {safe_text(hint)}", file=sys.stderr)
    return code
