"""Is a weight W + Δ? Figures against NumPy, every diagnosis on weights made to deserve it, and none on a right one."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.linalg.rounding import rounded
from lora_lab.linalg.storing import Fidelity, stored_rows
from lora_lab.linalg.suspects import Chance, Suspect
from lora_lab.linalg.updates import Term, Update
from lora_lab.linalg.verification import (
    SOME_ROUNDINGS_ULP,
    Comparison,
    Diagnosis,
    compare_rows,
    sound_or_not,
    ulp_of,
)

DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
SHAPE: Final = (96, 128)
RANK: Final = 6


def updated_rows(
    W: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype, **more: torch.Generator | None
) -> tuple[torch.Tensor, Fidelity]:
    """W + Δ, rounded once."""
    return stored_rows(W, W.double() + delta, dtype, **more)


def made(dtype: torch.dtype, ratio: float, seed: int = 0, shape: tuple[int, int] = SHAPE) -> tuple[torch.Tensor, Term]:
    """W ~ N(0, 0.02²) and a factored Δ of ‖Δ‖ = ratio·‖W‖."""
    generator = torch.Generator().manual_seed(seed)
    W = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
    A = torch.randn((RANK, shape[1]), generator=generator)
    B = torch.randn((shape[0], RANK), generator=generator)
    scaling = ratio * float(W.double().norm() / (B.double() @ A.double()).norm())
    return W, Term(A, B, scaling)


def delta_of(term: Term) -> torch.Tensor:
    return term.scaling * term.strength * (term.lora_B.double() @ term.lora_A.double())


def judged(W: torch.Tensor, M: torch.Tensor, term: Term, owners: tuple[str, ...] = ()) -> tuple[Diagnosis, str]:
    """What a weight is, after a second look where the first does not suffice."""
    update = Update("w", tuple(W.shape), [term])  # type: ignore[arg-type]
    delta = update.delta(W, 0)
    first = compare_rows(W, M, delta)
    found = sound_or_not(first)
    if found is not None:
        return found, ""
    suspect = Suspect(first, tuple(W.shape), True, owners)  # type: ignore[arg-type]
    for at in range(0, W.shape[0], 40):
        rows = slice(at, at + 40)
        suspect.take(suspect.look(W[rows], M[rows], delta[rows], at, update))
    strength = first.weighed_strength or 0.0
    again = compare_rows(W, M, strength * delta)
    for _ in range(2):
        strength *= again.weighed_strength or 1.0
        again = compare_rows(W, M, strength * delta)
    return suspect.diagnosis(strength, abs(strength) * (again.weighed_error or 0.0), again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_units_in_the_last_place(dtype: torch.dtype) -> None:
    """NumPy's spacing, at powers of two, beside them, and below the normal numbers' end."""
    kind = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}[dtype]
    tiny = float(np.finfo(kind).tiny)
    sizes = np.array([1.0, 1.5, np.nextafter(kind(2), kind(0)), 2.0, 0.1, 1000.0, tiny, tiny / 4, 0.0], dtype=kind)
    got = ulp_of(torch.from_numpy(sizes.astype(np.float64)), dtype).numpy()
    assert (got == np.spacing(sizes).astype(np.float64)).all()


def test_figures_against_numpy() -> None:
    """Every sum from its definition in float64; blocks of rows add up to the whole."""
    W, term = made(torch.bfloat16, 0.02)
    delta = delta_of(term)
    M = (W + delta.to(torch.bfloat16)).clone()
    M[3, 5] *= 2
    whole = compare_rows(W, M, delta)
    step = delta.float().double().numpy()
    ideal = (W.float() + delta.float()).bfloat16().double().numpy()
    w, m = W.double().numpy(), M.double().numpy()
    assert whole.inner == pytest.approx(((m - w) * step).sum())
    assert whole.ideal_inner == pytest.approx(((ideal - w) * step).sum())
    assert whole.update_square == pytest.approx((step**2).sum())
    assert whole.effective_strength == pytest.approx(((m - w) * step).sum() / (step**2).sum())
    assert whole.strength == pytest.approx(((m - w) * step).sum() / ((ideal - w) * step).sum())
    assert whole.strength_error == pytest.approx(
        np.sqrt((((m - ideal) * step) ** 2).sum()) / ((ideal - w) * step).sum()
    )
    size = np.maximum(np.maximum(np.abs(w), np.abs(m)), np.abs(step))
    off = np.abs(m - w - step) / (2.0 ** (np.floor(np.log2(size)) - 7))
    assert whole.worst_ulp == pytest.approx(off.max())
    assert whole.wrong == (off > SOME_ROUNDINGS_ULP).sum() == 1
    assert whole.differing == (m != ideal).sum()
    assert (whole.changed, whole.ideal_changed) == ((m != w).sum(), (ideal != w).sum())
    parts = Comparison()
    for at in range(0, SHAPE[0], 17):
        parts.add(compare_rows(W[at : at + 17], M[at : at + 17], delta[at : at + 17]))
    for name in Comparison.__dataclass_fields__:
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12), name


def test_the_error_of_a_strength_is_that_of_an_ordinary_regression() -> None:
    """ŝ and its standard error against a least-squares fit through the origin."""
    W, term = made(torch.bfloat16, 0.05)
    delta = delta_of(term)
    found = compare_rows(W, (W.double() + 0.7 * delta).bfloat16(), delta)
    x = delta.float().double().numpy().ravel()
    y = ((W.double() + 0.7 * delta).bfloat16().double() - W.double()).numpy().ravel()
    slope, rest, *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
    assert found.effective_strength == pytest.approx(slope[0])
    assert found.effective_error == pytest.approx(np.sqrt(rest[0] / (x.size - 1) / (x @ x)), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.floats(-4, 1).map(lambda power: 10.0**power),
    st.integers(0, 1000),
    st.sampled_from(["once", "float64", "delta", "factors", "two steps"]),
)
def test_no_right_merge_is_called_wrong(dtype: torch.dtype, ratio: float, seed: int, how: str) -> None:
    """Ours, exact ones, and those that round Δ or the factors to the type: right, rounded elsewhere, or not told."""
    W, term = made(dtype, ratio, seed, (64, 80))
    delta = delta_of(term)
    narrow = delta_in(dtype, term)
    M = {
        "once": updated_rows(W, delta, dtype)[0],
        "float64": rounded(W.double() + delta, dtype),
        "delta": W + delta.to(dtype),
        "factors": W + narrow,
        "two steps": (W.float() + narrow.float()).to(dtype),
    }[how]
    found, detail = judged_with_reach(W, M, term)
    assert found.is_sound or found is Diagnosis.INCONCLUSIVE, (found, detail)
    if how == "once" and ratio > 0.01:
        assert found is Diagnosis.RIGHT


def delta_in(dtype: torch.dtype, term: Term) -> torch.Tensor:
    """Δ as a library forms it that keeps everything in one narrow type."""
    return (term.lora_B.to(dtype) @ term.lora_A.to(dtype)) * term.scaling


def judged_with_reach(W: torch.Tensor, M: torch.Tensor, term: Term) -> tuple[Diagnosis, str]:
    """As `judged`, knowing how large the products are that Δ is the sum of."""
    delta = delta_of(term)
    products = (term.scaling * term.lora_B.double()).abs() @ term.lora_A.double().abs()
    first = compare_rows(W, M, delta, reach=lambda: (1 + RANK**0.5 / 2) * products)
    found = sound_or_not(first)
    return (found, "") if found is not None else judged(W, M, term)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_of_a_merge_of_ours_moved_by_one_unit_is_seen(dtype: torch.dtype) -> None:
    """Our merges are within half a unit everywhere: the smallest change of one value is outside."""
    W, term = made(dtype, 0.01)
    M = updated_rows(W, delta_of(term), dtype)[0]
    assert judged(W, M, term)[0] is Diagnosis.RIGHT
    view = M.view(torch.int32 if dtype is torch.float32 else torch.int16)
    view[7, 9] += 1
    found = compare_rows(W, M, delta_of(term))
    assert (found.differing, found.twice) == (1, 1)
    assert sound_or_not(found) is Diagnosis.ROUNDED_ELSEWHERE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [0.5, 0.9, 0.98, 1.02, 2.0, 4.0, -0.5])
def test_another_strength_is_estimated(dtype: torch.dtype, strength: float) -> None:
    """alpha/√r in place of alpha/r and the like: told, with the strength and an error that holds it."""
    W, term = made(dtype, 0.05)
    found, detail = judged(W, updated_rows(W, strength * delta_of(term), dtype)[0], term)
    assert found is Diagnosis.WRONG_STRENGTH
    got, error = (float(part) for part in detail.removeprefix("strength ").split(" ± "))
    assert abs(got - strength) <= max(5 * error, 2e-3 * abs(strength))
    assert error < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [0.01, 0.3])
def test_other_ways_of_being_wrong(dtype: torch.dtype, ratio: float) -> None:
    """Subtracted, not applied, transposed, another adapter's, damaged, not finite: each under its own name."""
    W, term = made(dtype, ratio, shape=(96, 96))
    delta = delta_of(term)
    M = updated_rows(W, delta, dtype)[0]
    other = delta_of(made(dtype, ratio, seed=9, shape=(96, 96))[1])
    damaged, infinite = M.clone(), M.clone()
    damaged[4, :3] = 1.0
    infinite[0, 0] = float("nan")
    cases = {
        Diagnosis.SIGN_FLIPPED: updated_rows(W, -delta, dtype)[0],
        Diagnosis.NOT_APPLIED: W.clone(),
        Diagnosis.TRANSPOSED: updated_rows(W, delta.T.contiguous(), dtype)[0],
        Diagnosis.OTHER_ADAPTER: updated_rows(W, other, dtype)[0],
        Diagnosis.WRONG_VALUES: damaged,
        Diagnosis.NOT_FINITE: infinite,
        Diagnosis.RIGHT: M,
    }
    assert {expected: judged(W, found, term)[0] for expected, found in cases.items()} == {name: name for name in cases}


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_everywhere_is_another_update(dtype: torch.dtype) -> None:
    """The right update under noise as large as itself is not right."""
    W, term = made(dtype, 0.1)
    delta = delta_of(term)
    noise = 0.002 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert judged(W, updated_rows(W, delta + noise, dtype)[0], term)[0] is Diagnosis.OTHER_ADAPTER


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_an_update(dtype: torch.dtype) -> None:
    """Some rows, some columns, some ranks, or one of two adapters: partly merged, and which part."""
    W, term = made(dtype, 0.1)
    delta = delta_of(term)
    half = term.scaling * (term.lora_B[:, :3].double() @ term.lora_A[:3].double())
    rows, columns = delta.clone(), delta.clone()
    rows[60:] = 0
    columns[:, 32:] = 0
    told = {name: judged(W, updated_rows(W, step, dtype)[0], term) for name, step in
            (("rows", rows), ("columns", columns), ("ranks", half))}  # fmt: skip
    assert told == {
        "rows": (Diagnosis.PARTLY_MERGED, "60 of 96 rows have the update"),
        "columns": (Diagnosis.PARTLY_MERGED, "32 of 128 columns have the update"),
        "ranks": (Diagnosis.PARTLY_MERGED, "3 of 6 ranks have the update"),
    }
    owned = judged(W, updated_rows(W, half, dtype)[0], term, ("'a'",) * 3 + ("'b'",) * 3)
    assert owned == (Diagnosis.PARTLY_MERGED, "'a' is in it, 'b' is not in it")


