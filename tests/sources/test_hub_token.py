"""The token goes to the host that it belongs to and to no other, and is never shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hubserver import HubServer
from hubserver.tls import make_certificate, server_context

from lora_lab.errors import HubError
from lora_lab.sources.hub_access import may_carry_token

TOKEN = "hf_" + "Ab3" * 11 + "x"
CONFIG = {"adapter_config.json": "{}"}
ELSEWHERE = "hub.example.org"

MAY = [
    ("https://huggingface.co", True),
    ("https://HF.co/", True),
    ("https://huggingface.co:443/x", True),
    ("http://huggingface.co", False),
    ("https://huggingface.co.evil.org", False),
    ("https://evil.org/huggingface.co", False),
    ("https://huggingface.co@evil.org", False),
    ("https://user:x@huggingface.co", False),
    ("https://named.org", True),
    ("https://NAMED.org:8443", True),
    ("https://sub.named.org", False),
    ("http://named.org", False),
    ("https://port.org:8443", True),
    ("https://port.org", False),
    ("http://127.0.0.1:80", True),
    ("http://127.9.9.9", True),
    ("http://[::1]:80", True),
    ("http://localhost", True),
    ("http://localhost.evil.org", False),
    ("http://127.0.0.1.evil.org", False),
    ("ftp://localhost", False),
    ("", False),
]


@pytest.mark.parametrize(("address", "may"), MAY)
def test_where_a_token_may_go(address: str, may: bool) -> None:
    """Https to the Hub's own hosts and to those named; loopback anyhow."""
    assert may_carry_token(address, frozenset({"named.org", "port.org:8443"})) is may


def test_the_hub_gets_it_and_the_storage_does_not(hub: HubServer, tmp_path: Path) -> None:
    """A private repository is read with the token; links to the storage are followed without."""
    hub.add("anna/a", {**CONFIG, "adapter_model.safetensors": bytes(5000)}, private=True)
    hub.run_lab("pull", "anna/a", home=tmp_path, token="hf_anna", xet=False).ok()
    assert {seen.token for seen in hub.requests.matching("/api/models/anna/a")} == {"hf_anna"}
    at_storage = hub.requests.matching("GET /object/", origin="storage")
    assert len(at_storage) == 1
    assert not at_storage[0].authorized


def test_another_host_over_plain_http_never_gets_it(hub: HubServer, tmp_path: Path) -> None:
    """Not even when it is named."""
    hub.add_account(TOKEN, "carl")
    hub.add("carl/open", CONFIG)
    hub.add("carl/private", CONFIG, private=True)
    settings = {
        "home": tmp_path,
        "token": TOKEN,
        "more": {"HF_ENDPOINT": f"http://{ELSEWHERE}", "HTTP_PROXY": hub.url, "NO_PROXY": ""},
    }
    for flags in ((), ("--send-token-to", ELSEWHERE)):
        said = hub.run_lab("pull", "carl/open", "--dry-run", "--json", *flags, **settings).ok().json
        assert [one["code"] for one in said["warnings"]] == ["token_withheld"]
    refused = hub.run_lab("pull", "carl/private", **settings)
    assert refused.code == 3
    assert "plain http" in refused.err
    assert hub.requests.matching("carl/private")
    assert {seen.host for seen in hub.requests.matching("carl/")} == {ELSEWHERE}
    assert not any(seen.authorized for seen in hub.requests)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl, which is not here")
def test_another_host_gets_it_when_it_is_named(hub: HubServer, tmp_path: Path) -> None:
    """Over https, by the flag or the variable; without either it is asked without, which the error says."""
    certificate = make_certificate(tmp_path, ELSEWHERE)
    hub.tls = server_context(certificate)
    hub.add_account(TOKEN, "carl")
    hub.add("carl/private", CONFIG, private=True)
    more = {
        "HF_ENDPOINT": f"https://{ELSEWHERE}",
        "HTTPS_PROXY": hub.url,
        "NO_PROXY": "",
        "SSL_CERT_FILE": str(certificate.with_suffix(".crt")),
    }
    asked = ("pull", "carl/private", "--dry-run", "--json")
    refused = hub.run_lab(*asked, home=tmp_path, token=TOKEN, more=more)
    assert refused.code == 3
    assert f"--send-token-to {ELSEWHERE}" in refused.err
    assert hub.requests.matching("carl/private")
    assert not any(seen.authorized for seen in hub.requests)
    hub.run_lab(*asked, "--send-token-to", ELSEWHERE, home=tmp_path, token=TOKEN, more=more).ok()
    named = {**more, "LORA_LAB_SEND_TOKEN_TO": f"other.org,{ELSEWHERE}"}
    hub.run_lab(*asked, home=tmp_path, token=TOKEN, more=named).ok()
    assert [seen.token for seen in hub.requests.matching("carl/private")][-2:] == [TOKEN, TOKEN]


def test_it_is_never_shown(hub: HubServer, tmp_path: Path) -> None:
    """A server that repeats the token, with markup and control characters around it, is quoted without any of them."""
    hub.add_account(TOKEN, "carl")
    hub.add("carl/a", CONFIG)
    body = f"bad token {TOKEN} [red]hi[/red] \x1b]52;c;AAAA\x07 and \x9b31m " + "long " * 500
    hub.faults.add("GET /api/models", status=418, body=body, times=9)
    for json in ((), ("--json",)):
        ran = hub.run_lab("pull", "carl/a", *json, home=tmp_path, token=TOKEN)
        assert ran.code == 3
        assert ran.out == ""
        assert TOKEN not in ran.err
        assert "hf_…" in ran.err
        assert "[red]hi[/red]" in ran.err
        assert not set(ran.err) & {"\x1b", "\x07", "\x9b"}
        assert len(ran.err) < 600


def test_errors_strike_tokens_out() -> None:
    """Whatever quotes one, in a message or a hint."""
    error = HubError(f"Bearer {TOKEN} is wrong.", hint=f"Not hf_oauth_{'a.b-c' * 9}, and keep hf_model.layers.0.")
    assert str(error) == "Bearer hf_… is wrong. Not hf_…, and keep hf_model.layers.0."
