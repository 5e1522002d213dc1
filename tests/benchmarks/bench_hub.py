"""Pulling from a hub on loopback, beside what anyone pays for the same files and a look at their hashes.

Run: python tests/benchmarks/bench_hub.py [--megabytes N] [--files N] [--repeats N] [--folder DIR] [--xet]

Reference: the command ``hf download`` into an empty cache, and one sha256 pass over what it brought, in a process of
its own. Pull: ``lora-lab pull`` into an empty cache. Both are whole processes, imports included, against one server in
a third one; rounds are interleaved, so that all meet the same noise. ``--xet``: over Xet's storage instead of links.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from hubserver import HubServer, environment  # noqa: E402

WANTED = 1.1
HASHED = """
import hashlib, os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()
"""


def serve(folder: Path, megabytes: int, files: int, xet: bool, told: Connection) -> None:
    """Serve one repository until the pipe is closed."""
    with HubServer(folder) as hub:
        each = megabytes * 10**6 // files
        hub.add("anna/large", {f"{number}.safetensors": os.urandom(each) for number in range(files)}, xet=xet)
        told.send(hub.url)
        told.recv()


def timed(command: list[str], settings: dict[str, str], home: Path) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, env=settings, cwd=home, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def rounds(url: str, folder: Path, repeats: int, xet: bool) -> dict[str, list[float]]:
    """Seconds of each way, in turns that change their order, each with a fresh home."""
    spent: dict[str, list[float]] = {"hf download": [], "sha256": [], "lora-lab pull": []}
    hf = str(Path(sys.executable).with_name("hf"))
    for number in range(repeats + 1):  # the first is for warming up
        for way in ("hf", "pull") if number % 2 else ("pull", "hf"):
            home = folder / f"{way}-{number}"
            home.mkdir()
            settings = environment(endpoint=url, home=home, xet=xet)
            if way == "hf":
                took = {"hf download": timed([hf, "download", "anna/large", "--quiet"], settings, home)}
                cache = next(home.glob("huggingface/hub/models--*/snapshots"))
                took["sha256"] = timed([sys.executable, "-c", HASHED, str(cache)], settings, home)
            else:
                command = [sys.executable, "-m", "lora_lab", "pull", "anna/large", "--json"]
                took = {"lora-lab pull": timed(command, settings, home)}
            if number:
                for name, seconds in took.items():
                    spent[name].append(seconds)
            shutil.rmtree(home)
    return spent


def main() -> None:
    """Print the seconds of each, and the ratio of the sums taken side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--xet", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        here, there = multiprocessing.get_context("spawn").Pipe()
        served = (folder / "served", chosen.megabytes, chosen.files, chosen.xet, there)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=served, daemon=True)
        server.start()
        spent = rounds(here.recv(), folder, chosen.repeats, chosen.xet)
        here.send(None)
        server.join(5)
    for way, seconds in spent.items():
        print(f"{way:14} median {statistics.median(seconds):6.2f} s  least {min(seconds):6.2f} s")
    ratios = [
        pull / (download + hashed)
        for pull, download, hashed in zip(spent["lora-lab pull"], spent["hf download"], spent["sha256"], strict=True)
    ]
    print(f"pull / (hf download + sha256): median {statistics.median(ratios):.2f}, wanted ≤ {WANTED}")


if __name__ == "__main__":
    main()
