"""How quick the terminal application is: first paint, ten thousand rows, and a loop that never waits.

    python tests/benchmarks/bench_screen.py [--repeats 5] [--rows 10000]

First paint is taken from a real pseudo-terminal, from the start of the process to the first row on it. The lag of the
event loop is how much later than asked a 10 ms timer comes, while a child computes the spectra of 224 modules of 7B
shapes over and over and the screen shows the rows as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

HEARTBEAT_SECONDS = 0.01


def first_paint(folder: Path, mark: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds from the start of the process to the first frame, and to the first row that holds `mark`."""
    start = time.perf_counter()
    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, "-P", "-m", "lora_lab", "open", str(folder)]
        os.execve(sys.executable, command, environment)
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    seen, frame = b"", 0.0
    while mark.encode() not in seen:
        select.select([terminal], [], [], 30)
        seen += os.read(terminal, 65536)
        if not frame and b"Library" in seen:
            frame = time.perf_counter() - start
    row = time.perf_counter() - start
    # Left as a person leaves it: a child that is still importing torch would slow the next run down.
    os.write(terminal, b"q")
    with contextlib.suppress(OSError):  # how a terminal says that nobody is on the other side
        while os.read(terminal, 65536):
            pass
    os.waitpid(child, 0)
    os.close(terminal)
    return frame, row


async def rows_ready_and_filtered(count: int) -> dict[str, float]:
    """Seconds until `count` rows are on screen, and until a filter has chosen among them."""
    from tui.fakes import FakeSession, entry, make_app, until

    from lora_lab.tui.library.screen import LibraryScreen

    entries = [entry(f"adapter-{number}") for number in range(count)]
    app = make_app(session=FakeSession(entries))
    start = time.perf_counter()
    async with app.run_test(size=(120, 36)) as pilot:
        screen = app.library
        assert isinstance(screen, LibraryScreen)
        await until(pilot, lambda: len(screen.table.keys) == count, turns=100_000)
        await pilot.pause()
        ready = time.perf_counter() - start
        await pilot.press("slash")
        start = time.perf_counter()
        await pilot.press("9")
        await until(pilot, lambda: 0 < len(screen.table.keys) < count, turns=100_000)
        filtered = time.perf_counter() - start
    return {f"{count} rows ready": ready, f"filter {count} rows": filtered}


async def modules_ready_and_filtered(count: int) -> dict[str, float]:
    """Seconds from the start of the application until `count` modules are listed, and until they are filtered."""
    from tui.detail.made import make_adapter, make_report, module_names, open_detail
    from tui.fakes import until

    from lora_lab.tui.detail.keys import ModuleFilter

    adapter = make_adapter(module_names(count // 4, ["q_proj", "k_proj", "v_proj", "o_proj"]))
    report = make_report(adapter)
    start = time.perf_counter()
    async with open_detail(adapter, size=(120, 36)) as opened:
        await opened.finish(report)
        await opened.pilot.pause()
        ready = time.perf_counter() - start
        await opened.pilot.press("slash")
        start = time.perf_counter()
        opened.screen.query_one(ModuleFilter).value = "9.self_attn.q_proj"
        await until(opened.pilot, lambda: 0 < len(opened.screen.outline.shown_modules()) < count, turns=100_000)
        filtered = time.perf_counter() - start
    return {f"{count} modules ready": ready, f"filter {count} modules": filtered}


async def lag_while_computing(adapter: Path, seconds: float = 6.0) -> list[float]:
    """How late a timer of 10 ms came, each time, while spectra are computed and shown."""
    from tui.fakes import until

    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.detail.screen import DetailScreen

    lags: list[float] = []

    async def beat() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(HEARTBEAT_SECONDS)
            lags.append(time.perf_counter() - start - HEARTBEAT_SECONDS)

    app = LoraLabApp({"cache": False, "state": False, "device": "cpu"}, [str(adapter.parent)])
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: app.is_measuring, turns=20_000)
        app.open_detail(str(adapter))
        await until(pilot, lambda: isinstance(app.screen, DetailScreen), turns=20_000)
        detail = app.screen
        assert isinstance(detail, DetailScreen)
        await until(pilot, lambda: detail.feed.report is not None and bool(detail.query("SpectrumPlot")), turns=100_000)
        await pilot.pause(0.5)
        end = time.perf_counter() + seconds
        heart = asyncio.create_task(beat())
        while time.perf_counter() < end:
            detail.action_rescan()
            await until(pilot, lambda: detail.feed.report is None, turns=100_000)
            await until(pilot, lambda: detail.feed.report is not None, turns=100_000)
        heart.cancel()
    return lags


def median_of(measure: Callable[[], dict[str, float]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and least of each figure."""
    runs = [measure() for _ in range(repeats)]
    return {name: (statistics.median(run[name] for run in runs), min(run[name] for run in runs)) for name in runs[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(LORA_LAB_CACHE_DIR=f"{scratch}/cache", LORA_LAB_STATE_DIR=f"{scratch}/state")
        os.environ["TEXTUAL_ANIMATIONS"] = "none"
        environment = {**os.environ, "TERM": "xterm-256color"}

        def paint() -> dict[str, float]:
            frame, row = first_paint(ROOT / "sample_adapters", "banking77-r8-seed0", environment)
            return {"open: first frame": frame, "open: first rows": row}

        figures = median_of(paint, options.repeats)
        figures |= median_of(lambda: asyncio.run(rows_ready_and_filtered(options.rows)), options.repeats)
        figures |= median_of(lambda: asyncio.run(modules_ready_and_filtered(options.rows)), options.repeats)
        adapter = Path(scratch) / "library" / "seven-billion"
        adapter.parent.mkdir()
        # In a process of its own: the screen's process never loads torch, and is measured as it is.
        write = (
            "import sys; from pathlib import Path; from bench_spectrum import write_adapter as w; w(Path(sys.argv[1]))"
        )
        here = str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", write, str(adapter)], cwd=here, check=True)
        lags = sorted(asyncio.run(lag_while_computing(adapter)))
    print(f"{'':<28}{'median s':>10}{'least s':>10}")
    for name, (median, least) in figures.items():
        print(f"{name:<28}{median:>10.3f}{least:>10.3f}")
    p99 = lags[min(len(lags) - 1, int(0.99 * len(lags)))]
    print(
        f"event-loop lag over {len(lags)} beats: median {1e3 * statistics.median(lags):.1f} ms, p99 {1e3 * p99:.1f} ms"
    )


if __name__ == "__main__":
    main()
