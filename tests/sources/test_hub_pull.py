"""`lora-lab pull` through the real client: what comes, that it is right, and what becomes of what is not."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from builders import write_adapter
from hubserver import HubServer, environment
from hubserver.wire import wait_until

LARGE = bytes(range(256)) * 4000
CARD = "---\nlicense: mit\n---\nAn adapter\n"
PULL = ("pull", "anna/a", "--json")


@pytest.fixture
def adapter(tmp_path: Path) -> dict[str, bytes]:
    """An adapter's files, with a card and a tokenizer."""
    folder = write_adapter(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "README.md": CARD.encode(), "tokenizer.json": b"{}"}


def _cached(home: Path, kind: str = "*") -> list[Path]:
    return sorted((home / "huggingface" / "hub").glob(f"models--*/blobs/{kind}"))


@pytest.mark.parametrize("xet", [True, False])
def test_pull_twice_and_into_a_folder(hub: HubServer, tmp_path: Path, adapter: dict[str, bytes], xet: bool) -> None:
    """All files arrive with their hashes and their commit; the second time nothing is moved; a folder is ordinary."""
    commit = hub.add("anna/a", adapter, xet=xet)
    dry = hub.run_lab(*PULL, "--dry-run", home=tmp_path, xet=xet).ok().json
    assert (dry["files_to_fetch"], dry["bytes_to_fetch"]) == (4, sum(map(len, adapter.values())))
    assert not _cached(tmp_path)
    first = hub.run_lab(*PULL, home=tmp_path, xet=xet).ok().json
    assert first["revision"] == first["inputs"][0]["revision"] == commit
    assert (first["files_fetched"], first["bytes_fetched"]) == (4, sum(map(len, adapter.values())))
    assert {path.name: path.read_bytes() for path in Path(first["path"]).iterdir()} == adapter
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in adapter.items()}
    assert {file["name"]: file["sha256"] for file in first["files"]} == digests
    hub.requests.clear()
    second = hub.run_lab(*PULL, "-o", "folder", home=tmp_path, xet=xet).ok().json
    assert (second["files_fetched"], second["bytes_fetched"]) == (0, 0)
    assert [seen.method for seen in hub.requests.matching("anna/a")] == ["GET"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == adapter
    assert not any(path.is_symlink() for path in (tmp_path / "folder").iterdir())
    taken = hub.run_lab(*PULL, "-o", "folder", home=tmp_path)
    assert taken.code == 3
    assert "--overwrite" in taken.err
    hub.run_lab(*PULL, "-o", "folder", "--overwrite", home=tmp_path).ok()


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("output", ["huggingface/hub/mine", "huggingface/hub", "huggingface"])
def test_no_folder_within_the_cache_or_around_it(
    hub: HubServer, tmp_path: Path, adapter: dict[str, bytes], output: str, dry_run: bool
) -> None:
    """What is fetched lies there before it is copied; nobody is asked for it."""
    hub.add("anna/a", adapter)
    words = ("-o", output, "--overwrite", *(["--dry-run"] if dry_run else []))
    ran = hub.run_lab(*PULL, *words, home=tmp_path)
    assert ran.code == 3
    assert f"'{output}' is a part of the Hub's cache, or holds it" in ran.err
    assert len(hub.requests) == 0


def test_only_what_is_wanted_comes(hub: HubServer, tmp_path: Path, adapter: dict[str, bytes]) -> None:
    """Weights, their description and the card; no code, no pickle, no hidden file, no name that leads elsewhere."""
    others = {
        "train.py": b"import os",
        "training_args.bin": b"\x80",
        "adapter_model.bin": b"\x80",
        ".env": b"SECRET=1",
        ".cache/x.json": b"{}",
        "a//b.json": b"{}",
        "CON.json": b"{}",
        "sub/.git/x.json": b"{}",
        "evil\x1b[2J.json": b"{}",
        "back\\slash.json": b"{}",
        "README.txt": b"",
        "sub/adapter_model.safetensors": LARGE,
    }
    hub.add("anna/a", adapter | others | {"huge/README.md": b"x" * (5 << 20)})
    ran = hub.run_lab(*PULL, "-o", "folder", home=tmp_path).ok()
    found = {str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*") if path.is_file()}
    assert found == {*adapter, "sub/adapter_model.safetensors"}
    said = {one["code"]: one["message"] for one in ran.json["warnings"]}
    assert set(said) == {"unsafe_file_name", "oversized_file", "files_left_out"}
    assert "huge/README.md" in said["oversized_file"]
    assert "train.py" in said["files_left_out"]
    assert "\x1b" not in ran.out
    listed = hub.run_lab("pull", "anna/a:sub", "--json", "-o", "sub", home=tmp_path).ok().json
    assert [file["name"] for file in listed["files"]] == ["sub/adapter_model.safetensors"]
    assert (tmp_path / "sub" / "adapter_model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize("times", [1, 2])
def test_a_flipped_bit_is_noticed(hub: HubServer, tmp_path: Path, times: int) -> None:
    """It is fetched again; when it comes wrong twice nothing of it stays, and the next time it is fetched anew."""
    hub.add("anna/a", {"w.safetensors": LARGE, "adapter_config.json": "{}"})
    hub.faults.add("GET /object", flip_at=70_000, origin="storage", times=times)
    ran = hub.run_lab(*PULL, home=tmp_path, xet=False)
    if times == 2:
        assert ran.code == 3
        assert "other bytes" in ran.err
        assert hashlib.sha256(LARGE).hexdigest() not in {path.name for path in _cached(tmp_path)}
        ran = hub.run_lab(*PULL, home=tmp_path, xet=False)
    assert (Path(ran.ok().json["path"]) / "w.safetensors").read_bytes() == LARGE
    assert len(hub.requests.matching("GET /object", origin="storage")) == times + 1


def test_a_small_file_is_checked_too(hub: HubServer, tmp_path: Path) -> None:
    """By the name that git gives to its bytes."""
    hub.add("anna/a", {"adapter_config.json": '{"r": 8}'})
    hub.faults.add("GET /api/resolve-cache", replace=b'{"r": 9}', times=2)
    ran = hub.run_lab(*PULL, home=tmp_path)
    assert ran.code == 3
    assert "'adapter_config.json'" in ran.err
    assert not _cached(tmp_path)


@pytest.mark.parametrize("xet", [True, False])
def test_bytes_that_went_bad_in_the_cache(hub: HubServer, tmp_path: Path, xet: bool) -> None:
    """Pulling again finds them, offline says so, online mends them."""
    hub.add("anna/a", {"w.safetensors": LARGE}, xet=xet)
    path = Path(hub.run_lab(*PULL, home=tmp_path, xet=xet).ok().json["path"]) / "w.safetensors"
    real = path.resolve()
    real.chmod(0o644)
    real.write_bytes(b"x" + LARGE[1:])
    refused = hub.run_lab(*PULL, home=tmp_path, offline=True)
    assert refused.code == 3
    assert "other bytes in the cache" in refused.err
    assert hub.run_lab(*PULL, home=tmp_path, xet=xet).ok().json["files_fetched"] == 1
    assert path.read_bytes() == LARGE


def test_offline_from_the_cache(hub: HubServer, tmp_path: Path, adapter: dict[str, bytes]) -> None:
    """What was pulled opens and pulls without anybody being asked; what is missing is named."""
    hub.add("anna/a", adapter)
    commit = hub.run_lab(*PULL, home=tmp_path).ok().json["revision"]
    hub.requests.clear()
    for how in ({"offline": True}, {}):
        flags = () if how else ("--offline",)
        assert hub.run_lab(*PULL, *flags, home=tmp_path, **how).ok().json["revision"] == commit
        inspected = hub.run_lab("inspect", f"anna/a@{commit}", "--json", *flags, home=tmp_path, **how).ok().json
        assert inspected["inputs"][0]["revision"] == commit
    next(path for path in tmp_path.rglob("snapshots/*/tokenizer.json")).unlink()
    missing = hub.run_lab(*PULL, home=tmp_path, offline=True)
    assert missing.code == 3
    assert "'tokenizer.json'" in missing.err
    never = hub.run_lab("inspect", "anna/b", home=tmp_path, offline=True)
    assert never.code == 3
    assert "not in the cache" in never.err
    assert len(hub.requests) == 0


def test_a_hub_that_is_down_leaves_the_cache(hub: HubServer, tmp_path: Path, adapter: dict[str, bytes]) -> None:
    """What is there is used, and it is said that it may not be the newest."""
    commit = hub.add("anna/a", adapter)
    hub.run_lab(*PULL, home=tmp_path).ok()
    hub.faults.add(".", status=503, times=99)
    said = hub.run_lab(*PULL, home=tmp_path).ok().json
    assert said["revision"] == commit
    assert [one["code"] for one in said["warnings"]] == ["hub_unreachable"]


def test_one_commit_for_a_whole_session(hub: HubServer, tmp_path: Path) -> None:
    """What is pushed in between does not mix with what was resolved before."""
    first = hub.add(
        "anna/a", {path.name: path.read_bytes() for path in write_adapter(tmp_path / "1", seed=1).iterdir()}
    )
    code = """
    import json, sys
    from lora_lab import Session
    session = Session()
    seen = [session.adapter("anna/a").revision]
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
    seen += [session.adapter("anna/a").revision, session.adapter("hf://anna/a").revision]
    seen += [session.spectrum("anna/a").inputs[0].revision, Session().adapter("anna/a").revision]
    print(json.dumps(seen))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(endpoint=hub.url, home=tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    second = hub.add("anna/a", {"README.md": CARD})
    said, _ = child.communicate("go\n", timeout=60)
    assert child.returncode == 0
    assert json.loads(said) == [first, first, first, first, second]


CUT = """
import json
from concurrent.futures import ThreadPoolExecutor
from lora_lab import Session
from lora_lab.errors import HubError

def told(place):
    try:
        Session().pull(f"anna/a{place}")
    except HubError as error:
        return str(error)

with ThreadPoolExecutor(10) as pool:
    print(json.dumps(list(pool.map(told, range(10)))))
"""


def test_cut_at_ten_places(hub: HubServer, tmp_path: Path) -> None:
    """A connection that breaks in a file is taken up again; what cannot be had is one sentence, and nothing half."""
    where = ("GET /api/models/anna/a0", "HEAD /anna/a1/", "GET /api/resolve-cache/models/anna/a2", "HEAD .*anna/a3/")
    weights = [bytes([place]) + LARGE for place in range(10)]
    names = [f"GET /object/{hashlib.sha256(data).hexdigest()}" for data in weights]
    for place, data in enumerate(weights):
        hub.add(f"anna/a{place}", {"w.safetensors": data, "adapter_config.json": "{}", "tokenizer.json": "{}" * 400})
        pattern = (*where, *names[4:])[place]
        after = (0, 1, 17, 0, 0, 1, 17, len(data) // 2, len(data) - 1, 0)[place]
        hub.faults.add(pattern, cut_after=after, times=99 if place == 9 else 1 + place % 2)
        hub.faults.add(pattern, lose_reply=True, times=place % 2)
    said = hub.run_python(CUT, home=tmp_path, xet=False).ok().json
    assert said[:9] == [None] * 9
    assert "broke off" in said[9]
    assert not _cached(tmp_path, "*.incomplete")
    found = {path.read_bytes() for path in tmp_path.rglob("snapshots/*/w.safetensors")}
    assert found == set(weights[:9])


WATCHED = """
import json, sys, threading, time
from lora_lab import Session
from lora_lab.errors import LoraLabError

class Watcher:
    def __init__(self):
        self.seen, self.asked = [], 0.0
    def advance(self, done, total, what=""):
        self.seen.append((done, total))
    def rows(self, table, rows):
        pass
    def is_cancelled(self):
        if "--cancel" in sys.argv and self.seen and not self.asked:
            self.asked = time.monotonic()
        return bool(self.asked)

watcher, kind = Watcher(), None
try:
    Session().pull("anna/a", observer=watcher)
except LoraLabError as error:
    kind = type(error).__name__
spent = time.monotonic() - watcher.asked
print(json.dumps([kind, watcher.seen, spent]))
"""


@pytest.mark.parametrize("xet", [True, False])
def test_one_count_for_all_files(hub: HubServer, tmp_path: Path, xet: bool) -> None:
    """Bytes only ever grow, to the sum of all files, however they are moved."""
    hub.add("anna/a", {"1.safetensors": LARGE, "2.safetensors": LARGE[::-1], "adapter_config.json": "{}"}, xet=xet)
    kind, seen, _ = hub.run_python(WATCHED, home=tmp_path, xet=xet).ok().json
    total = 2 * len(LARGE) + 2
    assert kind is None
    assert seen == sorted(seen)
    assert seen[-1] == [total, total]
    assert {of for _, of in seen} == {total}


def test_cancelling_does_not_wait_for_the_network(hub: HubServer, tmp_path: Path) -> None:
    """A server that says nothing for a minute is left at once, and no half file lies about."""
    hub.add("anna/a", {"w.safetensors": LARGE})
    hub.faults.add("GET /object", delay_seconds=60)
    code = WATCHED.replace("import json, sys", "import json, sys; sys.argv.append('--cancel')\nimport sys", 1)
    started = time.monotonic()
    kind, _, spent = hub.run_python(code, home=tmp_path, xet=False).ok().json
    assert kind == "CancelledError"
    assert spent < 5
    assert time.monotonic() - started < 30
    assert not _cached(tmp_path)


@pytest.mark.parametrize("xet", [True, False])
def test_ctrl_c(hub: HubServer, tmp_path: Path, xet: bool) -> None:
    """The command ends with 130 in a moment, whatever it waits for."""
    hub.add("anna/a", {"w.safetensors": LARGE}, xet=xet)
    hub.faults.add("GET /object|xet-read-token", delay_seconds=60)
    child = subprocess.Popen(
        [sys.executable, "-m", "lora_lab", "pull", "anna/a", "-o", "folder"],
        env=environment(endpoint=hub.url, home=tmp_path, xet=xet),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: hub.requests.matching("GET /object|xet-read-token"), 30)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert (child.returncode, said.strip()) == (130, "lora-lab: Cancelled.")
    assert not _cached(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"huggingface", "cache", "state"}
