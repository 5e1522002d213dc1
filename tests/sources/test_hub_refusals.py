"""Every way to be refused, through the real client: one sentence, the next step, and the exit code."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import pytest
from hubserver import HubServer

from lora_lab.errors import HubError, OperationError
from lora_lab.sources import hub_cache
from lora_lab.sources.hub import Hub
from lora_lab.sources.hub_access import HubAccess
from lora_lab.sources.hub_refusals import persistently, refusal_of
from lora_lab.sources.locators import parse

CONFIG = {"adapter_config.json": "{}"}


@pytest.fixture
def shelf(hub: HubServer) -> HubServer:
    """A repository of each kind."""
    for name in ("open", "old"):
        hub.add(f"anna/{name}", CONFIG)
    hub.add("anna/private", CONFIG, private=True)
    hub.add("anna/gated", CONFIG, gated="auto")
    hub.rename("anna/old", "anna/new")
    return hub


REFUSED = {
    "missing": ("anna/none", "hf_other", "not found on the Hub", "hf auth whoami"),
    "missing without a token": ("anna/none", None, "there is no token", "hf auth login"),
    "private": ("anna/private", "hf_other", "is private", "hf auth whoami"),
    "gated without a token": ("anna/gated", None, "gated", "Ask for access"),
    "gated": ("anna/gated", "hf_other", "gated", "Ask for access"),
    "token": ("anna/open", "hf_wrong", "does not accept the token", "hf auth login"),
    "revision": ("anna/open@none", None, "no such revision", "branches"),
    "folder": ("anna/open:none", None, "nothing called 'none'", "after the colon"),
    "file": ("https://huggingface.co/anna/open/blob/main/train.py", None, "nothing called 'train.py'", "colon"),
    "name": ("hf://anna/-open-", None, "no name that the Hub allows", "spelling"),
}

ASKED = """
import json, os
from concurrent.futures import ThreadPoolExecutor
from lora_lab import Session
from lora_lab.errors import LoraLabError

def told(asked):
    locator, token = asked
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        Session().pull(locator)
    except LoraLabError as error:
        return type(error).__name__, error.message, error.hint

with ThreadPoolExecutor(int(os.environ["TOGETHER"])) as pool:
    print(json.dumps(list(pool.map(told, json.loads(os.environ["ASKED"])))))
