"""Verifying a merge into a base of half a billion parameters, beside reading and hashing the two models.

Run: python tests/benchmarks/bench_verify.py [--layers N] [--repeats N] [--folder DIR]

Reading: ``cat`` of both models' files, and ``sha256sum`` of the merged one, as anyone must who compares with a receipt.
Verifying: by the receipt alone; with base and adapter the arithmetic of every tensor; the same of a wrong merge, which
takes a second look at each; imports excluded, each in a process of its own, interleaved with the reading.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from bench_merge import PROJECTIONS, write_adapter, write_base  # noqa: E402

from lora_lab import Session  # noqa: E402

Figures = tuple[float, int, bool | None, str]


def read(base: Path, merged: Path) -> float:
    """Seconds to read both models and to hash the merged one."""
    started = time.perf_counter()
    files = [str(path) for folder in (base, merged) for path in sorted(folder.glob("*.safetensors"))]
    with Path("/dev/null").open("wb") as nowhere:
        subprocess.run(["cat", *files], stdout=nowhere, check=True)
        own = [str(path) for path in sorted(merged.glob("*.safetensors"))]
        subprocess.run(["sha256sum", *own], stdout=nowhere, check=True)
    return time.perf_counter() - started


def peak_bytes() -> int:
    """Largest resident set of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def verify(merged: Path, base: Path | None, adapters: list[Path], strengths: list[float], queue: object) -> None:
    """Seconds, memory above torch, verdict and diagnosis."""
    import lora_lab.operations.verify  # noqa: F401

    torch.ones(8) @ torch.ones(8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    started = time.perf_counter()
    report = Session(cache=False).verify(
        str(merged),
        base=None if base is None else str(base),
        adapters=[str(path) for path in adapters],
        strengths=strengths,
    )
    seconds = time.perf_counter() - started
    more = peak_bytes() - before
    queue.put((seconds, more, report.verdict, str(report.scalars[0].values["diagnosis"])))  # type: ignore[attr-defined]


def apart(*arguments: object) -> Figures:
    """Run :func:`verify` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=verify, args=(*arguments, queue))
    process.start()
    figures: Figures = queue.get()
    process.join()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        base, merged = folder / "base", folder / "merged"
        write_base(base, options.layers)
        write_adapter(folder / "q,v", options.layers, ["self_attn.q_proj", "self_attn.v_proj"])
        write_adapter(folder / "all", options.layers, list(PROJECTIONS))
        print(f"{'what':34} {'seconds':>8} {'reading':>8} {'ratio':>6} {'memory':>8}  says")
        for name in ("q,v", "all"):
            adapter = folder / name
            Session(cache=False).merge([str(adapter)], base=str(base), output=merged)
            cases = {
                "receipt": (None, [], []),
                "receipt and arithmetic": (base, [adapter], []),
                "a strength that is not its": (base, [adapter], [0.9]),
            }
            for case, arguments in cases.items():
                pairs = [(read(base, merged), apart(merged, *arguments)) for _ in range(options.repeats)]
                seconds = statistics.median(figures[0] for _, figures in pairs)
                reading = statistics.median(one for one, _ in pairs)
                ratio = statistics.median(figures[0] / one for one, figures in pairs)
                *_, (_, (_, memory, verdict, diagnosis)) = pairs
                print(
                    f"{f'{name}: {case}':34} {seconds:8.2f} {reading:8.2f} {ratio:6.2f} {memory / 1e6:5.0f} MB  "
                    f"{verdict}, {diagnosis}",
                    flush=True,
                )
            shutil.rmtree(merged)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
