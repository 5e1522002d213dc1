"""Merging into a base of a billion parameters, beside what anyone pays for a durable, hashed copy of it.

Run: python tests/benchmarks/bench_merge.py [--layers N] [--repeats N] [--folder DIR] [--peft] [--large]

Copy: ``cp -r``, a sync of the copy, ``sha256sum`` of it. Merge: the same files with an adapter added, hashed while
written, synced, read back, with receipt and fidelity; imports excluded. A first merge hashes the base's files as well,
a later one knows their fingerprints. Rounds are interleaved, so that all meet the same noise.

``--peft``: the all-linear merge beside PEFT's load, merge_and_unload, save_pretrained and a sync, each in a process of
its own, imports included. ``--large``: the peak memory with a base four times the size as well.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from model_shapes import SMALL as PROJECTIONS
from model_shapes import SMALL_HIDDEN as HIDDEN
from model_shapes import SMALL_INNER as INNER
from model_shapes import SMALL_KEYS as KEYS
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

VOCABULARY, HEAD = 128256, 64
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
        for layer in half:
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        if number == 1:
            tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
            tensors["model.embed_tokens.weight"] = matrix(VOCABULARY * layers // 16, HIDDEN)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": KEYS // HEAD,
        "vocab_size": VOCABULARY * layers // 16,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


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


def merged(adapter: Path, base: Path, target: Path, *, is_first: bool) -> float:
    """Seconds of a merge; one that is not the first knows the base's fingerprints."""
    from lora_lab import Session

    started = time.perf_counter()
    Session(cache=not is_first).merge([str(adapter)], base=str(base), output=target)
    return time.perf_counter() - started


# The kernel's own count: getrusage's begins with what the parent had.
PEAK = """
import os, re, sys
from pathlib import Path

import torch

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

before = peak()
"""

OURS = """
from lora_lab import Session
adapter, base, target = sys.argv[1:]
Session(cache=False).merge([adapter], base=base, output=target)
print(peak() - before)
"""

PEFTS = """
from peft import PeftModel
from transformers import AutoModelForCausalLM
adapter, base, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(target)
for path in Path(target).iterdir():
    with path.open("rb") as file:
        os.fsync(file.fileno())
print(peak() - before)
"""


def alone(program: str, adapter: Path, base: Path, target: Path) -> tuple[float, float]:
    """Seconds of a program in a process of its own, and its peak memory above importing torch, in MB."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PEAK + program, adapter, base, target],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds, int(done.stdout.split()[-1]) / 1024


def beside_copy(folder: Path, name: str, adapter: Path, repeats: int) -> None:
    """Print what a merge takes beside a copy."""
    base = folder / "base"
    merged(adapter, base, folder / "known", is_first=False)
    shutil.rmtree(folder / "known")
    seconds: dict[str, list[float]] = {"copy": [], "first": [], "later": []}
    for _ in range(repeats):
        seconds["copy"].append(copied(base, folder / "copy"))
        for kind in ("first", "later"):
            seconds[kind].append(merged(adapter, base, folder / kind, is_first=kind == "first"))
        for kind in seconds:
            shutil.rmtree(folder / kind)
    copy = statistics.median(seconds["copy"])
    for kind in ("first", "later"):
        ratio = statistics.median(own / one for own, one in zip(seconds[kind], seconds["copy"], strict=True))
        own = statistics.median(seconds[kind])
        print(f"{name:<12} copy {copy:6.2f} s   {kind} merge {own:6.2f} s   {ratio:5.2f}×   wanted ≤ {WANTED[name]}×")


def beside_peft(folder: Path, adapter: Path, repeats: int) -> None:
    """Print what a merge takes beside PEFT's, imports included."""
    base, out = folder / "base", folder / "out"
    pairs = [[alone(program, adapter, base, out) for program in (OURS, PEFTS)] for _ in range(repeats)]
    ours, pefts = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(one[0] / other[0] for one, other in pairs)
    print(f"all linear   PEFT {pefts:6.2f} s   first merge {ours:6.2f} s   {ratio:5.2f}×   wanted ≤ 0.7×")
    print(f"peak memory above importing torch: PEFT {pairs[0][1][1]:.0f} MB, merge {pairs[0][0][1]:.0f} MB")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--peft", action="store_true", help="compare with PEFT as well")
    parser.add_argument("--large", action="store_true", help="the memory for a base four times the size as well")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        folder = Path(place)
        os.environ["LORA_LAB_CACHE_DIR"] = str(folder / "cache")
        size = made(folder / "base", chosen.layers)
        print(f"base {size / 1e9:.2f} GB, bf16; rank 16; medians of {chosen.repeats} interleaved rounds")
        for name, targets in (("q,v", ["self_attn.q_proj", "self_attn.v_proj"]), ("all linear", list(PROJECTIONS))):
            adapter = folder / name.replace(",", "").replace(" ", "")
            write_adapter(adapter, chosen.layers, targets)
            beside_copy(folder, name, adapter, chosen.repeats)
        if chosen.peft:
            beside_peft(folder, adapter, chosen.repeats)
        _, peak = alone(OURS, adapter, folder / "base", folder / "out")
        print(f"peak memory above importing torch: {peak:.0f} MB   wanted ≤ 300 MB")
        if chosen.large:
            size = made(folder / "large", 4 * chosen.layers)
            write_adapter(folder / "wide", 4 * chosen.layers, list(PROJECTIONS))
            _, peak = alone(OURS, folder / "wide", folder / "large", folder / "out")
            print(f"base {size / 1e9:.2f} GB: peak memory above importing torch: {peak:.0f} MB   wanted ≤ 300 MB")


def made(base: Path, layers: int) -> int:
    """Write a base in a process of its own, whose memory is none of ours; its bytes."""
    writer = multiprocessing.get_context("spawn").Process(target=write_base, args=(base, layers))
    writer.start()
    writer.join()
    return sum(path.stat().st_size for path in base.iterdir())


if __name__ == "__main__":
    main()
