"""A base on the Hub of which only what is asked for is moved, and every number as if all of it were here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from hubserver import HubServer, environment
from hubserver.wire import wait_until
from large_base import MODULES, SHARDS, TENSOR_BYTES, TOUCHED, write_large_base, write_touching_adapter
from safetensors.torch import save_file

from lora_lab.domain import figures
from lora_lab.domain.wire import report_from_wire


@dataclass
class Place:
    """A hub with a private base, its fine-tune and an adapter; the same in folders."""

    hub: HubServer
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapter(self) -> str:
        return str(self.folder / "adapter")

    def lab(self, *arguments: str, home: str, code: int = 0, **settings: Any) -> Any:
        """Run lora-lab with --json and give its document, or what it said on stderr; the log begins anew."""
        self.hub.requests.clear()
        ran = self.hub.run_lab(*arguments, "--json", home=self.folder / home, token="hf_anna", **settings)
        assert ran.code == code, f"{ran.code}\n{ran.out}\n{ran.err}"
        return ran.json if code == 0 else ran.err

    def python(self, code: str, *, home: str, **settings: Any) -> Any:
        more = {"FOLDER": str(self.folder)}
        return self.hub.run_python(code, home=self.folder / home, token="hf_anna", more=more, **settings).ok().json

    def ranges(self) -> list[Any]:
        return self.hub.requests.matching("^GET", origin="storage")

    def heads(self) -> list[Any]:
        return self.hub.requests.matching(r"^HEAD .*\.safetensors$")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("large")
    write_large_base(folder / "base")
    write_large_base(folder / "tuned", moved=True)
    write_touching_adapter(folder / "adapter")
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_account("hf_anna", "anna")
        for name in ("base", "tuned", "adapter"):
            hub.add(f"anna/{name}", folder / name, private=True)
        yield Place(hub, folder)
        assert hub.errors == []
        assert not any(seen.authorized for seen in hub.requests.matching(origin="storage"))


@pytest.fixture(autouse=True)
def all_is_well(place: Place) -> None:
    place.hub.faults.clear()


class Worker:
    """A session in a process of its own, as the application runs it, with its caches under a folder of the place."""

    def __init__(self, place: Place, home: str, **options: Any) -> None:
        self._place = place
        settings = environment(endpoint=place.hub.url, home=place.folder / home, token="hf_anna")
        command = [sys.executable, "-m", "lora_lab.jobs.worker", json.dumps(options)]
        self.process = subprocess.Popen(
            command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place.folder
        )
        self.progress: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(20)

    def ask(self, call: str, **arguments: Any) -> None:
        """Begin a piece of work; the server's log begins anew."""
        self._place.hub.requests.clear()
        assert self.process.stdin is not None
        print(json.dumps({"id": 1, "call": call, "arguments": arguments}), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """The last event of the work: result, failed or cancelled."""
        assert self.process.stdout is not None
        self.progress.clear()
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["kind"] not in ("progress", "rows"):
                return event
            self.progress.append(event.get("what", ""))
        raise AssertionError("the worker ended without a word")

    def analyze(self, name: str, base: str | None, *subjects: str, dry_run: bool = False, **parameters: Any) -> Any:
        """The document of an analysis."""
        self.ask("analyze", id=name, locators=subjects, base=base, parameters=parameters, dry_run=dry_run)
        event = self.answer()
        assert event["kind"] == "result", event
        return report_from_wire(event["report"]).to_json()


def header_bytes(folder: Path) -> int:
    """Bytes of the headers of all files, with their lengths."""
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


TENSORS = len(MODULES) * TENSOR_BYTES
PAIRS = len(TOUCHED)


@pytest.fixture(scope="module")
def worker(place: Place) -> Iterator[Worker]:
    """One that has looked at nothing yet when the first test of this file begins."""
    with Worker(place, "home") as made:
        yield made


def test_a_dry_run_tells_what_will_be_moved_and_that_is_moved(place: Place, worker: Worker) -> None:
    """48 of 1,000 tensors in 24 pairs of neighbours: the targets as exact counts.

    One question for each file and one range for each header; then one range for each pair, and nothing but the pairs.
    """
    told = worker.analyze("amplify", "anna/base", place.adapter, dry_run=True)
    headers = place.ranges()
    assert len(place.heads()) == len(headers) == SHARDS
    assert sum(seen.sent for seen in headers) + TENSORS <= 1.05 * (header_bytes(place.base) + TENSORS)
    assert (told["dry_run"], told["tensors"], told["fetch_bytes"]) == (True, len(MODULES), TENSORS)
    assert sum(row["fetch_bytes"] for row in told["files"]) == TENSORS

    document = worker.analyze("amplify", "anna/base", place.adapter)
    storage = place.ranges()
    assert (len(storage), len(place.heads())) == (PAIRS, SHARDS)  # headers, index and configuration are remembered
    assert told["requests"] == PAIRS + SHARDS
    assert sum(seen.sent for seen in storage) == TENSORS
    assert all(seen.status == 206 for seen in storage)
    assert any("kB of 786 kB fetched" in what for what in worker.progress)

    commit = place.hub.store.repositories["anna/base"].refs["main"]
    files = place.hub.store.repositories["anna/base"].commits[commit].files
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    record = document["inputs"][1]
    assert (record["locator"], record["revision"]) == ("anna/base", commit)
    assert record["path"] == f"hf://anna/base@{commit}"
    assert record["partial"]["etags"] == {name: files[name].sha256 for name in shards}
    assert (record["partial"]["fetched_bytes"], record["partial"]["requests"]) == (TENSORS, PAIRS + SHARDS)
    assert sorted(record["sha256"]) == [f"{name}#header" for name in shards]
    assert record["sha256"] == told["inputs"][1]["sha256"]
    assert [one["code"] for one in document["warnings"]] == ["partial_read"]

    assert worker.analyze("amplify", "anna/base", place.adapter) == document
    assert len(place.hub.requests) == 0  # the result is remembered too, and that is what a dry run says
    again = worker.analyze("amplify", "anna/base", place.adapter, dry_run=True)
    assert (again["fetch_bytes"], again["requests"]) == (0, 0)


def test_the_next_analysis_of_the_same_weights_moves_nothing(place: Place, worker: Worker) -> None:
    """In one session: other settings, or another question about the same modules."""
    one = worker.analyze("amplify", "anna/base", place.adapter, rank=2)
    other = worker.analyze("intruders", "anna/base", place.adapter, top=2)
    assert place.ranges() == []
    assert one["inputs"][1]["partial"]["fetched_bytes"] == other["inputs"][1]["partial"]["fetched_bytes"] == 0
    local = worker.analyze("intruders", str(place.base), place.adapter, top=2)
    assert other["modules"] == local["modules"]


def test_what_needs_no_weights_moves_none(place: Place, worker: Worker) -> None:
    """A check by headers, of which every byte is checked as of a local file; and anything about a base that is here."""
    checked = worker.analyze("check", "anna/base", place.adapter)
    assert (checked["ok"], checked["warnings"]) == (True, [])
    assert checked["inputs"][1]["partial"]["fetched_bytes"] == 0
    told = worker.analyze("check", "anna/base", place.adapter, dry_run=True)
    assert (told["fetch_bytes"], told["requests"]) == (0, 0)
    local = worker.analyze("amplify", str(place.base), place.adapter, dry_run=True)
    assert (local["fetch_bytes"], local["size_bytes"]) == (0, 0)


def test_offline_says_what_is_missing(place: Place, worker: Worker) -> None:
    """A result that is remembered is given; one that is not names what would have to be fetched, and what to do."""
    known = worker.analyze("amplify", "anna/base", place.adapter)
    with Worker(place, "home", offline=True) as alone:
        assert alone.analyze("amplify", "anna/base", place.adapter) == known
        told = alone.analyze("amplify", "anna/base", place.adapter, dry_run=True, rank=1)
        assert told["fetch_bytes"] == TENSORS
        alone.ask("analyze", id="amplify", locators=[place.adapter], base="anna/base", parameters={"rank": 1})
        said = alone.answer()
        assert len(place.hub.requests) == 0
    assert said["kind"] == "failed"
    assert said["error"].startswith("48 tensors (786 kB) of ")
    assert "drop --offline" in said["hint"]


@pytest.fixture(scope="module")
def forgetful(place: Place) -> Iterator[Worker]:
    """One that remembers nothing, so that everything is fetched each time."""
    with Worker(place, "forgetful", cache=False) as made:
        yield made


def test_faults_in_the_middle_change_no_digit(place: Place, forgetful: Worker) -> None:
    """Cuts, a busy storage, links that expire: the result is that of the files here."""
    local = forgetful.analyze("amplify", str(place.base), place.adapter, rank=3)
    add = place.hub.faults.add
    add("HEAD /anna/base/resolve/.*00002", status=503)
    add("HEAD /anna/base/resolve/.*00003", expire=True)
    for skip, cut in ((0, 5), (3, 0), (5, 10_000), (11, 32_767)):
        add("GET /object/", origin="storage", skip=skip, cut_after=cut)
    add("GET /object/", origin="storage", skip=8, status=429)
    add("GET /object/", origin="storage", skip=14, status=403)
    remote = forgetful.analyze("amplify", "anna/base", place.adapter, rank=3)
    assert remote["modules"] == local["modules"]
    assert remote["totals"] == local["totals"]
    assert len(place.ranges()) > PAIRS


def test_a_job_that_waits_for_the_storage_is_cancelled_at_once(place: Place, forgetful: Worker) -> None:
    """It would answer after a minute; what it was asked for lies nowhere."""
    place.hub.faults.add("GET /object/", origin="storage", skip=SHARDS, delay_seconds=60.0, times=99)
    forgetful.ask("analyze", id="amplify", locators=[place.adapter], base="anna/base", parameters={"rank": 1})
    assert wait_until(lambda: len(place.ranges()) > SHARDS, 60)
    start = time.monotonic()
    forgetful.process.send_signal(signal.SIGTERM)
    assert forgetful.answer()["kind"] == "cancelled"
    assert time.monotonic() - start < 10  # of sixty seconds; the machine may be busy
    assert not (place.folder / "forgetful" / "cache").exists()


SAME = """
import json, os
from lora_lab import Session

folder = os.environ["FOLDER"]
adapter, said = f"{folder}/adapter", {}
session = Session(cache=False)
runs = {
    "amplify": ([adapter], "base", {"draws": 2}),
    "intruders": ([adapter], "base", {"top": 3}),
    "check": ([adapter], "base", {}),
    "budget": (["base"], None, {"targets": ("q_proj",), "rank": (2,)}),
    "intrinsic": (["base", "tuned"], None, {}),
}
for name, (subjects, base, parameters) in runs.items():
    documents = []
    for prefix in (f"{folder}/", "anna/"):
        placed = [one if one == adapter else prefix + one for one in subjects]
        modules = ["*.q_proj", "*norm*"] if name == "intrinsic" else []
        where = None if base is None else prefix + base
        report = session.analyze(name, placed, base=where, parameters=parameters, modules=modules)
        document = report.to_json()
        document.pop("inputs")
        document["warnings"] = [one for one in document["warnings"] if one["code"] != "partial_read"]
        documents.append(document)
    said[name] = documents[0] == documents[1], len(json.dumps(documents[1]))
reports = [session.inspect(prefix + "base").to_json() for prefix in (f"{folder}/", "anna/")]
said["inspect"] = reports[0]["modules"] == reports[1]["modules"], len(reports[1]["modules"])
remote = session.analyze("amplify", ["anna/adapter"], base="anna/base", parameters={"base_directions": False})
local = session.analyze("amplify", [adapter], base=f"{folder}/base", parameters={"base_directions": False})
said["adapter"] = remote.tables == local.tables, len(remote.tables[0].rows)
print(json.dumps(said))
"""


def test_every_analysis_gives_the_same_digits(place: Place) -> None:
    """On the same files here and on the Hub, document for document; adapters on the Hub too."""
    said = place.python(SAME, home="same")
    assert {name: same for name, (same, _) in said.items()} == dict.fromkeys(said, True)
    assert min(size for _, size in said.values()) > 40
    whole = place.hub.store.repositories["anna/base"].commits
    assert sum(seen.sent for seen in place.ranges()) < sum(
        stored.size for c in whole.values() for stored in c.files.values()
    )


def test_what_lies_in_the_cache_is_read_there(place: Place) -> None:
    """One of five files in the Hub's own cache: four are asked for; all of them: none."""
    code = """
    import json, os
    from huggingface_hub import hf_hub_download, snapshot_download
    from lora_lab import Session

    said = []
    for step in (0, 1):
        if step == 0:
            hf_hub_download("anna/base", "model-00001-of-00005.safetensors")
        else:
            snapshot_download("anna/base", allow_patterns=["*.safetensors", "*.json"])
        session = Session(cache=False)
        report = session.analyze("amplify", [os.environ["FOLDER"] + "/adapter"], base="anna/base")
        (_, record) = report.inputs
        moved = None if record.partial is None else [sorted(record.partial.etags), record.partial.fetched_bytes]
        said.append([moved, sorted(record.sha256), [dict(row) for row in report.table("modules").rows]])
    print(json.dumps(said))
    """
    place.hub.requests.clear()
    (part, names, rows), (whole, all_names, same_rows) = place.python(code, home="cached")
    assert part[0] == [f"model-{number:05}-of-00005.safetensors" for number in range(2, 6)]
    assert names[0] == "model-00001-of-00005.safetensors"
    assert all(name.endswith("#header") for name in names[1:])
    assert whole is None
    assert all_names == [f"model-{number:05}-of-00005.safetensors" for number in range(1, 6)]
    assert rows == same_rows


def test_a_merge_takes_the_whole(place: Place, tmp_path: Path) -> None:
    """What is written is made of files whose hashes are known: nothing is read in parts. A dry run takes nothing."""
    merge = ("merge", place.adapter, "--base", "anna/base", "-o", str(tmp_path / "merged"))
    size = sum(path.stat().st_size for path in place.base.glob("*.safetensors"))
    said = place.lab(*merge, "--dry-run", home="merging", code=3)
    assert f"({figures.size(size)}) is not on this machine and would be fetched" in said
    assert "lora-lab pull anna/base" in said
    assert place.ranges() == []
    place.lab(*merge, home="merging")
    assert not any(seen.range for seen in place.ranges() if seen.range and not seen.range.startswith("bytes=0-"))
    receipt = json.loads((tmp_path / "merged" / "lora_lab_receipt.json").read_text())
    assert "partial" not in json.dumps(receipt["inputs"])
    assert not any("#header" in name for record in receipt["inputs"] for name in record["sha256"])


@pytest.mark.parametrize("command", ["extract", "combine", "resize"])
def test_a_dry_run_takes_no_model(place: Place, tmp_path: Path, command: str) -> None:
    """Neither of those that an adapter is made from nor the one that DoRA needs; it says what would be fetched."""
    size = sum(path.stat().st_size for path in place.base.glob("*.safetensors"))
    sources = {
        "extract": (str(place.base), "anna/base"),
        "combine": (place.adapter, place.adapter, "--base", "anna/base"),
        "resize": (place.adapter, "--base", "anna/base", "--rank", "2"),
    }
    said = place.lab(command, *sources[command], "-o", str(tmp_path / "out"), "--dry-run", home=command, code=3)
    assert f"({figures.size(size)}) is not on this machine and would be fetched" in said
    assert place.ranges() == []


def test_a_dry_run_names_every_model_that_it_lacks(place: Place, tmp_path: Path) -> None:
    """Both of an extraction at once, each with its size, and how to fetch each."""
    size = sum(path.stat().st_size for path in place.base.glob("*.safetensors"))
    said = place.lab(
        "extract", "anna/base", "anna/tuned", "-o", str(tmp_path / "out"), "--dry-run", home="extracting", code=3
    )
    assert f"'anna/base' ({figures.size(size)}) and 'anna/tuned' ({figures.size(size)}) are not on this machine" in said
    assert "lora-lab pull anna/base; lora-lab pull anna/tuned" in " ".join(said.split())
    assert place.ranges() == []


def test_a_server_without_ranges_is_refused_in_one_sentence(place: Place) -> None:
    """And what to do instead."""
    place.hub.faults.add("GET /object/", origin="storage", ignore_range=True, times=99)
    said = place.lab("inspect", "anna/base", home="deaf", code=3)
    assert "does not give parts" in said
    assert "lora-lab pull anna/base" in said


def test_ctrl_c_ends_a_wait(place: Place) -> None:
    """The same at the command line, with the code of what was stopped."""
    home = place.folder / "stopped"
    place.hub.faults.add("GET /object/", origin="storage", skip=SHARDS, delay_seconds=60.0, times=99)
    place.hub.requests.clear()
    settings = environment(endpoint=place.hub.url, home=home, token="hf_anna")
    command = [sys.executable, "-m", "lora_lab", "amplify", place.adapter, "--base", "anna/base"]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: len(place.ranges()) > SHARDS, 60)
    time.sleep(0.2)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert time.monotonic() - start < 10
    assert list((home / "cache" / "spool").iterdir()) == []


