"""The whole life of an adapter on a running model."""

from __future__ import annotations

import hashlib
from itertools import repeat
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from lora_lab.errors import AdapterError, CompatibilityError, NumericalError, OperationError
from lora_lab.live import Factors, LoraConfig, LoraModel, load_adapter, save_adapter, train

if TYPE_CHECKING:
    from pathlib import Path


class Small(nn.Module):
    """An embedding, two linear layers of different shapes, one with a bias, and an output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.embed = nn.Embedding(20, 12)
        self.up = nn.Linear(12, 30)
        self.down = nn.Linear(30, 12, bias=False)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.tanh(self.up(x)))
        return x @ self.embed.weight.T


TOKENS = torch.arange(20).reshape(4, 5)
LINEAR = LoraConfig(["up", "down"], rank=4, alpha=8)
KINDS = {
    "plain": LINEAR,
    "rslora": LoraConfig(["up", "down"], rank=4, alpha=8, use_rslora=True),
    "dora": LoraConfig(["up", "down"], rank=4, alpha=8, use_dora=True),
    "patterns": LoraConfig(r"up|down", rank=4, alpha=8, rank_pattern={"up": 2}, alpha_pattern={"down": 3}),
    "embedding": LoraConfig(["embed", "up"], rank=4, alpha=8),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shift_loss(model: nn.Module, shift: int) -> torch.Tensor:
    """Loss of the task `answer with the token that stands `shift` further on`."""
    return nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), (TOKENS.flatten() + shift) % 20)


def taught(lora: LoraModel, name: str, shift: int, steps: int = 60) -> list[float]:
    lora.switch(name)
    return train(
        lora.parameters(name),
        repeat(shift),
        lambda s: shift_loss(lora.model, s),
        steps=steps,
        learning_rate=0.02,
        warmup_steps=3,
    )


def digest(model: nn.Module, names: set[str]) -> str:
    """Hash of the bytes of the parameters that the model had before adapters came."""
    state = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    # As bytes: numpy has no bfloat16.
    return hashlib.sha256(b"".join(state[n].view(torch.uint8).numpy().tobytes() for n in sorted(names))).hexdigest()


def noisy(lora: LoraModel, seed: int = 9) -> None:
    """Factors away from their start, as after training."""
    generator = seeded(seed)
    for parameter in lora.parameters(lora.active or ""):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_fresh_adapter_changes_nothing(config: LoraConfig) -> None:
    """Before training the effect is exactly zero, not merely small."""
    model = Small()
    before = model(TOKENS)
    lora = LoraModel(model)
    lora.attach("task", config, generator=seeded(0))
    assert torch.equal(model(TOKENS), before)
    noisy(lora)
    assert not torch.equal(model(TOKENS), before)


def test_two_tasks_on_one_frozen_base() -> None:
    """Both tasks are learned, the base keeps its bytes, and teaching the second leaves the first as it was."""
    model = Small()
    names = set(model.state_dict())
    before, output = digest(model, names), model(TOKENS)
    lora = LoraModel(model)
    lora.attach("one", LINEAR, generator=seeded(1))
    lora.attach("three", LINEAR, generator=seeded(2))

    first = taught(lora, "one", 1)
    assert first[-1] < 0.5 * first[0]
    answer = model(TOKENS).detach()
    third = taught(lora, "three", 3)
    assert third[-1] < 0.5 * third[0]

    lora.switch("one")
    assert torch.equal(model(TOKENS), answer)
    lora.switch(None)
    assert torch.equal(model(TOKENS), output)
    assert digest(model, names) == before


def test_gradients_reach_the_active_adapter_only() -> None:
    """Neither the base nor a resting adapter gets a gradient."""
    lora = LoraModel(Small())
    lora.attach("rests", LINEAR, generator=seeded(1))
    lora.attach("works", LINEAR, generator=seeded(2))
    shift_loss(lora.model, 1).backward()
    with_gradient = {name for name, parameter in lora.model.named_parameters() if parameter.grad is not None}
    assert len(with_gradient) == 4
    assert all(".factors.works." in name for name in with_gradient)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_merged_output_equals_unmerged(config: LoraConfig, dtype: torch.dtype) -> None:
    """Up to rounding of weights and sums in the base's dtype; unmerging brings the very bytes back."""
    model = Small().to(dtype)
    names = set(model.state_dict())
    before = digest(model, names)
    lora = LoraModel(model)
    lora.attach("task", config, generator=seeded(0))
    noisy(lora)
    apart = model(TOKENS)
    lora.merge()
    assert digest(model, names) != before
    together = model(TOKENS)
    # Three matrices after one another; each output is a sum of at most 30 terms, each term off by a rounding of the
    # weight and one of the product.
    bound = 3 * 2 * 30 * torch.finfo(dtype).eps * apart.abs().max().item()
    assert (apart - together).abs().max().item() <= bound
    lora.unmerge()
    assert digest(model, names) == before
    assert torch.equal(model(TOKENS), apart)


