"""Cross-Grams, φ, angles and distances against dense float64 NumPy and SciPy, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_lab.errors import CompatibilityError, LoraLabError, NumericalError
from lora_lab.linalg.side_by_side import side_by_side
from lora_lab.linalg.spectra import Pair
from lora_lab.linalg.subspaces import (
    SIDES,
    Overlap,
    compare,
    directions,
    grassmann_distance,
    phi_grid,
    principal_angles,
    projection_distance,
    random_grid,
)

CLOSE = 1e-10
TOLERANCES = (1e-9, 1e-9)
# (rank of the first, of the second, in, out)
SHAPES = [
    (4, 4, 30, 20),
    (3, 8, 384, 128),
    (16, 5, 60, 90),
    (1, 1, 7, 5),
    (12, 12, 40, 10),
    (6, 6, 5, 40),
    (2, 9, 4, 3),
]


def pair_of(rank: int, inputs: int, outputs: int, seed: int, scaling: float = 2.0) -> Pair:
    """Gaussian factors whose directions are well apart in size."""
    generator = np.random.default_rng(seed)
    spread = np.logspace(0, -1.5, rank)
    lora_A = generator.standard_normal((rank, inputs))
    lora_B = generator.standard_normal((outputs, rank)) * spread
    return Pair(f"m{seed}", torch.from_numpy(lora_A), torch.from_numpy(lora_B), scaling)


def dense_directions(pair: Pair, side: str) -> np.ndarray:
    """Singular vectors as columns, those above 1e-9 of the largest."""
    lora_A, lora_B = pair.lora_A.double().numpy(), pair.lora_B.double().numpy()
    matrix = {"A": lora_A, "B": lora_B}.get(side, pair.scaling * lora_B @ lora_A)
    U, values, Vh = np.linalg.svd(matrix, full_matrices=False)
    kept = int(np.count_nonzero(values > 1e-9 * values.max()))
    return U[:, :kept] if side in ("left", "B") else Vh[:kept].T


def dense_phi(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The definition, one projection at a time."""
    grid = np.empty((first.shape[1], second.shape[1]))
    for i in range(first.shape[1]):
        for j in range(second.shape[1]):
            grid[i, j] = np.linalg.norm(first[:, : i + 1].T @ second[:, : j + 1]) ** 2 / min(i + 1, j + 1)
    return grid


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("rank_a", "rank_b", "inputs", "outputs"), SHAPES)
def test_equals_the_dense_definition(rank_a, rank_b, inputs, outputs, side):
    first, second = pair_of(rank_a, inputs, outputs, 1), pair_of(rank_b, inputs, outputs, 2, -0.5)
    found = compare(first, second, side=side, tolerances=TOLERANCES)
    U, V = dense_directions(first, side), dense_directions(second, side)
    assert found.cross.shape == (U.shape[1], V.shape[1])
    assert found.dimension == U.shape[0] == (inputs if side in ("right", "A") else outputs)
    np.testing.assert_allclose(phi_grid(found.cross), dense_phi(U, V), rtol=0, atol=CLOSE)
    expected = np.sort(scipy.linalg.subspace_angles(U, V))
    np.testing.assert_allclose(found.angles, expected, rtol=0, atol=1e-12)
    assert (np.diff(found.angles) >= 0).all()