"""


def test_one_sentence_each(shelf: HubServer, tmp_path: Path) -> None:
    """What, and the next step."""
    asked = json.dumps([(locator, token) for locator, token, *_ in REFUSED.values()])
    said = shelf.run_python(ASKED, home=tmp_path, more={"ASKED": asked, "TOGETHER": "1"}).ok().json
    for (locator, _, words, step), (kind, message, hint) in zip(REFUSED.values(), said, strict=True):
        assert (words in message, step in hint) == (True, True), (locator, message, hint)
        assert kind == ("HubError" if words in ("gated", "does not accept the token") else "NotOnHubError"), locator
        assert message.count(". ") == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing", 2),
        ("missing without a token", 2),
        ("revision", 2),
        ("folder", 2),
        ("file", 2),
        ("name", 2),
        ("gated", 3),
        ("token", 3),
    ],
)
def test_a_name_that_is_not_there_is_wrong_input_and_a_refusal_a_failure(
    shelf: HubServer, tmp_path: Path, name: str, code: int
) -> None:
    locator, token, *_ = REFUSED[name]
    assert shelf.run_lab("pull", locator, home=tmp_path, token=token).code == code


def test_what_is_said_is_two_lines(shelf: HubServer, tmp_path: Path) -> None:
    ran = shelf.run_lab("pull", "anna/none", home=tmp_path)
    assert len(ran.err.splitlines()) == 2
    assert ran.err.startswith("lora-lab: 'anna/none' was not found")


def test_a_renamed_repository(shelf: HubServer, tmp_path: Path) -> None:
    """It is found under its new name, which is said; the cache knows it by that."""
    said = shelf.run_lab("pull", "anna/old", "--json", home=tmp_path).ok().json
    assert said["repository"] == "anna/new"
    assert [one["code"] for one in said["warnings"]] == ["renamed"]
    assert "'anna/new'" in said["warnings"][0]["message"]
    again = shelf.run_lab("pull", "anna/old", "--json", home=tmp_path, offline=True).ok().json
    assert again["repository"] == "anna/new"


STATUS = {
    "GET /api/models": [(503, 2, None), (429, 1, None), (408, 1, None), (500, 9, "failed with status 500")],
    "GET /object": [(503, 2, None), (429, 1, None), (403, 1, "may not read"), (502, 9, "failed with status 502")],
}


def test_what_passes_is_tried_again(hub: HubServer, tmp_path: Path) -> None:
    """Twice more, not for ever, and never what is a refusal."""
    cases = [(pattern, *case) for pattern, of in STATUS.items() for case in of]
    repositories = []
    for number, (pattern, status, times, _) in enumerate(cases):
        name = f"anna/r{number}"
        hub.add(name, {"w.safetensors": bytes([number]) * 100})
        stored = hub.store.repositories[name].resolve("main").files["w.safetensors"]  # type: ignore[union-attr]
        place = f"{pattern}/{stored.sha256}" if "object" in pattern else f"{pattern}/{name}"
        hub.faults.add(place, status=status, times=times, headers={"Retry-After": "0"} if status == 429 else {})
        repositories.append((name, None))
    more = {"ASKED": json.dumps(repositories), "TOGETHER": "8"}
    said = hub.run_python(ASKED, home=tmp_path, xet=False, more=more).ok().json
    for (pattern, status, _, words), told in zip(cases, said, strict=True):
        if words is None:
            assert told is None, (pattern, status, told)
        else:
            assert words in told[1], (pattern, status, told)
    assert len(hub.requests.matching("GET /api/models/anna/r3")) == 3


def test_nobody_there(tmp_path: Path, hub: HubServer) -> None:
    """A port where nothing listens, a name that has no address, and a server that does not answer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    more = {"HF_ENDPOINT": nobody}
    refused = hub.run_lab("pull", "anna/a", home=tmp_path, more=more)
    assert refused.code == 3
    assert "refused the connection" in refused.err
    nowhere = hub.run_lab("pull", "anna/a", home=tmp_path, more={"HF_ENDPOINT": "https://nowhere.invalid"})
    assert nowhere.code == 3
    assert "There is no address for 'nowhere.invalid'" in nowhere.err
    hub.add("anna/a", CONFIG)
    hub.faults.add("GET /api/models", delay_seconds=30, times=2)
    late = hub.run_lab("pull", "anna/a", home=tmp_path, more={"HF_HUB_ETAG_TIMEOUT": "1"})
    assert late.code == 3
    assert "did not answer in time" in late.err
    wrong = hub.run_lab("pull", "anna/a", home=tmp_path, more={"HF_ENDPOINT": "somewhere"})
    assert wrong.code == 2
    assert "HF_ENDPOINT is 'somewhere'" in wrong.err


def test_what_is_no_hub(hub: HubServer, tmp_path: Path) -> None:
    """A server that answers something else."""
    hub.faults.add("GET /api/models", status=200, body="hello", times=9)
    ran = hub.run_lab("pull", "anna/a", home=tmp_path)
    assert ran.code == 3
    assert "as a Hub" in ran.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "The disk is full"),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/hub"), "'/root/hub' may not be written"),
        (OSError(errno.EROFS, "Read-only file system", "/hub"), "'/hub' may not be written"),
    ],
)
def test_the_disk_says_no(error: Exception, words: str) -> None:
    """It is told as what it is, whoever wraps it, and not tried again."""
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        persistently(fail)
    assert len(calls) == 1
    told = refusal_of(error, "org/name", HubAccess())
    assert isinstance(told, OperationError)
    assert words in told.message
    assert "HF_HOME" in told.hint
    outer = HubError("x")
    outer.__cause__ = error
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert words in refusal_of(wrapped, "org/name", HubAccess()).message


def test_no_room_is_noticed_before_anything_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    """The sum of what is missing is compared with what is free."""
    hub.add("anna/a", {"w.safetensors": bytes(1000)})
    code = """
    from lora_lab import Session
    from lora_lab.errors import OperationError
    from lora_lab.sources import hub_cache
    hub_cache.free_bytes = lambda: 1000
    try:
        Session().pull("anna/a")
    except OperationError as error:
        print(error)
    """
    said = hub.run_python(code, home=tmp_path).ok().out
    assert "needs 1000 bytes" in said
    assert "where 1000 are free" in said
    assert not hub.requests.matching("object")


def test_a_folder_that_is_not_there_yet_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free bytes are those of the disk that the cache will be on."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    assert hub_cache.free_bytes() > 0
    with pytest.raises(HubError, match="not in the cache"):
        Hub(HubAccess(offline=True)).listing(parse("hf://org/name"))
