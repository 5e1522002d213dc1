"""The worked matrices of the LoRA literature, through live layers."""

from __future__ import annotations

import torch
from torch import nn

from lora_lab.live import Factors, LoraConfig, LoraModel

# The texts print decimals; each is within half a unit of float64's last place, and four products are summed.
CLOSE = {"rtol": 0.0, "atol": 16 * torch.finfo(torch.float64).eps}


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def layer_with(base: torch.Tensor, **pairs: tuple[torch.Tensor, torch.Tensor]) -> LoraModel:
    """A model of one linear layer with the weight `base` and one adapter for each pair (B, A), scaling 1."""
    linear = nn.Linear(base.shape[1], base.shape[0], bias=False, dtype=torch.float64)
    linear.weight.data.copy_(base)
    lora = LoraModel(nn.Sequential(linear))
    for name, (lora_B, lora_A) in pairs.items():
        rank = lora_A.shape[0]
        lora.put(name, LoraConfig(["0"], rank=rank, alpha=rank), {"0": Factors(lora_A, lora_B, 1.0)})
    return lora


def test_product_of_the_first_example() -> None:
    """B·A is the printed matrix, its -0.06 included."""
    lora_B = matrix([0.1, 0.3], [0.2, -0.1], [-0.3, 0.2], [0.4, 0.1])
    lora_A = matrix([0.5, -0.2, 0.1, 0.3], [-0.1, 0.4, 0.2, -0.3])
    expected = matrix(
        [0.02, 0.10, 0.07, -0.06], [0.11, -0.08, 0.0, 0.09], [-0.17, 0.14, 0.01, -0.15], [0.19, -0.04, 0.06, 0.09]
    )
    torch.testing.assert_close(Factors(lora_A, lora_B, 1.0).product(), expected, **CLOSE)


def test_forward_of_the_second_example() -> None:
    """W0 x, then h = W0 x + B(A x), with alpha equal to the rank."""
    base = matrix([0.5, -0.3, 0.1, 0.2], [0.1, 0.4, -0.2, 0.3], [-0.2, 0.1, 0.6, -0.1], [0.3, -0.1, 0.2, 0.5])
    lora_B = matrix([0.10, -0.05], [0.03, 0.08], [-0.07, 0.12], [0.06, -0.02])
    lora_A = matrix([0.15, -0.20, 0.10, 0.05], [-0.08, 0.12, 0.06, -0.15])
    x = matrix([1.0, 0.5, -0.8, 0.3])
    lora = layer_with(base, task=(lora_B, lora_A))
    torch.testing.assert_close(lora.model(x), matrix([0.33415, 0.54051, -0.67251, 0.24136]), **CLOSE)
    lora.switch(None)
    torch.testing.assert_close(lora.model(x), matrix([0.33, 0.55, -0.66, 0.24]), **CLOSE)


def test_merge_and_swap_of_the_third_example() -> None:
    """Merged W·e1 is the printed vector; swapping tasks gives W0 + B_B A_B, with no trace of the first task."""
    pair_a = (
        matrix([0.1, 0.0], [0.0, 0.2], [-0.1, 0.0], [0.0, -0.1]),
        matrix([0.3, 0.0, -0.1, 0.0], [0.0, 0.1, 0.0, -0.2]),
    )
    pair_b = (torch.ones(4, 2, dtype=torch.float64), torch.full((2, 4), 0.25, dtype=torch.float64))
    lora = layer_with(torch.eye(4, dtype=torch.float64), b=pair_b, a=pair_a)
    lora.merge()
    torch.testing.assert_close(lora.model(matrix([1.0, 0, 0, 0])), matrix([1.03, 0.0, -0.03, 0.0]), **CLOSE)
    lora.unmerge()
    lora.switch("b")
    lora.merge()
    merged = lora.model[0].base_layer.weight
    assert torch.equal(merged, torch.eye(4, dtype=torch.float64) + 0.5)


def test_numbers_moved_by_a_swap() -> None:
    """Two adapters of rank 2 on a 4 by 4 matrix hold 32 numbers, twice those of the matrix itself."""
    pair = (torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64))
    lora = layer_with(torch.eye(4, dtype=torch.float64), a=pair, b=pair)
    assert lora.parameter_count("a") + lora.parameter_count("b") == 32


def test_scaling_with_a_rank_pattern() -> None:
    """alpha/r: r = 3, alpha = 6 gives 2, the same alpha at r = 1 gives 6; rsLoRA divides by the root."""
    config = LoraConfig(["q"], rank=3, alpha=6, rank_pattern={"layers.0.q": 1})
    assert (config.scaling_of("layers.1.q"), config.scaling_of("layers.0.q")) == (2.0, 6.0)
    assert LoraConfig(["q"], rank=16, alpha=8, use_rslora=True).scaling_of("q") == 2.0
