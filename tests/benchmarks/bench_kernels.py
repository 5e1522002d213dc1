"""Changing weights in memory, beside ``copy_`` of them, in a cache and out of it; and what many swaps leave of W.

Run: python tests/benchmarks/bench_kernels.py [--device D] [--repeats N] [--swaps N]

A bf16 weight of 8192×2048, 34 MB, and adapters of rank 16. "In place": the same weight again and again, of which a
large last-level cache keeps a good part. "Rotating": one of so many weights that four caches hold them no longer, which
is how the weights of a model are met.

* merge: round(W + ΔB) into a kept copy's place, in float64 on the processor, every bit that of a merge into files.
* add: round(W + ΔB) in its own place, in float32: one rounding, and no promise of a merge's bits.
* fused: round(round(W′ − ΔA) + ΔB), in float32; on CUDA by the kernel that `bench swap` takes there.
* fidelity: the merge that also measures what rounding left of ΔB, as a merge into files does.
* naive: ``W += (B@A)·s`` in bf16, which rounds the product before it rounds the sum; twice for a swap.

Drift: ‖W_n − merge‖_F/‖merge‖_F, and the share of weights that differ, after n swaps between ten adapters of
‖ΔW‖/‖W‖ = 0.03.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout

from lora_lab.benchmarks.copying import sets_of_weights  # noqa: E402
from lora_lab.benchmarks.measurement import Measurement  # noqa: E402
from lora_lab.benchmarks.rounds import Contestant, Rounds  # noqa: E402
from lora_lab.linalg.device import resolve_device  # noqa: E402
from lora_lab.linalg.device_swap import Swaps  # noqa: E402
from lora_lab.linalg.in_place import Change, Ready, merge_all, ready, swap_all  # noqa: E402
from lora_lab.linalg.updates import Term, Update, apply_update  # noqa: E402

RANK, SCALING, RATIO, ADAPTERS = 16, 2.0, 0.03, 10
SHAPE, SMALL = (8192, 2048), (256, 256)
ONE_ROUNDING = "≤ 5× copy_ and ≤ 0.5× naive"
WANTED = {"add": ONE_ROUNDING, "merge": ONE_ROUNDING, "fused": "≤ 8× copy_"}


def prepared(shape: tuple[int, int], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, list[Term]]:
    """A weight and adapters for it."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(shape, generator=generator)
    terms = []
    for _ in range(ADAPTERS):
        A, B = torch.randn(RANK, shape[1], generator=generator), torch.randn(shape[0], RANK, generator=generator)
        size = SCALING * float(((B.T @ B) * (A @ A.T)).sum().sqrt())
        B *= RATIO * float(weight.norm()) / size
        terms.append(Term(A, B, SCALING))
    return weight.to(dtype).to(device), terms


def naive(weight: torch.Tensor, term: Term, sign: float) -> None:
    """An update in the stored type."""
    weight += (term.lora_B.to(weight) @ term.lora_A.to(weight)) * (sign * term.scaling)


def contestants(device: str, sets: int) -> list[Contestant]:
    """All ways over `sets` weights in turns."""
    weight, terms = prepared(SHAPE, torch.bfloat16, device)
    kept, places = ([weight.clone() for _ in range(sets)] for _ in range(2))
    steps = [ready(Update("w", SHAPE, [term]), device) for term in terms]
    there = [term._replace(lora_A=term.lora_A.to(weight), lora_B=term.lora_B.to(weight)) for term in terms]

    swaps = [Swaps([place], [[step] for step in steps], device) for place in places]

    def fused(run: int) -> None:
        swaps[run % sets](run % 9, run % 9 + 1)

    def both(run: int) -> None:
        naive(places[run % sets], there[run % 9], -1.0)
        naive(places[run % sets], there[run % 9 + 1], 1.0)

    ways = {
        "copy_": lambda run: places[run % sets].copy_(kept[run % sets]),
        "naive": lambda run: naive(places[run % sets], there[run % 9], 1.0),
        "add": lambda run: swap_all([Change(places[run % sets], steps[run % 9])]),
        "merge": lambda run: merge_all([Change(places[run % sets], steps[run % 9], kept=kept[run % sets])]),
        "fidelity": lambda run: apply_update(places[run % sets], steps[run % 9].update, kept=kept[run % sets]),
        "naive swap": both,
        "fused": fused,
    }
    return [Contestant(name, work) for name, work in ways.items()]


def print_times(device: str, repeats: int) -> None:
    measurement = Measurement(device)
    done = []
    for where, sets in (("in place", 1), ("rotating", sets_of_weights(2 * SHAPE[0] * SHAPE[1], device))):
        rounds = Rounds(contestants(device, sets), measurement.clock)
        rounds.warm_up(2)
        rounds.measure(repeats)
        done.append(rounds)
        print(
            f"\nbf16 {SHAPE[0]}×{SHAPE[1]}, rank {RANK}, {device}, {where} over {sets}; medians of {repeats}, in turns"
        )
        for name, own in rounds.samples.items():
            over_copy, over_naive = (
                statistics.median(one / other for one, other in zip(own, rounds.samples[beside], strict=True))
                for beside in ("copy_", "naive swap" if name == "fused" else "naive")
            )
            wanted = f"   wanted {WANTED[name]}" if name in WANTED else ""
            ratios = f"{over_copy:7.2f}× copy_ {over_naive:7.2f}× naive"
            print(f"  {name:<11}{1e3 * statistics.median(own):8.2f} ms {ratios}{wanted}")
    for finding in measurement.report("bench kernels", "", tables=(), rounds=done).findings:
        print(finding.message)


def print_drift(device: str, swaps: int) -> None:
    marks = [n for n in (1, 10, 100, 1000, 10_000) if n <= swaps]
    print(
        f"\ndrift after {marks} swaps of a {SMALL[0]}×{SMALL[1]} weight: relative error (share of weights that differ)"
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        kept, terms = prepared(SMALL, dtype, device)
        steps = [ready(Update("w", SMALL, [term]), device) for term in terms]
        exact, wanted = torch.empty_like(kept), torch.empty_like(kept)
        merge_all([Change(exact, steps[0], kept=kept)])
        fast, at_once, plain = exact.clone(), exact.clone(), exact.clone()
        swap = Swaps([fast], [[step] for step in steps], device)
        lines: dict[str, list[str]] = {"from copy": [], "fused": [], "at once": [], "naive": []}
        for number in range(1, swaps + 1):
            here, there = (number - 1) % ADAPTERS, number % ADAPTERS
            merge_all([Change(exact, steps[there], kept=kept)])
            swap(here, there)
            merge_all([Change(at_once, both_of(terms[here], terms[there], device))])
            naive(plain, terms[here], -1.0)
            naive(plain, terms[there], 1.0)
            if number in marks:
                merge_all([Change(wanted, steps[there], kept=kept)])
                for name, found in zip(lines, (exact, fast, at_once, plain), strict=True):
                    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
                    share = float((found != wanted).double().mean())
                    lines[name].append("0, every bit" if found.equal(wanted) else f"{error:.1e} ({share:4.0%})")
        for name, line in lines.items():
            shown = "   ".join(f"{one:>14}" for one in line)
            print(f"  {str(dtype).removeprefix('torch.'):<9} {name:<10}{shown}")


def both_of(old: Term, new: Term, device: str) -> Ready:
    """The sum of both differences as one update."""
    return ready(Update("w", SMALL, [old._replace(strength=-1.0), new]), device)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    device = resolve_device(chosen.device)
    print_times(device, chosen.repeats)
    print_drift(device, chosen.swaps)


if __name__ == "__main__":
    main()
