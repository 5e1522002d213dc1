"""Every strategy on a base on disk, against dense float64 sums; what it keeps, moves and gives back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import MODULES, delta_of, factors, write_adapter, write_sharded

from lora_lab import Session
from lora_lab.benchmarks.catalogue import BUILT_IN
from lora_lab.benchmarks.swapping.exactness import judged
from lora_lab.benchmarks.swapping.workload import Workload
from lora_lab.domain.progress import Unwatched
from lora_lab.errors import CompatibilityError
from lora_lab.extension.contracts import SwapStrategy
from lora_lab.formats.factors import FactorReader
from lora_lab.linalg.device_swap import Swaps

TYPES = [torch.bfloat16, torch.float16, torch.float32]
EXACT = {"reload", "from_copy", "undo", "hotswap"}
RANKS = (4, 6)


@pytest.fixture(params=TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def workload(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workload]:
    """A sharded base and two adapters of different rank, the second of which leaves one module alone."""
    session = Session()
    write_sharded(tmp_path / "base", request.param)
    write_adapter(tmp_path / "a", rank=RANKS[0], seed=1)
    fewer = dict(list(MODULES.items())[1:])
    write_adapter(tmp_path / "b", factors(fewer, rank=RANKS[1], seed=2), rank=RANKS[1])
    adapters = [session.adapter(str(tmp_path / name)) for name in "ab"]
    with Workload(adapters, session.base(str(tmp_path / "base")), FactorReader()) as made:
        yield made


def dense(workload: Workload, adapter: int) -> dict[str, torch.Tensor]:
    """Every weight with an adapter merged, from dense products in float64."""
    modules = MODULES if adapter == 0 else dict(list(MODULES.items())[1:])
    tensors = factors(modules, rank=RANKS[adapter], seed=adapter + 1)
    found = {}
    for number, place in enumerate(workload.places):
        base = workload.base_rows(number, 0, place.shape[0])
        name = place.name.removesuffix(".weight")
        step = delta_of(tensors, name, 8 / RANKS[adapter]) if name in modules else torch.zeros(1, dtype=torch.float64)
        found[place.name] = (base.double() + step).to(base.dtype)
    return found


@pytest.mark.parametrize("strategy", BUILT_IN, ids=lambda one: one.id)
def test_a_strategy_gives_what_a_merge_gives(strategy: SwapStrategy, workload: Workload) -> None:
    """Exactly where it says so, after one swap and after five; else within its roundings; and the base comes back."""
    scene = workload.scene("cpu")
    swapper = strategy.prepare(scene, 0)
    for number in range(5):
        here, there = number % 2, 1 - number % 2
        swapper.swap(here, there)
        right = dense(workload, there)
        for place, module in enumerate(scene.modules):
            beside = swapper.beside(place)
            weight = module.weight.double()
            for part in beside or ():
                weight += part.scaling * (part.lora_B.double() @ part.lora_A.double())
            eps = torch.finfo(module.weight.dtype).eps
            size = weight.abs() + right[module.name].double().abs() + 30.0
            if beside is None and strategy.is_exact:
                assert torch.equal(module.weight, right[module.name])
            else:
                assert ((weight - right[module.name].double()).abs() <= 3 * (number + 1) * eps * size).all()
    assert (strategy.id in EXACT) == strategy.is_exact
    found = judged({strategy.id: (scene, swapper)}, 1, Unwatched())[strategy.id]
    assert found.is_exact or not strategy.is_exact
    assert found.elements == sum(module.weight.numel() for module in scene.modules)
    swapper.restore(1)
    restored = judged({strategy.id: (scene, swapper)}, None, Unwatched())[strategy.id]
    assert restored.is_exact or not strategy.is_exact


def test_bytes_moved_are_those_of_the_weights_and_the_factors(workload: Workload) -> None:
    """By hand: one pass reads and writes the weights, two passes do it twice, factors alone are little."""
    weights = workload.weight_bytes
    in_a = sum(RANKS[0] * (rows + columns) * 4 for rows, columns in MODULES.values())
    in_b = sum(RANKS[1] * (rows + columns) * 4 for rows, columns in list(MODULES.values())[1:])
    prepared = {one.id: one.prepare(workload.scene("cpu"), 0) for one in BUILT_IN}
    moved = {name: swapper.moved_bytes(0, 1) for name, swapper in prepared.items()}
    assert moved["fused"] == 2 * weights + in_a + in_b
    assert moved["unmerge_merge"] == 4 * weights + in_a + in_b
    assert moved["from_copy"] == 2 * weights + in_b
    assert moved["reload"] == 4 * weights + in_b
    assert moved["hotswap"] == 2 * in_b
    assert moved["undo"] >= moved["fused"]
    assert prepared["from_copy"].kept_bytes - prepared["reload"].kept_bytes == weights


def test_the_judge_sees_one_wrong_element(workload: Workload) -> None:
    """In a merged weight, and in a factor beside one."""
    strategies = {one.id: one for one in BUILT_IN}
    for name in ("from_copy", "hotswap"):
        scene = workload.scene("cpu")
        swapper = strategies[name].prepare(scene, 0)
        assert judged({name: (scene, swapper)}, 0, Unwatched())[name].is_exact
        beside = swapper.beside(0)
        (scene.modules[0].weight if beside is None else beside[0].lora_A)[0, 0] += 1.0
        found = judged({name: (scene, swapper)}, 0, Unwatched())[name]
        assert not found.is_exact
        assert found.relative is not None
        assert found.relative > 0
        assert found.differing == 1 if beside is None else found.differing > 1


def test_dora_is_refused_where_the_base_is_not_at_hand_and_exact_where_it_is(samples: Path) -> None:
    """Its norms are of the base's weight."""
    session = Session()
    adapters = [session.adapter(str(samples / name)) for name in ("banking77-dora", "snips-r8")]
    with Workload(adapters, session.base(str(samples / "base")), FactorReader()) as workload:
        for strategy in BUILT_IN:
            scene = workload.scene("cpu")
            if strategy.id in ("fused", "unmerge_merge", "undo"):
                with pytest.raises(CompatibilityError, match="DoRA"):
                    strategy.prepare(scene, 0)
                continue
            swapper = strategy.prepare(scene, 1)
            swapper.swap(1, 0)
            assert judged({"x": (scene, swapper)}, 0, Unwatched())["x"].is_exact