def test_an_update_that_the_type_swallows_is_not_told() -> None:
    """Where W + Δ is W bit for bit, W itself proves nothing; in float32 the same update is proven."""
    _, term = made(torch.bfloat16, 1e-5)
    W = torch.ones(SHAPE, dtype=torch.bfloat16)
    assert judged(W, W.clone(), term)[0] is Diagnosis.INCONCLUSIVE
    wide = W.float()
    assert judged(wide, updated_rows(wide, delta_of(term), torch.float32)[0], term)[0] is Diagnosis.RIGHT
    assert judged(wide, wide.clone(), term)[0] is Diagnosis.NOT_APPLIED


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.0001, 0.001, 0.003, 0.1])
@pytest.mark.parametrize("is_flat", [False, True])
def test_stochastic_rounding_with_an_unknown_seed_is_sound(dtype: torch.dtype, ratio: float, is_flat: bool) -> None:
    """More arrives than nearest rounding lets through; that is no other strength, and nine tenths still are one."""
    W, term = made(dtype, ratio, 3, (256, 256))
    if is_flat:  # no value is so near to zero that it tells by itself
        W = (W.sign().double() * (0.02 + W.double().abs() / 8)).to(dtype)
    delta = delta_of(term)
    # Another seed than the weight's: numbers drawn alike are not by chance.
    found = updated_rows(W, delta, dtype, generator=torch.Generator().manual_seed(501))[0]
    assert judged(W, found, term)[0] in (Diagnosis.ROUNDED_ELSEWHERE, Diagnosis.INCONCLUSIVE)
    less = updated_rows(W, 0.9 * delta, dtype, generator=torch.Generator().manual_seed(502))[0]
    assert judged(W, less, term)[0] is not Diagnosis.RIGHT
    if ratio >= 0.003:
        assert judged(W, found, term)[0] is Diagnosis.ROUNDED_ELSEWHERE
        assert not judged(W, less, term)[0].is_sound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [0.995, 1.005])
def test_half_a_percent_is_another_strength(dtype: torch.dtype, strength: float) -> None:
    """More than any rounding makes, less than a person sees."""
    W, term = made(dtype, 0.1, shape=(512, 512))
    found, detail = judged(W, updated_rows(W, strength * delta_of(term), dtype)[0], term)
    assert found is Diagnosis.WRONG_STRENGTH, detail


def test_chance_explains_no_more_than_chance() -> None:
    """Rounding to nearest scatters less than chance does, and half the update arrives at half its mean."""
    W, term = made(torch.bfloat16, 0.01, shape=(256, 256))
    delta = delta_of(term)
    generator = torch.Generator().manual_seed(501)
    cases = {
        "by chance": updated_rows(W, delta, torch.bfloat16, generator=generator)[0],
        "nearest": updated_rows(W, delta, torch.bfloat16)[0],
        "half": updated_rows(W, delta / 2, torch.bfloat16, generator=generator)[0],
    }
    told = {name: Chance.of(W.double(), M, delta).explains for name, M in cases.items()}
    assert told == {"by chance": True, "nearest": False, "half": False}