@pytest.mark.parametrize(("rank_a", "rank_b", "inputs", "outputs"), SHAPES)
def test_cosine_and_norms_are_those_of_the_dense_products(rank_a, rank_b, inputs, outputs):
    first, second = pair_of(rank_a, inputs, outputs, 3), pair_of(rank_b, inputs, outputs, 4, -0.5)
    found = compare(first, second)
    dense = [pair.scaling * pair.lora_B.numpy() @ pair.lora_A.numpy() for pair in (first, second)]
    norms = [np.linalg.norm(matrix) for matrix in dense]
    assert (found.norm_a, found.norm_b) == pytest.approx(norms, rel=1e-12)
    assert found.inner == pytest.approx(np.vdot(*dense), abs=1e-12 * norms[0] * norms[1])
    assert found.cosine == pytest.approx(np.vdot(*dense) / norms[0] / norms[1], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_types_are_computed_in_float64(dtype):
    first, second = (
        pair._replace(lora_A=pair.lora_A.to(dtype), lora_B=pair.lora_B.to(dtype))
        for pair in (pair_of(4, 50, 40, 5), pair_of(6, 50, 40, 6))
    )
    found = compare(first, second, tolerances=TOLERANCES)
    expected = dense_phi(dense_directions(first, "right"), dense_directions(second, "right"))
    np.testing.assert_allclose(phi_grid(found.cross), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("angle", [1e-15, 1e-12, 1e-8, 1e-5, 0.1, math.pi / 4, 1.5, math.pi / 2 - 1e-9])
def test_angles_are_accurate_however_small(angle):
    """Planes turned by a known angle, mixed so that no vector of a basis shows it."""
    generator = np.random.default_rng(0)
    frame, _ = np.linalg.qr(generator.standard_normal((40, 40)))
    here = frame[:, :3] @ generator.standard_normal((3, 3))
    turned = frame[:, :3].copy()
    turned[:, 0] = math.cos(angle) * frame[:, 0] + math.sin(angle) * frame[:, 10]
    turned[:, 1] = math.cos(0.7) * frame[:, 1] + math.sin(0.7) * frame[:, 11]
    there = turned @ generator.standard_normal((3, 3))
    lora_B = torch.from_numpy(generator.standard_normal((20, 3)))
    found = compare(*(Pair("m", torch.from_numpy(basis.T.copy()), lora_B, 1.0) for basis in (here, there)), side="A")
    np.testing.assert_allclose(found.angles, sorted([0.0, angle, 0.7]), rtol=0, atol=3e-15)


def test_a_subspace_inside_another_has_angles_of_zero():
    whole = pair_of(6, 50, 40, 7)
    part = whole._replace(lora_A=whole.lora_A[:2], lora_B=whole.lora_B[:, :2])
    for first, second in ((whole, part), (part, whole)):
        found = compare(first, second, side="A")
        assert found.angles.max() < 1e-14
        assert float(phi_grid(found.cross)[-1, -1]) == pytest.approx(1.0, abs=1e-14)


def test_numerically_zero_directions_are_no_directions():
    generator = np.random.default_rng(8)
    lora_A, lora_B = generator.standard_normal((4, 30)), generator.standard_normal((20, 4))
    lora_B[:, 3] = lora_B[:, 0]  # ΔW has rank 3, lora_A still 4
    pair = Pair("m", torch.from_numpy(lora_A), torch.from_numpy(lora_B), 1.0)
    assert [directions(pair, side, 1e-9).rank for side in SIDES] == [3, 3, 4, 3]


@pytest.mark.parametrize("zero", ["lora_A", "lora_B"])
def test_a_zero_update_has_no_direction_and_no_cosine(zero):
    pair, other = pair_of(4, 30, 20, 9), pair_of(4, 30, 20, 10)
    empty = pair._replace(**{zero: torch.zeros_like(getattr(pair, zero))})
    found = compare(empty, other, tolerances=TOLERANCES)
    assert (found.cross.shape, found.angles.shape, found.cosine, found.norm_a) == ((0, 4), (0,), None, 0.0)
    assert phi_grid(found.cross).shape == (0, 4)
    # The factor that is not zero still spans its subspace.
    alive = "A" if zero == "lora_B" else "B"
    assert compare(empty, other, side=alive, tolerances=TOLERANCES).cross.shape == (4, 4)


def test_factors_that_cannot_be_computed_with_are_refused():
    pair = pair_of(3, 20, 10, 11)
    broken = pair._replace(lora_A=pair.lora_A.clone().fill_(math.nan))
    with pytest.raises(NumericalError, match="'m11' hold NaN"):
        directions(broken, "right", 0.0)
    huge = pair._replace(lora_A=pair.lora_A * 1e120, lora_B=pair.lora_B * 1e120)
    with pytest.raises(NumericalError, match="exceeds the range"):
        compare(huge, huge)
    with pytest.raises(CompatibilityError, match="one shape"):
        compare(pair, pair_of(3, 21, 10, 12))
    with pytest.raises(LoraLabError, match="'middle', expected one of right, left, A, B"):
        directions(pair, "middle", 0.0)
    with pytest.raises(CompatibilityError, match=r"expected \(r, in\)"):
        directions(pair._replace(lora_A=pair.lora_A[:2]), "right", 0.0)


# The random baseline


def test_random_subspaces_overlap_as_chance_has_it():
    """Golden: two Gaussian matrices share nothing beyond max(i,j)/d, whichever the side."""
    d, rank_a, rank_b, draws = 40, 3, 6, 400
    mean = np.zeros((rank_a, rank_b))
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        first = Pair("a", torch.randn(rank_a, d, generator=generator), torch.randn(9, rank_a, generator=generator), 1.0)
        second = Pair(
            "b", torch.randn(rank_b, d, generator=generator), torch.randn(9, rank_b, generator=generator), 1.0
        )
        mean += phi_grid(compare(first, second, side="A").cross).numpy() / draws
    expected = random_grid(rank_a, rank_b, d).numpy()
    # φ(1,1) is Beta(1/2, (d−1)/2): standard deviation ~√2/d, the largest of all; four standard errors.
    np.testing.assert_allclose(mean, expected, rtol=0, atol=4 * math.sqrt(2) / d / math.sqrt(draws))
    assert expected[2, 1] == 3 / 40
    assert expected[0, 5] == 6 / 40


def test_the_paper_s_sizes():
    """GPT-3: r=8 against r=64 in d=12,288."""
    grid = random_grid(8, 64, 12288)
    assert grid.shape == (8, 64)
    assert float(grid[0, 0]) == 1 / 12288
    assert float(grid[7, 63]) == 64 / 12288


# Distances


def test_distances_are_those_of_the_projections():
    first, second = pair_of(4, 30, 20, 13), pair_of(4, 30, 20, 14)
    found = compare(first, second)
    U, V = dense_directions(first, "right"), dense_directions(second, "right")
    angles = found.angles.tolist()
    expected = np.linalg.norm(U @ U.T - V @ V.T) / math.sqrt(2)
    assert projection_distance(angles) == pytest.approx(expected, rel=1e-12)
    assert projection_distance(angles) == pytest.approx(math.sqrt(4 - np.cos(angles) @ np.cos(angles)), rel=1e-12)
    assert grassmann_distance(angles) == pytest.approx(np.linalg.norm(angles), rel=1e-14)
    full = float(phi_grid(found.cross)[-1, -1])
    assert projection_distance(angles) ** 2 == pytest.approx(4 * (1 - full), rel=1e-12)


# Laws


@st.composite
def two_pairs(draw) -> tuple[Pair, Pair]:
    """Two updates of one shape, of any ranks, some of whose columns may be zero or repeated."""
    inputs, outputs = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    pairs = []
    for _ in range(2):
        rank = draw(st.integers(1, 6))
        pair = pair_of(rank, inputs, outputs, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1.0, -3.0, 0.01])))
        if draw(st.booleans()):
            pair.lora_B[:, draw(st.integers(0, rank - 1))] = 0.0
        pairs.append(pair)
    return pairs[0], pairs[1]


