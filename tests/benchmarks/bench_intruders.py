"""Time intruder dimensions per 2048² layer, cold and with the base's decompositions kept, against PEFT's own function.

Prints, never asserts. PEFT and we work on the same layers in the same process and in turn; ours reads its files, PEFT's
weights are in memory. What torch's own LAPACK takes for all eigenvectors stands beside them. A cold run starts its
processes, a quarter of a second that all layers share.
Run with: python tests/benchmarks/bench_intruders.py [--repeats N] [--side N] [--layers N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout
from safetensors.torch import save_file  # noqa: E402

from lora_lab.analyses.intruders import Intruders  # noqa: E402
from lora_lab.extension.contracts import AnalysisContext  # noqa: E402
from lora_lab.formats.factors import FactorReader  # noqa: E402
from lora_lab.linalg.side_by_side import side_by_side  # noqa: E402
from lora_lab.session import Session  # noqa: E402
from lora_lab.storage.arrays import ArrayCache  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

RANK, TOP, THRESHOLD = 16, 10, 0.5
TARGETS = {"cold": 4.0, "kept": 20.0}
# Spectral norm of ΔW beside W's of 2: the first moves no direction far, the second brings ten new ones.
SIZES = {"no intruders (PEFT takes two SVDs)": 0.02, "ten intruders (PEFT takes three SVDs)": 20.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for name, size in SIZES.items():
        print(f"\n{options.layers} layers of {options.side}², rank {RANK}, top {TOP}: {name}")
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), options.side, options.layers, options.repeats, size)


def measure(folder: Path, side: int, layers: int, repeats: int, size: float) -> None:
    """One adapter: PEFT, ours without a store that knows the base, ours with one."""
    weights, factors = make(side, layers, size)
    write(folder, weights, factors)
    session = Session(cache=False)
    adapter, base = session.adapter(str(folder / "adapter")), session.base(str(folder / "base"))
    reports: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"peft": [], "cold": [], "kept": [], "lapack": []}

    def ours(store: ArrayCache) -> None:
        parameters = {"top": TOP, "threshold": THRESHOLD}
        reports["ours"] = Intruders().run(
            AnalysisContext((adapter,), FactorReader(), base, parameters=parameters, store=store)
        )

    for repeat in range(repeats + 1):  # the first round warms up and does not count
        store = ArrayCache(folder / f"arrays{repeat}", limit_bytes=1 << 32)
        model = peft_model(weights, factors)
        reports["peft"] = []
        parts: dict[str, Callable[[], None]] = {
            "peft": lambda model=model: reduce(model, reports["peft"]),
            "cold": lambda store=store: ours(store),
            "kept": lambda store=store: ours(store),
            "lapack": lambda: decompose(weights),
        }
        for part, work in parts.items():
            started = time.perf_counter()
            work()
            if repeat:
                seconds[part].append((time.perf_counter() - started) / layers)
    show(seconds, reports, layers)


def show(seconds: dict[str, list[float]], reports: dict[str, Any], layers: int) -> None:
    """Print seconds per layer, ratios of the medians and of the least, and whether both found the same."""
    for part, measured in seconds.items():
        print(f"  {part:<6} least {min(measured):8.3f} s   median {statistics.median(measured):8.3f} s   per layer")
    for part, target in TARGETS.items():
        median = statistics.median(seconds["peft"]) / statistics.median(seconds[part])
        least = min(seconds["peft"]) / min(seconds[part])
        print(f"  {part}: {median:.1f} times PEFT by the medians, {least:.1f} by the least (target {target:g})")
    least = min(seconds["peft"]) / min(seconds["lapack"])
    print(f"  lapack: Gram matrices and eigh in float64 alone, side by side: {least:.1f} times PEFT by the least")
    counts = [row["intruder_count"] for row in reports["ours"].table("modules").rows]
    print(f"  intruders: ours {counts}, PEFT {reports['peft'][:layers]}")


def make(side: int, layers: int, size: float) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Seeded Gaussian weights of spectral norm 2, and factors of a ΔW of spectral norm about `size`."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(side, side, generator=generator) / side**0.5 for _ in range(layers)]
    factors = [
        (
            torch.randn(RANK, side, generator=generator) / side**0.5,
            size * torch.randn(side, RANK, generator=generator) / side**0.5,
        )
        for _ in range(layers)
    ]
    return weights, factors


def write(folder: Path, weights: list[torch.Tensor], factors: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The same as files."""
    for name in ("adapter", "base"):
        (folder / name).mkdir()
    save_file(
        {f"layers.{place}.q_proj.weight": weight for place, weight in enumerate(weights)},
        folder / "base" / "model.safetensors",
    )
    tensors = {}
    for place, (lora_A, lora_B) in enumerate(factors):
        tensors[f"base_model.model.layers.{place}.q_proj.lora_A.weight"] = lora_A
        tensors[f"base_model.model.layers.{place}.q_proj.lora_B.weight"] = lora_B
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def peft_model(weights: list[torch.Tensor], factors: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """The same in PEFT."""
    from peft import LoraConfig, get_peft_model

    class Layer(torch.nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(*weight.shape, bias=False)
            self.q_proj.weight.data = weight.clone()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(Layer(weight) for weight in weights)

    model = get_peft_model(Model(), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj"]))
    for layer, (lora_A, lora_B) in zip(model.base_model.model.layers, factors, strict=True):
        layer.q_proj.lora_A["default"].weight.data = lora_A.clone()
        layer.q_proj.lora_B["default"].weight.data = lora_B.clone()
    return model


def decompose(weights: list[torch.Tensor]) -> None:
    """The eigenvectors of W Wᵀ in float64, one layer on each processor, and nothing else."""
    for _ in side_by_side((0, lambda weight=weight: torch.linalg.eigh(gram(weight))) for weight in weights):
        pass


def gram(weight: torch.Tensor) -> torch.Tensor:
    """W Wᵀ in float64."""
    wide = weight.double()
    return wide @ wide.T


def reduce(model: Any, told: list[str]) -> None:
    """PEFT's function, whose log says how many it found."""
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    reduce_intruder_dimension(
        model,
        top_k=TOP,
        threshold_epsilon=THRESHOLD,
        logging_sink=lambda line: told.append(line.rpartition(": ")[2]),
    )


if __name__ == "__main__":
    main()
