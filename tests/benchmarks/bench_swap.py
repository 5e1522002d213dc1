"""Swapping adapters in a weight that is in memory: seconds beside ``copy_``, and what is left of W after many swaps.

Run: python tests/benchmarks/bench_swap.py [--device D] [--swaps N] [--repeats N]

Exact: from a kept copy of W, whose bits must be those of a merge into W after any number of swaps. Fast: in place, one
pass that takes out, rounds, puts in and rounds. At once: the sum of both differences, rounded once. Naive: ``W -=
(B@A)·s`` and ``W += (B@A)·s`` in the stored type, as is common. Drift: ‖W_n − merge‖_F/‖merge‖_F, and the share of
weights that differ, after n swaps between ten adapters of ‖ΔW‖/‖W‖ = 0.03.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout

from lora_lab.linalg.swapping import swap_terms  # noqa: E402
from lora_lab.linalg.updates import Term, Update, apply_update  # noqa: E402

RANK, SCALING, RATIO, ADAPTERS = 16, 2.0, 0.03, 10
SHAPE, SMALL = (8192, 2048), (256, 256)


def prepared(shape: tuple[int, int], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, list[Term]]:
    """A weight and adapters for it."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(shape, generator=generator)
    terms = []
    for _ in range(ADAPTERS):
        A, B = torch.randn(RANK, shape[1], generator=generator), torch.randn(shape[0], RANK, generator=generator)
        size = SCALING * float(((B.T @ B) * (A @ A.T)).sum().sqrt())
        B *= RATIO * float(weight.norm()) / size
        terms.append(Term(A.to(device), B.to(device), SCALING))
    return weight.to(dtype).to(device), terms


def naive(weight: torch.Tensor, old: Term, new: Term) -> None:
    """Two updates in the stored type."""
    for term, sign in ((old, -1.0), (new, 1.0)):
        weight += (term.lora_B.to(weight.dtype) @ term.lora_A.to(weight.dtype)) * (sign * term.scaling)


def seconds(work: Callable[[int], object], repeats: int, device: str) -> float:
    """Median of single runs."""
    found = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        work(number)
        if device != "cpu":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def print_times(device: str, repeats: int) -> None:
    weight, terms = prepared(SHAPE, torch.bfloat16, device)
    place, spare = weight.clone(), weight.clone()
    ways: dict[str, Callable[[int], object]] = {
        "copy_": lambda _: spare.copy_(weight),
        "exact, from a kept copy": lambda n: swap_terms(place, [terms[n % 9]], [terms[n % 9 + 1]], kept=weight),
        "fast, in one pass": lambda n: swap_terms(place, [terms[n % 9]], [terms[n % 9 + 1]]),
        "naive, two updates in bf16": lambda n: naive(spare, terms[n % 9], terms[n % 9 + 1]),
    }
    found = {name: seconds(work, repeats, device) for name, work in ways.items()}
    print(f"bf16 {SHAPE[0]}×{SHAPE[1]}, rank {RANK}, {device}; medians of {repeats}")
    for name, median in found.items():
        print(f"  {name:<28} {1e3 * median:8.2f} ms   {median / found['copy_']:6.2f}× copy_")


def print_drift(device: str, swaps: int) -> None:
    marks = [n for n in (1, 10, 100, 1000, 10_000) if n <= swaps]
    print(f"drift after {marks} swaps of a {SMALL[0]}×{SMALL[1]} weight: relative error (share of weights that differ)")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight, terms = prepared(SMALL, dtype, device)
        exact = weight.clone()
        apply_update(exact, Update("w", SMALL, terms[:1]))
        fast, at_once, plain = exact.clone(), exact.clone(), exact.clone()
        lines: dict[str, list[str]] = {"exact": [], "fast": [], "at once": [], "naive": []}
        for number in range(1, swaps + 1):
            old, new = terms[(number - 1) % ADAPTERS], terms[number % ADAPTERS]
            swap_terms(exact, [old], [new], kept=weight)
            swap_terms(fast, [old], [new])
            apply_update(at_once, Update("w", SMALL, [old._replace(strength=-1.0), new]))
            naive(plain, old, new)
            if number not in marks:
                continue
            wanted = weight.clone()
            apply_update(wanted, Update("w", SMALL, [new]))
            for name, found in zip(lines, (exact, fast, at_once, plain), strict=True):
                error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
                share = float((found != wanted).double().mean())
                lines[name].append("0, every bit" if found.equal(wanted) else f"{error:.1e} ({share:4.0%})")
        for name, line in lines.items():
            print(f"  {str(dtype).removeprefix('torch.'):<9} {name:<7} {'   '.join(f'{one:>14}' for one in line)}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=9)
    chosen = parser.parse_args()
    print_times(chosen.device, chosen.repeats)
    print_drift(chosen.device, chosen.swaps)


if __name__ == "__main__":
    main()
