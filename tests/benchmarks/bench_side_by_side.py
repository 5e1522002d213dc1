"""The same work through PEFT and through lora-lab, in one process, in turns, in one table.

Run: python tests/benchmarks/bench_side_by_side.py [--layers N] [--repeats N] [--svd]

A stack of linear layers with the shapes of Llama-3.2-1B's, bf16, and two adapters of rank 16 in float32 on all of them,
all in memory. Before anything is timed, every result is compared with sums in float64. Each line gives the median of
both, and the median ratio of runs of one round with the interval that holds it with 95 %.

* Switching tasks: ``unmerge_adapter`` and ``merge_adapter`` beside `fused`, which subtracts and adds in one pass, and
  beside `from_copy`, which is exact and keeps a copy.
* Exchanging unmerged factors: ``hotswap_adapter_from_state_dict`` beside `hotswap`.
* Merging for good: ``merge_and_unload`` beside a merge in place.
* Combining two adapters: ``add_weighted_adapter`` of type cat beside the method `cat`; with --svd also of type svd
  beside the method `svd`, on the attention of one layer alone, since PEFT decomposes dense matrices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path to the checkout
from model_shapes import SMALL  # noqa: E402
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict  # noqa: E402
from peft.utils.hotswap import hotswap_adapter_from_state_dict  # noqa: E402
from torch import nn  # noqa: E402

from lora_lab.benchmarks.catalogue import BUILT_IN  # noqa: E402
from lora_lab.benchmarks.measurement import Measurement  # noqa: E402
from lora_lab.benchmarks.rounds import Contestant, Rounds  # noqa: E402
from lora_lab.benchmarks.spread import spread_of  # noqa: E402
from lora_lab.extension.contracts import Factors, MergeContext, SwapFactors, SwapModule, SwapScene  # noqa: E402
from lora_lab.linalg.in_place import Change, merge_all, ready  # noqa: E402
from lora_lab.linalg.threads import in_lanes, worker_count  # noqa: E402
from lora_lab.linalg.updates import Term, Update  # noqa: E402
from lora_lab.methods.exact import BestRank, Concatenation  # noqa: E402

STRATEGIES = {one.id: one for one in BUILT_IN}
RANK, ALPHA = 16, 32
SHAPES = {name.rpartition(".")[2]: shape for name, shape in SMALL.items()}
ATTENTION = list(SHAPES)[:4]
# PEFT looks for a name anywhere in a key, so that no key may hold it by chance.
TASKS = ("first-task", "second-task")
Pair = tuple[str, str, Callable[[int], object], Callable[[int], object]]


class Layer(nn.Module):
    """The linear layers of one decoder block."""

    def __init__(self, names: list[str], generator: torch.Generator) -> None:
        super().__init__()
        for name in names:
            rows, columns = SHAPES[name]
            layer = nn.Linear(columns, rows, bias=False, device="meta")
            weight = (0.02 * torch.randn((rows, columns), generator=generator)).bfloat16()
            layer.weight = nn.Parameter(weight, requires_grad=False)
            setattr(self, name, layer)


class Stack(nn.Module):
    """Some of them; nothing is ever computed with it."""

    def __init__(self, layers: int, names: list[str]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(Layer(names, generator) for _ in range(layers))


def peft_model(stack: Stack, names: list[str]) -> Any:
    """The stack with two random adapters, the first active, about one per cent of the weights."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
    model = get_peft_model(stack, config, adapter_name=TASKS[0], autocast_adapter_dtype=True)
    model.add_adapter(TASKS[1], config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.01 if "lora_A" in name else 0.0025)
            parameter.requires_grad_(False)
    model.set_adapter(TASKS[0])
    return model