def met(pairs: tuple[Pair, Pair], side: str) -> Overlap:
    return compare(*pairs, side=side, tolerances=TOLERANCES)


@given(two_pairs(), st.sampled_from(SIDES))
@settings(max_examples=150, deadline=None)
def test_phi_is_symmetric_between_0_and_1_and_angles_are_angles(pairs, side):
    found, swapped = met(pairs, side), met(pairs[::-1], side)
    phi = phi_grid(found.cross)
    torch.testing.assert_close(phi, phi_grid(swapped.cross).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.angles, swapped.angles, rtol=0, atol=1e-12)
    assert ((phi >= 0) & (phi <= 1)).all()
    assert ((found.angles >= 0) & (found.angles <= math.pi / 2)).all()
    assert len(found.angles) == min(phi.shape)
    if 0 not in phi.shape:
        cosines = float(found.angles.cos().square().mean())
        assert cosines == pytest.approx(float(phi[-1, -1]), abs=1e-12)


@given(two_pairs(), st.sampled_from(SIDES))
@settings(max_examples=100, deadline=None)
def test_with_itself_phi_is_1_along_the_diagonal(pairs, side):
    pair = pairs[0]
    found = met((pair, pair), side)
    phi = phi_grid(found.cross)
    np.testing.assert_allclose(phi.diagonal(), 1.0, rtol=0, atol=1e-12)
    assert found.angles.max() < 1e-13 if len(found.angles) else phi.shape == (0, 0)
    assert found.cosine is None if found.norm_a == 0.0 else found.cosine == pytest.approx(1.0, abs=1e-12)


