"""Time amplification over a base of a billion parameters against reading and converting the same tensors.

Prints, never asserts. Run with: python tests/benchmarks/bench_amplify.py [--layers N] [--repeats N] [--flat]

The base has the shapes of Llama-3.2-1B in bf16: 7 projections in each of 16 layers. A trained weight has some large
singular values above a bulk, and so have these; --flat leaves the bulk alone, whose edge is the hardest there is for
W's own leading directions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout
from model_shapes import SMALL as PROJECTIONS  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from lora_lab import Session  # noqa: E402
from lora_lab.analyses.amplify import Amplify  # noqa: E402
from lora_lab.domain.parameters import parse_parameters  # noqa: E402
from lora_lab.extension.contracts import AnalysisContext  # noqa: E402
from lora_lab.formats.factors import FactorReader  # noqa: E402
from lora_lab.linalg.blocked import RowBlocks  # noqa: E402
from lora_lab.storage.arrays import ArrayCache  # noqa: E402

RANK, SPIKES = 16, 64


def write_files(folder: Path, layers: int, is_flat: bool) -> None:
    """A base and an adapter on all of it."""
    generator = torch.Generator().manual_seed(0)

    def weight(rows: int, columns: int) -> torch.Tensor:
        bulk = torch.randn((rows, columns), generator=generator)
        if not is_flat:
            left = torch.randn((rows, SPIKES), generator=generator) * torch.logspace(0.5, -0.5, SPIKES)
            bulk.addmm_(left, torch.randn((SPIKES, columns), generator=generator), alpha=0.2)
        return bulk.mul_(0.02).bfloat16()

    places = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in PROJECTIONS]
    shapes = {place: PROJECTIONS[place.split(".", 3)[3]] for place in places}
    (folder / "base").mkdir()
    save_file({f"{place}.weight": weight(*shape) for place, shape in shapes.items()}, folder / "base/model.safetensors")
    (folder / "adapter").mkdir()
    factors = {}
    for place, (rows, columns) in shapes.items():
        factors[f"base_model.model.{place}.lora_A.weight"] = torch.randn((RANK, columns), generator=generator)
        factors[f"base_model.model.{place}.lora_B.weight"] = torch.randn((rows, RANK), generator=generator)
    save_file(factors, folder / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(PROJECTIONS)}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(settings))


def read_and_convert(base: object) -> float:
    """Seconds to read every tensor in blocks of rows and make it float32."""
    started = time.perf_counter()
    reader = FactorReader()
    for ref in base.tensors.values():  # type: ignore[attr-defined]
        with reader.rows_of(ref) as rows:
            for _ in RowBlocks(ref.shape, lambda first, end, rows=rows: rows(first, end).float()).each(
                lambda _first, block: block[0, 0]
            ):
                pass
    return time.perf_counter() - started


def amplified(adapter: object, base: object, store: ArrayCache | None, *, has_base: bool) -> float:
    """Seconds of the analysis itself."""
    started = time.perf_counter()
    values = parse_parameters(Amplify.parameters, {"base_directions": has_base})
    context = AnalysisContext((adapter,), FactorReader(), base, values, store=store)  # type: ignore[arg-type]
    Amplify().run(context)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flat", action="store_true")
    chosen = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        writer = multiprocessing.get_context("spawn").Process(
            target=write_files, args=(folder, chosen.layers, chosen.flat)
        )
        writer.start()  # in a process of its own, whose memory is none of ours
        writer.join()
        session = Session(cache=False)
        adapter, base = session.adapter(str(folder / "adapter")), session.base(str(folder / "base"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read_and_convert(base)
        pairs = [
            (read_and_convert(base), amplified(adapter, base, None, has_base=False)) for _ in range(chosen.repeats)
        ]
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        store = ArrayCache(folder / "store", limit_bytes=1 << 30)
        slow = amplified(adapter, base, store, has_base=True)
        again = statistics.median(amplified(adapter, base, store, has_base=True) for _ in range(chosen.repeats))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    own, peak = own // 1024, peak // 1024  # kibibytes before
    floor, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(fast / floor for floor, fast in pairs)
    size = sum(ref.elements for ref in base.tensors.values())
    print(f"{size / 1e9:.2f} billion parameters, {len(base.tensors)} weights, {'flat' if chosen.flat else 'spiked'}")
    print(f"read and convert                 {floor:7.2f} s")
    print(f"own directions, norms, chance    {fast:7.2f} s   {ratio:6.2f}×   wanted ≤ 2×, {own} MB ≤ 300")
    print(f"with W's own directions          {slow:7.2f} s   {slow / floor:6.2f}×   wanted ≤ 25×, {peak} MB ≤ 300")
    print(f"the same again                   {again:7.2f} s   {again / floor:6.2f}×   wanted ≤ 2×")


if __name__ == "__main__":
    main()