def lora_layers(model: Any) -> dict[str, Any]:
    """PEFT's layers by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def scene_of(model: Any) -> SwapScene:
    """The same weights and factors, copied, as a strategy gets them."""
    modules, kept = [], []
    for name, layer in lora_layers(model).items():
        weight = layer.base_layer.weight.detach().clone()
        parts = tuple(
            (SwapFactors(*(one[task].weight.detach().clone() for one in (layer.lora_A, layer.lora_B)), ALPHA / RANK),)
            for task in TASKS
        )
        kept.append(weight.clone())
        modules.append(SwapModule(name, weight, parts))
    return SwapScene(tuple(modules), lambda number, first, end: kept[number][first:end], "cpu")


def right(module: SwapModule, base: torch.Tensor, task: int) -> torch.Tensor:
    """The base with an adapter merged, summed in float64 and rounded once."""
    part = module.adapters[task][0]
    return (base.double() + part.scaling * (part.lora_B.double() @ part.lora_A.double())).to(base.dtype)


def differing(weights: list[torch.Tensor], scene: SwapScene, task: int) -> float:
    """Share of weights that are not the right ones; anything far off is a fault of this script."""
    wrong = total = 0
    for number, (weight, module) in enumerate(zip(weights, scene.modules, strict=True)):
        wanted = right(module, scene.base_rows(number, 0, weight.shape[0]), task)
        wrong, total = wrong + int((weight != wanted).sum()), total + weight.numel()
        assert (weight.float() - wanted.float()).norm() <= 2e-2 * wanted.float().norm()
    return wrong / total


def switching(model: Any, scenes: list[SwapScene]) -> list[Pair]:
    """Between merged tasks, checked once."""

    def peft(run: int) -> None:
        model.unmerge_adapter()
        model.set_adapter(TASKS[1 - run % 2])
        model.merge_adapter()

    fused, exact = STRATEGIES["fused"].prepare(scenes[0], 0), STRATEGIES["from_copy"].prepare(scenes[1], 0)
    model.set_adapter(TASKS[0])
    model.merge_adapter()
    ours = [lambda run, one=one: one.swap(run % 2, 1 - run % 2) for one in (fused, exact)]
    for work in (peft, *ours):
        work(0)
        work(1)
    layers = [layer.base_layer.weight.detach() for layer in lora_layers(model).values()]
    shares = [differing(layers, scenes[0], 0)]
    shares += [differing([module.weight for module in scene.modules], scene, 0) for scene in scenes]
    print(f"weights that are not a merge into the base, after two swaps: PEFT {shares[0]:.2%}, ", end="")
    print(f"fused {shares[1]:.2%}, from_copy {shares[2]:.2%}")
    assert shares[2] == 0.0
    name = "unmerge_adapter + merge_adapter"
    return [(name, "fused", peft, ours[0]), (name, "from_copy, exact", peft, ours[1])]


def hotswapping(model: Any, scene: SwapScene) -> Pair:
    """Of factors in memory."""
    states = [get_peft_model_state_dict(model, adapter_name=task) for task in TASKS]
    states = [
        {name.replace(".weight", f".{TASKS[0]}.weight"): one.clone() for name, one in state.items()} for state in states
    ]
    config = model.peft_config[TASKS[0]]
    slots = STRATEGIES["hotswap"].prepare(scene, 0)

    def peft(run: int) -> None:
        hotswap_adapter_from_state_dict(model, dict(states[1 - run % 2]), adapter_name=TASKS[0], config=config)

    def ours(run: int) -> None:
        slots.swap(run % 2, 1 - run % 2)

    for work in (peft, ours):
        work(0)
    for number, layer in enumerate(lora_layers(model).values()):
        (part,) = slots.beside(number) or ()
        assert torch.equal(layer.lora_A[TASKS[0]].weight, part.lora_A)
        assert torch.equal(layer.lora_B[TASKS[0]].weight, part.lora_B)
    return ("hotswap_adapter_from_state_dict", "hotswap", peft, ours)


def merging(stack: Stack, scene: SwapScene) -> tuple[Pair, Callable[[int], None]]:
    """Into the weights for good; PEFT's model, which is used up, is made anew before each run."""
    wrapped: dict[str, Any] = {}
    updates = [
        ready(Update(module.name, tuple(module.weight.shape), [Term(part.lora_A, part.lora_B, part.scaling)]))
        for module in scene.modules
        for part in module.adapters[0]
    ]

    def anew(run: int) -> None:
        wrapped["model"] = peft_model(wrapped.pop("stack", stack), list(SHAPES))

    def peft(run: int) -> None:
        wrapped["stack"] = wrapped.pop("model").merge_and_unload()

    def ours(run: int) -> None:
        merge_all([Change(module.weight, update) for module, update in zip(scene.modules, updates, strict=True)])

    return ("merge_and_unload", "merge in place, exact", peft, ours), anew


