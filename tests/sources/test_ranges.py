"""Ranges from a real server through the real client's connections, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubserver import HubServer

SIZE = 200_000
BEGIN, END = 1_000, 151_000  # the range that every case asks for
CUTS = (0, 1, 777, 65_536, END - BEGIN - 1)
PASSING = (429, 500, 502, 503, 504)

# Reads one range of a file of each repository, and says what came.
SCRIPT = """
import hashlib, json, os, threading, time
from lora_lab.errors import LoraLabError
from lora_lab.sources.hub_access import HubAccess
from lora_lab.sources.ranges import Patience, RangeReader, RemoteFile

begin, end, said = int(os.environ["BEGIN"]), int(os.environ["END"]), {}
for name, (commit, file, size, etag) in json.loads(os.environ["FILES"]).items():
    reader = RangeReader(HubAccess(offline=name == "offline"), patience=Patience(first_seconds=0.01))
    pieces = {}
    case = {}
    stop = threading.Event()
    if name == "stopped":
        stop.set()
    start = time.monotonic()
    try:
        reader.read(RemoteFile("anna/" + name, commit, file, size, etag), begin, end, pieces.__setitem__, stop)
    except LoraLabError as error:
        case = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    case["seconds"] = time.monotonic() - start
    case["places"] = sum(len(piece) for piece in pieces.values()), min(pieces, default=None)
    case["sha256"] = hashlib.sha256(b"".join(pieces[place] for place in sorted(pieces))).hexdigest()
    case["traffic"] = reader.traffic.resolved, reader.traffic.requests, reader.traffic.bytes
    said[name] = case
print(json.dumps(said))
"""


def data_of(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


def storage(hub: HubServer, name: str, **what: Any) -> None:
    """Let something go wrong at the storage, for this repository's file."""
    hub.faults.add(f"GET /object/{hashlib.sha256(data_of(name)).hexdigest()}", origin="storage", **what)


def _prepared(hub: HubServer) -> dict[str, tuple[str, str, int, str]]:
    """Repositories with one file each, and what is to go wrong with it."""
    for cut in CUTS:
        storage(hub, f"cut-{cut}", cut_after=cut)
    for status in PASSING:
        storage(hub, f"passing-{status}", status=status, times=2)
    storage(hub, "after", status=429, headers={"Retry-After": "1"})
    storage(hub, "down", status=503, times=99)
    storage(hub, "deaf", cut_after=0, times=99)
    storage(hub, "trickle", cut_after=10, times=99)
    storage(hub, "whole", ignore_range=True, times=9)
    storage(hub, "elsewhere", content_range=f"bytes 0-{END - BEGIN - 1}/{SIZE}", times=9)
    storage(hub, "shorter", replace=data_of("shorter")[:-1], times=9)
    storage(hub, "midway", cut_after=5_000)
    storage(hub, "midway", status=403)
    storage(hub, "refused", status=403, times=99)
    storage(hub, "gone", status=404, times=99)
    hub.faults.add("HEAD /anna/expired/resolve", expire=True)
    hub.faults.add("HEAD /anna/busy/resolve", status=503, times=3)
    hub.faults.add("HEAD /anna/shut/resolve", status=503, times=99)
    names = [
        "plain",
        "xet",
        "expired",
        "busy",
        "shut",
        "other",
        "small",
        "absent",
        "offline",
        "whole",
        "elsewhere",
        "shorter",
    ]
    names += ["midway", "refused", "gone", "stopped", "after", "down", "deaf", "trickle"]
    names += [f"cut-{cut}" for cut in CUTS] + [f"passing-{status}" for status in PASSING]
    found = {}
    for name in names:
        data = data_of(name)
        file = "notes.txt" if name == "small" else "model.safetensors"
        content = data.hex().encode()[:SIZE] if name == "small" else data
        commit = hub.add(f"anna/{name}", {file: content}, private=True, xet=name == "xet")
        stored = hub.store.repositories[f"anna/{name}"].commits[commit].files[file]
        etag = "0" * 64 if name == "other" else stored.etag
        found[name] = (commit, "nothing.safetensors" if name == "absent" else file, SIZE, etag)
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, dict[str, Any]]]:
    """All cases in one process: the server with its log, and what each case said."""
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_account("hf_anna", "anna")
        files = _prepared(hub)
        more = {"FILES": json.dumps(files), "BEGIN": str(BEGIN), "END": str(END)}
        ran = hub.run_python(SCRIPT, home=tmp_path_factory.mktemp("home"), token="hf_anna", more=more)
        assert ran.err == ""
        yield hub, ran.ok().json
        assert hub.errors == []


Told = tuple[HubServer, dict[str, Any]]


