"""Combining and resizing: against PEFT per module, and of adapters shaped as those of a model of seven billion.

    python tests/benchmarks/bench_combine.py [--no-dense]

Every line is measured in this one run; targets are those of the project.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from lora_lab.linalg.combining import best_factors, side_by_side_factors
from lora_lab.linalg.spectra import Pair

if TYPE_CHECKING:
    from collections.abc import Callable

RANK = 16
LAYERS = 32
SHAPES = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), (4096, 4096)),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
# In a process of its own, so that its memory is its own; torch is imported before the clock starts.
WORK = """
import json, pathlib, sys, time
import torch
from lora_lab import Session
def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])
start, before = time.perf_counter(), peak()
report = getattr(Session(cache=False), sys.argv[1])(**json.loads(sys.argv[2]))
seconds = time.perf_counter() - start
totals = next(group.values for group in report.scalars if group.id == "totals")
grown = peak() - before
print(json.dumps({"seconds": seconds, "kilobytes": grown, "error": totals["relative_error"]}))
"""


def main() -> None:
    """Print one table."""
    print(f"{'what':58} {'measured':>14} {'target':>14}")
    if "--no-dense" not in sys.argv:  # a minute of dense decompositions
        for size, target in ((2048, 300), (4096, 1000)):
            per_module(size, target)
    with tempfile.TemporaryDirectory() as folder:
        whole(Path(folder))


def per_module(size: int, target: int) -> None:
    """The best of rank 16 of a sum of two, by PEFT and here."""
    model = get_peft_model(nn.Sequential(nn.Linear(size, size, bias=False)), config(), adapter_name="a")
    model.add_adapter("b", config())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.02)
    layer: Any = model.base_model.model[0]
    tuner: Any = model.base_model

    def theirs() -> None:
        if "both" in model.peft_config:
            tuner.delete_adapter("both")
        tuner.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="svd", svd_rank=RANK)

    pairs = [Pair(name, layer.lora_A[name].weight.data, layer.lora_B[name].weight.data, 2.0) for name in "ab"]
    found = [best_factors(*side_by_side_factors(pairs, [0.7, 0.3]), rank=RANK)]

    def ours() -> None:
        found[0] = best_factors(*side_by_side_factors(pairs, [0.7, 0.3]), rank=RANK)

    slow, fast = timed(theirs, 1), timed(ours, 15)
    with torch.no_grad():
        dense = layer.get_delta_weight("both").double()
    difference = float((found[0].lora_B @ found[0].lora_A - dense).norm() / dense.norm())
    line(
        f"svd of two r=16, {size}²: PEFT {slow:.2f} s, here {fast * 1e3:.2f} ms", f"{slow / fast:.0f}×", f"≥ {target}×"
    )
    line("    relative difference of the two ΔW", f"{difference:.1e}", "≤ 1e-5")


def config() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"])


def whole(folder: Path) -> None:
    """Two adapters of every linear layer of a 7B model."""
    for place, name in enumerate("ab"):
        made(folder / name, place)
    files = sum((folder / name / "adapter_model.safetensors").stat().st_size for name in "ab")
    both = {"adapters": [str(folder / "a"), str(folder / "b")], "method": "svd", "rank": RANK}
    one = {"adapter": str(folder / "a")}
    for title, operation, arguments, size in (
        ("svd combine of two 7B-shaped, r=16", "combine", both, files),
        ("resize of one to energy 0.9", "resize", {**one, "energy": 0.9}, files // 2),
        ("resize of one to half its parameters", "resize", {**one, "parameters": 20 << 20}, files // 2),
    ):
        told = []
        for place in range(3):
            given = json.dumps({**arguments, "output": str(folder / f"{operation}{len(title)}{place}")})
            done = subprocess.run([sys.executable, "-c", WORK, operation, given], capture_output=True, check=True)
            told.append(json.loads(done.stdout))
        line(title, f"{statistics.median(run['seconds'] for run in told):.2f} s", "≤ 3 s")
        grown = statistics.median(run["kilobytes"] for run in told) * 1024
        line(f"    memory over {size >> 20} MiB of input", f"{grown / size:.2f}×", "≤ 4×")


def made(folder: Path, seed: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, (outputs, inputs) in SHAPES.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            decay = torch.logspace(0, -1.5, RANK)
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) * decay[:, None]
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.01
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name.rpartition(".")[2] for name in SHAPES]
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(said))


def timed(work: Callable[[], None], times: int) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def line(what: str, measured: str, target: str) -> None:
    print(f"{what:58} {measured:>14} {target:>14}", flush=True)


if __name__ == "__main__":
    main()
