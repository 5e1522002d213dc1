"""‖UᵀWV‖_F against dense float64, and what chance gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.linalg import blocked
from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.projections import project, random_directions, random_norm


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm and core of a matrix in many blocks, the last of them short."""
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", 700)
    W = random(103, 70).to(dtype)
    U, V = (torch.linalg.qr(random(side, 5, seed=seed)).Q for side, seed in ((103, 1), (70, 2)))
    found = project(RowBlocks((103, 70), lambda first, end: W[first:end]), U, V)
    rounding = 8 * torch.finfo(dtype).eps
    assert found.norm == pytest.approx(np.linalg.norm(W.double().numpy()), rel=rounding)
    expected = U.numpy().T @ W.double().numpy() @ V.numpy()
    assert np.abs(found.core.numpy() - expected).max() <= rounding * found.norm


def test_the_papers_random_column() -> None:
    """Table 7 of arXiv 2106.09685: ‖W_q‖ = 61.95, d = 12288, r = 4 and 64."""
    assert round(random_norm(61.95, 4, (12288, 12288)), 2) == 0.02
    assert round(random_norm(61.95, 64, (12288, 12288)), 2) == 0.32


def test_the_closed_form_is_the_mean_square() -> None:
    """Over 3,000 draws, within five standard errors."""
    W = random(30, 20, seed=4)
    squares = []
    for draw in range(3000):
        U = random_directions(30, 3, seed=0, name=f"{draw}/left")
        V = random_directions(20, 3, seed=0, name=f"{draw}/right")
        squares.append(float((U.T @ W @ V).square().sum()))
    expected = random_norm(float(W.norm()), 3, (30, 20)) ** 2
    assert abs(np.mean(squares) - expected) < 5 * np.std(squares) / math.sqrt(len(squares))


@given(st.integers(0, 2**40), st.text(max_size=5))
def test_draws_are_orthonormal_and_their_own(seed: int, name: str) -> None:
    """Orthonormal, the same for the same seed and name, another for another."""
    Q = random_directions(12, 4, seed=seed, name=name)
    torch.testing.assert_close(Q.T @ Q, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert Q.equal(random_directions(12, 4, seed=seed, name=name))
    assert not Q.equal(random_directions(12, 4, seed=seed + 1, name=name))
    assert not Q.equal(random_directions(12, 4, seed=seed, name=name + "x"))
