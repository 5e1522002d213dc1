"""Time the spectrum of a 7B-shaped adapter, and of one module against the SVD of its dense product.

Prints, never asserts. Everything is taken side by side and repeated in turn, because a machine is never quiet; what to
read are the ratios and the floor. Run with: python tests/benchmarks/bench_spectrum.py [--no-dense] [--repeats N]
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

from lora_lab.linalg.spectra import Pair, factored_singular_values  # noqa: E402
from lora_lab.linalg.streaming import stream_singular_values  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

RANK = 16
CONFIG = (
    '{"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": '
    '["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], '
    '"base_model_name_or_path": "seven-billion"}'
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-dense", action="store_true", help="leave out the SVD of the dense product (a minute)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        path = write_adapter(Path(folder) / "seven-billion")
        in_process(path, options.repeats)
        as_a_command(path, options.repeats)
    if not options.no_dense:
        against_dense(options.repeats)


def write_adapter(folder: Path) -> Path:
    """Write a seeded adapter of 32 layers × 7 modules, r=16, float32; 160 MB."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for module, (outputs, inputs) in LARGE.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(CONFIG, encoding="utf-8")
    return folder


def in_process(path: Path, repeats: int) -> None:
    """Floors and parts, in this process and in turn."""
    file = path / "adapter_model.safetensors"
    pairs = list(random_pairs())
    parts: dict[str, Callable[[], object]] = {
        "read the bytes (pread, own memory)": lambda: read_all(file),
        "  … and convert them to float64": lambda: torch.frombuffer(read_all(file), dtype=torch.float32).double(),
        "spectra of factors in memory": lambda: list(stream_singular_values(pairs)),
        "  … one after the other": lambda: [factored_singular_values(*pair[1:]) for pair in pairs],
    }
    if torch.cuda.is_available():  # singular values come back to the processor, so that the work is done by then
        parts["  … on the first CUDA device"] = lambda: list(stream_singular_values(pairs, device="cuda:0"))
    session = session_or_none()
    if session is not None:
        parts["Session.spectrum, reading included"] = lambda: session.spectrum(str(path))
    print(f"\n7B-shaped adapter, {file.stat().st_size / 1e6:.0f} MB, {len(pairs)} modules")
    for name, seconds in in_turn(parts, repeats).items():
        show(name, seconds)


def as_a_command(path: Path, repeats: int) -> None:
    """The whole command against a bare import of torch, in turn."""
    if session_or_none() is None:
        print("  (the command line is not there)")
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LORA_LAB_CACHE_DIR": str(path.parent / "cache")}
    command = [sys.executable, "-P", "-m", "lora_lab", "spectrum", str(path), "--json", "--no-cache"]

    def run(arguments: list[str]) -> None:
        subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, check=True)

    bare, whole = "python -c 'import torch'", "lora-lab spectrum --json"
    seconds = in_turn({bare: lambda: run([sys.executable, "-c", "import torch"]), whole: lambda: run(command)}, repeats)
    for name, measured in seconds.items():
        show(name, measured)
    beyond = [one - two for one, two in zip(seconds[whole], seconds[bare], strict=True)]
    show("  beyond the import (at most 1.0 s)", beyond)


def against_dense(repeats: int) -> None:
    """One 4096×4096 module of rank 16 against the float64 SVD of its product."""
    generator = torch.Generator().manual_seed(1)
    lora_A = torch.randn(RANK, HIDDEN, generator=generator)
    lora_B = torch.randn(HIDDEN, RANK, generator=generator)
    product = 2.0 * lora_B.double() @ lora_A.double()
    seconds = in_turn({"factored": lambda: factored_singular_values(lora_A, lora_B, 2.0)}, 20 * repeats)["factored"]
    started = time.perf_counter()
    reference = torch.linalg.svdvals(product)
    dense = time.perf_counter() - started
    found = factored_singular_values(lora_A, lora_B, 2.0)
    error = float((found - reference[:RANK]).abs().max() / reference[0])
    print(f"\none {HIDDEN}×{HIDDEN} module, r={RANK}")
    show("factored", seconds)
    show("float64 SVD of the dense product", [dense])
    print(
        f"  ratio {dense / statistics.median(seconds):,.0f} (at least 3,000), |σ̂ − σ|/σ₁ = {error:.1e} (at most 1e-10)"
    )


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


def random_pairs() -> list[Pair]:
    """The adapter's factors in memory."""
    generator = torch.Generator().manual_seed(0)
    return [
        Pair(f"{layer}.{module}", torch.randn(RANK, inputs, generator=generator), torch.randn(outputs, RANK), 2.0)
        for layer in range(LAYERS)
        for module, (outputs, inputs) in LARGE.items()
    ]


def read_all(path: Path) -> bytearray:
    """Read a file into memory of our own; its length rounded down to whole float32."""
    size = path.stat().st_size // 4 * 4
    held = bytearray(size)
    with path.open("rb", buffering=0) as file:
        view, place = memoryview(held), 0
        while place < size:
            place += file.readinto(view[place:]) or size
    return held


def session_or_none() -> object:
    """A Session without its cache, or None in a house that has none yet."""
    try:
        from lora_lab.session import Session
    except ImportError:
        return None
    return Session(cache=False)


if __name__ == "__main__":
    main()
