"""Laws that every method keeps: zero, alone, order, gauge, strengths, rank and energy, orientation, what is refused."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lora_lab_subspace
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_lab_subspace.plugin import lora_lab_merge_methods

from lora_lab.domain.parameters import parse_parameters
from lora_lab.errors import LoraLabError, NumericalError
from lora_lab.extension.checking import faults
from lora_lab.extension.contracts import Combination, Factors, MergeContext, MergeMethod
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS = {method.id: method for method in lora_lab_merge_methods()}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"knots {inner}": ("knots", {"inner": inner}) for inner in ("linear", "ties", "dare_linear", "dare_ties")},
    "tsv_m": ("tsv_m", {}),
    "tsv_m of half": ("tsv_m", {"fraction": 0.5}),
    "iso_c": ("iso_c", {}),
    "iso_cts": ("iso_cts", {"common_space_fraction": 0.6}),
    **{f"core_space {i}": ("core_space", {"inner": i}) for i in ("linear", "ties", "dare_linear", "dare_ties", "tsv")},
    "core_space isotropic": ("core_space", {"inner": "ties", "isotropize": True}),
    "svd_orthogonal": ("svd_orthogonal", {}),
    "svd_orthogonal sum": ("svd_orthogonal", {"length": "sum", "alpha": 0.8}),
}
# What decides by chance draws by the factors as stored, and Core Space's entries are those of their bases.
BY_DELTA = [way for way in WAYS if "dare" not in way and way not in ("core_space ties", "core_space isotropic")]
TOLERANCE = 1e5 * torch.finfo(torch.float64).eps
every_way = pytest.mark.parametrize("way", WAYS)


def drawn(ranks: Sequence[int], sides: tuple[int, int] = (20, 14), seed: int = 1) -> list[Factors]:
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = sides
    return [
        Factors(
            torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator), 0.5 + place
        )
        for place, rank in enumerate(ranks)
    ]


def combine(way: str, factors: Sequence[Factors], strengths: Sequence[float], **context: Any) -> Combination:
    name, given = WAYS[way]
    method = METHODS[name]
    return method.combine(factors, strengths, MergeContext(parse_parameters(method.parameters, given), **context))


def dense(one: Factors | Combination) -> torch.Tensor:
    one = one.factors if isinstance(one, Combination) else one
    return one.scaling * one.lora_B.double() @ one.lora_A.double()


def require_equal(one: Combination, other: Combination) -> None:
    size = max(one.norm, other.norm)
    assert float((dense(one) - dense(other)).norm()) <= TOLERANCE * size
    assert one.norm == pytest.approx(other.norm, rel=1e-9)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_declarations(method: MergeMethod) -> None:
    """Each keeps the contract, says its formula and its paper, and its defaults are values that it takes."""
    assert list(faults(method, MergeMethod)) == []
    assert "arXiv" in (type(method).__doc__ or "")
    assert method.reference in (type(method).__doc__ or "")
    for parameter in method.parameters:
        assert parameter.check(parameter.default) == parameter.default


def test_what_loads_the_plugin_loads_no_torch() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import lora_lab_subspace.plugin as p; "
    code += "p.lora_lab_merge_methods(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    folder = lora_lab_subspace.__path__[0].rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True, text=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("name", [found.name for found in pkgutil.iter_modules(lora_lab_subspace.__path__)])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"lora_lab_subspace.{name}")).failed == 0


@every_way
def test_nothing_comes_of_nothing(way: str) -> None:
    """Zero factors, a product that is zero, strengths of zero: no directions, no norm, no NaN, the shape as it is."""
    zero = Factors(torch.ones(3, 14), torch.zeros(20, 3), 1.0, is_transposed=True)
    crossed = Factors(torch.tensor([[1.0] * 14, [0.0] * 14]), torch.tensor([[0.0, 1.0]] * 20), 1.0, True)
    alive = replace(drawn([2])[0], is_transposed=True)
    for factors, strengths in (([zero], [1.0]), ([zero, crossed], [1.0, -1.0]), ([alive, zero], [0.0, 2.0])):
        for context in ({}, {"rank": 2}, {"energy": 0.9}):
            found = combine(way, factors, strengths, **context)
            assert (found.norm, found.error) == (0.0, 0.0)
            assert found.factors.lora_A.shape == (0, 14)
            assert found.factors.lora_B.shape == (20, 0)
            assert found.factors.is_transposed


@every_way
def test_who_brings_nothing_changes_nothing(way: str) -> None:
    """A zero update among others, and one of strength 0."""
    factors = drawn([3, 2])
    zero = Factors(torch.randn(4, 14), torch.zeros(20, 4), 1.0)
    alone = combine(way, factors, [1.0, -0.5])
    with_more = combine(way, [factors[0], zero, drawn([5], seed=9)[0], factors[1]], [1.0, 3.0, 0.0, -0.5])
    assert torch.equal(alone.factors.lora_A, with_more.factors.lora_A)
    assert torch.equal(alone.factors.lora_B, with_more.factors.lora_B)


@pytest.mark.parametrize("way", ["knots linear", "tsv_m", "core_space linear", "core_space tsv", "svd_orthogonal"])
def test_one_adapter_at_strength_one_is_itself(way: str) -> None:
    factors = drawn([4])
    found = combine(way, factors, [1.0])
    assert float((dense(found) - dense(factors[0])).norm()) <= TOLERANCE * found.norm
    assert found.factors.lora_A.shape[0] == 4


def test_one_adapter_alone_made_isotropic_has_one_singular_value() -> None:
    factors = drawn([4])
    for way in ("iso_c", "iso_cts"):
        values = torch.linalg.svdvals(dense(combine(way, factors, [1.0])))
        expected = torch.linalg.svdvals(dense(factors[0]))[:4].mean()
        torch.testing.assert_close(values[:4], expected.expand(4), rtol=1e-12, atol=0)
        assert float(values[4]) < 1e-12


@every_way
def test_the_order_of_the_inputs(way: str) -> None:
    """The same bits in any order, but for the method whose formula goes from one to the next."""
    factors, strengths = drawn([3, 1, 4]), [1.0, -0.5, 0.7]
    one = combine(way, factors, strengths, rank=5)
    other = combine(way, factors[::-1], strengths[::-1], rank=5)
    is_same = torch.equal(one.factors.lora_A, other.factors.lora_A)
    assert is_same is not way.startswith("svd_orthogonal")
    assert is_same is torch.equal(one.factors.lora_B, other.factors.lora_B)


@pytest.mark.parametrize("way", BY_DELTA)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), rank=st.integers(1, 5), power=st.integers(-12, 12))
def test_other_factors_of_the_same_update_give_the_same(way: str, seed: int, rank: int, power: int) -> None:
    """(B·R, R⁻¹·A) for R orthogonal times a power of 2, which rounds nothing, and a permutation with signs."""
    generator = torch.Generator().manual_seed(seed)
    factors = [replace(one, lora_A=one.lora_A.double(), lora_B=one.lora_B.double()) for one in drawn([rank, 3], seed=5)]
    R = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q * 2.0**power
    turned = replace(factors[0], lora_A=torch.linalg.solve(R, factors[0].lora_A), lora_B=factors[0].lora_B @ R)
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
    places = torch.tensor([2, 0, 1])
    mixed = Factors((factors[1].lora_A * signs)[places], -(factors[1].lora_B * signs.T)[:, places], -factors[1].scaling)
    require_equal(combine(way, factors, [1.0, 0.5]), combine(way, [turned, mixed], [1.0, 0.5]))


@every_way
def test_strengths_of_all_scale_the_whole(way: str) -> None:
    """So that one strength for all is the authors' scaling coefficient."""
    factors = drawn([3, 2])
    one, thrice = combine(way, factors, [1.0, 0.5]), combine(way, factors, [3.0, 1.5])
    assert float((3 * dense(one) - dense(thrice)).norm()) <= TOLERANCE * thrice.norm
    negative = combine(way, factors, [-1.0, -0.5])
    assert float((dense(one) + dense(negative)).norm()) <= TOLERANCE * one.norm


