"""Singular values of scaling·B·A against a float64 SVD of the dense product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import CompatibilityError, NumericalError
from lora_lab.linalg import spectra, streaming
from lora_lab.linalg.batches import stream_in_batches, triangular_factors
from lora_lab.linalg.spectra import (
    Pair,
    delta_inner,
    factored_singular_values,
    factored_svd,
    triangular_factor,
)
from lora_lab.linalg.streaming import stream_singular_values

LAW = 1e-10  # of σ₁
SHAPES = [(1, 5, 7), (4, 30, 20), (8, 384, 1024), (16, 100, 16), (16, 16, 16), (12, 5, 40), (12, 40, 5), (9, 4, 3)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def assert_law(found: torch.Tensor, reference: np.ndarray) -> None:
    expected = np.linalg.svd(reference, compute_uv=False)
    largest = expected[0] if expected.size else 0.0
    count = len(found)
    assert np.abs(found.numpy() - expected[:count]).max(initial=0.0) <= LAW * largest
    # What is not returned is zero: the rank bounds the number of directions.
    assert expected[count:].max(initial=0.0) <= LAW * largest


@pytest.mark.parametrize(("rank", "inputs", "outputs"), SHAPES)
def test_equal_the_dense_svd(random_factors, dense, rank, inputs, outputs):
    lora_A, lora_B = random_factors(rank, inputs, outputs)
    found = factored_singular_values(lora_A, lora_B, -1.5)
    assert found.dtype == torch.float64
    assert len(found) == min(rank, inputs, outputs)
    assert_law(found, dense(lora_A, lora_B, -1.5))


@pytest.mark.parametrize("dtype_A", DTYPES)
@pytest.mark.parametrize("dtype_B", DTYPES)
def test_any_pair_of_types(random_factors, dense, dtype_A, dtype_B):
    lora_A = random_factors(4, 60, 50)[0].to(dtype_A)
    lora_B = random_factors(4, 60, 50, seed=1)[1].to(dtype_B)
    assert_law(factored_singular_values(lora_A, lora_B, 2.0), dense(lora_A, lora_B, 2.0))


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_blocks_of_rows_do_not_matter(random_factors, dense, monkeypatch, block):
    monkeypatch.setattr(spectra, "_BLOCK_ELEMENTS", block)
    lora_A, lora_B = random_factors(6, 201, 130)
    assert_law(factored_singular_values(lora_A, lora_B, 1.0), dense(lora_A, lora_B))
    R = triangular_factor(lora_B)
    torch.testing.assert_close(R.T @ R, lora_B.T @ lora_B, rtol=1e-12, atol=1e-12)


def test_gpu_sized_matrix_one_module(random_factors, dense):
    lora_A, lora_B = random_factors(16, 700, 900, dtype=torch.float32)
    assert_law(factored_singular_values(lora_A, lora_B, 2.0), dense(lora_A, lora_B, 2.0))


@pytest.mark.parametrize("zero", ["A", "B", "both"])
def test_zero_factor_gives_exact_zeros(random_factors, zero):
    lora_A, lora_B = random_factors(5, 20, 30)
    if zero != "B":
        lora_A.zero_()
    if zero != "A":
        lora_B.zero_()
    assert factored_singular_values(lora_A, lora_B, 3.0).tolist() == [0.0] * 5
    U, S, Vh = factored_svd(lora_A, lora_B, 3.0)
    assert S.tolist() == [0.0] * 5
    assert torch.isfinite(U).all()
    assert torch.isfinite(Vh).all()


def test_zero_scaling_gives_exact_zeros(random_factors):
    assert factored_singular_values(*random_factors(5, 20, 30), 0.0).tolist() == [0.0] * 5


@pytest.mark.parametrize("exponent", [-140, 140])
def test_extreme_magnitudes(random_factors, dense, exponent):
    lora_A, lora_B = random_factors(4, 30, 20)
    found = factored_singular_values(lora_A * 10.0**exponent, lora_B * 10.0**-exponent, 1.0)
    assert_law(found, dense(lora_A, lora_B))


def test_golden_worked_matrix():
    """Example 3 of the worked matrices: rank-1 blocks whose singular values are known in closed form."""
    lora_B = torch.tensor([[0.1, 0], [0, 0.2], [-0.1, 0], [0, -0.1]], dtype=torch.float64)
    lora_A = torch.tensor([[0.3, 0, -0.1, 0], [0, 0.1, 0, -0.2]], dtype=torch.float64)
    product = [[0.03, 0, -0.01, 0], [0, 0.02, 0, -0.04], [-0.03, 0, 0.01, 0], [0, -0.01, 0, 0.02]]
    U, S, Vh = factored_svd(lora_A, lora_B, 1.0)
    np.testing.assert_allclose((U * S) @ Vh, product, atol=1e-15)
    # ‖b₁‖‖a₁‖ = √.02·√.1 and ‖b₂‖‖a₂‖ = √.05·√.05: the two components are orthogonal on both sides.
    expected = sorted([np.sqrt(0.02 * 0.1), 0.05], reverse=True)
    np.testing.assert_allclose(factored_singular_values(lora_A, lora_B, 1.0), expected, rtol=1e-14)


def test_golden_first_matrix():
    lora_B = torch.tensor([[0.1, 0.3], [0.2, -0.1], [-0.3, 0.2], [0.4, 0.1]], dtype=torch.float64)
    lora_A = torch.tensor([[0.5, -0.2, 0.1, 0.3], [-0.1, 0.4, 0.2, -0.3]], dtype=torch.float64)
    product = [[0.02, 0.10, 0.07, -0.06], [0.11, -0.08, 0, 0.09], [-0.17, 0.14, 0.01, -0.15], [0.19, -0.04, 0.06, 0.09]]
    U, S, Vh = factored_svd(lora_A, lora_B, 1.0)
    np.testing.assert_allclose((U * S) @ Vh, product, atol=1e-15)
    assert_law(factored_singular_values(lora_A, lora_B, 1.0), np.array(product))


SMALL = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(rank=SMALL, inputs=SMALL, outputs=SMALL, exponent=st.integers(0, 4), seed=st.integers(0, 2**31))
def test_gauge_does_not_matter(rank, inputs, outputs, exponent, seed):
    """(B·R, R⁻¹·A) has the spectrum of (B, A), for a mixing R of condition number up to 10⁴."""
    generator = np.random.default_rng(seed)
    B, A = generator.standard_normal((outputs, rank)), generator.standard_normal((rank, inputs))
    left, right = (np.linalg.qr(generator.standard_normal((rank, rank)))[0] for _ in range(2))
    spread = np.logspace(0, -exponent, rank)
    found = factored_singular_values(
        torch.from_numpy((right / spread) @ left.T @ A), torch.from_numpy((B @ left * spread) @ right.T), 1.0
    )
    assert_law(found, B @ A)


@settings(max_examples=40, deadline=None)
@given(rank=SMALL, inputs=SMALL, outputs=SMALL, scaling=st.floats(-100, 100), seed=st.integers(0, 2**31))
def test_homogeneous_and_symmetric(rank, inputs, outputs, scaling, seed):
    """σ(s·B·A) = |s|·σ(B·A), and σ(ΔWᵀ) = σ(ΔW)."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    B = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
    once = factored_singular_values(A, B, 1.0)
    largest = float(once[0])
    scaled = factored_singular_values(A, B, scaling)
    torch.testing.assert_close(scaled, abs(scaling) * once, rtol=0, atol=1e-13 * largest * max(abs(scaling), 1e-300))
    turned = factored_singular_values(B.T, A.T, 1.0)
    torch.testing.assert_close(turned, once, rtol=0, atol=1e-13 * largest)


