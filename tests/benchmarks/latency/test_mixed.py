"""A batch of several adapters: grouped and switched give the same, and the crossing follows from what was timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lora_lab import Session
from lora_lab.benchmarks.clock import Clock
from lora_lab.benchmarks.latency import mixed
from lora_lab.benchmarks.latency.adapters import blocks_of, factors_for
from lora_lab.benchmarks.latency.blocks import BlockShape, Noise, stack_of
from lora_lab.benchmarks.latency.grid import Cell, Speed, block_flops
from lora_lab.benchmarks.latency.mixed import MixedOptions
from lora_lab.benchmarks.latency.several import GroupedLinear, Switching, grouped
from lora_lab.benchmarks.rounds import Contestant, Rounds
from lora_lab.cli.commands import program
from lora_lab.errors import LoraLabError, NumericalError

SHAPE = BlockShape(16, 4, 2, 4, 32, is_gated=True, has_bias=False)
TYPES = (torch.float32, torch.bfloat16, torch.float16)
TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 8,
    "dtype": "float32",
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A model of two small layers, its configuration alone."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path / "config.json")


def test_a_grouped_layer_is_the_sum_of_dense_products() -> None:
    """Every row through its own adapter, in float64."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 5, bias=False, dtype=torch.float64)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2, 6), (3, 5, 2)))
    x = torch.randn((6, 4, 6), generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        out = GroupedLinear(linear, A, B)(x)
        for row in range(6):
            weight = linear.weight + B[row // 2] @ A[row // 2]
            assert torch.allclose(out[row], x[row] @ weight.mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_switching_merges_one_adapter_after_another(dtype: torch.dtype) -> None:
    """Each within roundings of W + BA, back and forth with one swap less than there are adapters."""
    stack = stack_of(SHAPE, 2, device="cpu", dtype=dtype, seed=0)
    noise = Noise("cpu", dtype, 1)
    factors = [factors_for(stack, ("q_proj", "down_proj"), 2, noise) for _ in range(3)]
    switching = Switching(stack, factors)
    groups = torch.zeros((3, 2, 16), dtype=dtype).split(1)
    visited: list[int] = []
    to = switching.to
    switching.to = lambda adapter: (visited.append(adapter), to(adapter))[1]  # type: ignore[method-assign]
    for _ in range(2):
        switching.forward(groups, is_switching=True)
        for place, (block, kept) in enumerate(zip(blocks_of(switching.stack), blocks_of(stack), strict=True)):
            A, B = factors[switching.current][place]["q_proj"]
            exact = kept.q_proj.weight.double() + B.double() @ A.double()
            off = (block.q_proj.weight.double() - exact).abs()
            # Two swaps at most since the first merge, each of two roundings.
            assert float((off / (exact.abs() + 4.0)).max()) <= 5 * torch.finfo(dtype).eps
    assert visited == [0, 1, 2, 2, 1, 0]
    assert switching.drift() <= 5 * torch.finfo(dtype).eps
    assert grouped(stack, factors[:2]) is not stack


def test_the_crossing_follows_from_paired_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: seconds as they would have been measured."""
    options = MixedOptions(batch=8, length=1, counts=(1, 4))
    seconds = {"grouped 1": 2.0, "switched 1": 1.0, "merged 1": 1.0}
    seconds |= {"grouped 4": 2.0, "switched 4": 8.0, "merged 4": 3.0, "swap": 0.5}
    rounds = Rounds([Contestant(name, lambda _: None) for name in seconds], Clock("cpu"))
    for name, one in seconds.items():
        rounds.samples[name] = [one] * 8
    one, four = mixed._crossing(rounds, options)
    assert (one["faster"], one["ratio"], one["tokens_to_pay_off"]) == ("switched", 2.0, 0.5 / (1.0 / 8))
    assert (four["faster"], four["ratio"], four["tokens_to_pay_off"]) == ("grouped", 0.25, None)
    assert (four["grouped_tokens_per_second"], four["switched_tokens_per_second"]) == (4.0, 1.0)
    monkeypatch.setattr(Switching, "drift", lambda _: 0.0)
    summary = mixed._summary(rounds, [one, four], Switching.__new__(Switching)).values
    assert (summary["switching_wins_up_to"], summary["grouping_wins_from"], summary["swap_seconds"]) == (1, 4, 0.5)


def test_every_run_takes_other_weights(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many sets as it takes that no cache holds what comes next; each begins at an end of its adapters."""
    seen: list[int] = []
    through, forward = mixed._Turns.through, Switching.forward

    def noted(self: Any, count: int, x: torch.Tensor, run: int) -> torch.Tensor:
        seen.append(id(self._now))
        return through(self, count, x, run)

    def watched(self: Switching, groups: Any, *, is_switching: bool) -> Any:
        assert self.current in (0, len(groups) - 1)
        return forward(self, groups, is_switching=is_switching)

    monkeypatch.setattr(mixed, "sets_of_weights", lambda *_: 3)
    monkeypatch.setattr(mixed._Turns, "through", noted)
    monkeypatch.setattr(Switching, "forward", watched)
    report = Session(cache=False, device="cpu").bench_mixed(
        base=base, batch=4, adapters=[1, 2, 4], repeats=6, save=False
    )
    assert report.to_json()["workload"]["copies"] == 3
    assert len(set(seen)) == 3


def test_what_a_round_takes_is_foretold() -> None:
    """By hand: of 1 and 4 adapters 3 + 9 passes over the weights, 3 swaps and one more, and six batches of work."""
    speed = mixed._as_forwards(Speed(0.5, 2.0**-10), 0.25, (1, 4))
    cell = Cell(8, 1)
    right = 12 * 0.5 + 4 * 0.25 + 6 * block_flops(SHAPE, cell) * 2.0**-10
    assert speed.round_seconds(SHAPE, 1, cell, 6) == pytest.approx(right)


def test_json_of_the_command(base: str) -> None:
    """Three ways for each number of adapters; kept, and comparable."""
    typed = ["--base", base, "--batch", "4", "--adapters", "4,1", "--layers", "1", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(program, ["bench", "mixed", "--json", *typed])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(row["variant"], row["adapters"]) for row in document["rows"]] == [
        (kind, count) for count in (1, 4) for kind in ("grouped", "switched", "merged")
    ]
    for row in document["rows"]:
        assert row["tokens_per_second"] == 4 / row["p50_seconds"]
    assert [row["adapters"] for row in document["crossing"]] == [1, 4]
    assert document["summary"]["swap_seconds"] > 0
    compared = Session().bench_compare(document["saved"], document["saved"])
    assert {row["name"] for row in compared.table("rows").rows} >= {"grouped 4", "switched 1"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 6, "adapters": [4]}, "4 adapters do not divide a batch of 6"),
        ({"adapters": [0]}, "0 adapters"),
        ({"length": 0}, "length"),
        ({"targets": ["w_proj"]}, "w_proj"),
    ],
)
def test_what_makes_no_sense_is_refused(base: str, options: dict[str, Any], said: str) -> None:
    """Before anything is measured."""
    with pytest.raises(LoraLabError, match=said):
        Session(cache=False, device="cpu").bench_mixed(base=base, save=False, **options)
    with pytest.raises(LoraLabError, match="numbers such as"):
        program.main(["bench", "mixed", "--base", base, "--adapters", "1,x"], standalone_mode=False)


def test_a_wrong_result_is_not_timed(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped that leaves the adapters out, or mixes them up."""
    for wrong in (lambda stack, _: stack, lambda stack, factors: grouped(stack, factors[::-1])):
        monkeypatch.setattr(mixed, "grouped", wrong)
        with pytest.raises(NumericalError, match="grouped is"):
            Session(cache=False, device="cpu").bench_mixed(
                base=base, batch=2, adapters=[2], layers=1, repeats=1, save=False
            )
