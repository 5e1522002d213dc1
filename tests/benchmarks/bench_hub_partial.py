"""A base on the Hub read in parts: bytes and requests against what they must be, and how fast ranges come.

Run: python tests/benchmarks/bench_hub_partial.py [--side N] [--layers N] [--repeats N] [--folder DIR]

A server on loopback serves a base of bf16 matrices of N×N in five files; an adapter changes 48 of its 1,000 tensors, or
as many as the layers give. Three ways of ``amplify --no-base-directions`` (which reads each weight once) are taken in
turns, each in a process of its own with an empty cache: of the files on this disk, of the Hub in parts, and of the Hub
with everything fetched first. Printed: bytes and requests of the way in parts beside the tensors and headers that it
needs; the median times; the largest memory of the process; and bytes a second of ranges alone, without an analysis.
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
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hubserver import HubServer  # noqa: E402

SHARDS, TENSORS, TOUCHED = 5, 20, 24
WANTED_BYTES = 1.05
LOOK = """
import json, os, resource, sys, time
from lora_lab import Session
way = os.environ["WAY"]
session = Session()
start = time.perf_counter()
if way == "whole":
    session.base("lab/base", whole=True)
where = os.environ["FOLDER"] + "/base" if way == "here" else "lab/base"
options = {"base_directions": False}
report = session.analyze("amplify", [os.environ["FOLDER"] + "/adapter"], base=where, parameters=options)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "totals": report.scalars[1].values}))
"""
RANGES = """
import json, os, time
from lora_lab import Session
from lora_lab.domain.progress import Unwatched
from lora_lab.session.partial import reading
session = Session()
base = session.base("lab/base")
refs = [ref for name, ref in base.tensors.items() if "q_proj" in name or "v_proj" in name]
start = time.perf_counter()
with reading([session._remote_models[base.path]], refs, Unwatched(), None) as (files, _):
    for ref in refs:
        with files.hold(ref):
            pass
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": sum(ref.size_bytes for ref in refs)}))
"""


def write_inputs(folder: Path, side: int, layers: int) -> int:
    """The base and the adapter; bytes of the headers and the tensors that are needed."""
    generator = torch.Generator().manual_seed(0)
    (folder / "base").mkdir(parents=True)
    (folder / "adapter").mkdir()
    index, needed, factors = {}, 0, {}
    touched = set(range(0, min(layers, 2 * TOUCHED), 2))
    for shard in range(SHARDS):
        file = folder / "base" / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {}
        for layer in range(shard * layers // SHARDS, (shard + 1) * layers // SHARDS):
            path = f"model.layers.{layer}"
            names = [f"{path}.mlp.experts.{expert}.up_proj" for expert in range(TENSORS - 4)]
            names += [f"{path}.self_attn.{name}_proj" for name in "koqv"]
            for name in names:
                tensors[f"{name}.weight"] = (0.02 * torch.randn(side, side, generator=generator)).bfloat16()
            if layer in touched:
                for name in ("q", "v"):
                    key = f"base_model.model.{path}.self_attn.{name}_proj"
                    factors[f"{key}.lora_A.weight"] = torch.randn(8, side, generator=generator)
                    factors[f"{key}.lora_B.weight"] = torch.randn(side, 8, generator=generator)
                    needed += 2 * side * side
        save_file(tensors, file, metadata={"format": "pt"})
        needed += 8 + int.from_bytes(file.open("rb").read(8), "little")
        index |= dict.fromkeys(tensors, file.name)
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return needed


def counted(hub: HubServer) -> tuple[int, int, int]:
    """Bytes from the storage, ranges, and questions to the Hub for the files of weights."""
    ranges = hub.requests.matching("^GET", origin="storage")
    return sum(one.sent for one in ranges), len(ranges), len(hub.requests.matching(r"^HEAD .*\.safetensors$"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        needed = write_inputs(folder, options.side, options.layers)
        size = sum(path.stat().st_size for path in (folder / "base").iterdir())
        with HubServer(folder / "hub") as hub:
            hub.add("lab/base", folder / "base")
            ways: dict[str, list[dict[str, float]]] = {"here": [], "parts": [], "whole": []}
            counts = (0, 0, 0)
            for repeat in range(options.repeats):
                for way, found in ways.items():
                    hub.requests.clear()
                    more = {"WAY": way, "FOLDER": str(folder)}
                    ran = hub.run_python(LOOK, home=folder / f"home-{way}-{repeat}", more=more, timeout=3600)
                    found.append(ran.ok().json)
                    if way == "parts":
                        counts = counted(hub)
            assert len({json.dumps(one["totals"]) for found in ways.values() for one in found}) == 1
            rates = []
            for repeat in range(options.repeats):
                told = hub.run_python(RANGES, home=folder / f"home-ranges-{repeat}", timeout=3600).ok().json
                rates.append(told["bytes"] / told["seconds"])
    moved, ranges, asked = counts
    runs = ranges - SHARDS
    print(f"base: {size / 1e6:.0f} MB in {SHARDS} files of {options.layers * TENSORS} tensors")
    print(f"needed: {needed / 1e6:.2f} MB, tensors and headers; moved: {moved / 1e6:.2f} MB")
    print(f"moved / needed: {moved / needed:.4f}  (wanted: at most {WANTED_BYTES})")
    print(f"requests: {asked} for links, {SHARDS} for headers, {runs} for runs of neighbours")
    medians = {way: statistics.median(one["seconds"] for one in found) for way, found in ways.items()}
    for way, found in ways.items():
        peak = max(one["peak"] for one in found)
        print(
            f"{way:6} {medians[way]:.2f} s, {medians[way] / medians['here']:.2f} of here; {peak / 1e6:.0f} MB at most"
        )
    print(f"ranges alone: {statistics.median(rates) / 1e6:.0f} MB/s, six connections to one server in Python")


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"({time.perf_counter() - started:.0f} s)")
