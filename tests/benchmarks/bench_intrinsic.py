"""Time the spectrum of a full update against the ways in which it is usually taken, and show what each gets wrong.

Prints, never asserts. Everything is taken side by side and repeated in turn, because a machine is never quiet; what to
read are the ratios. Run with: python tests/benchmarks/bench_intrinsic.py [--repeats N] [--large]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout

from lora_lab import Session  # noqa: E402
from lora_lab.linalg.dense import Change, change_spectrum  # noqa: E402
from lora_lab.linalg.threads import one_thread  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = [(1024, 1024), (1024, 2816), (32000, 512)]
LARGE = [(2048, 2048), (2048, 5632)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="2048-sided matrices too (minutes)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; bfloat16 in, one thread, medians")
    print(f"{'shape':>12}  {'way':<28}{'seconds':>9}{'ratio':>8}{'largest |error|/largest value':>32}")
    for shape in SHAPES + (LARGE if options.large else []):
        one_shape(shape, options.repeats)
    samples()


def one_shape(shape: tuple[int, int], repeats: int) -> None:
    """One matrix, four ways."""
    generator = torch.Generator().manual_seed(0)
    before = (0.02 * torch.randn(*shape, generator=generator)).bfloat16()
    after = (before.float() + 0.002 * torch.randn(*shape, generator=generator)).bfloat16()
    change = Change("w", before, after, 2.0**-7)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "here": lambda: change_spectrum(change).singular_values,
        "svdvals, float64": lambda: torch.linalg.svdvals(after.double() - before.double()),
        "Gram, float64": lambda: gram(after.double() - before.double()),
        "svd, difference in bfloat16": lambda: torch.linalg.svd((after - before).float(), full_matrices=False).S,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    with one_thread():
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                values[name] = way().double()
                seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["here"])
    truth = values["svdvals, float64"]
    for name in ways:
        taken = statistics.median(seconds[name])
        error = float((values[name] - truth).abs().max() / truth[0])
        print(f"{shape[0]:>6}×{shape[1]:<5}  {name:<28}{taken:>9.3f}{taken / floor:>8.2f}{error:>32.1e}")


def gram(delta: torch.Tensor) -> torch.Tensor:
    """Roots of the eigenvalues of the smaller Gram matrix."""
    tall = delta if delta.shape[0] >= delta.shape[1] else delta.T
    return torch.linalg.eigvalsh(tall.T @ tall).flip(0).clamp_min(0).sqrt()


def samples() -> None:
    """The sample fine-tune, as the command does it."""
    places = [str(ROOT / "sample_adapters" / name) for name in ("base", "finetuned-banking77")]
    start = time.perf_counter()
    report = Session(device="cpu", cache=False).analyze("intrinsic", places)
    print(f"{len(report.table('modules').rows)} matrices of the sample fine-tune: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
