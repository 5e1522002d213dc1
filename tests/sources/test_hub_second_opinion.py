"""Reading from a server that others wrote: `olah`, which serves a git repository with LFS objects.

It lists names without sizes, gives whole files where ranges are asked for, and redirects nobody to a storage.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import write_adapter, write_sharded
from hubserver.clients import run_lab
from hubserver.wire import wait_until

_PROGRAM = os.environ.get("LORA_LAB_TEST_OLAH") or shutil.which("olah-cli")
pytestmark = pytest.mark.skipif(
    _PROGRAM is None,
    reason="olah is not here: pip install olah into an environment of its own, and name its olah-cli in "
    "LORA_LAB_TEST_OLAH",
)
SETTINGS = """
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{folder}/repos"
mirrors-path = ["{folder}/mirror"]
[accessibility]
offline = true
"""


def _git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=anna", "-c", "user.email=anna@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def _repository(folder: Path, files: dict[str, bytes]) -> None:
    """A git repository whose safetensors are pointers to objects, as `git lfs` leaves it."""
    folder.mkdir(parents=True)
    _git(folder, "init", "-b", "main")
    for name, data in files.items():
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            place = folder / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
            place.parent.mkdir(parents=True)
            place.write_bytes(data)
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
        (folder / name).write_bytes(data)
    _git(folder, "add", "-A")
    _git(folder, "commit", "-m", "An adapter")
    _git(folder, "tag", "v1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The endpoint, and the files of anna/a; there is a model anna/base too, in two files."""
    adapter = write_adapter(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in adapter.iterdir()} | {"README.md": b"---\ntags: [lora]\n---\n"}
    _repository(tmp_path / "mirror" / "models" / "anna" / "a", files)
    base = {path.name: path.read_bytes() for path in write_sharded(tmp_path / "base").glob("*.*") if path.is_file()}
    _repository(tmp_path / "mirror" / "models" / "anna" / "base", base)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    (tmp_path / "olah.toml").write_text(SETTINGS.format(port=port, folder=tmp_path))
    command = [str(_PROGRAM), "-c", str(tmp_path / "olah.toml")]
    with (tmp_path / "olah.log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(lambda: _answers(url), 60), (tmp_path / "olah.log").read_text()
        yield url, files
    finally:
        server.terminate()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/models/anna/a/revision/main", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_pull_and_look(served: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """Every file arrives and is checked; a tag is the same commit; what is there opens without the server."""
    url, files = served
    home = tmp_path / "home"
    pulled = run_lab("pull", "anna/a", "--json", endpoint=url, home=home).ok().json
    assert {path.name: path.read_bytes() for path in Path(pulled["path"]).iterdir()} == files
    assert {row["name"]: row["sha256"] for row in pulled["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    tagged = run_lab("inspect", "hf://anna/a@v1", "--json", endpoint=url, home=home).ok().json
    assert tagged["inputs"][0]["revision"] == pulled["revision"]
    assert run_lab("ls", "anna/a", "--json", "--offline", endpoint=url, home=home).ok().json["adapters"][0]["modules"]
    missing = run_lab("pull", "anna/b", endpoint=url, home=home)
    assert missing.code == 2
    assert "not found" in missing.err


def test_a_base_is_read_once_it_was_pulled(served: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """A server that gives no parts is told so in a sentence, and what that advises works."""
    url, _ = served
    home = tmp_path / "home"
    refused = run_lab("check", "anna/a", "--base", "anna/base", endpoint=url, home=home)
    assert refused.code == 3
    assert "does not give parts" in refused.err
    advised = refused.err.partition("Fetch all of it: lora-lab ")[2].split()
    assert advised[0] == "pull"
    run_lab(*advised, endpoint=url, home=home).ok()
    checked = run_lab("check", "anna/a", "--base", "anna/base", "--json", endpoint=url, home=home).ok().json
    assert checked["ok"] is True
    assert "partial" not in checked["inputs"][1]
