"""Everything that can be wrong, as one tree.

::

    LoraLabError(message, *, hint)
    ├─ FileFormatError             header, dtype, unknown format, unsafe file
    │  ├─ MissingFileError         nothing there, or not what a path promised
    │  ├─ UnsupportedFormatError   recognised by name, but no reader is installed
    │  └─ UnsafeFileError          would have to be trusted to be read
    ├─ AdapterError                configuration, incomplete pair
    ├─ CompatibilityError          shape, missing module, wrong base
    ├─ NumericalError              non-finite, precision
    ├─ OperationError              output exists, not merged, no space
    │  └─ CancelledError           stopped by the user
    ├─ HubError                    not allowed, offline, conflict
    │  └─ NotOnHubError            what was named is not there: repository, revision, file
    └─ PluginError                 load, contract, duplicate name

Each message is one sentence that says what is wrong, where, what was found and what was expected; the hint is the
next step. Both pass through :func:`~lora_lab.safetext.safe_text`, so that an error may quote a file; access
tokens are struck out.
"""

from __future__ import annotations

from lora_lab.safetext import safe_text, without_tokens

_QUOTE_LIMIT = 200


class LoraLabError(Exception):
    """What went wrong, in one sentence, and what to do next.

    Parameters
    ----------
    message : one sentence: what, where, got, expected
    hint : the next step, as a sentence or a command; empty when there is none
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = safe_text(without_tokens(message))
        self.hint = safe_text(without_tokens(hint))
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class FileFormatError(LoraLabError):
    """A file is not what its name says: header, dtype, truncated, unknown or unsafe."""


class MissingFileError(FileFormatError):
    """Nothing is there, or a link, a shard or a companion file leads nowhere."""


class UnsupportedFormatError(FileFormatError):
    """A format recognised by name for which no reader is installed."""


class UnsafeFileError(FileFormatError):
    """A file that would have to be trusted: pickles, links out of the folder, special files."""


class AdapterError(LoraLabError):
    """An adapter contradicts itself: configuration against tensors, half a pair, wrong types."""


class CompatibilityError(LoraLabError):
    """Two inputs do not belong together: shapes, modules, base."""


class NumericalError(LoraLabError):
    """A number that cannot be worked with: NaN, infinity, precision lost."""


class OperationError(LoraLabError):
    """The work failed: the output exists, no space, no permission."""


class CancelledError(OperationError):
    """The user stopped the work."""


class HubError(LoraLabError):
    """The Hub said no, or could not be reached."""


class NotOnHubError(HubError):
    """The Hub answers, and has nothing of the name that was given: a repository, a revision or a place in it."""


class PluginError(LoraLabError):
    """A plugin did not load, broke its contract, or took a name that was taken."""


def quoted(text: object) -> str:
    """Quote text from a file for use inside a sentence: escaped and of bounded length."""
    return f"'{safe_text(text, limit=_QUOTE_LIMIT)}'"