def test_merge_rounds_once() -> None:
    """In bfloat16 the merged weight is W0 + delta summed in float32 and rounded a single time."""
    model = Small().to(torch.bfloat16)
    lora = LoraModel(model)
    lora.attach("task", LINEAR, generator=seeded(0))
    noisy(lora)
    pair = lora.factors("task")["up"]
    expected = (model.up.weight.float() + 2.0 * pair.lora_B @ pair.lora_A).to(torch.bfloat16)
    lora.merge()
    assert torch.equal(model.up.base_layer.weight, expected)


def test_count_of_parameters() -> None:
    """Square layers: 2 · layers · d · r; others r·(in + out); DoRA adds one number for each output row."""
    square = LoraModel(nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))))
    square.attach("task", LoraConfig(r"\d", rank=5), generator=seeded(0))
    assert square.parameter_count("task") == 2 * 3 * 16 * 5
    lora = LoraModel(Small())
    lora.attach("plain", LINEAR, generator=seeded(0))
    lora.attach("dora", KINDS["dora"], generator=seeded(0))
    assert lora.parameter_count("plain") == 2 * 4 * (12 + 30)
    assert lora.parameter_count("dora") == 2 * 4 * (12 + 30) + 30 + 12


def test_save_detach_load(tmp_path: Path) -> None:
    """A trained adapter survives the way through files and onto another copy of the base, bit for bit."""
    lora = LoraModel(Small())
    lora.attach("task", KINDS["dora"], generator=seeded(0))
    taught(lora, "task", 1, steps=5)
    save_adapter(lora, "task", tmp_path / "adapter")
    answer = lora.model(TOKENS)

    plain = lora.detach()
    assert [type(module) for module in (plain.up, plain.down)] == [nn.Linear, nn.Linear]
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert set(plain.state_dict()) == set(Small().state_dict())
    again = LoraModel(plain)
    assert load_adapter(again, "back", tmp_path / "adapter") == ("up", "down")
    assert torch.equal(plain(TOKENS), answer)


def test_detach_may_keep_the_merged_weights() -> None:
    """Without the word the pristine weights come back, with it the merged ones stay."""
    for keep in (False, True):
        lora = LoraModel(Small())
        base = lora.model.up.weight.clone()
        lora.attach("task", LINEAR, generator=seeded(0))
        noisy(lora)
        lora.merge()
        assert torch.equal(lora.detach(keep_merged=keep).up.weight, base) is not keep


def test_a_seed_decides_the_start_and_nothing_global_moves() -> None:
    """Same seed, same factors; another seed, others; torch's own generator, threads and dtype are left alone."""
    threads = torch.get_num_threads()
    starts = []
    for seed in (3, 3, 4):
        lora = LoraModel(Small())
        state = torch.get_rng_state()
        lora.attach("task", LINEAR, generator=seeded(seed))
        assert torch.equal(torch.get_rng_state(), state)
        starts.append(lora.factors("task")["up"].lora_A.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, torch.float32)


def test_start_is_gaussian_with_a_spread_of_one_over_the_rank() -> None:
    """Mean 0 and deviation 1/r within five standard errors, B exactly zero."""
    lora = LoraModel(nn.Sequential(nn.Linear(4096, 4)))
    lora.attach("task", LoraConfig(["0"], rank=8), generator=seeded(0))
    pair = lora.factors("task")["0"]
    count = pair.lora_A.numel()
    assert abs(pair.lora_A.mean().item()) < 5 / 8 / count**0.5
    assert abs(pair.lora_A.std().item() * 8 - 1) < 5 / (2 * count) ** 0.5
    assert not pair.lora_B.any()


