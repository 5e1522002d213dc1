"""The recorder adds up the gradients of full weights."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from torch import nn

from lora_lab.errors import CompatibilityError, NumericalError
from lora_lab.live import GradientRecorder, LoraConfig, LoraModel, train


def model_and_data() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    model = nn.Linear(10, 8, bias=False)
    model.weight.data.copy_(torch.randn(8, 10, generator=generator))
    x = torch.randn(40, 10, generator=generator)
    # What is to be learned differs from what is there by a matrix of rank two.
    change = torch.randn(8, 2, generator=generator) @ torch.randn(2, 10, generator=generator)
    return model, x, x @ (model.weight.detach() + change).T


def test_under_gradient_descent_the_sum_is_the_way_gone() -> None:
    """W moves by -rate times the sum, and the sum has the rank of what was to be learned."""
    model, x, y = model_and_data()
    before = model.weight.detach().clone()
    rate, steps = 0.05, 50
    with GradientRecorder(model, ["weight"]) as recorder:
        for _ in range(steps):
            model.zero_grad()
            (model(x) - y).square().mean().backward()
            model.weight.data.sub_(rate * model.weight.grad)
    assert recorder.backward_passes == {"weight": steps}
    # Each step rounds the weight once.
    bound = steps * torch.finfo(torch.float32).eps * before.abs().max().item() * 4
    torch.testing.assert_close(model.weight.detach(), before - rate * recorder.totals["weight"], rtol=0, atol=bound)
    spectrum = recorder.spectrum("weight")
    assert spectrum.dtype == torch.float64
    assert (spectrum.diff() <= 0).all()
    assert spectrum[2] < 1e-4 * spectrum[1]


def test_accumulated_gradients_are_counted_once() -> None:
    """Two backward passes without clearing add up two gradients, not three."""
    model, x, y = model_and_data()
    with GradientRecorder(model, ["weight"]) as recorder:
        for _ in range(2):
            (model(x) - y).square().mean().backward()
    torch.testing.assert_close(recorder.totals["weight"], model.weight.grad)


def test_a_frozen_weight_is_recorded_and_left_alone() -> None:
    """While an adapter trains: the base's gradient is seen, its bytes and its frozenness stay, nothing is collected."""
    linear, x, y = model_and_data()
    lora = LoraModel(nn.Sequential(linear))
    lora.attach("task", LoraConfig(["0"], rank=2), generator=torch.Generator().manual_seed(0))
    before = linear.weight.detach().clone()
    with GradientRecorder(lora.model, ["0.base_layer.weight"]) as recorder:
        train(
            lora.parameters("task"),
            repeat((x, y)),
            lambda batch: (lora.model(batch[0]) - batch[1]).square().mean(),
            steps=5,
            learning_rate=0.01,
        )
    assert recorder.backward_passes == {"0.base_layer.weight": 5}
    assert recorder.totals["0.base_layer.weight"].any()
    assert torch.equal(linear.weight, before)
    assert not linear.weight.requires_grad
    assert linear.weight.grad is None


def test_outside_the_block_nothing_is_recorded() -> None:
    """The hooks are gone afterwards."""
    model, x, y = model_and_data()
    with GradientRecorder(model, ["weight"]) as recorder:
        pass
    (model(x) - y).square().mean().backward()
    assert not recorder.totals["weight"].any()


def test_what_cannot_be_recorded() -> None:
    """An unknown name and a vector are refused by name; a sum that is not finite has no spectrum."""
    model = nn.Linear(3, 3)
    for name in ("nowhere", "bias"):
        with pytest.raises(CompatibilityError, match=name):
            GradientRecorder(model, [name])
    with GradientRecorder(model, ["weight"]) as recorder:
        (model(torch.ones(1, 3)) * float("inf")).sum().backward()
    with pytest.raises(NumericalError, match="weight"):
        recorder.spectrum("weight")