def combining(model: Any, kind: str, method: Any, rank: int | None) -> Pair:
    """Of two adapters into one."""
    pairs = [
        [
            Factors(layer.lora_A[task].weight.detach(), layer.lora_B[task].weight.detach(), ALPHA / RANK)
            for task in TASKS
        ]
        for layer in lora_layers(model).values()
    ]
    options = {"svd_rank": rank} if rank else {}

    def peft(run: int) -> None:
        model.add_weighted_adapter(list(TASKS), [0.7, 0.3], f"{kind}{run}", combination_type=kind, **options)
        model.delete_adapter(f"{kind}{run}")

    def ours(run: int) -> list[Any]:
        context = MergeContext(rank=rank)
        return in_lanes(lambda pair: method.combine(pair, [0.7, 0.3], context), pairs, worker_count())

    model.add_weighted_adapter(list(TASKS), [0.7, 0.3], "check", combination_type=kind, **options)
    for found, layer in zip(ours(0), lora_layers(model).values(), strict=True):
        other = layer.scaling["check"] * (layer.lora_B["check"].weight @ layer.lora_A["check"].weight)
        own = (found.factors.lora_B @ found.factors.lora_A).float()
        # PEFT keeps the combination in the base's bf16, with 2⁻⁹ in either factor.
        assert (own - other.float()).norm() <= 2**-7 * other.float().norm()
    model.delete_adapter("check")
    return (f"add_weighted_adapter, {kind}", f"combine --method {kind}", peft, ours)


def compared(measurement: Measurement, pairs: list[Pair], repeats: int, before: Any = None) -> Rounds:
    """Run pairs in turns and print a line for each."""
    contestants = {}
    for theirs, ours, peft, own in pairs:
        contestants[theirs] = Contestant(theirs, peft, before)
        contestants[ours] = Contestant(ours, own)
    rounds = Rounds(list(contestants.values()), measurement.clock)
    if before is None:
        rounds.warm_up()
    rounds.measure(repeats)
    for theirs, ours, _, _ in pairs:
        one, other = rounds.samples[theirs], rounds.samples[ours]
        ratio = spread_of([slow / fast for slow, fast in zip(one, other, strict=True)])
        print(f"| `{theirs}` | {statistics.median(one):.3g} s | {ours} | {statistics.median(other):.3g} s | ", end="")
        print(f"{ratio.p50:.1f} × ({ratio.low:.1f} … {ratio.high:.1f}) |", flush=True)
    return rounds


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--svd", action="store_true")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    measurement = Measurement("cpu")
    stack = Stack(chosen.layers, list(SHAPES))
    model = peft_model(stack, list(SHAPES))
    scenes = [scene_of(model) for _ in range(2)]
    swaps = switching(model, scenes)
    print("| PEFT | median | lora-lab | median | PEFT / lora-lab |\n|---|---|---|---|---|")
    done = [compared(measurement, swaps, chosen.repeats)]
    model.unmerge_adapter()
    done.append(compared(measurement, [hotswapping(model, scenes[0])], chosen.repeats))
    done.append(compared(measurement, [combining(model, "cat", Concatenation(), None)], chosen.repeats))
    merge, anew = merging(model.unload(), scenes[1])
    done.append(compared(measurement, [merge], chosen.repeats, anew))
    if chosen.svd:
        small = peft_model(Stack(1, ATTENTION), ATTENTION)
        done.append(compared(measurement, [combining(small, "svd", BestRank(), RANK)], 1))
    elements = sum(module.weight.numel() for module in scenes[0].modules)
    report = measurement.report("bench side by side", "", tables=(), rounds=done).to_json()
    where = report["environment"]
    print(
        f"\n{chosen.layers} layers, {elements / 1e6:.0f} M weights in bf16, rank {RANK} in float32; {where['cpu']}, ",
        end="",
    )
    print(f"{where['threads']} threads, torch {where['torch']}, {where['measured_at'][:10]}, load {where['load']:.1f}")
    for warning in report["warnings"]:
        print(warning["message"])


if __name__ == "__main__":
    main()