def test_a_base_of_another_name_is_told(tmp_path: Path) -> None:
    """The times are as good, but the drift is of weights that nobody trained on."""
    session = Session()
    write_sharded(tmp_path / "base")
    configuration = tmp_path / "base" / "config.json"
    told = json.loads(configuration.read_text()) if configuration.exists() else {}
    configuration.write_text(json.dumps({**told, "_name_or_path": "someone/another"}))
    for name in "ab":
        write_adapter(tmp_path / name)
        place = tmp_path / name / "adapter_config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "base_model_name_or_path": "someone/tiny"}))
    adapters = [session.adapter(str(tmp_path / name)) for name in "ab"]
    workload = Workload(adapters, session.base(str(tmp_path / "base")), FactorReader())
    assert [finding.code for finding in workload.findings] == ["base_model_differs"] * 2


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    """A module that the base lacks, with the next step."""
    session = Session()
    write_sharded(tmp_path / "base")
    write_adapter(tmp_path / "a")
    write_adapter(tmp_path / "b", factors({"model.layers.99.self_attn.q_proj": (24, 16)}))
    adapters = [session.adapter(str(tmp_path / name)) for name in "ab"]
    with pytest.raises(CompatibilityError, match=r"layers\.99"):
        Workload(adapters, session.base(str(tmp_path / "base")), FactorReader())


@pytest.mark.parametrize("name", ["fused", "unmerge_merge"])
def test_the_way_of_a_device_on_the_processor(name: str, tmp_path: Path) -> None:
    """Slices, and swaps recorded beforehand, give what the tiles give but for ties in float32."""
    session = Session()
    write_sharded(tmp_path / "base")
    for seed, adapter in enumerate("ab"):
        write_adapter(tmp_path / adapter, rank=4, seed=seed)
    strategy = next(one for one in BUILT_IN if one.id == name)
    with Workload(
        [session.adapter(str(tmp_path / adapter)) for adapter in "ab"],
        session.base(str(tmp_path / "base")),
        FactorReader(),
    ) as workload:
        scenes = [workload.scene("cpu") for _ in range(2)]
        tiles, device = (strategy.prepare(scene, 0) for scene in scenes)
        weights = [module.weight for module in scenes[1].modules]
        device._change = Swaps(weights, device.put, "cpu", recorded=[(0, 1)], is_by_kernels=True)  # type: ignore[attr-defined]
        assert "two multiplications" in device._change.note  # type: ignore[attr-defined]
        for swapper in (tiles, device):
            swapper.swap(0, 1)
        for one, other in zip(*(scene.modules for scene in scenes), strict=True):
            assert float((one.weight != other.weight).double().mean()) < 0.02
            assert torch.allclose(one.weight.float(), other.weight.float(), rtol=2**-6, atol=0.5)
        for swapper in (tiles, device):
            swapper.restore(1)
        for one, other in zip(*(scene.modules for scene in scenes), strict=True):
            assert float((one.weight != other.weight).double().mean()) < 0.02