@pytest.mark.parametrize("way", ["tsv_m", "core_space tsv"])
def test_an_adapter_and_its_copy_are_the_adapter(way: str) -> None:
    """Directions that coincide are taken once, whatever factors say them; opposite ones cancel."""
    one = replace(drawn([3])[0], lora_A=drawn([3])[0].lora_A.double())
    copy = replace(one, lora_A=one.lora_A * 4, scaling=one.scaling / 4)
    found = combine(way, [one, copy], [1.0, 1.0])
    assert float((dense(found) - dense(one)).norm()) <= 1e-7 * found.norm
    assert found.factors.lora_A.shape[0] == 3
    assert combine(way, [one, copy], [1.0, -1.0]).norm <= 1e-7 * found.norm


CUTS: tuple[dict[str, Any], ...] = (
    {"rank": 1}, {"rank": 4}, {"rank": 99}, {"energy": 0.7}, {"energy": 1.0}, {"rank": 2, "energy": 0.99}
)  # fmt: skip


@every_way
def test_rank_and_energy(way: str) -> None:
    """Cut where asked, with the error that the factors have; energy by the smallest rank that holds it."""
    factors = drawn([3, 2, 2])
    whole = dense(combine(way, factors, [1.0, 0.8, -0.6], seed=3))
    values = torch.linalg.svdvals(whole)
    for context in CUTS:
        found = combine(way, factors, [1.0, 0.8, -0.6], seed=3, **context)
        kept = found.factors.lora_A.shape[0]
        assert kept <= min(context.get("rank", 7), 7)
        error = float((whole - dense(found)).norm())
        assert found.error == pytest.approx(error, rel=1e-9, abs=TOLERANCE * found.norm)
        assert error == pytest.approx(float(values[kept:].norm()), rel=1e-9, abs=TOLERANCE * found.norm)
        if "rank" not in context:
            share = values.square().cumsum(0) / values.square().sum()
            assert float(share[kept - 1]) >= context["energy"] - 1e-9
            assert kept == 1 or float(share[kept - 2]) < context["energy"]
        # Both factors have one norm, so that neither overflows a narrow type.
        assert float(found.factors.lora_A.norm()) == pytest.approx(float(found.factors.lora_B.norm()), rel=1e-9)


