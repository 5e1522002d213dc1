"""From arguments to an exit code: every error becomes one sentence on stderr, and no traceback is ever shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from lora_lab.cli.exits import ClosedOutput, Exit, exit_of
from lora_lab.cli.output import drop_output, read_by_someone
from lora_lab.errors import LoraLabError, quoted
from lora_lab.safetext import safe_text, without_tokens

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

    result = None
    try:
        with read_by_someone():
            result = program.main(
                args=list(arguments), prog_name="lora-lab", standalone_mode=False, obj=open_application
            )
    except LoraLabError as error:
        return _say(error.message, error.hint, exit_of(error))
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"Try: {context.command_path} --help" if context else "Try: lora-lab --help"
        return _say(error.format_message(), hint, Exit.WRONG_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _say("Cancelled.", "", Exit.CANCELLED)
    except (ClosedOutput, BrokenPipeError):
        drop_output()  # whoever read it has seen enough
        return Exit.DONE
    except Exception as error:
        return _fault(error)
    return result if isinstance(result, int) else Exit.DONE


def _fault(error: Exception) -> int:
    """What nobody foresaw, or the system refused, in one sentence."""
    hint = f"Set {_DEBUG_VARIABLE}=1 to see where."
    if os.environ.get(_DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(error)
        hint = ""
    if isinstance(error, OSError) and error.strerror:
        drop_output()
        where = quoted(error.filename) if error.filename else "The output"
        return _say(f"{where} could not be read or written: {error.strerror.lower()}.", hint, Exit.FAILED)
    fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _say(f"An unexpected fault: {fault}", hint, Exit.FAILED)


def _say(sentence: str, hint: str, code: Exit) -> int:
    """One sentence on stderr, the next step below it."""
    text = safe_text(without_tokens(sentence))
    print(f"lora-lab: {text}" if text.endswith((".", "!", "?")) else f"lora-lab: {text}.", file=sys.stderr)
    if hint:
        print(f"  {safe_text(without_tokens(hint))}", file=sys.stderr)
    return code
