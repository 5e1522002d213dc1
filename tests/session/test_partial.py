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
from typing import Any

import pytest
import torch
from hubserver import HubServer, environment
from hubserver.wire import wait_until
from large_base import MODULES, SHARDS, TENSOR_BYTES, TOUCHED, write_large_base, write_touching_adapter
from safetensors.torch import save_file


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


def header_bytes(folder: Path) -> int:
    """Bytes of the headers of all files, with their lengths."""
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


def test_amplify_moves_the_tensors_it_needs(place: Place) -> None:
    """48 of 1,000 tensors in 24 pairs of neighbours: the targets, as exact counts; then nothing but the pairs."""
    document = place.lab("amplify", place.adapter, "--base", "anna/base", home="counts")
    storage, pairs = place.ranges(), len(TOUCHED)
    assert len(place.heads()) == SHARDS  # one question for each file
    assert len(storage) == SHARDS + pairs  # one range for each header, one for each pair
    tensors = len(MODULES) * TENSOR_BYTES
    whole = tensors + header_bytes(place.base)
    assert tensors < sum(seen.sent for seen in storage) <= 1.05 * whole
    assert sum(seen.sent for seen in storage if not str(seen.range).startswith("bytes=0-")) == tensors
    assert all(seen.status == 206 for seen in storage)

    record = document["inputs"][1]
    commit = place.hub.store.repositories["anna/base"].refs["main"]
    assert (record["locator"], record["path"], record["revision"]) == (
        "anna/base",
        f"hf://anna/base@{commit}",
        commit,
    )
    files = place.hub.store.repositories["anna/base"].commits[commit].files
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert record["partial"]["etags"] == {name: files[name].sha256 for name in shards}
    assert record["partial"]["fetched_bytes"] == sum(seen.sent for seen in storage)
    assert record["partial"]["requests"] == len(storage) + SHARDS
    assert sorted(record["sha256"]) == [f"{name}#header" for name in shards]
    assert [one["code"] for one in document["warnings"]] == ["partial_read"]

    again = place.lab("amplify", place.adapter, "--base", "anna/base", "--rank", "2", home="counts")
    assert len(place.ranges()) == pairs  # headers, index and configuration are remembered
    assert again["inputs"][1]["sha256"] == record["sha256"]
    assert again["inputs"][1]["partial"]["fetched_bytes"] == tensors
    third = place.lab("amplify", place.adapter, "--base", "anna/base", home="counts")
    assert place.ranges() == []  # the result is
    assert third == document


def test_a_dry_run_tells_what_will_be_moved(place: Place) -> None:
    """Headers alone are read for it, and what it says is what the run then does."""
    told = place.lab("amplify", place.adapter, "--base", "anna/base", "--dry-run", home="dry")
    assert [str(seen.range)[:8] for seen in place.ranges()] == ["bytes=0-"] * SHARDS
    assert (told["dry_run"], told["tensors"]) == (True, len(MODULES))
    assert told["fetch_bytes"] == len(MODULES) * TENSOR_BYTES
    assert sum(row["fetch_bytes"] for row in told["files"]) == told["fetch_bytes"]
    place.lab("amplify", place.adapter, "--base", "anna/base", home="dry")
    assert sum(seen.sent for seen in place.ranges()) == told["fetch_bytes"]
    assert len(place.ranges()) + len(place.heads()) == told["requests"]
    after = place.lab("amplify", place.adapter, "--base", "anna/base", "--dry-run", home="dry")
    assert (after["fetch_bytes"], after["requests"]) == (0, 0)
    local = place.lab("amplify", place.adapter, "--base", str(place.base), "--dry-run", home="dry")
    assert (local["fetch_bytes"], local["size_bytes"]) == (0, 0)
    only_headers = place.lab("check", place.adapter, "--base", "anna/base", "--dry-run", home="dry")
    assert (only_headers["fetch_bytes"], only_headers["requests"]) == (0, 0)


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


def test_offline_says_what_is_missing(place: Place) -> None:
    """A result that is remembered is given; one that is not names what would have to be fetched, and what to do."""
    amplify = ("amplify", place.adapter, "--base", "anna/base", "--no-base-directions")
    known = place.lab(*amplify, home="offline")
    assert place.lab(*amplify, "--offline", home="offline") == known
    assert len(place.hub.requests) == 0
    said = place.lab(*amplify, "--rank", "3", "--offline", home="offline", code=3)
    assert "48 tensors (786 kB)" in said
    assert "drop --offline" in said
    told = place.lab(*amplify, "--rank", "3", "--offline", "--dry-run", home="offline")
    assert told["fetch_bytes"] == len(MODULES) * TENSOR_BYTES
    assert len(place.hub.requests) == 0


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
    """What is written is made of files whose hashes are known: nothing is read in parts."""
    place.lab("merge", place.adapter, "--base", "anna/base", "-o", str(tmp_path / "merged"), home="merging")
    assert not any(seen.range for seen in place.ranges() if seen.range and not seen.range.startswith("bytes=0-"))
    receipt = json.loads((tmp_path / "merged" / "lora_lab_receipt.json").read_text())
    assert "partial" not in json.dumps(receipt["inputs"])
    assert not any("#header" in name for record in receipt["inputs"] for name in record["sha256"])


def test_a_server_without_ranges_is_refused_in_one_sentence(place: Place) -> None:
    """And what to do instead."""
    place.hub.faults.add("GET /object/", origin="storage", ignore_range=True, times=99)
    said = place.lab("inspect", "anna/base", home="deaf", code=3)
    assert "does not give parts" in said
    assert "lora-lab pull anna/base" in said


def test_faults_in_the_middle_change_no_digit(place: Place) -> None:
    """Cuts, a busy storage, links that expire: the result is that of the files here."""
    local = place.lab("amplify", place.adapter, "--base", str(place.base), home="faults")
    add = place.hub.faults.add
    add("HEAD /anna/base/resolve/.*00002", status=503)
    add("HEAD /anna/base/resolve/.*00003", expire=True)
    for skip, cut in ((0, 5), (3, 0), (5, 10_000), (11, 32_767)):
        add("GET /object/", origin="storage", skip=skip, cut_after=cut)
    add("GET /object/", origin="storage", skip=8, status=429)
    add("GET /object/", origin="storage", skip=14, status=403)
    remote = place.lab("amplify", place.adapter, "--base", "anna/base", home="faults")
    assert remote["modules"] == local["modules"]
    assert remote["totals"] == local["totals"]


def test_ctrl_c_ends_a_wait(place: Place) -> None:
    """The storage would answer after a minute; nothing is left behind."""
    home = place.folder / "stopped"
    place.lab("check", place.adapter, "--base", "anna/base", home="stopped")  # headers are there
    place.hub.faults.add("GET /object/", origin="storage", delay_seconds=60.0, times=99)
    place.hub.requests.clear()
    settings = environment(endpoint=place.hub.url, home=home, token="hf_anna")
    command = [sys.executable, "-m", "lora_lab", "amplify", place.adapter, "--base", "anna/base"]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: place.ranges(), 60)
    time.sleep(0.2)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert time.monotonic() - start < 10  # of sixty seconds; the machine may be busy
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
