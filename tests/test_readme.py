"""The README's tour is executed: every block runs, and what it shows is what comes out."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Run by the gate in fresh environments, where pip and a terminal are at hand.
TWO_COMMANDS = {"pip install . && lora-lab open sample_adapters", "pip install '.[test]' && pytest -n logical"}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(path: Path = README) -> list[Block]:
    """All fenced blocks of a page."""
    page = path.read_text()
    return [Block(found[1], found[2], page[: found.start()].count("\n") + 1) for found in FENCE.finditer(page)]


def transcript(block: Block) -> list[tuple[str, str]]:
    """Pairs of a command and what is shown under it."""
    parts = re.split(r"^\$ (.*)$", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"README line {block.line}: a console block starts with a command"
    return [(command, shown.strip("\n")) for command, shown in zip(parts[1::2], parts[2::2], strict=True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a clone is, where commands may write."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name == "sample_adapters":
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What makes a command ask a hub on loopback, which has a repository of someone's."""
    from hubserver import HubServer

    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.add("someone/banking77", ROOT / "sample_adapters" / "banking77-r8-seed0")
        home = tmp_path_factory.mktemp("home") / "huggingface"
        yield {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}


def run(command: str, place: Path = ROOT, **more: str) -> str:
    """What a command prints, run in `place` at 100 columns."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "LORA_LAB_PLUGINS": "",
        **more,
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "console"], ids=lambda block: f"line {block.line}"
)
def test_console_block(block: Block, place: Path, request: pytest.FixtureRequest) -> None:
    """Each command of the block prints what stands under it; lines of only … stand for any lines."""
    more = request.getfixturevalue("shelf") if " someone/" in block.text else {}
    for command, shown in transcript(block):
        pattern = ".*".join(re.escape(part) for part in re.split(r"(?m)^ *…$", shown))
        printed = run(command, place, **more)
        assert re.fullmatch(pattern, printed, flags=re.DOTALL), f"{shlex.quote(command)} printed:\n{printed}"


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "python"], ids=lambda block: f"line {block.line}"
)
def test_python_block(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block runs; each `# prints` comment is what its line prints."""
    monkeypatch.chdir(place)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(block.text, str(README), "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"# prints (.*)$", block.text, flags=re.MULTILINE)


def test_every_block_is_of_a_kind_that_runs() -> None:
    """Nothing in the tour escapes execution; the two commands are exactly those that the gate runs."""
    assert {block.language for block in blocks()} <= {"console", "python", "bash"}
    commands = {line for block in blocks() if block.language == "bash" for line in block.text.strip().splitlines()}
    assert commands == TWO_COMMANDS
