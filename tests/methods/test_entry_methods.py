"""Methods on entries as they are declared: every parameter reaches the arithmetic, and the result is the dense one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lora_lab.errors import CompatibilityError, LoraLabError
from lora_lab.extension.checking import faults
from lora_lab.extension.contracts import Combination, Factors, MergeContext, MergeMethod
from lora_lab.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from lora_lab.methods.dare import DareLinear, DareTies
from lora_lab.methods.della import Della, DellaLinear
from lora_lab.methods.magnitude_prune import MagnitudePrune
from lora_lab.methods.slerp import MultiSlerp, Slerp
from lora_lab.methods.ties import Ties

ENTRIES = (Ties(), DareLinear(), DareTies(), Della(), DellaLinear(), Breadcrumbs(), BreadcrumbsTies(), MagnitudePrune())
ALL = (*ENTRIES, Slerp(), MultiSlerp())
STRENGTHS = [1.0, 0.5]


def factors(*, is_transposed: bool = False) -> list[Factors]:
    generator = torch.Generator().manual_seed(4)
    return [
        Factors(
            torch.randn(rank, 40, generator=generator), torch.randn(50, rank, generator=generator), 0.5, is_transposed
        )
        for rank in (3, 5)
    ]


def dense(one: Factors | Combination) -> np.ndarray:
    if isinstance(one, Combination):
        one = one.factors
    return one.scaling * (one.lora_B.double() @ one.lora_A.double()).numpy()


def settings(method: MergeMethod, *, rank: int | None = None, seed: int = 0, **chosen: Any) -> MergeContext:
    return MergeContext({parameter.id: parameter.default for parameter in method.parameters} | chosen, rank, seed=seed)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.id)
def test_declarations(method: MergeMethod) -> None:
    """Each keeps the contract, and its defaults are values that it takes."""
    assert list(faults(method, MergeMethod)) == []
    for parameter in method.parameters:
        assert parameter.default is None or parameter.check(parameter.default) == parameter.default
    assert type(method).__doc__


@pytest.mark.parametrize("method", ENTRIES, ids=lambda method: method.id)
def test_every_parameter_counts(method: MergeMethod) -> None:
    """Another value of any of them, and of the seed where there is chance, gives another result."""
    usual = dense(method.combine(factors(), STRENGTHS, settings(method, rank=40)))
    other: dict[str, Any] = {"density": 0.3, "gamma": 0.2, "epsilon": 0.3, "election": "after", "space": "core"}
    for parameter in method.parameters:
        if parameter.id == "majority":  # two updates that differ in sign are a draw for the one, not for the other
            value: Any = "frequency"
        else:
            value = other[parameter.id]
        changed = method.combine(factors(), STRENGTHS, settings(method, rank=40, **{parameter.id: value}))
        assert np.abs(dense(changed) - usual).max() > 1e-3, parameter.id
    seeded = dense(method.combine(factors(), STRENGTHS, settings(method, rank=40, seed=1)))
    is_drawn = method.id.startswith(("dare", "della"))
    assert bool(np.abs(seeded - usual).max() > 1e-3) is is_drawn


def test_ties_and_pruning_are_what_they_say() -> None:
    """Against the dense arithmetic, written down once more."""
    parts = [dense(one) for one in factors()]
    count = int(0.5 * 2000)
    kept = [np.where(np.abs(part) >= np.sort(np.abs(part).ravel())[-count], part, 0) for part in parts]
    pruned = MagnitudePrune().combine(factors(), STRENGTHS, MergeContext({"density": 0.5}, rank=40))
    np.testing.assert_allclose(dense(pruned), kept[0] + 0.5 * kept[1], atol=1e-5)
    stack = np.stack(kept)
    sign = np.where(stack.sum(axis=0) >= 0, 1, -1)
    agrees = np.sign(stack) == sign
    weighted = stack * np.array(STRENGTHS).reshape(2, 1, 1)
    mean = (weighted * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
    found = Ties().combine(factors(), STRENGTHS, settings(Ties(), rank=40))
    np.testing.assert_allclose(dense(found), mean, atol=1e-5)
    assert found.factors.scaling == 1.0


def test_the_orientation_goes_along() -> None:
    """As the inputs have it; two that differ are refused."""
    for method in ALL:
        assert method.combine(factors(is_transposed=True), STRENGTHS, settings(method, rank=4)).factors.is_transposed
    mixed = [factors()[0], factors(is_transposed=True)[1]]
    for method in ALL:
        with pytest.raises(CompatibilityError, match="expected one way"):
            method.combine(mixed, STRENGTHS, settings(method, rank=4))


def test_slerp_goes_by_its_parameter_or_by_the_strengths() -> None:
    """t is the second's share; the ends are the adapters themselves, to rounding."""
    a, b = (dense(one) for one in factors())
    np.testing.assert_allclose(dense(Slerp().combine(factors(), [1.0, 1.0], MergeContext({"t": 0.0}))), a, atol=1e-12)
    np.testing.assert_allclose(dense(Slerp().combine(factors(), [0.0, 2.0], MergeContext())), b, atol=1e-12)
    halves = [
        dense(Slerp().combine(factors(), weights, MergeContext(chosen)))
        for weights, chosen in (([2, 2], {}), ([1, 9], {"t": 0.5}))
    ]
    np.testing.assert_allclose(halves[0], halves[1], atol=1e-12)
    for strengths in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(LoraLabError, match="not both zero"):
            Slerp().combine(factors(), strengths, MergeContext())
    lengths = [np.linalg.norm(part) for part in (a, b)]
    found = dense(MultiSlerp().combine(factors(), [3.0, 1.0], MergeContext()))
    assert np.linalg.norm(found) == pytest.approx(0.75 * lengths[0] + 0.25 * lengths[1], rel=1e-9)
