"""A push of a gigabyte on loopback, against the Hub's own command.

    python tests/benchmarks/bench_hub_push.py [--gigabytes 1] [--rounds 3]

Each run has a fresh server, cache and login, so that nothing is known or there already; the two commands take turns.
What ours does more: a plan with the hash of every file before the first byte leaves, and a look at what arrived after
the last. Every run ends with a comparison of what the server has.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

TARGET = 1.15
SHARDS = 4


def main() -> None:
    """Print one line for each transport."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lora-lab-push-") as place:
        model = write_model(Path(place) / "model", round(wanted.gigabytes * 1e9))
        print(f"{'transport':10} {'hf upload':>12} {'lora-lab push':>14} {'ratio':>7} {'target':>7}   of the processor")
        for transport in ("lfs", "multipart", "xet"):
            runs: dict[str, list[tuple[float, float]]] = {"hf": [], "lora-lab": []}
            for number in range(wanted.rounds):
                for command in sorted(runs, reverse=bool(number % 2)):
                    runs[command].append(timed(command, model, transport, Path(place) / "run"))
            wall = {command: [one for one, _ in found] for command, found in runs.items()}
            cpu = {command: statistics.median(one for _, one in found) for command, found in runs.items()}
            ratio = statistics.median(wall["lora-lab"]) / statistics.median(wall["hf"])
            print(
                f"{transport:10} {_shown(wall['hf']):>12} {_shown(wall['lora-lab']):>14} {ratio:>6.2f}× {TARGET:>6}×"
                f"   {cpu['hf']:.2f} s, {cpu['lora-lab']:.2f} s",
                flush=True,
            )


def _shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ±{(max(seconds) - min(seconds)) / 2:.1f}"


def write_model(folder: Path, size: int) -> Path:
    """A model of `size` bytes in shards, of values that cannot be compressed."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    weight_map = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        elements = size // SHARDS // 2
        header = json.dumps(
            {f"layer.{number}.weight": {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}}
        ).encode()
        header += b" " * (-len(header) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            left = 2 * elements
            while left:
                block = os.urandom(min(left, 1 << 24))
                file.write(block)
                left -= len(block)
        weight_map[f"layer.{number}.weight"] = name
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("# A model\n")
    return folder


def timed(command: str, model: Path, transport: str, place: Path) -> tuple[float, float]:
    """Seconds, and those of the processor, of one push to a fresh server in a process of its own."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(place / "hub"), transport],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        from hubserver import environment

        url = server.stdout.readline().strip()
        settings = environment(endpoint=url, home=place / "home", token="hf_anna", xet=transport == "xet")
        words = {
            "hf": [str(Path(sys.executable).with_name("hf")), "upload", "anna/model", str(model), "--private"],
            "lora-lab": [
                *(sys.executable, "-m", "lora_lab", "push", str(model), "anna/model"),
                *("--yes", "--keep-card", "--base-model", "lab/tiny"),
            ],
        }[command]
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
        spent, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        server.stdin.write("check\n")
        server.stdin.flush()
        names = json.loads(server.stdout.readline())
        assert set(names) >= {path.name for path in model.iterdir()}, names
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(place, ignore_errors=True)
    return spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def serve(folder: Path, transport: str) -> None:
    """The server: its address, then what it has when it is asked."""
    from hubserver import HubServer

    folder.mkdir(parents=True)
    with HubServer(folder, part_bytes=100_000_000 if transport == "multipart" else None) as hub:
        hub.add_account("hf_anna", "anna")
        print(hub.url, flush=True)
        sys.stdin.readline()
        commit = hub.store.repositories["anna/model"].resolve("main")
        assert commit is not None
        print(json.dumps(list(commit.files)), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