@given(two_pairs(), st.integers(0, 2**32 - 1), st.sampled_from(["left", "right"]))
@settings(max_examples=100, deadline=None)
def test_sides_of_the_update_do_not_depend_on_its_factorisation(pairs, seed, side):
    first, second = pairs
    mix = np.random.default_rng(seed).standard_normal((first.lora_A.shape[0],) * 2)
    assume(np.linalg.cond(mix) < 100)
    R = torch.from_numpy(mix)
    other = first._replace(lora_A=torch.linalg.solve(R, first.lora_A), lora_B=first.lora_B @ R)
    found, same = met((first, second), side), met((other, second), side)
    torch.testing.assert_close(found.cross.abs(), same.cross.abs(), rtol=0, atol=1e-8)
    torch.testing.assert_close(phi_grid(found.cross), phi_grid(same.cross), rtol=0, atol=1e-8)
    assert (found.cosine is None) == (same.cosine is None)
    assert found.cosine is None or found.cosine == pytest.approx(same.cosine, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["A", "B"]))
@settings(max_examples=50, deadline=None)
def test_sides_of_a_factor_keep_orthogonal_changes_only(seed, side):
    first, second = pair_of(4, 30, 20, seed), pair_of(3, 30, 20, seed + 1)
    generator = np.random.default_rng(seed)
    Q = torch.from_numpy(np.linalg.qr(generator.standard_normal((4, 4)))[0])
    rotated = first._replace(lora_A=Q.T @ first.lora_A, lora_B=first.lora_B @ Q)
    plain = phi_grid(met((first, second), side).cross)
    torch.testing.assert_close(plain, phi_grid(met((rotated, second), side).cross), rtol=0, atol=1e-8)
    # Any other change keeps the span of a factor of full rank, but not which direction is the first.
    R = torch.diag(torch.tensor([1e-3, 1.0, 1.0, 1e3], dtype=torch.float64))
    stretched = first._replace(lora_A=torch.linalg.solve(R, first.lora_A), lora_B=first.lora_B @ R)
    changed = phi_grid(met((stretched, second), side).cross)
    assert float((plain[0] - changed[0]).abs().max()) > 1e-6
    torch.testing.assert_close(plain[-1], changed[-1], rtol=0, atol=1e-6)


@given(two_pairs(), st.sampled_from([1e-30, 0.5, -7.0, 1e30]))
@settings(max_examples=50, deadline=None)
def test_size_does_not_matter(pairs, factor):
    first, second = pairs
    scaled = first._replace(lora_B=first.lora_B * factor)
    found, same = met((first, second), "right"), met((scaled, second), "right")
    torch.testing.assert_close(phi_grid(found.cross), phi_grid(same.cross), rtol=0, atol=1e-9)
    assert found.cosine is None or same.cosine == pytest.approx(math.copysign(1, factor) * found.cosine, abs=1e-12)


def test_angles_of_directions_are_those_of_the_comparison():
    first, second = (directions(pair_of(4, 30, 20, seed), "left", 1e-9) for seed in (15, 16))
    U, V = first.vectors().numpy(), second.vectors().numpy()
    np.testing.assert_allclose(U.T @ U, np.eye(4), atol=1e-14)
    expected = np.sort(scipy.linalg.subspace_angles(U, V))
    np.testing.assert_allclose(principal_angles(first, second), expected, rtol=0, atol=1e-12)


# Many at once


def test_results_come_in_order_and_failures_in_their_turn():
    def task(number: int) -> int:
        if number == 7:
            raise NumericalError("seven")
        return number

    results = side_by_side((1, lambda number=number: task(number)) for number in range(20))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(NumericalError, match="seven"):
        next(results)


def test_reading_does_not_run_far_ahead():
    read = []

    def tasks():
        for number in range(1000):
            read.append(number)
            yield 1 << 20, lambda: None

    results = side_by_side(tasks())
    next(results)
    results.close()
    assert len(read) < 100