def require_right(case: dict[str, Any], name: str) -> None:
    """The very bytes of the range, each once."""
    assert "error" not in case, case
    assert case["places"] == [END - BEGIN, BEGIN]
    assert case["sha256"] == hashlib.sha256(data_of(name)[BEGIN:END]).hexdigest()


def ranges_of(hub: HubServer, name: str) -> list[str | None]:
    sha256 = hashlib.sha256(data_of(name)).hexdigest()
    return [seen.range for seen in hub.requests.matching(f"/object/{sha256}")]


def test_a_range_is_one_question_and_one_range(told: Told) -> None:
    """One HEAD with the token for the link, one GET of exactly the range, nothing more moved."""
    hub, said = told
    require_right(said["plain"], "plain")
    assert said["plain"]["traffic"] == [1, 1, END - BEGIN]
    assert ranges_of(hub, "plain") == [f"bytes={BEGIN}-{END - 1}"]
    (asked,) = hub.requests.matching("/anna/plain/resolve")
    assert (asked.method, asked.token) == ("HEAD", "hf_anna")


def test_the_token_never_goes_to_the_storage(told: Told) -> None:
    """In none of all these cases; the links carry their own right."""
    hub, _ = told
    seen = hub.requests.matching(origin="storage")
    assert len(seen) > 50
    assert not any(one.authorized for one in seen)


def test_a_file_that_the_hub_keeps_itself_is_read_there_with_the_token(told: Told) -> None:
    """A small file of a private repository: the link leads back to the Hub, which wants to know who asks."""
    hub, said = told
    assert "error" not in said["small"], said["small"]
    expected = data_of("small").hex().encode()[:SIZE][BEGIN:END]
    assert said["small"]["sha256"] == hashlib.sha256(expected).hexdigest()
    (asked,) = hub.requests.matching("GET /api/resolve-cache/models/anna/small")
    assert (asked.token, asked.range) == ("hf_anna", f"bytes={BEGIN}-{END - 1}")


def test_a_file_in_the_newer_store_is_read_by_plain_ranges_too(told: Told) -> None:
    """Xet's store answers links like the older one."""
    _, said = told
    require_right(said["xet"], "xet")
    assert said["xet"]["traffic"] == [1, 1, END - BEGIN]


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_goes_on_at_the_byte_reached(told: Told, cut: int) -> None:
    """The second request begins where the first one ended, so that no byte is moved twice."""
    hub, said = told
    require_right(said[f"cut-{cut}"], f"cut-{cut}")
    first, second = ranges_of(hub, f"cut-{cut}")
    assert first == f"bytes={BEGIN}-{END - 1}"
    assert second == f"bytes={BEGIN + cut}-{END - 1}"
    assert said[f"cut-{cut}"]["traffic"][2] == END - BEGIN


@pytest.mark.parametrize("status", PASSING)
def test_what_passes_is_tried_again(told: Told, status: int) -> None:
    """Twice an error of a moment, then the range."""
    _, said = told
    require_right(said[f"passing-{status}"], f"passing-{status}")
    assert said[f"passing-{status}"]["traffic"] == [1, 3, END - BEGIN]


def test_a_server_that_names_a_time_is_given_it(told: Told) -> None:
    """Retry-After of a second, where the first wait would be a hundredth."""
    _, said = told
    require_right(said["after"], "after")
    assert said["after"]["seconds"] >= 1


@pytest.mark.parametrize(("name", "requests", "words"), [("down", 5, "5 tries"), ("deaf", 5, "5 tries")])
def test_tries_are_bounded(told: Told, name: str, requests: int, words: str) -> None:
    """A server that never answers, or never sends a byte."""
    hub, said = told
    assert said[name]["error"] == "HubError"
    assert words in said[name]["message"]
    assert len(ranges_of(hub, name)) == requests


def test_interruptions_are_bounded_though_each_time_some_bytes_come(told: Told) -> None:
    """Ten bytes at a time would take 15,000 requests."""
    hub, said = told
    assert "interruptions" in said["trickle"]["message"]
    assert len(ranges_of(hub, "trickle")) == 40


def test_a_server_that_ignores_ranges_is_noticed_before_it_is_read(told: Told) -> None:
    """Status 200: not one byte of the body is taken, and there is no second try."""
    hub, said = told
    assert "does not give parts" in said["whole"]["message"]
    commit = hub.store.repositories["anna/whole"].refs["main"]
    assert said["whole"]["hint"] == f"Fetch all of it: lora-lab pull anna/whole@{commit}"
    assert said["whole"]["traffic"] == [1, 1, 0]


