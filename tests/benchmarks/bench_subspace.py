"""Merging by subspaces, from the factors and from dense matrices, on the same updates in the same run.

    python tests/benchmarks/bench_subspace.py [--size 2048] [--no-dense]

The dense formulas are those of the authors, with the full SVDs that their code takes, in float32 as there; they take
minutes, and are run once. The second part combines two adapters shaped as those of a model of seven billion, every
linear layer, with each method and with the sum.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins" / "lora-lab-subspace"))

import torch
from bench_combine import made
from lora_lab_subspace.plugin import lora_lab_merge_methods

from lora_lab import Session
from lora_lab.extension.contracts import Factors, MergeContext
from lora_lab.extension.registry import PluginRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    Dense = Callable[[list[torch.Tensor]], torch.Tensor]

RANK: Final = 16
DENSITY: Final = 0.5
METHODS: Final = {method.id: method for method in lora_lab_merge_methods()}


def main() -> None:
    """Print two tables."""
    size = int(sys.argv[sys.argv.index("--size") + 1]) if "--size" in sys.argv else 2048
    if "--no-dense" not in sys.argv:
        per_module(size)
    with tempfile.TemporaryDirectory() as folder:
        whole(Path(folder))


def per_module(size: int) -> None:
    """One module of two adapters."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -1.5, RANK)
    factors = [
        Factors(
            torch.randn(RANK, size, generator=generator) * decay[:, None],
            torch.randn(size, RANK, generator=generator),
            0.02,
        )
        for _ in range(2)
    ]
    updates = [one.scaling * one.lora_B @ one.lora_A for one in factors]
    print(f"two updates of {size}×{size}, r={RANK}")
    print(f"{'method':12} {'dense':>10} {'factored':>10} {'ratio':>8} {'relative difference':>20}")
    for name, dense in DENSE.items():
        method = METHODS[name]
        context = MergeContext({parameter.id: parameter.default for parameter in method.parameters})
        found, fast = method.combine(factors, [1.0, 1.0], context), []
        start = time.perf_counter()
        expected = dense(updates)
        theirs = time.perf_counter() - start
        for _ in range(15):
            start = time.perf_counter()
            found = method.combine(factors, [1.0, 1.0], context)
            fast.append(time.perf_counter() - start)
        ours = statistics.median(fast)
        product = found.factors.lora_B @ found.factors.lora_A
        difference = float((product - expected).norm() / expected.norm())
        print(f"{name:12} {theirs:8.2f} s {ours * 1e3:7.1f} ms {theirs / ours:7.0f}× {difference:20.1e}", flush=True)


def dense_knots(updates: list[torch.Tensor]) -> torch.Tensor:
    """U·ties(S·V₁ᵀ, …) of the SVD of [ΔW₁ … ΔW_T]."""
    U, S, Vh = torch.linalg.svd(torch.cat(updates, dim=1), full_matrices=False)
    kept = 1e-5 * S[0] < S
    parts = torch.stack((S[kept, None] * Vh[kept]).split(updates[0].shape[1], dim=1))
    flat = parts.abs().flatten(1)
    least = flat.kthvalue(flat.shape[1] - int(DENSITY * flat.shape[1]) + 1, dim=1).values
    parts = parts * (parts.abs() >= least[:, None, None])
    parts = parts * (parts.sign() == torch.where(parts.sum(0) >= 0, 1.0, -1.0))
    return U[:, kept] @ (parts.sum(0) / (parts != 0).sum(0).clamp(min=1))


def dense_tsv_m(updates: list[torch.Tensor]) -> torch.Tensor:
    """U⊥·diag(S)·V⊥ᵀ of the leading singular triplets of each."""
    parts = [torch.linalg.svd(update, full_matrices=False) for update in updates]
    U = torch.linalg.svd(torch.cat([U[:, :RANK] for U, _, _ in parts], dim=1), full_matrices=False)
    V = torch.linalg.svd(torch.cat([Vh[:RANK] for _, _, Vh in parts]), full_matrices=False)
    return (U.U @ U.Vh) * torch.cat([S[:RANK] for _, S, _ in parts]) @ (V.U @ V.Vh)


def dense_iso_c(updates: list[torch.Tensor]) -> torch.Tensor:
    """σ̄·U·Vᵀ of the sum."""
    U, S, Vh = torch.linalg.svd(torch.stack(updates).sum(0), full_matrices=False)
    rank = RANK * len(updates)
    return S[:rank].mean() * U[:, :rank] @ Vh[:rank]


DENSE: Final[dict[str, Dense]] = {"knots": dense_knots, "tsv_m": dense_tsv_m, "iso_c": dense_iso_c}


def whole(folder: Path) -> None:
    """Two adapters of every linear layer of a 7B model, at their natural rank."""
    for place, name in enumerate("ab"):
        made(folder / name, place)
    session = Session(cache=False, plugins=False)
    session.registry.plugins.append(PluginRecord("subspace", "lora-lab-subspace"))
    for method in METHODS.values():
        session.registry.methods[method.id] = method
        session.registry.owners["methods", method.id] = "subspace"
    print(f"\ntwo adapters of a 7B model, r={RANK}, every linear layer\n{'method':16} {'seconds':>8} {'to linear':>10}")
    spent: dict[str, list[float]] = {name: [] for name in ("linear", *METHODS)}
    for turn in range(3):
        for name, seconds in spent.items():
            start = time.perf_counter()
            session.combine([str(folder / one) for one in "ab"], method=name, output=folder / f"{name}{turn}")
            seconds.append(time.perf_counter() - start)
    for name, seconds in spent.items():
        taken = statistics.median(seconds)
        print(f"{name:16} {taken:8.2f} {taken / statistics.median(spent['linear']):9.2f}×", flush=True)


if __name__ == "__main__":
    main()
