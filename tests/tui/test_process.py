"""The program as a process: what it loads, how fast it goes, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tui.fakes import write_adapter

ROOT = Path(__file__).resolve().parents[2]

HEADLESS = """
import asyncio, sys
from lora_lab.tui.app import LoraLabApp
{before}
app = LoraLabApp({options}, {sources}, session=session)
async def main():
    async with app.run_test(size=(80, 24)) as pilot:
{body}
asyncio.run(main())
"""


def headless(body: str, sources: list[str], before: str = "session = None") -> subprocess.CompletedProcess[str]:
    """Run the application without a terminal in a fresh interpreter; `body` drives it, `before` makes a session."""
    indented = "\n".join("        " + line for line in body.strip().splitlines())
    code = HEADLESS.format(options={}, sources=sources, body=indented, before=before)
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_first_rows_need_neither_torch_nor_numpy(tmp_path: Path) -> None:
    """The rows are on screen, with real headers read by a real session, and nothing heavy is loaded."""
    for number in range(3):
        write_adapter(tmp_path / "library" / f"task-{number}")
    body = """
for _ in range(1000):
    if getattr(app.screen, "_is_complete", False):
        break
    await pilot.pause(0.01)
await pilot.pause()
print("\\n".join(strip.text for strip in app.screen._compositor.render_strips()))
print("loaded", sorted({"torch", "numpy", "textual_plot", "scipy", "peft"} & set(sys.modules)))
"""
    done = headless(body, [str(tmp_path / "library")])
    assert "task-0" in done.stdout
    assert "task-2" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_that_look_can_fail(tmp_path: Path) -> None:
    """numpy is seen when it is there."""
    done = headless('import numpy\nprint("loaded", "numpy" in sys.modules)', [str(tmp_path)])
    assert done.stdout.splitlines()[-1] == "loaded True"


def test_quitting_waits_for_nobody(tmp_path: Path) -> None:
    """A scan that hangs, an inspection that hangs and a job in the child keep the program not a second."""
    before = """
import threading, time
from lora_lab.domain.library import EntryKind, LibraryEntry
from lora_lab.jobs import JobRequest

class Hanging:
    def scan(self, locator):
        for number in range(42):
            yield LibraryEntry(EntryKind.ADAPTER, str(number), str(number))
        threading.Event().wait()
    def inspect(self, locator):
        threading.Event().wait()

session = Hanging()
"""
    body = """
for _ in range(300):
    if app.is_measuring and len(app.screen.table.keys) > 20:
        break
    await pilot.pause(0.01)
app.jobs.submit(JobRequest("spectrum", {"locator": "nowhere"}), title="work")
await pilot.press("j")
await pilot.pause(0.2)
print(time.time(), app.jobs._child.pid, len(app.screen.table.keys), flush=True)
await pilot.press("q")
"""
    done = headless(body, [str(tmp_path)], before)
    ended = time.time()
    begun, child, rows = done.stdout.split()
    assert int(rows) > 0
    assert ended - float(begun) < 1.0
    assert not Path("/proc", child).exists() or not Path("/proc").exists()


@pytest.fixture
def terminal(tmp_path: Path) -> object:
    """A tmux server of our own."""
    tmux = shutil.which("tmux")
    if tmux is None:
        pytest.skip("tmux is not installed")
    socket = tmp_path / "tmux"

    def run(*arguments: str) -> str:
        return subprocess.run(
            [tmux, "-S", str(socket), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    yield run
    subprocess.run([tmux, "-S", str(socket), "kill-server"], capture_output=True, check=False)


def test_in_a_real_terminal(terminal: object, tmp_path: Path) -> None:
    """Start, help, open, back, quit: exit code 0, and the terminal is as it was."""
    run = terminal
    assert callable(run)
    write_adapter(tmp_path / "library" / "task-a")
    write_adapter(tmp_path / "library" / "task-b", seed=1)
    code = f"import sys; from lora_lab.tui.app import run; sys.exit(run({{}}, [{str(tmp_path / 'library')!r}], None))"
    (tmp_path / "start.py").write_text(code, encoding="utf-8")
    environment = [f"PYTHONPATH={ROOT}"]
    environment += [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("LORA_LAB_", "HF_"))]
    flags = [flag for pair in environment for flag in ("-e", pair)]
    run("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", *flags, "sh")

    def shows(*wanted: str) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            screen = run("capture-pane", "-p")
            if all(text in screen for text in wanted):
                return str(screen)
            time.sleep(0.05)  # the terminal is another process: there is nothing to wait on
        raise AssertionError(f"{wanted} not in\n{screen}")

    run("send-keys", "echo before", "Enter")
    shows("before")
    run("send-keys", f"{sys.executable} -P {tmp_path / 'start.py'}; echo code $?", "Enter")
    shows("task-a", "task-b", "? Help")
    run("send-keys", "?")
    shows("Keys", "Open the row under the cursor")
    run("send-keys", "Escape")
    shows("─ Library ─")  # before that, the terminal would read escape and enter as one key
    run("send-keys", "Enter")
    shows("q_proj")
    run("send-keys", "q")
    shows("task-b", "Quit")
    run("send-keys", "q")
    screen = shows("before", "code 0")
    assert "Help" not in screen
    assert run("display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}").split() == ["0", "0", "1"]
