"""The one place that knows both shells: ``lora-lab`` and ``python -m lora_lab`` begin here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

_CANCELLED: Final = 130


def _forget_working_directory() -> None:
    """Take the working directory off the import path.

    ``python -m`` puts it first; a ``torch.py`` in a downloaded model folder would then be run in torch's place.
    """
    here = str(Path.cwd())
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here) or _holds_us(entry)]


def _holds_us(entry: str) -> bool:
    """Whether this very package was found there: then the folder is a checkout of it, and trusted already."""
    return Path(entry or ".").resolve() == Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the command line, with the terminal application behind ``open``."""
    from lora_lab.cli import run

    code = run(sys.argv[1:], open_application=_open_application)
    if code == _CANCELLED and "hf_xet" in sys.modules:
        # The threads of that library do not hear of a cancellation, and call an interpreter that is gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _open_application(session_options: dict[str, object], sources: list[str], base: str | None) -> int:
    from lora_lab.tui.app import run

    return run(session_options, sources, base)


if __name__ == "__main__":
    _forget_working_directory()
    sys.exit(main())