@settings(max_examples=30, deadline=None)
@given(rank=SMALL, extra=SMALL, seed=st.integers(0, 2**31))
def test_padding_with_zero_ranks_adds_only_zeros(rank, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, 20, generator=generator, dtype=torch.float64)
    B = torch.randn(25, rank, generator=generator, dtype=torch.float64)
    padded_A = torch.cat([A, torch.zeros(extra, 20, dtype=torch.float64)])
    padded_B = torch.cat([B, torch.randn(25, extra, generator=generator, dtype=torch.float64)], dim=1)
    found = factored_singular_values(padded_A, padded_B, 1.0)
    once = factored_singular_values(A, B, 1.0)
    torch.testing.assert_close(found[:rank], once, rtol=0, atol=1e-13 * float(once[0]))
    assert (found[rank:] <= 1e-13 * once[0]).all()


@pytest.mark.parametrize(("rank", "inputs", "outputs"), SHAPES)
def test_vectors_rebuild_the_update(random_factors, dense, rank, inputs, outputs):
    lora_A, lora_B = random_factors(rank, inputs, outputs)
    U, S, Vh = factored_svd(lora_A, lora_B, -0.5)
    product = dense(lora_A, lora_B, -0.5)
    count = min(rank, inputs, outputs)
    assert (U.shape, S.shape, Vh.shape) == ((outputs, count), (count,), (count, inputs))
    np.testing.assert_allclose((U * S) @ Vh, product, atol=1e-12 * float(S[0]))
    for basis in (U.T @ U, Vh @ Vh.T):
        np.testing.assert_allclose(basis, np.eye(count), atol=1e-13)
    peaks = Vh.gather(1, Vh.abs().argmax(dim=1, keepdim=True))
    assert (peaks > 0).all()


def test_inner_product_is_the_dense_one(random_factors, dense):
    first, second = random_factors(3, 40, 30), random_factors(7, 40, 30, dtype=torch.float16, seed=5)
    found = delta_inner(Pair("a", *first, 1.5), Pair("b", *second, -0.25))
    expected = float((dense(*first, 1.5) * dense(*second, -0.25)).sum())
    scale = np.linalg.norm(dense(*first, 1.5)) * np.linalg.norm(dense(*second, -0.25))
    assert abs(found - expected) <= 1e-12 * scale


def test_inner_product_of_different_shapes_is_refused(random_factors):
    pairs = [Pair("a", *random_factors(3, 40, 30), 1.0), Pair("b", *random_factors(3, 30, 40), 1.0)]
    with pytest.raises(CompatibilityError, match=r"'a' of shape \(30, 40\) and 'b' of shape \(40, 30\)"):
        delta_inner(*pairs)