@every_way
def test_the_orientation_goes_along_and_changes_no_number(way: str) -> None:
    """Rows of lora_B are outputs in either storage, so that the formula is one."""
    factors = drawn([3, 2])
    plain = combine(way, factors, [1.0, 1.0])
    turned = combine(way, [replace(one, is_transposed=True) for one in factors], [1.0, 1.0])
    assert turned.factors.is_transposed
    assert not plain.factors.is_transposed
    assert torch.equal(plain.factors.lora_A, turned.factors.lora_A)


@every_way
def test_the_number_of_threads_does_not_show(way: str) -> None:
    factors = drawn([16, 8], (300, 200))
    first = combine(way, factors, [1.0, 0.5])
    with one_thread():
        alone = combine(way, factors, [1.0, 0.5])
    assert torch.equal(first.factors.lora_A, alone.factors.lora_A)
    assert torch.equal(first.factors.lora_B, alone.factors.lora_B)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_type_of_factors_is_taken_as_it_is(dtype: torch.dtype) -> None:
    factors = [replace(one, lora_A=one.lora_A.to(dtype), lora_B=one.lora_B.to(dtype)) for one in drawn([3, 2])]
    wide = [replace(one, lora_A=one.lora_A.double(), lora_B=one.lora_B.double()) for one in factors]
    for way in BY_DELTA:
        if not way.startswith("svd"):  # the order is by the bytes
            require_equal(combine(way, factors, [1.0, 0.5]), combine(way, wide, [1.0, 0.5]))


@every_way
def test_a_spectrum_of_many_orders_keeps_its_digits(way: str) -> None:
    """What comes out is finite and of the rank that there is, where singular values span twelve orders of magnitude."""
    scale = torch.logspace(0, -12, 4, dtype=torch.float64)
    factors = [replace(one, lora_A=one.lora_A.double() * scale[:, None]) for one in drawn([4, 4])]
    found = combine(way, factors, [1.0, 1.0])
    assert torch.isfinite(dense(found)).all()
    assert found.factors.lora_A.shape[0] <= 8
    assert math.isfinite(found.norm)


@every_way
def test_what_exceeds_float64_is_named(way: str) -> None:
    huge = Factors(torch.ones(1, 3).double() * 1e200, torch.ones(2, 1).double() * 1e200, 1.0)
    broken = Factors(torch.full((1, 3), np.nan), torch.ones(2, 1), 1.0)
    for one in (huge, broken):
        with pytest.raises(NumericalError, match=r"'layers\.0' hold NaN"):
            combine(way, [one], [1.0], module="layers.0")


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("tsv_m", {"fraction": 0.0}, "parameter fraction is 0, expected a share above 0"),
        ("tsv_m", {"fraction": "1.5"}, "parameter fraction is '1.5'"),
        ("iso_cts", {"common_space_fraction": -0.1}, "parameter common_space_fraction is '-0.1'"),
        ("knots", {"inner": "tsv"}, "expected one of linear, ties, dare_linear, dare_ties"),
        ("knots", {"density": 2}, "parameter density is"),
        ("core_space", {"isotropize": "perhaps"}, "parameter isotropize is"),
        ("svd_orthogonal", {"length": "max"}, "expected one of mean, sum"),
        ("iso_c", {"density": 0.5}, "no parameter 'density' here"),
    ],
)
def test_impossible_parameters_are_refused_by_name(name: str, given: dict[str, Any], told: str) -> None:
    method = METHODS[name]
    with pytest.raises(LoraLabError, match=told):
        method.combine(drawn([2]), [1.0], MergeContext(parse_parameters(method.parameters, given)))


def test_every_parameter_counts() -> None:
    """Another value of any of them gives another result."""
    other: dict[str, Any] = {
        "inner": "linear", "density": 0.2, "fraction": 0.4, "common_space_fraction": 0.3, "isotropize": True,
        "alpha": 0.9, "length": "sum",
    }  # fmt: skip
    for method in METHODS.values():
        usual = {parameter.id: parameter.default for parameter in method.parameters}
        first = dense(method.combine(drawn([3, 4]), [1.0, 0.5], MergeContext(usual)))
        for parameter in usual:
            second = method.combine(drawn([3, 4]), [1.0, 0.5], MergeContext(usual | {parameter: other[parameter]}))
            assert float((dense(second) - first).norm()) > 1e-3 * float(first.norm()), (method.id, parameter)
