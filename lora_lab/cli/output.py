"""Standard output whose reader may leave before the end, as ``head`` does."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def read_by_someone() -> Iterator[None]:
    """Write inside; where the reader has left, the rest goes nowhere and the command goes on to its exit code."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """Let what stdout still holds go nowhere, or the interpreter would fail to write it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):  # stdout may be no file at all
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
