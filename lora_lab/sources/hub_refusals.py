"""What the Hub, its client and the network say when they say no: one sentence each, and whether to ask again."""

from __future__ import annotations

import errno
import random
import re
import time
from typing import TYPE_CHECKING, Final, TypeVar

from lora_lab.errors import CancelledError, HubError, LoraLabError, NotOnHubError, OperationError, quoted
from lora_lab.safetext import safe_text, without_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_lab.sources.hub_access import HubAccess

_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_TRIES: Final = 3
_TRIES_WITHOUT_ANSWER: Final = 2  # each has taken as long as the client waits for one
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 60.0  # a server that asks for more is not waited for
_POLL_SECONDS: Final = 0.05
_SAID_CHARACTERS: Final = 200
_LOG_IN: Final = "Log in with: hf auth login; or set HF_TOKEN."
_THE_HUB: Final = "huggingface.co"
# The storage's client and the system tell some things only in words.
_STATUS: Final = re.compile(r"\b(401|403|404|408|416|429|50[0-4])\b")
_NO_NAME: Final = ("name or service not known", "name resolution", "nodename nor servname", "getaddrinfo", "dns")
_FULL: Final = ("no space left", "disk quota exceeded")
_LATER: Final = random.SystemRandom()  # so that many do not come back at once
T = TypeVar("T")


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client; None where no answer came."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    if isinstance(error, ConnectionError | RuntimeError) and not _is(error, "OfflineModeIsEnabled"):
        found = _STATUS.search(str(error))
        return int(found[1]) if found else None
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: never for a refusal, 408 and 429 apart."""
    if isinstance(error, LoraLabError) or _is(error, "OfflineModeIsEnabled", "LocalEntryNotFoundError"):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    if _is(error, "TransportError") and not _is(error, "ProxyError", "UnsupportedProtocol"):
        return True
    if isinstance(error, OSError):
        is_cut_off = error.errno is None and "consistency check" in str(error).lower()
        return is_cut_off or isinstance(error, ConnectionError)
    return isinstance(error, RuntimeError) and not _is_full(error)


def is_worth_a_retry(error: BaseException) -> bool:
    """As :func:`is_transient`, of a download: when bytes stop coming, the client has tried five times itself."""
    if not _is(error, "TransportError"):
        return is_transient(error)
    return is_transient(error) and getattr(getattr(error, "_request", None), "method", "") == "HEAD"


def persistently(
    call: Callable[[], T],
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    retried: Callable[[BaseException], bool] = is_transient,
) -> T:
    """Call a read again while the Hub fails for a moment: three times at most, after half a second and a second.

    A ``Retry-After`` is waited for, up to a minute. A write must not come through here: a reply that was lost on the
    way does not tell whether it was done.

    Parameters
    ----------
    call : may be repeated
    is_cancelled : asked while waiting
    retried : which errors are worth it

    Raises
    ------
    CancelledError
        `is_cancelled` said so.
    """
    for tries in range(1, _TRIES + 1):
        try:
            return call()
        except Exception as error:
            asked = retry_after(error)
            most = _TRIES_WITHOUT_ANSWER if _is(error, "TimeoutException") else _TRIES
            if tries >= most or not retried(error) or (asked or 0.0) > _LONGEST_WAIT_SECONDS:
                raise
            wait = asked if asked is not None else _FIRST_WAIT_SECONDS * 2 ** (tries - 1)
        _wait(wait + _LATER.uniform(0.0, 0.1), is_cancelled)
    raise AssertionError("unreachable")


def retry_after(error: BaseException) -> float | None:
    """Seconds that the server asks to wait; None where it does not."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        value = "" if response is None else str(response.headers.get("Retry-After", ""))
        if value.isdecimal() and len(value) < 9:
            return float(value)
    return None


def refusal_of(error: BaseException, shown: str, access: HubAccess, *, doing: str = "be read") -> LoraLabError:
    """The sentence for what went wrong.

    Parameters
    ----------
    error : whatever the client raised
    shown : what it was about, as the person typed it
    access : with which it was asked
    doing : what could not be done with it, to follow "could not"
    """
    if isinstance(error, LoraLabError):
        return error
    name = quoted(shown)
    local = _local_refusal(error, name)
    if local is not None:
        return local
    by_kind = _by_kind(error, name, access)
    if by_kind is not None:
        return by_kind
    status = status_of(error)
    said = _said(error, access)
    if status == 401:
        return HubError(f"The Hub does not accept the token with which it was asked for {name}{said}.", hint=_LOG_IN)
    if status == 403:
        hint = access.token_hint() or "Use a token of an account that has access."
        return HubError(f"This account may not read {name}{said}.", hint=hint)
    if status == 404:
        return _not_found(name, access)
    if status == 429:
        wait = retry_after(error)
        hint = f"Try again in {wait:.0f} seconds." if wait else "Wait a few minutes, then try again."
        return HubError(f"The Hub has had too many requests and did not answer for {name}.", hint=hint)
    if status is not None and status >= 500:
        return HubError(f"The Hub failed with status {status} when it was asked for {name}{said}.", hint=_again(access))
    if status is not None:
        return HubError(f"The Hub refused {name} with status {status}{said}.", hint="Check the name and the address.")
    return _unreachable(error, name, access, doing)


