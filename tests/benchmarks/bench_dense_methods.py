"""Time methods on the true entries of ΔW per module against PEFT, and measure what one huge module takes.

Prints, never asserts. PEFT's own ``add_weighted_adapter`` combines two adapters of one linear layer, ours the same
factors in the same process and in turn. Memory is that of a fresh process, above what it holds with the factors.
Run with: python tests/benchmarks/bench_dense_methods.py [--repeats N] [--side N] [--rows N --columns N] [--quick]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout

from lora_lab.linalg.consensus import Election  # noqa: E402
from lora_lab.linalg.entrywise import EntryMethod, Sparsity, combine_entries  # noqa: E402
from lora_lab.linalg.spectra import Pair  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

RANK, DENSITY, STRENGTHS = 16, 0.2, [1.0, 0.5]
TARGET_RATIO, TARGET_MEGABYTES = 6.0, 300
OURS = {
    "ties": EntryMethod(Sparsity.LARGEST, DENSITY, election=Election.BEFORE),
    "dare_linear": EntryMethod(Sparsity.CHANCE, DENSITY),
    "dare_ties": EntryMethod(Sparsity.CHANCE, DENSITY, election=Election.BEFORE),
    "magnitude_prune": EntryMethod(Sparsity.LARGEST, DENSITY),
    "della": EntryMethod(Sparsity.RANK, DENSITY, epsilon=0.1, election=Election.BEFORE),
    "breadcrumbs": EntryMethod(Sparsity.MIDDLE, DENSITY, gamma=0.01),
}
IN_PEFT = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=28672)
    parser.add_argument("--quick", action="store_true", help="TIES alone, and no huge module")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.alone:
        one_module(options.rows, options.columns)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"two adapters of rank {RANK} on {options.side}², density {DENSITY}, to rank {RANK}")
    speed(options.side, options.repeats, ["ties"] if options.quick else list(OURS))
    if not options.quick:
        place = [f"--rows={options.rows}", f"--columns={options.columns}"]
        subprocess.run([sys.executable, __file__, "--alone", *place], check=True)


def speed(side: int, repeats: int, methods: list[str]) -> None:
    """One line for each method."""
    pairs = made(side, side)
    for name in methods:
        model = peft_model(pairs) if name in IN_PEFT else None
        seconds: dict[str, list[float]] = {"ours": [], "peft": []}
        found: Any = None
        for repeat in range(repeats + 1):  # the first round warms up and does not count
            started = time.perf_counter()
            found = combine_entries(pairs, STRENGTHS, OURS[name], rank=RANK)
            ours = time.perf_counter() - started
            peft = timed(lambda model=model, name=name: combined_by_peft(model, name)) if model else 0.0
            if repeat:
                seconds["ours"].append(ours)
                seconds["peft"].append(peft)
        show(name, seconds, found, None if model is None else (pairs, model))


def show(name: str, seconds: dict[str, list[float]], found: Any, peft: tuple[list[Pair], PeftModel] | None) -> None:
    """Print seconds, the ratio of the medians and of the least, and how far both are from the dense result."""
    told = f"  {name:<16} ours {statistics.median(seconds['ours']):7.3f} s"
    if peft is not None:
        ratio = statistics.median(seconds["peft"]) / statistics.median(seconds["ours"])
        least = min(seconds["peft"]) / min(seconds["ours"])
        told += f"   PEFT {statistics.median(seconds['peft']):7.3f} s   {ratio:.1f} times, {least:.1f} by the least"
        told += f" (target {TARGET_RATIO:g})" if name == "ties" else ""
    print(f"{told}   error {found.error / found.norm:.4f}, at most {found.excess:.2%} above the optimum")
    if peft is not None and name in ("ties", "magnitude_prune"):
        pairs, model = peft
        dense, theirs = dense_result(pairs, name), model.delta()
        ours = found.lora_B @ found.lora_A
        print(f"{'':<19}distance from the dense result: ours {distance(ours, dense):.6f}, ", end="")
        print(f"PEFT {distance(theirs, dense):.6f}; from each other {distance(ours, theirs):.1e}")


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def made(rows: int, columns: int) -> list[Pair]:
    """Two seeded updates whose singular values fall by a factor of ten."""
    generator = torch.Generator().manual_seed(0)
    fall = torch.logspace(0, -1, RANK)
    return [
        Pair(
            "q",
            torch.randn(RANK, columns, generator=generator),
            torch.randn(rows, RANK, generator=generator) * fall,
            1.0,
        )
        for _ in range(2)
    ]


class PeftModel:
    """The same updates on one linear layer in PEFT."""

    def __init__(self, pairs: list[Pair]) -> None:
        from peft import LoraConfig, get_peft_model

        side = pairs[0].lora_A.shape[1]
        net = torch.nn.Sequential(torch.nn.Linear(side, pairs[0].lora_B.shape[0], bias=False))
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
        self.model: Any = get_peft_model(net, config, adapter_name="a")
        self.model.add_adapter("b", config)
        self.layer: Any = self.model.base_model.model[0]
        for name, pair in zip("ab", pairs, strict=True):
            self.layer.lora_A[name].weight.data = pair.lora_A.clone()
            self.layer.lora_B[name].weight.data = pair.lora_B.clone()

    def delta(self) -> torch.Tensor:
        """ΔW of what was combined last."""
        found: torch.Tensor = self.layer.get_delta_weight("c").detach()
        return found


def peft_model(pairs: list[Pair]) -> PeftModel:
    return PeftModel(pairs)


def combined_by_peft(model: PeftModel, name: str) -> None:
    if "c" in model.model.peft_config:
        model.model.delete_adapter("c")
    model.model.add_weighted_adapter(
        ["a", "b"], STRENGTHS, "c", combination_type=f"{name}_svd", svd_rank=RANK, density=DENSITY
    )


def dense_result(pairs: list[Pair], name: str) -> torch.Tensor:
    """What both approximate, by PEFT's own function on dense matrices."""
    from peft.utils import merge_utils

    dense = [(pair.lora_B.double() @ pair.lora_A.double()).float() for pair in pairs]
    combined: torch.Tensor = getattr(merge_utils, name)(dense, torch.tensor(STRENGTHS), DENSITY)
    return combined


def one_module(rows: int, columns: int) -> None:
    """TIES on one module in a process of its own."""
    pairs = made(rows, columns)
    torch.linalg.eigh(torch.linalg.qr(torch.eye(8, dtype=torch.float64)).R)  # LAPACK is there before it counts
    before = peak_megabytes()
    started = time.perf_counter()
    found = combine_entries(pairs, STRENGTHS, OURS["ties"], rank=RANK)
    seconds = time.perf_counter() - started
    print(
        f"ties on {rows}×{columns}: {seconds:.1f} s, {peak_megabytes() - before:.0f} MB beyond the factors "
        f"(target {TARGET_MEGABYTES}), error {found.error / found.norm:.4f}, at most {found.excess:.2%} above the "
        "optimum"
    )


def peak_megabytes() -> float:
    """Of this program: getrusage would count what the process held before it was this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