def test_ranks_that_differ_are_refused(random_factors):
    with pytest.raises(CompatibilityError, match=r"'q_proj' are lora_A \(3, 40\) and lora_B \(30, 4\)"):
        factored_singular_values(random_factors(3, 40, 30)[0], random_factors(4, 40, 30)[1], 1.0, name="q_proj")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("compute", [factored_singular_values, factored_svd])
def test_a_factor_that_is_not_finite_is_named(random_factors, value, compute):
    lora_A, lora_B = random_factors(3, 40, 30)
    lora_B[7, 1] = value
    with pytest.raises(NumericalError, match=r"'layers\.0\.q_proj' hold NaN or infinity"):
        compute(lora_A, lora_B, 1.0, name="layers.0.q_proj")


def pairs_of(random_factors, count=12):
    shapes = [(4, 30, 20), (8, 64, 48), (4, 30, 20), (16, 10, 50)]
    return [
        Pair(f"m{index}", *random_factors(*shapes[index % len(shapes)], dtype=torch.float32, seed=index), 1.0 + index)
        for index in range(count)
    ]


def test_a_stream_gives_the_bits_of_each_alone_in_order(random_factors):
    pairs = pairs_of(random_factors)
    single = {pair.name: factored_singular_values(*pair[1:]) for pair in pairs}
    for order in (pairs, pairs[::-1]):
        streamed = list(stream_singular_values(iter(order)))
        assert [pair.name for pair, _ in streamed] == [pair.name for pair in order]
        assert all(torch.equal(found, single[pair.name]) for pair, found in streamed)


def test_a_device_without_float64_leaves_it_to_the_processor(random_factors):
    pairs = pairs_of(random_factors, 3)
    on_mps = [found for _, found in stream_singular_values(pairs, device="mps")]
    assert all(
        torch.equal(found, factored_singular_values(*pair[1:])) for pair, found in zip(pairs, on_mps, strict=True)
    )


def test_a_stream_reads_no_more_than_its_window(random_factors, monkeypatch):
    monkeypatch.setattr(streaming, "_WINDOW_BYTES", 0)
    taken = []

    def source():
        for pair in pairs_of(random_factors):
            taken.append(pair.name)
            yield pair

    for count, _ in enumerate(stream_singular_values(source()), start=1):
        assert len(taken) <= count + 1


def test_a_pair_that_fails_ends_the_stream_by_name(random_factors):
    lora_A, lora_B = random_factors(3, 40, 30)
    pairs = [*pairs_of(random_factors, 2), Pair("bad", lora_A * float("nan"), lora_B, 1.0)]
    stream = stream_singular_values([*pairs, *pairs_of(random_factors, 4)])
    assert [next(stream)[0].name, next(stream)[0].name] == ["m0", "m1"]
    with pytest.raises(NumericalError, match="'bad'"):
        next(stream)


def test_batches_keep_the_law(random_factors, dense):
    """The route of a GPU, run on the processor: batches of one shape, and what is ill-conditioned beside them."""
    pairs = pairs_of(random_factors)
    lora_A, lora_B = random_factors(8, 64, 48)
    almost_dependent = lora_B.clone()
    almost_dependent[:, 1] = almost_dependent[:, 0] * (1 + 1e-12)
    pairs += [
        Pair("dependent", lora_A, almost_dependent, 1.0),
        Pair("graded", lora_A, lora_B * torch.logspace(0, -12, 8, dtype=torch.float64), 1.0),
        Pair("zero", lora_A, torch.zeros_like(lora_B), 1.0),
        Pair("wide", *random_factors(9, 4, 3), 1.0),
    ]
    found = list(stream_in_batches(pairs, device="cpu"))
    assert [pair.name for pair, _ in found] == [pair.name for pair in pairs]
    for pair, singular_values in found:
        assert_law(singular_values, dense(pair.lora_A, pair.lora_B, pair.scaling))
    assert found[-2][1].tolist() == [0.0] * 8


def test_small_windows_of_batches_lose_nothing(random_factors, monkeypatch):
    from lora_lab.linalg import batches

    pairs = pairs_of(random_factors)
    whole = {pair.name: found for pair, found in stream_in_batches(pairs, device="cpu")}
    monkeypatch.setattr(batches, "_WINDOW_ELEMENTS", 1)
    parts = {pair.name: found for pair, found in stream_in_batches(pairs, device="cpu")}
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-12) for name in whole)


def test_batched_triangular_factors_have_the_gram_matrix(random_factors):
    matrices = [random_factors(5, 40, 60, seed=seed)[1] for seed in range(4)]
    for matrix, R in zip(matrices, triangular_factors(matrices, device="cpu"), strict=True):
        torch.testing.assert_close(R.T @ R, matrix.T @ matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_keeps_the_law(random_factors, dense):
    for pair, found in stream_singular_values(pairs_of(random_factors), device="cuda:0"):
        assert_law(found, dense(pair.lora_A, pair.lora_B, pair.scaling))
