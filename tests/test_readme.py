"""The README's tour is executed: every block runs, and what it shows is what comes out."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Run by the gate in fresh environments, where pip and a terminal are at hand.
TWO_COMMANDS = {"pip install . && lora-lab open sample_adapters", "pip install '.[test]' && pytest"}


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


def run(command: str) -> str:
    """What a command prints, run in the project's folder at 100 columns."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "LORA_LAB_PLUGINS": "",
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
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
def test_console_block(block: Block) -> None:
    """Each command of the block prints what stands under it; lines of only … stand for any lines."""
    for command, shown in transcript(block):
        pattern = ".*".join(re.escape(part) for part in re.split(r"(?m)^ *…$", shown))
        assert re.fullmatch(pattern, run(command), flags=re.DOTALL), f"{shlex.quote(command)} printed:\n{run(command)}"


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "python"], ids=lambda block: f"line {block.line}"
)
def test_python_block(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block runs; each `# prints` comment is what its line prints."""
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(block.text, str(README), "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"# prints (.*)$", block.text, flags=re.MULTILINE)


def test_every_block_is_of_a_kind_that_runs() -> None:
    """Nothing in the tour escapes execution; the two commands are exactly those that the gate runs."""
    assert {block.language for block in blocks()} <= {"console", "python", "bash"}
    commands = {line for block in blocks() if block.language == "bash" for line in block.text.strip().splitlines()}
    assert commands == TWO_COMMANDS
