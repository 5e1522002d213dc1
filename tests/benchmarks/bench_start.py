"""How long it takes to start: help, version, and listing a thousand adapters, beside a bare interpreter.

    python tests/benchmarks/bench_start.py [--adapters 1000] [--tensors 448] [--repeats 5]

Every figure is the median of whole processes, taken in turns so that a noisy machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = (sys.executable, "-P", "-m", "lora_lab")


def write_library(folder: Path, adapters: int, tensors: int) -> None:
    """Adapters of rank 1 over small matrices: their headers are those of large ones."""
    header, position = {}, 0
    for place in range(tensors // 2):
        module = f"base_model.model.model.layers.{place // 7}.self_attn.projection_{place % 7}"
        for factor, shape in (("lora_A", [1, 8]), ("lora_B", [8, 1])):
            header[f"{module}.{factor}.weight"] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [position, position + 32],
            }
            position += 32
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text + bytes(position)
    config = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": "base"})
    for number in range(adapters):
        place = folder / f"adapter-{number}"
        place.mkdir()
        (place / "adapter_model.safetensors").write_bytes(content)
        (place / "adapter_config.json").write_text(config)


def seconds_of(command: tuple[str, ...], environment: dict[str, str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--tensors", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        library, cache = Path(scratch) / "library", Path(scratch) / "cache"
        library.mkdir()
        write_library(library, options.adapters, options.tensors)
        environment = {**os.environ, "LORA_LAB_CACHE_DIR": str(cache)}
        listing = (*PROGRAM, "ls", str(library), "--json")
        commands = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "lora-lab --version": (*PROGRAM, "--version"),
            "lora-lab --help": (*PROGRAM, "--help"),
            f"ls of {options.adapters} adapters, first time": listing,
            f"ls of {options.adapters} adapters, second time": listing,
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                if name.endswith("first time"):
                    shutil.rmtree(cache, ignore_errors=True)
                taken[name].append(seconds_of(command, environment))
    bare = statistics.median(taken["python -c pass"])
    print(f"{'':<42}{'median s':>10}{'least s':>10}{'× bare':>9}")
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:<42}{median:>10.3f}{min(times):>10.3f}{median / bare:>9.1f}")


if __name__ == "__main__":
    main()
