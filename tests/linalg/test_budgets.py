"""The division of a number of parameters among modules, against every division that there is."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import LoraLabError
from lora_lab.linalg import budgets
from lora_lab.linalg.budgets import budget_ranks


def everything(squares: list[list[float]], costs: list[int], parameters: int) -> float:
    """The most that any division keeps, by trying all of them."""
    divisions = product(*(range(len(own) + 1) for own in squares))
    return max(
        sum(sum(own[:rank]) for own, rank in zip(squares, ranks, strict=True))
        for ranks in divisions
        if sum(rank * cost for rank, cost in zip(ranks, costs, strict=True)) <= parameters
    )


SPECTRA = st.lists(st.lists(st.floats(0.0, 10), min_size=1, max_size=4), min_size=1, max_size=4)
COSTS = st.lists(st.integers(1, 9), min_size=4, max_size=4)


@pytest.mark.parametrize("is_exact", [True, False])
@settings(max_examples=150, deadline=None)
@given(spectra=SPECTRA, costs=COSTS, share=st.floats(0, 1), is_alike=st.booleans())
def test_nothing_keeps_more(
    is_exact: bool, spectra: list[list[float]], costs: list[int], share: float, is_alike: bool
) -> None:
    """The best of all; where too many kinds of cost were to be tried, off by less than the first that did not fit."""
    values = [torch.tensor(sorted(own, reverse=True), dtype=torch.float64) for own in spectra]
    squares = [own.square().tolist() for own in values]
    chosen = [5] * len(values) if is_alike else costs[: len(values)]
    parameters = int(share * sum(len(own) * cost for own, cost in zip(squares, chosen, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "_MOST_TRIES", 1 << 27 if is_exact else 0)
        ranks = budget_ranks(values, chosen, parameters)
    assert sum(rank * cost for rank, cost in zip(ranks, chosen, strict=True)) <= parameters
    kept = sum(sum(own[:rank]) for own, rank in zip(squares, ranks, strict=True))
    passed = [own[rank] for own, rank in zip(squares, ranks, strict=True) if rank < len(own)]
    slack = 0.0 if is_exact or is_alike else max(passed, default=0.0)
    assert everything(squares, chosen, parameters) <= kept * (1 + 1e-12) + slack + 1e-300


def test_a_model_of_three_kinds_of_layers() -> None:
    """224 modules of r=16, as of a model of eight billion parameters: what greed takes is no better."""
    generator = torch.Generator().manual_seed(0)
    costs = [[8192, 5120, 5120, 8192, 18432, 18432, 18432][place % 7] for place in range(224)]
    values = [torch.rand(16, generator=generator).sort(descending=True).values for _ in costs]
    ranks = budget_ranks(values, costs, 20_000_001)
    squares = [own.double().square().tolist() for own in values]
    greedy = budgets._greedy(squares, costs, 20_000_001)

    def kept(chosen: list[int]) -> float:
        return sum(sum(own[:rank]) for own, rank in zip(squares, chosen, strict=True))

    assert kept(ranks) >= kept(greedy)
    assert sum(rank * cost for rank, cost in zip(ranks, costs, strict=True)) <= 20_000_001


def test_zeros_are_not_taken_and_nothing_below_none() -> None:
    assert budget_ranks([torch.tensor([1.0, 0.0]), torch.zeros(3)], [2, 3], 100) == [1, 0]
    assert budget_ranks([], [], 5) == []
    with pytest.raises(LoraLabError, match="is -1, expected none or more"):
        budget_ranks([torch.ones(1)], [1], -1)
