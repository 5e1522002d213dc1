"""Exit codes, and which error has which."""

from __future__ import annotations

from enum import IntEnum

from lora_lab.errors import CancelledError, HubError, LoraLabError, NotOnHubError, OperationError, PluginError


class Exit(IntEnum):
    """What the exit code says."""

    DONE = 0
    NO = 1
    WRONG_INPUT = 2
    FAILED = 3
    NOT_ESTABLISHED = 4
    CANCELLED = 130


class ClosedOutput(Exception):  # noqa: N818 - nothing is wrong
    """Whoever read the output has closed it."""


def exit_of(error: LoraLabError) -> Exit:
    """Exit code for an error.

    Examples
    --------
    >>> exit_of(OperationError("The disk is full."))
    <Exit.FAILED: 3>

    A name that the Hub does not know is wrong input, as a path that is not there is; a Hub that refuses has failed.

    >>> exit_of(NotOnHubError("'org/nmae' was not found on the Hub."))
    <Exit.WRONG_INPUT: 2>
    """
    if isinstance(error, CancelledError):
        return Exit.CANCELLED
    if isinstance(error, NotOnHubError):
        return Exit.WRONG_INPUT
    if isinstance(error, OperationError | HubError | PluginError):
        return Exit.FAILED
    return Exit.WRONG_INPUT
