"""What the Hub says to a push that it does not take, and whether it may have taken it all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.errors import HubError, quoted
from lora_lab.safetext import safe_text, without_tokens
from lora_lab.sources.hub_refusals import refusal_of, status_of

if TYPE_CHECKING:
    from lora_lab.errors import LoraLabError
    from lora_lab.sources.hub_access import HubAccess

_SAID_CHARACTERS: Final = 200
_BY_STATUS: Final = {
    401: (
        "The Hub does not accept the token for {}",
        "Log in with one that may write: hf auth login; or set HF_TOKEN.",
    ),
    403: (
        "This token may not do that in {}",
        "Use a token with write access to it, or offer the change: --create-pr",
    ),
    409: ("{} is taken", "Choose another name, or look at who has it."),
    412: (
        "{} was changed by someone else after it was looked at",
        "Run this again to see what is there now.",
    ),
    413: ("A file is larger than the Hub takes for {}", "Divide the weights into smaller shards."),
}


def is_unanswered(error: BaseException) -> bool:
    """Whether the Hub may have done what it was asked, though it did not say so."""
    status = status_of(error)
    return status is None or status >= 500


def push_refusal(error: BaseException, repository: str, access: HubAccess) -> LoraLabError:
    """The sentence for what went wrong while something was changed."""
    known = _BY_STATUS.get(status_of(error) or 0)
    if known is None:
        return refusal_of(error, repository, access, doing="be pushed to")
    sentence, hint = known
    said = getattr(error, "server_message", None)
    words = f" ({safe_text(without_tokens(str(said)), limit=_SAID_CHARACTERS).rstrip('.')})" if said else ""
    return HubError(f"{sentence.format(quoted(repository))}{words}.", hint=hint)