@pytest.mark.parametrize("name", ["elsewhere", "shorter"])
def test_another_range_than_asked_for_is_refused(told: Told, name: str) -> None:
    """Of the same length from another place, or of a file of another size."""
    _, said = told
    assert said[name]["error"] == "HubError"
    assert f"expected 'bytes {BEGIN}-{END - 1}/{SIZE}'" in said[name]["message"]
    assert said[name]["traffic"] == [1, 1, 0]


def test_an_expired_link_is_asked_for_again(told: Told) -> None:
    """At the beginning, and after a cut in the middle; once for each time."""
    hub, said = told
    require_right(said["expired"], "expired")
    assert said["expired"]["traffic"] == [2, 2, END - BEGIN]
    require_right(said["midway"], "midway")
    assert said["midway"]["traffic"] == [2, 3, END - BEGIN]
    assert ranges_of(hub, "midway")[1:] == [f"bytes={BEGIN + 5_000}-{END - 1}"] * 2


def test_fresh_links_that_are_refused_end_it(told: Told) -> None:
    """Asking for ever would not help; signatures are in no sentence."""
    _, said = told
    assert "refuses links" in said["refused"]["message"]
    assert said["refused"]["traffic"] == [3, 3, 0]
    assert not any("Signature" in case.get("message", "") for case in said.values())


def test_the_hub_itself_may_fail_for_a_moment(told: Told) -> None:
    """Three times 503 for the link, then an answer; for ever is too long."""
    _, said = told
    require_right(said["busy"], "busy")
    assert said["busy"]["traffic"] == [4, 1, END - BEGIN]
    assert "5 tries: the Hub answers 503" in said["shut"]["message"]


def test_a_file_that_is_not_the_listed_one_is_refused(told: Told) -> None:
    """Another hash than the listing's; no file at all; no object behind the link."""
    _, said = told
    assert "another file than the one listed" in said["other"]["message"]
    assert said["absent"]["error"] == "HubError"
    assert "status 404" in said["gone"]["message"]


def test_offline_nobody_is_asked(told: Told) -> None:
    """The sentence says what is missing."""
    hub, said = told
    assert "is not whole in the cache" in said["offline"]["message"]
    assert hub.requests.matching("/anna/offline/") == []


def test_a_reading_that_is_not_wanted_takes_nothing(told: Told) -> None:
    """Stopped before the first piece: none is given."""
    _, said = told
    assert said["stopped"]["error"] == "CancelledError"
    assert said["stopped"]["places"] == [0, None]


# Reads a range that nobody answers for a minute, over a connection of its own or one that is kept, and breaks the wait.
WAITING = """
import json, os, sys, threading, time
from lora_lab.errors import LoraLabError
from lora_lab.sources.hub_access import HubAccess
from lora_lab.sources.ranges import RangeReader, RemoteFile

commit, file, size, etag = json.loads(os.environ["FILE"])
reader, stop, said = RangeReader(HubAccess()), threading.Event(), []
wanted = RemoteFile("anna/slow", commit, file, size, etag)
if os.environ["KEPT"] == "yes":
    reader.read(wanted, 0, 1000, lambda place, piece: None, stop)

def read():
    try:
        reader.read(wanted, 1000, 2000, lambda place, piece: None, stop)
    except LoraLabError as error:
        said.append(type(error).__name__)

requests = reader.traffic.requests
thread = threading.Thread(target=read, daemon=True)
thread.start()
while reader.traffic.requests == requests:
    time.sleep(0.01)
time.sleep(0.5)
assert thread.is_alive()
start = time.monotonic()
stop.set()
reader.interrupt()
thread.join(30)
seconds = time.monotonic() - start
again = []
reader.read(wanted, 0, 1000, lambda place, piece: again.append(len(piece)))
print(json.dumps({"alive": thread.is_alive(), "seconds": seconds, "said": said, "again": sum(again)}))
"""


@pytest.mark.parametrize("kept", ["yes", "no"])
def test_a_wait_for_the_first_answer_is_broken_off(kept: str, hub: HubServer, tmp_path: Path) -> None:
    """Its thread ends at once, not after the time limit; the reader goes on to work over other connections."""
    data = data_of("slow")
    commit = hub.add("anna/slow", {"data.safetensors": data})
    storage(hub, "slow", delay_seconds=60.0, skip=1 if kept == "yes" else 0)
    file = [commit, "data.safetensors", SIZE, hashlib.sha256(data).hexdigest()]
    ran = hub.run_python(WAITING, home=tmp_path, more={"FILE": json.dumps(file), "KEPT": kept})
    said = ran.ok().json
    assert (said["alive"], said["said"], said["again"]) == (False, ["CancelledError"], 1000)
    assert said["seconds"] < 5  # of twenty, the time limit
