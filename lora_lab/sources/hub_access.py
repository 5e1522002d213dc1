"""Which Hub is asked, with which token, and whether at all.

Address, cache, login and offline mode are those of the Hub's own client, which reads them from the environment when it
is imported: ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` or the login store, ``HF_HUB_OFFLINE``. What the client does not
do is ask whose the token is: it sends it to whatever ``HF_ENDPOINT`` names. Here it goes to the Hub itself and to this
machine; to another host only when that host was named, and never unencrypted.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, quoted
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

_OWN_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_VARIABLE: Final = "LORA_LAB_SEND_TOKEN_TO"


@dataclass(frozen=True, slots=True)
class HubAccess:
    """What a session allows with respect to the Hub.

    Parameters
    ----------
    offline : ask nobody
    send_token_to : hosts beside the Hub's own that the token may be sent to, over https; those of the variable
        LORA_LAB_SEND_TOKEN_TO, divided by commas, are added
    """

    offline: bool = False
    send_token_to: tuple[str, ...] = ()

    @property
    def endpoint(self) -> str:
        """The address of the Hub, without a slash at its end."""
        from huggingface_hub import constants

        return constants.ENDPOINT

    @property
    def host(self) -> str:
        """Host of the Hub, with the port where one is given."""
        return urlsplit(self.endpoint).netloc

    @property
    def is_offline(self) -> bool:
        """Whether nobody is to be asked, by the session or by HF_HUB_OFFLINE."""
        from huggingface_hub import constants

        return self.offline or constants.is_offline_mode()

    @property
    def token(self) -> bool | None:
        """What the client is given: None for the person's own token, False for none."""
        return None if may_carry_token(self.endpoint, self._named_hosts()) else False

    def api(self) -> HfApi:
        """The Hub's client.

        Raises
        ------
        LoraLabError
            HF_ENDPOINT is no address.
        """
        from huggingface_hub import HfApi

        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoraLabError(
                f"HF_ENDPOINT is {quoted(self.endpoint)}, expected an address such as https://huggingface.co.",
                hint="Correct it, or unset it.",
            )
        return HfApi(endpoint=self.endpoint, token=self.token, library_name="lora-lab", library_version=__version__)

    def known_token(self) -> str | None:
        """The person's token, to strike it out of what is shown; None where there is none.

        Where it is withheld from the Hub it is read where it lies: the client may renew it, by asking that very Hub.
        """
        from huggingface_hub import constants, get_token

        try:
            if self.token is None:
                return get_token()
            given = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
            return given or Path(constants.HF_TOKEN_PATH).read_text("utf-8").strip() or None
        except Exception:  # a login that cannot be read or renewed is told by the request that needs it
            return None

    def findings(self) -> tuple[Finding, ...]:
        """What a person should know before reading an answer: that their token was not sent."""
        hint = self.token_hint()
        return (Finding("token_withheld", hint),) if hint else ()

    def token_hint(self) -> str:
        """Why the token was not sent and how it would be; empty where it was, or where there is none."""
        if self.token is None or self.known_token() is None:
            return ""
        host = urlsplit(self.endpoint).hostname or self.endpoint
        if urlsplit(self.endpoint).scheme != "https":
            return f"Your token was not sent to {quoted(host)}, which is asked over plain http; use an https address."
        return f"Your token was not sent to {quoted(host)}, which is not the Hub's own; --send-token-to {host} does so."

    def _named_hosts(self) -> frozenset[str]:
        variable = os.environ.get(_VARIABLE, "")
        named = (*self.send_token_to, *variable.split(","))
        return frozenset(host.strip().lower() for host in named if host.strip())


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client's log off the terminal: links with signatures, and a server's own words, unescaped.

    Whoever asked for more by HF_HUB_VERBOSITY or HF_DEBUG gets it.
    """
    import logging

    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    if before >= logging.WARNING:
        set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)


def may_carry_token(address: str, named: frozenset[str] = frozenset()) -> bool:
    """Whether the person's token may go to the host of `address`.

    Parameters
    ----------
    address : a URL
    named : further hosts, with or without a port

    Examples
    --------
    >>> may_carry_token("https://huggingface.co/api"), may_carry_token("http://huggingface.co/api")
    (True, False)
    >>> may_carry_token("https://huggingface.co.example.org"), may_carry_token("http://127.0.0.1:8000")
    (False, True)
    >>> may_carry_token("https://hub.example.org:8443", frozenset({"hub.example.org"}))
    True
    """
    parts = urlsplit(address)
    host = (parts.hostname or "").lower()
    if _is_loopback(host):
        return parts.scheme in ("http", "https")
    is_known = host in _OWN_HOSTS or host in named or parts.netloc.lower() in named
    return parts.scheme == "https" and is_known and parts.username is None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
