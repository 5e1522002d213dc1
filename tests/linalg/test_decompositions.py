"""One exact decomposition of W, and the directions of W + ΔW against all of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import CompatibilityError, NumericalError
from lora_lab.linalg.decompositions import compare_merged, decompose_weight
from lora_lab.linalg.spectra import Pair
from lora_lab.linalg.weight_basis import basis_from

# What rounding the basis to float32 costs a cosine; see compare_merged.
FLOAT32 = 2.0**-23
SHAPES = [(40, 40), (30, 70), (70, 30), (1, 9), (9, 1)]


def weight_of(shape: tuple[int, int], *, decay: float = 2.0, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Seeded, singular values over `decay` orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    side = min(shape)
    left = torch.linalg.qr(torch.randn(shape[0], side, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(shape[1], side, generator=generator, dtype=torch.float64)).Q
    return (left * torch.logspace(0, -decay, side, dtype=torch.float64) @ right.T).to(dtype)


def pair_of(shape: tuple[int, int], rank: int, size: float, *, seed: int = 1) -> Pair:
    """A seeded ΔW of spectral norm about `size`."""
    generator = torch.Generator().manual_seed(seed)
    lora_A = torch.randn(rank, shape[1], generator=generator) / math.sqrt(shape[1])
    lora_B = torch.randn(shape[0], rank, generator=generator) / math.sqrt(shape[0])
    return Pair("q", lora_A, lora_B, size)


def dense(weight: torch.Tensor, pair: Pair, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of W + ΔW and its left vectors' largest cosines with W's, by two SVDs in NumPy's float64."""
    base = weight.double().numpy()
    merged = base + pair.scaling * (pair.lora_B.double().numpy() @ pair.lora_A.double().numpy())
    left, sigma, _ = np.linalg.svd(base, full_matrices=False)
    left = left[:, sigma > 1e-6 * sigma[0]]
    turned, values, _ = np.linalg.svd(merged, full_matrices=False)
    return values[:top], np.abs(turned[:, :top].T @ left).max(axis=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_decomposition_is_that_of_the_weight(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Singular values to float64's square root at worst, vectors orthonormal and diagonalising to float32."""
    weight = weight_of(shape, dtype=dtype)
    basis = decompose_weight(weight)
    wide = weight.double()
    expected = torch.linalg.svdvals(wide)
    assert torch.allclose(basis.singular_values, expected, rtol=0, atol=1e-12 * float(expected[0]))
    side = wide if shape[0] <= shape[1] else wide.T
    vectors = basis.leading(min(shape))
    assert basis.vectors.dtype == torch.float32
    assert torch.allclose(vectors.T @ vectors, torch.eye(min(shape)).double(), atol=4 * FLOAT32)
    found = torch.linalg.vector_norm(side.T @ vectors, dim=0)
    assert torch.allclose(found, basis.singular_values, atol=4 * FLOAT32 * float(expected[0]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-4, 0.03, 1.0, 30.0])
@pytest.mark.parametrize("rank", [1, 4])
def test_cosines_and_singular_values(shape: tuple[int, int], size: float, rank: int) -> None:
    """Against two dense SVDs, from a ΔW that moves nothing to one that drowns W."""
    weight, pair = weight_of(shape), pair_of(shape, rank, size)
    merged = compare_merged(weight, decompose_weight(weight), pair, 8)
    values, cosines = dense(weight, pair, 8)
    assert merged.singular_values.numpy() == pytest.approx(values, rel=0, abs=4 * FLOAT32 * (values[0] + 1))
    # A direction is as certain as its singular value is far from the next.
    whole = dense(weight, pair, 9)[0]
    gaps = -np.diff(whole) if len(whole) > len(values) else np.append(-np.diff(whole), whole[-1])
    nearest = np.minimum(gaps, np.append(np.inf, gaps[:-1]))
    slack = 40 * FLOAT32 * (1 + size) / np.maximum(nearest, 1e-12)
    assert (np.abs(merged.max_cosines.numpy() - cosines) <= slack).all()


@pytest.mark.parametrize("shape", [(512, 512), (256, 600), (600, 256)])
def test_the_iteration_finds_what_the_dense_one_finds(shape: tuple[int, int]) -> None:
    """Sides large enough that K is never formed; a flat spectrum, where directions are hardest to tell apart."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    for rank, size in ((2, 1e-3), (8, 0.5), (16, 4.0)):
        pair = pair_of(shape, rank, size)
        merged = compare_merged(weight, decompose_weight(weight), pair, 10)
        values, cosines = dense(weight, pair, 10)
        assert merged.singular_values.numpy() == pytest.approx(values, rel=1e-7)
        assert merged.max_cosines.numpy() == pytest.approx(cosines, abs=1e-5)


def test_directions_that_the_update_removes() -> None:
    """ΔW takes W's first 40 directions away: what is left begins with the 41st, of which ΔW knows nothing."""
    weight = weight_of((300, 300), decay=1.0, dtype=torch.float64)
    left, sigma, right = torch.linalg.svd(weight)
    pair = Pair("q", right[:40], -left[:, :40] * sigma[:40], 1.0)
    merged = compare_merged(weight, decompose_weight(weight), pair, 5)
    assert merged.singular_values.numpy() == pytest.approx(sigma[40:45].numpy(), rel=1e-6)
    assert merged.nearest.tolist() == [40, 41, 42, 43, 44]
    assert merged.max_cosines.numpy() == pytest.approx(np.ones(5), abs=1e-6)


@given(st.floats(0.1, 10.0), st.integers(0, 1000), st.sampled_from([(24, 24), (18, 30), (30, 18)]))
@settings(max_examples=20)
def test_laws(scale: float, seed: int, shape: tuple[int, int]) -> None:
    """Cosines stay under scaling both, turning the inputs, and (B·R, R⁻¹·A); those of a zero ΔW are 1."""
    weight, pair = weight_of(shape, seed=seed, dtype=torch.float64), pair_of(shape, 3, 0.5, seed=seed + 1)
    plain = compare_merged(weight, decompose_weight(weight), pair, 3).max_cosines
    scaled = pair._replace(scaling=scale * pair.scaling)
    assert torch.allclose(
        compare_merged(scale * weight, decompose_weight(scale * weight), scaled, 3).max_cosines, plain, atol=1e-5
    )
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)).Q
    turned = pair._replace(lora_A=pair.lora_A.double() @ turn)
    assert torch.allclose(
        compare_merged(weight @ turn, decompose_weight(weight @ turn), turned, 3).max_cosines, plain, atol=1e-5
    )
    gauge = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q * 3.0
    moved = pair._replace(lora_A=torch.linalg.solve(gauge, pair.lora_A.double()), lora_B=pair.lora_B.double() @ gauge)
    basis = decompose_weight(weight)
    assert torch.allclose(compare_merged(weight, basis, moved, 3).max_cosines, plain, atol=1e-5)
    nothing = pair._replace(scaling=0.0)
    unchanged = compare_merged(weight, basis, nothing, 3)
    assert torch.allclose(unchanged.max_cosines, torch.ones(3).double(), atol=1e-9)
    assert unchanged.is_unchanged


