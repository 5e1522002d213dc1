"""Time the overlap of two 7B-shaped adapters, every part of it, and what it takes beyond reading the files.

Prints, never asserts. Everything is taken in turn and repeated, because a machine is never quiet. Run with:
python tests/benchmarks/bench_overlap.py [--ranks 16 64] [--repeats N] [--no-signs]
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout
from model_shapes import LARGE  # noqa: E402
from model_shapes import LARGE_HIDDEN as HIDDEN  # noqa: E402
from model_shapes import LARGE_LAYERS as LAYERS  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from lora_lab.linalg.comparing import sign_counts  # noqa: E402
from lora_lab.linalg.spectra import Pair  # noqa: E402
from lora_lab.linalg.subspaces import compare  # noqa: E402
from lora_lab.linalg.threads import worker_count  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = (
    '{"peft_type": "LORA", "r": %d, "lora_alpha": 32, "target_modules": "all-linear", "base_model_name_or_path": "7B"}'
)
TARGETS = {16: 1.0, 64: 4.0}  # seconds
TOLERANCES = (1e-6, 1e-6)
# What a process of its own says: seconds of work, and by how many bytes its peak rose above an import of torch.
CHILD = """
import sys, time
import torch
from pathlib import Path
from lora_lab.session import Session
def peak():  # getrusage would count what the parent held when it forked
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
session = Session(cache=False, offline=True)
before, started, busy = peak(), time.perf_counter(), time.process_time()
report = session.analyze({analysis!r}, sys.argv[1:3], parameters={parameters!r})
seconds = time.perf_counter() - started
print(seconds, peak() - before, time.process_time() - busy, len(report.table("modules").rows))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-signs", action="store_true", help="leave out every sign of a whole model (some 10 s)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for rank in options.ranks:
        one_module(rank, options.repeats)
        with tempfile.TemporaryDirectory() as folder:
            both = [write_adapter(Path(folder) / name, rank, seed) for seed, name in enumerate(("one", "two"))]
            whole(both, rank, options.repeats, has_signs=not options.no_signs)


def write_adapter(folder: Path, rank: int, seed: int) -> Path:
    """Write a seeded adapter of 32 layers × 7 modules in float32."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, (outputs, inputs) in LARGE.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(CONFIG % rank, encoding="utf-8")
    return folder


def one_module(rank: int, repeats: int) -> None:
    """One 4096×4096 module of two adapters, and parts of the work."""
    generator = torch.Generator().manual_seed(2)
    pairs = [
        Pair("q", torch.randn(rank, HIDDEN, generator=generator), torch.randn(HIDDEN, rank, generator=generator), 2.0)
        for _ in range(2)
    ]
    near = pairs[0]._replace(lora_A=pairs[0].lora_A + 1e-3 * pairs[1].lora_A)
    tall = pairs[0].lora_B.double()
    parts: dict[str, Callable[[], object]] = {
        "float64 QR of one factor, with Q": lambda: torch.linalg.qr(tall),
        "overlap of the two": lambda: compare(*pairs, tolerances=TOLERANCES),
        "  … of two that are near each other": lambda: compare(pairs[0], near, tolerances=TOLERANCES),
        "signs of all 16.8 million entries": lambda: sign_counts(pairs, [1.0, 1.0]),
    }
    print(f"\none {HIDDEN}×{HIDDEN} module, r={rank}")
    for name, seconds in in_turn(parts, 3 * repeats).items():
        show(name, seconds)


def whole(both: list[Path], rank: int, repeats: int, *, has_signs: bool) -> None:
    """All 224 modules, in processes of their own, against reading the bytes of both files."""
    files = [path / "adapter_model.safetensors" for path in both]
    size = sum(file.stat().st_size for file in files)
    print(f"\ntwo 7B-shaped adapters, r={rank}, {size / 1e6:.0f} MB together")
    read, work, grown, busy = [], [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        for file in files:
            read_all(file)
        read.append(time.perf_counter() - started)
        seconds, more, processor = child(both, "overlap", {})
        work.append(seconds)
        grown.append(more)
        busy.append(processor)
    show("read the bytes of both", read)
    show("overlap, reading included", work)
    target, beyond = TARGETS.get(rank), statistics.median(work) - statistics.median(read)
    compared("beyond reading", beyond, target, "s")
    alone = statistics.median(busy) / worker_count()
    compared("processor time, shared by all processors", alone, target, "s")  # what a quiet machine would take
    compared("memory above torch", statistics.median(grown) / 1e6, 3 * size / 1e6, "MB")
    show("overlap without φ(i,j)", [child(both, "overlap", {"grid": "false"})[0]])
    show("side A", [child(both, "overlap", {"side": "A"})[0]])
    show("diff", [child(both, "diff", {})[0]])
    show("interference without signs", [child(both, "interference", {"sign_rows": "0"})[0]])
    if has_signs:
        show("interference", [child(both, "interference", {})[0]])


def child(both: list[Path], analysis: str, parameters: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, bytes by which the peak rose, and processor seconds of an analysis in a process of its own."""
    code = CHILD.format(analysis=analysis, parameters=parameters)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, both)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return float(told[0]), float(told[1]), float(told[2])


def compared(name: str, measured: float, target: float | None, unit: str) -> None:
    """Print a figure beside its target."""
    wanted = "no target" if target is None else f"target {target:9.2f} {unit}   ratio {measured / target:.2f}"
    print(f"  {name:<42} measured {measured:9.2f} {unit}   {wanted}")


def in_turn(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time every part once, then every part again; what the first round warmed does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            gc.collect()
            started = time.perf_counter()
            part()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(name: str, seconds: list[float]) -> None:
    """Print the least and the median."""
    print(f"  {name:<42} least {min(seconds) * 1e3:9.2f} ms   median {statistics.median(seconds) * 1e3:9.2f} ms")


def read_all(path: Path) -> bytearray:
    """Read a file into memory of our own."""
    size = path.stat().st_size
    held = bytearray(size)
    with path.open("rb", buffering=0) as file:
        view, place = memoryview(held), 0
        while place < size:
            place += file.readinto(view[place:]) or size
    return held


if __name__ == "__main__":
    main()
