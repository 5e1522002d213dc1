"""Undo files: how many bytes beside the entropy of what they hold, and how fast they are written.

Run: python tests/benchmarks/bench_undo.py [--size N] [--repeats N] [--folder DIR]

A bf16 base of four square Gaussian weights is merged with an adapter of rank 16 at several ‖ΔW‖/‖W‖. Entropy: −Σ p
log₂ p of the residual's values, computed here from the base and the merged file, tensor by tensor. Rate: bytes of
weights over the processor seconds, of all threads, that a merge takes more with ``--undo`` than without; pairs are
interleaved. For comparison, the same of one thread's work on blocks in memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lora_lab import Session  # noqa: E402
from lora_lab.linalg.residual_coding import ChunkEncoder, entropy_bits  # noqa: E402
from lora_lab.linalg.residuals import Inverse, residual_of  # noqa: E402
from lora_lab.linalg.threads import one_thread  # noqa: E402
from lora_lab.linalg.updates import Term, Update  # noqa: E402

RATIOS = (0.01, 0.03, 0.1)
RANK, ALPHA, LAYERS, MODULE = 16, 16, 4, "model.layers.{}.self_attn.q_proj"
WANTED_SIZE, WANTED_RATE = 1.3, 100


def write_inputs(folder: Path, size: int, ratio: float) -> None:
    """A base and an adapter with ‖ΔW‖/‖W‖ = `ratio`."""
    generator = torch.Generator().manual_seed(0)
    weights, factors = {}, {}
    for layer in range(LAYERS):
        name = MODULE.format(layer)
        weight = (0.02 * torch.randn(size, size, generator=generator)).bfloat16()
        A, B = torch.randn(RANK, size, generator=generator), torch.randn(size, RANK, generator=generator)
        gram = ((B.T.double() @ B.double()) * (A.double() @ A.T.double())).sum().sqrt()  # ‖B·A‖_F
        weights[f"{name}.weight"] = weight
        factors[f"base_model.model.{name}.lora_A.weight"] = A
        factors[f"base_model.model.{name}.lora_B.weight"] = B * float(ratio * weight.double().norm() / gram)
    for place in (folder / "base", folder / "adapter"):
        place.mkdir(parents=True)
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))


def merged(folder: Path, undo: Path | None) -> tuple[float, float]:
    """Wall and processor seconds of a merge."""
    wall, processor = time.perf_counter(), time.process_time()
    Session(cache=False).merge(
        [str(folder / "adapter")], base=str(folder / "base"), output=folder / "merged", undo=undo, overwrite=True
    )
    return time.perf_counter() - wall, time.process_time() - processor


def in_memory(folder: Path) -> tuple[float, float, float]:
    """Entropy in bits of all weights, seconds of one thread's work, and the share of residuals."""
    before, after = (load_file(folder / name / "model.safetensors") for name in ("base", "merged"))
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    entropy = seconds = 0.0
    residuals = 0
    for layer in range(LAYERS):
        name = MODULE.format(layer)
        weight, there = before[f"{name}.weight"], after[f"{name}.weight"]
        A, B = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        none = torch.empty((weight.shape[0], 0), dtype=torch.float64)
        with one_thread():
            started = time.perf_counter()
            update = Update(name, (weight.shape[0], weight.shape[1]), [Term(A, B, ALPHA / RANK)])
            inverse = Inverse(update, weight.dtype)
            encoder = ChunkEncoder(weight.numel(), 16)
            for _, first, end in update.blocks():
                predicted = inverse.predicted(there[first:end], first, none[first:end])
                encoder.put(first * weight.shape[1], residual_of(weight[first:end], predicted))
            encoder.finish()
            seconds += time.perf_counter() - started
        residual = residual_of(weight, inverse.predicted(there, 0, none))
        entropy += entropy_bits(residual, weight.numel()) * weight.numel()
        residuals += len(residual.positions)
    return entropy, seconds, residuals / sum(tensor.numel() for tensor in before.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    count = LAYERS * chosen.size**2
    megabytes = 2 * count / 1e6
    print(
        f"{LAYERS} bf16 weights of {chosen.size}², {megabytes:.0f} MB, rank {RANK}; {chosen.repeats} interleaved pairs"
    )
    print(f"wanted: size ≤ {WANTED_SIZE}× entropy, ≥ {WANTED_RATE} MB of weights per second and core")
    print("|ΔW|/|W|  residuals  entropy b/w   file b/w     ×   merge   with undo   MB/s·core   in memory MB/s")
    for ratio in RATIOS:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
            folder = Path(place)
            write_inputs(folder, chosen.size, ratio)
            merged(folder, None)
            pairs = [(merged(folder, None), merged(folder, folder / "undo")) for _ in range(chosen.repeats)]
            bits = 8 * (folder / "undo").stat().st_size
            entropy, seconds, share = in_memory(folder)
        more = statistics.median(long[1] - short[1] for short, long in pairs)
        walls = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
        print(
            f"{ratio:<8} {share:10.2%} {entropy / count:12.4f} {bits / count:10.4f} {bits / entropy:5.2f}"
            f" {walls[0]:5.2f} s {walls[1]:9.2f} s {megabytes / more:11.0f} {megabytes / seconds:16.0f}"
        )


if __name__ == "__main__":
    main()