def test_null_directions_are_not_compared_with() -> None:
    """ΔW writes into the null space of Wᵀ: of a square, a wide and a tall W it is an intruder alike."""
    for shape in ((12, 12), (12, 20), (20, 12)):
        weight = torch.zeros(shape)
        weight[0, 0], weight[1, 1] = 2.0, 1.0
        basis = decompose_weight(weight)
        assert basis.rank == 2
        lora_A, lora_B = torch.zeros(1, shape[1]), torch.zeros(shape[0], 1)
        lora_A[0, 5], lora_B[7, 0] = 1.0, 1.0
        merged = compare_merged(weight, basis, Pair("q", lora_A, lora_B, 3.0), 10)
        assert merged.singular_values.tolist() == pytest.approx([3.0, 2.0, 1.0])
        assert merged.max_cosines.tolist() == pytest.approx([0.0, 1.0, 1.0], abs=1e-7)


def test_nothing_to_compare() -> None:
    """A zero W, a zero sum, an empty matrix."""
    zero, pair = torch.zeros(6, 8), pair_of((6, 8), 2, 1.0)
    basis = decompose_weight(zero)
    assert basis.rank == 0
    assert compare_merged(zero, basis, pair, 10).singular_values.numel() == 2
    weight = torch.eye(6)
    pair = Pair("q", torch.eye(6), torch.eye(6), -1.0)
    assert compare_merged(weight, decompose_weight(weight), pair, 3).singular_values.numel() == 0


def test_not_finite_and_not_a_matrix() -> None:
    """One sentence, with the tensor's name."""
    for value in (math.nan, math.inf, -math.inf):
        weight = torch.ones(4, 5)
        weight[2, 3] = value
        with pytest.raises(NumericalError, match="'w' of the base holds NaN or infinity"):
            decompose_weight(weight, name="w")
    for wrong in (torch.ones(4), torch.ones(2, 2, 2), torch.ones(4, 4, dtype=torch.int8)):
        with pytest.raises(CompatibilityError, match="expected a matrix of floats"):
            decompose_weight(wrong)
    with pytest.raises(CompatibilityError, match="expected the weight's"):
        compare_merged(torch.eye(4), decompose_weight(torch.eye(4)), pair_of((4, 5), 2, 1.0), 3)


def test_kept_decompositions_are_the_same() -> None:
    """From the store come the same bits; what does not fit is none."""
    weight, pair = weight_of((30, 50)), pair_of((30, 50), 2, 0.4)
    basis = decompose_weight(weight)
    again = basis_from((30, 50), basis.to_tensors())
    assert again is not None
    one, other = compare_merged(weight, basis, pair, 5), compare_merged(weight, again, pair, 5)
    assert torch.equal(one.max_cosines, other.max_cosines)
    assert torch.equal(one.singular_values, other.singular_values)
    assert basis_from((31, 50), basis.to_tensors()) is None
    assert basis_from((30, 50), None) is None
    assert basis_from((30, 50), {"vectors": basis.vectors}) is None
    assert basis_from((30, 50), {**basis.to_tensors(), "vectors": basis.vectors.double()}) is None


def test_the_bits_do_not_depend_on_threads_or_strides() -> None:
    """A transposed view of the transposed matrix is the same matrix."""
    weight = weight_of((200, 240))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(decompose_weight(weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].vectors, found[1].vectors)
    assert torch.equal(found[0].singular_values, found[1].singular_values)
    strided = decompose_weight(weight.T.contiguous().T)
    assert torch.allclose(strided.singular_values, found[0].singular_values, rtol=1e-12)
