"""Whole methods from factors to factors: against dense results, in any order, in the core, and along the sphere."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lora_lab.errors import CompatibilityError, LoraLabError, NumericalError
from lora_lab.linalg.consensus import Election, Majority
from lora_lab.linalg.entrywise import EntryMethod, Space, Sparsity, combine_entries
from lora_lab.linalg.spectra import Pair
from lora_lab.linalg.spherical import gram_matrix, multislerp_coefficients, slerp_coefficients


def pairs(count: int = 3, shape: tuple[int, int] = (60, 48)) -> list[Pair]:
    """Of several ranks, types and scalings."""
    generator = torch.Generator().manual_seed(9)
    made = []
    for place in range(count):
        rank = 2 + place
        lora_A = torch.randn(rank, shape[1], generator=generator)
        lora_B = torch.randn(shape[0], rank, generator=generator)
        dtype = (torch.float32, torch.bfloat16, torch.float64)[place % 3]
        made.append(Pair("layers.0.q", lora_A.to(dtype), lora_B.to(dtype), 0.5 + place))
    return made


def dense(pair: Pair) -> np.ndarray:
    return pair.scaling * (pair.lora_B.double().numpy() @ pair.lora_A.double().numpy())


def product(found: object) -> np.ndarray:
    return found.lora_B.numpy() @ found.lora_A.numpy()  # type: ignore[attr-defined]


def trimmed(values: np.ndarray, density: float) -> np.ndarray:
    order = np.argsort(-np.abs(values.astype(np.float32)).ravel(), kind="stable")[: int(density * values.size)]
    mask = np.zeros(values.size, dtype=bool)
    mask[order] = True
    return np.where(mask.reshape(values.shape), values, 0)


def ties(parts: list[np.ndarray], strengths: list[float]) -> np.ndarray:
    x = np.stack(parts)
    sign = np.where(x.sum(axis=0) >= 0, 1, -1)
    agrees = np.sign(x) == sign
    return (np.array(strengths).reshape(-1, 1, 1) * x * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)


TIES = EntryMethod(density=0.3, election=Election.BEFORE)
STRENGTHS = [1.0, 0.5, -0.25]


def test_ties_of_full_rank_is_the_dense_result() -> None:
    """To a millionth, and of lower rank to what the dense result loses by it."""
    expected = ties([trimmed(dense(pair), 0.3) for pair in pairs()], STRENGTHS)
    whole = combine_entries(pairs(), STRENGTHS, TIES, rank=48)
    np.testing.assert_allclose(product(whole), expected, atol=1e-6 * np.abs(expected).max())
    assert whole.norm == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    optimum = np.linalg.norm(np.linalg.svd(expected, compute_uv=False)[5:])
    found = combine_entries(pairs(), STRENGTHS, TIES, rank=5)
    assert found.lora_A.shape == (5, 48)
    assert found.error == pytest.approx(np.linalg.norm(product(found) - expected), rel=1e-6)
    assert optimum * (1 - 1e-6) <= found.error <= 1.01 * optimum


def test_the_rank_that_holds_an_energy() -> None:
    """‖D‖² is held to that share; the rank is the sum of the ranks when nothing is said."""
    found = combine_entries(pairs(), STRENGTHS, TIES, energy=0.8)
    assert found.error <= math.sqrt(0.2) * found.norm
    assert combine_entries(pairs(), STRENGTHS, TIES).lora_A.shape[0] == 2 + 3 + 4


METHODS = {
    "ties": TIES,
    "ties after": EntryMethod(density=0.3, election=Election.AFTER, majority=Majority.FREQUENCY),
    "dare": EntryMethod(Sparsity.CHANCE, density=0.4, seed=3),
    "dare ties": EntryMethod(Sparsity.CHANCE, density=0.4, election=Election.BEFORE, seed=3),
    "della": EntryMethod(Sparsity.RANK, density=0.4, epsilon=0.2, election=Election.AFTER),
    "breadcrumbs": EntryMethod(Sparsity.MIDDLE, density=0.5, gamma=0.05),
    "magnitude": EntryMethod(density=0.5),
}


@pytest.mark.parametrize("space", list(Space))
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_the_order_does_not_matter(method: EntryMethod, space: Space) -> None:
    """Not in the last bit, whatever is drawn; twice the same is the same."""
    from dataclasses import replace

    method = replace(method, space=space)
    found = [
        combine_entries([pairs()[place] for place in order], [STRENGTHS[place] for place in order], method, rank=6)
        for order in itertools.permutations(range(3))
    ]
    for other in found[1:]:
        assert torch.equal(found[0].lora_A, other.lora_A)
        assert torch.equal(found[0].lora_B, other.lora_B)


def test_a_seed_draws_other_entries_and_names_do_not() -> None:
    """The name of the module takes no part."""
    method = METHODS["dare"]
    renamed = [pair._replace(name="elsewhere") for pair in pairs()]
    one = combine_entries(pairs(), STRENGTHS, method, rank=6)
    assert torch.equal(one.lora_A, combine_entries(renamed, STRENGTHS, method, rank=6).lora_A)
    other = EntryMethod(Sparsity.CHANCE, density=0.4, seed=4)
    assert not torch.allclose(one.lora_A, combine_entries(pairs(), STRENGTHS, other, rank=6).lora_A)


@pytest.mark.parametrize("space", list(Space))
@pytest.mark.parametrize("sparsity", list(Sparsity))
def test_all_entries_of_one_update_are_the_update(sparsity: Sparsity, space: Space) -> None:
    """Density 1 and strength 1 are the identity; a minus a is zero."""
    pair = pairs()[1]
    method = EntryMethod(sparsity, density=1.0, space=space)
    found = combine_entries([pair], [1.0], method)
    assert found.lora_A.shape[0] == 3
    np.testing.assert_allclose(product(found), dense(pair), atol=1e-6 * np.abs(dense(pair)).max())
    nothing = combine_entries([pair, pair], [1.0, -1.0], method)
    assert nothing.lora_A.shape[0] == 0
    assert nothing.norm == 0.0


def test_the_core_is_lossless_and_its_entries_are_its_own() -> None:
    """TIES of UᵀΔWV in the singular bases of the stacked factors, written down densely."""
    method = EntryMethod(density=0.3, election=Election.BEFORE, space=Space.CORE)
    scaled = [(pair.scaling * pair.lora_B.double().numpy(), pair.lora_A.double().numpy()) for pair in pairs()]
    order = sorted(range(3), key=lambda place: place)
    U = np.linalg.svd(np.concatenate([scaled[place][0] for place in order], axis=1), full_matrices=False)[0]
    V = np.linalg.svd(np.concatenate([scaled[place][1] for place in order]), full_matrices=False)[2].T
    cores = [U.T @ dense(pair) @ V for pair in pairs()]
    expected = U @ ties([trimmed(core, 0.3) for core in cores], STRENGTHS) @ V.T
    found = combine_entries(pairs(), STRENGTHS, method)
    assert found.lora_A.shape[0] <= 9
    np.testing.assert_allclose(product(found), expected, atol=1e-6 * np.abs(expected).max())


def test_whoever_looks_may_end_it() -> None:
    """Between two blocks, whatever is raised."""
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine_entries(pairs(), STRENGTHS, TIES, look=look)
    assert len(looks) < 8


def test_refusals() -> None:
    """Shapes, shares, nothing, and what is not finite."""
    wider = Pair("layers.1.q", torch.ones(2, 49), torch.ones(60, 2), 1.0)
    with pytest.raises(CompatibilityError, match=r"layers\.1\.q.*60×49, expected 60×48"):
        combine_entries([*pairs(), wider], [1.0] * 4, TIES)
    with pytest.raises(LoraLabError, match="at least one"):
        combine_entries([], [], TIES)
    with pytest.raises(LoraLabError, match=r"density is 1\.5"):
        EntryMethod(density=1.5)
    with pytest.raises(LoraLabError, match=r"density ± epsilon is -0\.1 and 0\.5"):
        EntryMethod(Sparsity.RANK, density=0.2, epsilon=0.3)
    broken = Pair("layers.2.q", torch.full((1, 3), math.nan), torch.ones(2, 1), 1.0)
    for space in Space:
        with pytest.raises(NumericalError, match=r"layers\.2\.q"):
            combine_entries([broken], [1.0], EntryMethod(space=space))


def test_inner_products() -> None:
    """Those of the dense matrices."""
    flat = np.stack([dense(pair).ravel() for pair in pairs()])
    np.testing.assert_allclose(gram_matrix(pairs()).numpy(), flat @ flat.T, rtol=1e-12, atol=1e-10)
    with pytest.raises(NumericalError, match="NaN or infinity"):
        gram_matrix([Pair("q", torch.full((1, 3), math.nan), torch.ones(2, 1), 1.0)])


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(t: float) -> None:
    """As on the dense matrices, in the words of the graphics paper; the ends are the two."""
    a, b = (dense(pair).ravel() for pair in pairs()[:2])
    theta = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    expected = np.sin((1 - t) * theta) / np.sin(theta) * a + np.sin(t * theta) / np.sin(theta) * b
    first, second = slerp_coefficients(gram_matrix(pairs()[:2]), t)
    np.testing.assert_allclose(first * a + second * b, expected, rtol=1e-9, atol=1e-12)
    parallel = gram_matrix([pairs()[0], pairs()[0]._replace(scaling=3.0)])
    assert slerp_coefficients(parallel, t) == [1 - t, t]
    assert slerp_coefficients(torch.zeros(2, 2).double(), t) == [1 - t, t]
    with pytest.raises(LoraLabError, match="got 3, expected 2"):
        slerp_coefficients(gram_matrix(pairs()), t)


def test_multislerp() -> None:
    """The whole way through the tangent space, as its author describes it, on the dense matrices."""
    weights = np.array([1.0, 2.0, 0.5])
    flat = np.stack([dense(pair).ravel() for pair in pairs()])
    share = weights / weights.sum()
    norms = np.linalg.norm(flat, axis=1)
    units = flat / norms[:, None]
    mean = share @ units
    mean /= np.linalg.norm(mean)
    tangent = share @ (units - np.outer(units @ mean, mean))
    step = np.linalg.norm(tangent) + 1e-300
    expected = (mean * np.cos(step) + tangent * np.sin(step) / step) * (share @ norms)
    found = np.array(multislerp_coefficients(gram_matrix(pairs()), list(weights))) @ flat
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def test_directions_that_cancel() -> None:
    """No direction between opposites; a zero update takes no part, and of zeros there is nothing."""
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(LoraLabError, match="cancel"):
        multislerp_coefficients(opposite, [1.0, 1.0])
    with pytest.raises(LoraLabError, match="sum to zero"):
        multislerp_coefficients(opposite, [1.0, -1.0])
    assert multislerp_coefficients(torch.diag(torch.tensor([4.0, 0.0]).double()), [1.0, 1.0]) == [0.5, 0.0]
    assert multislerp_coefficients(torch.zeros(2, 2).double(), [1.0, 1.0]) == [0.0, 0.0]