def test_removing_one_adapter_leaves_the_other() -> None:
    """The other goes on answering; the removed name is unknown afterwards."""
    lora = LoraModel(Small())
    lora.attach("gone", LINEAR, generator=seeded(1))
    lora.attach("stays", LINEAR, generator=seeded(2))
    noisy(lora)
    answer = lora.model(TOKENS)
    lora.remove("gone")
    assert torch.equal(lora.model(TOKENS), answer)
    with pytest.raises(AdapterError, match=r"'gone'.*stays"):
        lora.switch("gone")


def test_merging_twice_or_nothing_is_refused() -> None:
    """So is any change while an adapter is merged."""
    lora = LoraModel(Small())
    with pytest.raises(OperationError, match="No adapter is active"):
        lora.merge()
    with pytest.raises(OperationError, match="No adapter is merged"):
        lora.unmerge()
    lora.attach("task", LINEAR, generator=seeded(0))
    lora.merge()
    for change in (
        lora.merge,
        lambda: lora.switch(None),
        lambda: lora.remove("task"),
        lambda: lora.attach("other", LINEAR, generator=seeded(0)),
    ):
        with pytest.raises(OperationError, match="is merged"):
            change()


def test_a_merge_that_overflows_changes_nothing() -> None:
    """The second layer's failure leaves the first unmerged too."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    lora = LoraModel(model)
    config = LoraConfig(["0", "1"], rank=1, alpha=1)
    small = Factors(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    large = Factors(torch.full((1, 4), 1e3), torch.full((4, 1), 1e3), 1.0)
    lora.put("task", config, {"0": small, "1": large})
    with pytest.raises(NumericalError, match="float16"):
        lora.merge()
    assert not lora.is_merged


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (LoraConfig(["nowhere"]), CompatibilityError, "nowhere"),
        (LoraConfig(["1"]), CompatibilityError, "ReLU"),
        (LoraConfig(["2"], use_dora=True), CompatibilityError, "DoRA on an embedding"),
    ],
)
def test_targets_that_cannot_be(config: LoraConfig, error: type[Exception], says: str) -> None:
    """No module, or one of a kind without a linear weight, is an error that names it; the model stays usable."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Embedding(3, 3))
    lora = LoraModel(model)
    with pytest.raises(error, match=says):
        lora.attach("task", config, generator=seeded(0))
    assert lora.attach("task", LoraConfig(["0"]), generator=seeded(0)) == ("0",)


@pytest.mark.parametrize("name", ["", "a.b", "a/b"])
def test_names_that_cannot_be(name: str) -> None:
    """An adapter's name is part of parameter names."""
    with pytest.raises(AdapterError, match="cannot be"):
        LoraModel(Small()).attach(name, LINEAR, generator=seeded(0))


def test_a_second_handle_on_one_model_is_refused() -> None:
    """Two would undo each other's work."""
    lora = LoraModel(Small())
    lora.attach("task", LINEAR, generator=seeded(0))
    with pytest.raises(OperationError, match="another LoraModel"):
        LoraModel(lora.model)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": True}, {"alpha": float("nan")}, {"rank_pattern": {"a": 1.5}}])
def test_settings_that_cannot_be(bad: dict[str, object]) -> None:
    """Ranks are whole and at least one, alphas finite."""
    with pytest.raises(AdapterError):
        LoraConfig(["q"], **bad)  # type: ignore[arg-type]


def test_training_stops_at_a_loss_that_is_not_finite() -> None:
    """And says at which step; too few batches are no training either."""
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(NumericalError, match="step 2"):
        train([weight], [1.0, float("inf")], lambda s: (weight * s).sum(), steps=2, learning_rate=0.1)
    with pytest.raises(OperationError, match="1 batches, expected 2"):
        train([weight], [1.0], lambda s: (weight * s).sum(), steps=2, learning_rate=0.1)