BROKEN = """
import json, os
from lora_lab import Session
from lora_lab.errors import LoraLabError

session, said = Session(cache=False), {}
for name in json.loads(os.environ["NAMES"]):
    try:
        session.base(f"anna/{name}")
        said[name] = ["fine", ""]
    except LoraLabError as error:
        said[name] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def _broken(folder: Path) -> dict[str, tuple[dict[str, bytes], str, str]]:
    """Repositories that lie, and the error and some words of the sentence for each."""
    save_file({"a.weight": torch.ones(40, 40), "b.weight": torch.ones(3)}, folder / "x.safetensors")
    good = (folder / "x.safetensors").read_bytes()
    (folder / "x.safetensors").unlink()
    shard = "model-00001-of-00001.safetensors"

    def listing(weight_map: dict[str, str]) -> dict[str, bytes]:
        return {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}

    both = {"a.weight": shard, "b.weight": shard}
    long = (len(good) + 5).to_bytes(8, "little") + good[8:]
    huge = (1 << 62).to_bytes(8, "little") + good[8:]
    turned = good.replace(b"[40,40]", b"[40,41]")
    listed = listing(both)
    return {
        "good": ({**listed, shard: good}, "fine", ""),
        "single": ({"model.safetensors": good}, "fine", ""),
        "long": ({**listed, shard: long}, "FileFormatError", "cut short"),
        "huge": ({**listed, shard: huge}, "FileFormatError", "header of 4611686018427387904 bytes"),
        "turned": ({"model.safetensors": turned}, "FileFormatError", "a.weight"),
        "no-header": ({"model.safetensors": b"\\x80\\x02pickle" + good}, "FileFormatError", "model.safetensors"),
        "short": ({"model.safetensors": good[:-1]}, "FileFormatError", "model.safetensors"),
        "missing": ({**listing({"a.weight": "b.safetensors"}), shard: good}, "MissingFileError", "1 of 1 shards"),
        "outside": ({**listing({"a.weight": "../x.safetensors"}), shard: good}, "UnsafeFileError", "../x.safetensors"),
        "unlisted": ({**listing({"a.weight": shard}), shard: good}, "FileFormatError", "missing from the index"),
        "absent": ({**listing({**both, "c": shard}), shard: good}, "FileFormatError", "missing from the shards"),
    }


def test_a_repository_is_as_untrusted_as_a_folder(place: Place, tmp_path: Path) -> None:
    """The sentences are those of local files."""
    cases = _broken(tmp_path)
    for name, (files, _, _) in cases.items():
        place.hub.add(f"anna/{name}", files)
    ran = place.hub.run_python(BROKEN, home=tmp_path / "home", token="hf_anna", more={"NAMES": json.dumps(list(cases))})
    said = ran.ok().json
    assert {name: kind for name, (kind, _) in said.items()} == {name: kind for name, (_, kind, _) in cases.items()}
    for name, (_, _, words) in cases.items():
        assert words in said[name][1], said[name]


def test_one_flipped_byte_on_the_way_is_no_other_header(place: Place, tmp_path: Path) -> None:
    """A header that arrives changed contradicts itself or the index, wherever the byte is turned."""
    files, _, _ = _broken(tmp_path)["good"]
    flips = {f"flip-{at}": at for at in (0, 3, 8, 9, 40, 90)}
    for name, at in flips.items():
        place.hub.add(f"anna/{name}", files)
        place.hub.faults.add("GET /object/", origin="storage", flip_at=at)  # in the order of the requests
    more = {"NAMES": json.dumps(list(flips))}
    ran = place.hub.run_python(BROKEN, home=tmp_path / "home", token="hf_anna", more=more)
    assert {kind for kind, _ in ran.ok().json.values()} == {"FileFormatError"}
