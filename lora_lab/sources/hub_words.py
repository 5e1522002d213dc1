"""What the Hub and its client say when they say no, each in one sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_lab.errors import HubError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG_IN: Final = "Log in with a token that may write: hf auth login"
_AGAIN: Final = "Look at the network and at status.huggingface.co, then try again."
_TOKEN: Final = re.compile(r"\bhf_[A-Za-z0-9]+")
# The storage's client tells a status only in words.
_STATUS: Final = re.compile(r"\b(40[0-9]|412|413|429|50[0-9])\b")
_SAID: Final = 200


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client; None where there was no reply."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if response is not None:
            return int(response.status_code)
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, ConnectionError):
        found = _STATUS.search(str(error))
        return int(found[1]) if found else None
    return None


def is_unanswered(error: BaseException) -> bool:
    """Whether the server may have done what it was asked, though it did not say so."""
    status = status_of(error)
    return status is None or status >= 500


def refusal_of(error: BaseException, repository: str, doing: str) -> HubError:
    """The sentence for what went wrong.

    Parameters
    ----------
    error : whatever the client raised
    repository : that it was about
    doing : what was asked for, to follow "while"
    """
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled

    shown = quoted(repository)
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"The Hub may not be asked about {shown}: HF_HUB_OFFLINE is set.", hint="Unset it; --dry-run needs no Hub."
        )
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{shown} is gated, and this account has no access to it.",
            hint=f"Ask for access on the page of {repository}.",
        )
    status = status_of(error)
    words = _BY_STATUS.get(status or 0)
    said = _said_by_server(error)
    if words is not None:
        sentence, hint = words(shown)
        return HubError(f"{sentence}{said}.", hint=hint)
    if status is not None and status >= 500:
        return HubError(f"The Hub failed with status {status} while {doing} of {shown}{said}.", hint=_AGAIN)
    if status is not None:
        return HubError(f"The Hub refused with status {status} while {doing} of {shown}{said}.")
    return HubError(f"The connection to the Hub broke while {doing} of {shown}: {type(error).__name__}.", hint=_AGAIN)


def without_tokens(text: str) -> str:
    """`text` with access tokens struck out."""
    return _TOKEN.sub("hf_…", text)


def _said_by_server(error: BaseException) -> str:
    said = getattr(error, "server_message", None)
    return f" ({without_tokens(str(said))[:_SAID].rstrip('.')})" if said else ""


_BY_STATUS: Final[dict[int, Callable[[str], tuple[str, str]]]] = {
    401: lambda shown: (f"The Hub does not accept the token with which it was asked about {shown}", _LOG_IN),
    403: lambda shown: (
        f"This token may not do that in {shown}",
        "Use a token with write access to it, or offer the change: --create-pr",
    ),
    404: lambda shown: (f"{shown} was not found on the Hub, or is private", "Check the name and the account."),
    409: lambda shown: (f"{shown} is taken", "Choose another name, or look who has it."),
    412: lambda shown: (
        f"{shown} was changed by someone else after it was looked at; nothing was overwritten",
        "Run this again to see what is there now.",
    ),
    413: lambda shown: (f"A file is larger than the Hub takes for {shown}", "Divide the weights into smaller shards."),
    429: lambda shown: (f"The Hub has had too many requests to answer one about {shown}", "Wait a few minutes."),
}
