"""Merging into a base of a billion parameters, beside what anyone pays for a durable, hashed copy of it.

Run: python tests/benchmarks/bench_merge.py [--layers N] [--repeats N] [--folder DIR] [--kernels N]

Copy: ``cp -r``, a sync of the copy, ``sha256sum`` of it. Merge: the same files with an adapter added, hashed while
written, synced, with receipt and fidelity; imports excluded. Pairs are interleaved, so that both meet the same noise.

The kernel alone: a bf16 weight of 8192×2048 changed in memory by rank 16, rounded once, beside ``copy_`` of it and
beside W += (B·A)·s in bf16, which rounds the product before it rounds the sum.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

HIDDEN, KEYS, INNER, VOCABULARY = 2048, 512, 8192, 128256
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
WANTED = {"q,v": 1.2, "all linear": 1.5}


def write_base(folder: Path, layers: int) -> None:
    """Random bf16 weights of Llama-3.2-1B's shapes, in two files."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.02).bfloat16()

    weight_map = {}
    halves = [range(layers // 2), range(layers // 2, layers)]
    for number, half in enumerate(halves, start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        tensors = {
            f"model.layers.{layer}.{projection}.weight": matrix(*shape)
            for layer in half
            for projection, shape in PROJECTIONS.items()
        }
        if number == 1:
            tensors["model.embed_tokens.weight"] = matrix(VOCABULARY * layers // 16, HIDDEN)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def write_adapter(folder: Path, layers: int, targets: list[str]) -> None:
    """Random factors of rank 16, about 1 % of the base's norm."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for projection in targets:
            rows, columns = PROJECTIONS[projection]
            start = f"base_model.model.model.layers.{layer}.{projection}"
            tensors[f"{start}.lora_A.weight"] = torch.randn(16, columns, generator=generator) * 0.01
            tensors[f"{start}.lora_B.weight"] = torch.randn(rows, 16, generator=generator) * 0.005
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def copied(base: Path, target: Path) -> float:
    """Seconds of a durable, hashed copy."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", base, target], check=True)
    for path in sorted(target.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    subprocess.run(["sha256sum", *sorted(target.iterdir())], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def merged(adapter: Path, base: Path, target: Path) -> float:
    """Seconds of a merge."""
    from lora_lab import Session

    started = time.perf_counter()
    Session(cache=False).merge([str(adapter)], base=str(base), output=target)
    return time.perf_counter() - started


def kernels(repeats: int) -> None:
    """Print what one rounding costs in memory."""
    from lora_lab.linalg.updates import Term, Update, apply_update

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8192, 2048, generator=generator).mul_(0.02).bfloat16()
    changed = weight.clone()
    lora_A = torch.randn(16, 2048, generator=generator) * 0.01
    lora_B = torch.randn(8192, 16, generator=generator) * 0.005
    update = Update("w", (8192, 2048), [Term(lora_A, lora_B, 1.0)])
    A, B = lora_A.bfloat16(), lora_B.bfloat16()
    works = {
        "copy_": lambda: changed.copy_(weight),
        "W += (B@A)*s": lambda: changed.add_((B @ A) * 0.5),
        "one rounding": lambda: apply_update(changed, update, is_measured=False),
        "and fidelity": lambda: apply_update(changed, update),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    print(f"8192×2048 bf16 in memory, rank 16; medians of {repeats} interleaved rounds")
    for name, own in seconds.items():
        over_copy, over_sum = (
            statistics.median(one / other for one, other in zip(own, seconds[beside], strict=True))
            for beside in ("copy_", "W += (B@A)*s")
        )
        wanted = "   wanted ≤ 5× and ≤ 0.5×" if name == "one rounding" else ""
        print(f"{name:<14} {statistics.median(own) * 1e3:7.1f} ms   {over_copy:5.2f}×   {over_sum:5.2f}×{wanted}")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kernels", type=int, default=0, help="rounds of the kernel alone, and nothing else")
    chosen = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if chosen.kernels:
        kernels(chosen.kernels)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        folder = Path(place)
        writer = multiprocessing.get_context("spawn").Process(target=write_base, args=(folder / "base", chosen.layers))
        writer.start()  # in a process of its own, whose memory is none of ours
        writer.join()
        size = sum(path.stat().st_size for path in (folder / "base").iterdir())
        print(f"base {size / 1e9:.2f} GB, bf16; rank 16; medians of {chosen.repeats} interleaved pairs")
        for name, targets in (("q,v", ["self_attn.q_proj", "self_attn.v_proj"]), ("all linear", list(PROJECTIONS))):
            adapter = folder / name.replace(",", "").replace(" ", "")
            write_adapter(adapter, chosen.layers, targets)
            pairs = []
            for _ in range(chosen.repeats):
                pair = (copied(folder / "base", folder / "copy"), merged(adapter, folder / "base", folder / "merged"))
                pairs.append(pair)
                shutil.rmtree(folder / "copy")
                shutil.rmtree(folder / "merged")
            copy, merge = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(merge / copy for copy, merge in pairs)
            print(f"{name:<12} copy {copy:6.2f} s   merge {merge:6.2f} s   {ratio:5.2f}×   wanted ≤ {WANTED[name]}×")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"peak memory above importing torch: {peak / 1024:.0f} MB   wanted ≤ 300 MB")


if __name__ == "__main__":
    main()