def _by_kind(error: BaseException, name: str, access: HubAccess) -> HubError | None:
    if _is(error, "OfflineModeIsEnabled"):
        return HubError(f"{name} is not in the cache, and HF_HUB_OFFLINE is set.", hint="Unset HF_HUB_OFFLINE.")
    if _is(error, "GatedRepoError"):
        return HubError(
            f"{name} is gated, and this account has no access to it.",
            hint=access.token_hint() or f"Ask for access on its page at {access.endpoint}, then log in: hf auth login",
        )
    if _is(error, "DisabledRepoError"):
        return HubError(f"{name} was disabled by its authors or by the Hub.", hint="Ask them, or use another copy.")
    if _is(error, "RevisionNotFoundError"):
        return NotOnHubError(
            f"{name} has no such revision.", hint="Look at the branches, tags and commits of its page."
        )
    if _is(error, "RepositoryNotFoundError"):
        return _not_found(name, access)
    if _is(error, "RemoteEntryNotFoundError"):
        return HubError(f"{name} lists a file that it does not have.", hint="Try again; the repository is changing.")
    if _is(error, "HFValidationError"):
        return NotOnHubError(f"{name} is no name that the Hub allows, expected org/name.", hint="Check its spelling.")
    if _is(error, "FileMetadataError"):
        return _no_hub(name, access)
    return None


def _no_hub(name: str, access: HubAccess) -> HubError:
    return HubError(
        f"{quoted(access.host)} does not answer for {name} as a Hub does.", hint="Check HF_ENDPOINT and the proxy."
    )


def _not_found(name: str, access: HubAccess) -> HubError:
    """What a Hub that answers does not have; unless a token was kept back, which may be all that is in the way."""
    if access.token_hint():
        return HubError(f"{name} was not found, or is private.", hint=access.token_hint())
    if access.known_token() is None:
        return NotOnHubError(
            f"{name} was not found on the Hub, or is private, and there is no token to ask with.",
            hint=f"Check the name. {_LOG_IN}",
        )
    return NotOnHubError(
        f"{name} was not found on the Hub, or is private and this account does not see it.",
        hint="Check the name, and whose token it is: hf auth whoami",
    )


def _unreachable(error: BaseException, name: str, access: HubAccess, doing: str) -> HubError:
    where = quoted(access.host)
    causes = list(_causes(error))
    words = " ".join(str(cause).lower() for cause in causes)
    if any(_is(cause, "ProxyError") for cause in causes):
        return HubError(f"The proxy refused to pass the request for {name} on.", hint="Check HTTPS_PROXY and NO_PROXY.")
    if "certificate" in words:
        return HubError(
            f"The certificate of {where} is not trusted, so that {name} could not {doing}.",
            hint="Check the clock, the proxy and SSL_CERT_FILE.",
        )
    if any(said in words for said in _NO_NAME):
        return HubError(f"There is no address for {where}, so that {name} could not {doing}.", hint=_NETWORK)
    if "refused" in words:
        return HubError(f"{where} refused the connection, so that {name} could not {doing}.", hint=_NETWORK)
    if any(_is(cause, "TimeoutException") for cause in causes) or "timed out" in words:
        return HubError(f"{where} did not answer in time, so that {name} could not {doing}.", hint=_again(access))
    if any(_is(cause, "TransportError") for cause in causes) or "consistency check" in words:
        return HubError(f"The connection to {where} broke off, so that {name} could not {doing}.", hint=_again(access))
    if isinstance(error, KeyError | TypeError | AttributeError | AssertionError | ValueError):
        return _no_hub(name, access)
    told = quoted(without_tokens(str(error), access.known_token())) if str(error) else type(error).__name__
    return HubError(f"{name} could not {doing}: {told}.", hint=_again(access))


def _again(access: HubAccess) -> str:
    place = f"status.{_THE_HUB}" if access.host == _THE_HUB else access.host
    return f"Look at the network and at {place}, then try again."


_NETWORK: Final = "Look at the network and at HF_ENDPOINT; --offline uses what the cache has."


def _local_refusal(error: BaseException, name: str) -> OperationError | None:
    """What this machine's disk says, rather than the Hub."""
    for cause in _causes(error):
        if _is_full(cause):
            return OperationError(
                f"The disk is full: {name} was not fetched.", hint="Free some space, or set HF_HOME to another disk."
            )
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and cause.filename:
            return OperationError(
                f"{quoted(cause.filename)} may not be written, so that {name} was not fetched.",
                hint="Give yourself access to it, or set HF_HOME to another folder.",
            )
    return None


def _is_full(error: BaseException) -> bool:
    is_told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_told or any(words in str(error).lower() for words in _FULL)


def _said(error: BaseException, access: HubAccess) -> str:
    """What the server says of it, cut to a length that a sentence can hold."""
    for cause in _causes(error):
        said = getattr(cause, "server_message", None)
        if said:
            text = without_tokens(str(said), access.known_token())
            return f" ({safe_text(text, limit=_SAID_CHARACTERS).rstrip('.')})"
    return ""


def _is(error: BaseException, *names: str) -> bool:
    """Whether an error is of a class with one of these names: the client's module of transport has had two names."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _wait(seconds: float, is_cancelled: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if is_cancelled():
            raise CancelledError("Cancelled.", hint="What was fetched stays in the cache.")
        time.sleep(min(left, _POLL_SECONDS))
