"""The spectrum of a full change against NumPy's SVD of the difference, and what rounding leaves against rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_lab.linalg.dense as dense
from lora_lab.errors import CompatibilityError, NumericalError
from lora_lab.linalg.dense import Change, change_norms, change_spectrum, stream_change_spectra

BF16, F32 = 2.0**-7, 2.0**-23


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(after.double().numpy() - before.double().numpy(), compute_uv=False)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_every_singular_value_is_that_of_the_difference(rows, columns, dtype):
    before, after = (normal(rows, columns, seed=seed).to(dtype) for seed in (1, 2))
    found = change_spectrum(Change("w", before, after, BF16))
    expected = reference(before, after)
    np.testing.assert_allclose(found.singular_values.numpy(), expected, rtol=0, atol=1e-14 * expected[0] * 60)
    assert found.base_norm == pytest.approx(np.linalg.norm(before.double().numpy()), rel=1e-13)


@pytest.mark.parametrize("shape", [(500, 7), (7, 500), (64, 64)])
def test_blocks_do_not_change_the_values(shape, monkeypatch):
    change = Change("w", normal(*shape), normal(*shape, seed=1), F32)
    whole = change_spectrum(change)
    monkeypatch.setattr(dense, "_BLOCK_ELEMENTS", 1)
    cut = change_spectrum(change)
    np.testing.assert_allclose(cut.singular_values, whole.singular_values, rtol=1e-13)
    assert cut.rounding_norm == pytest.approx(whole.rounding_norm, rel=1e-13)
    assert cut.rounding_edge == pytest.approx(whole.rounding_edge, rel=1e-13)


def test_small_singular_values_keep_their_digits():
    """Where the Gram matrix would lose everything below 1e-8·σ₁."""
    left, right = (torch.linalg.qr(normal(40, 40, seed=seed)).Q for seed in (1, 2))
    wanted = torch.logspace(0, -12, 40, dtype=torch.float64)
    after = left @ torch.diag(wanted) @ right
    found = change_spectrum(Change("w", torch.zeros(40, 40), after, F32)).singular_values
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)


def test_a_change_that_float32_would_lose_is_seen():
    before = normal(20, 10)
    after = before + 1e-12 * normal(20, 10, seed=1)
    found = change_spectrum(Change("w", before, after, 2.0**-52))
    np.testing.assert_allclose(found.singular_values, reference(before, after), rtol=1e-12)


def test_the_inputs_are_left_alone():
    before, after = normal(20, 10), normal(20, 10, seed=1)
    change_spectrum(Change("w", before, after, F32))
    assert torch.equal(before, normal(20, 10))
    assert torch.equal(after, normal(20, 10, seed=1))


def test_equal_matrices_have_exact_zeros():
    found = change_spectrum(Change("w", normal(9, 5), normal(9, 5), F32))
    assert found.singular_values.tolist() == [0.0] * 5


def test_nothing_has_an_empty_spectrum():
    found = change_spectrum(Change("w", torch.empty(0, 5), torch.empty(0, 5), F32))
    assert found.singular_values.numel() == 0
    assert (found.base_norm, found.rounding_norm, found.rounding_edge) == (0.0, 0.0, 0.0)


def test_bits_do_not_depend_on_threads():
    change = Change("w", normal(300, 200), normal(300, 200, seed=1), F32)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(change_spectrum(change).singular_values)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("scale", [1.0, 0.02, 300.0])
def test_rounding_leaves_what_is_expected_of_it(scale):
    exact = scale * normal(300, 200, seed=3)
    stored = exact.to(torch.bfloat16)
    found = change_spectrum(Change("w", exact, stored, BF16))
    error = stored.double() - exact
    assert found.rounding_norm == pytest.approx(float(torch.linalg.vector_norm(error)), rel=0.03)
    assert found.singular_values[0] < found.rounding_edge < 1.5 * found.singular_values[0]


def test_zeros_round_to_themselves():
    found = change_spectrum(Change("w", torch.ones(4, 4), torch.zeros(4, 4), BF16))
    assert (found.rounding_norm, found.rounding_edge) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_refused(bad, side):
    pair = [torch.ones(3, 4), torch.ones(3, 4)]
    pair[side][1, 2] = bad
    with pytest.raises(NumericalError, match="'w' holds NaN or infinity"):
        change_spectrum(Change("w", *pair, F32))


@pytest.mark.parametrize("shapes", [((3, 4), (4, 3)), ((4,), (4,))])
def test_only_matrices_of_one_shape_have_a_difference(shapes):
    with pytest.raises(CompatibilityError, match="expected one shape"):
        change_spectrum(Change("w", *(torch.zeros(shape) for shape in shapes), F32))


def test_a_stream_keeps_its_order_and_outlives_a_bad_one():
    changes = [Change(str(size), normal(size, 30), normal(size, 30, seed=1), F32) for size in (90, 3, 60, 1)]
    changes[2].after[0, 0] = float("nan")
    found = list(stream_change_spectra(iter(changes)))
    assert [change.name for change, _ in found] == ["90", "3", "60", "1"]
    assert [isinstance(result, NumericalError) for _, result in found] == [False, False, True, False]
    for change, result in found:
        if not isinstance(result, NumericalError):
            assert torch.equal(result.singular_values, change_spectrum(change).singular_values)


def test_a_stream_reads_no_further_than_it_has_room_for(monkeypatch):
    monkeypatch.setattr(dense, "_WINDOW_BYTES", 1)
    read = []

    def changes():
        for number in range(6):
            read.append(number)
            yield Change(str(number), normal(20, 10), normal(20, 10, seed=1), F32)

    stream = stream_change_spectra(changes())
    next(stream)
    assert len(read) == 2


def test_norms_of_vectors():
    assert change_norms(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0], dtype=torch.bfloat16)) == (5.0, 0.0)
    assert change_norms(torch.tensor(2.0), torch.tensor(-1.0)) == (2.0, 3.0)
