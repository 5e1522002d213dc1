"""The Report: random factors hold no surprise, planted directions are found, noise is told from learning."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lora_lab_rmt import full
from lora_lab_rmt.analysis import RandomMatrixView
from lora_lab_rmt.plugin import lora_lab_analyses

from lora_lab.domain.adapter import Effect, Feature
from lora_lab.domain.report import ColumnKind
from lora_lab.errors import AdapterError, CompatibilityError, NumericalError
from lora_lab.extension.contracts import Analysis, AnalysisContext

if TYPE_CHECKING:
    from collections.abc import Callable


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    """Seeded standard Gaussian entries."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of(report: Any) -> list[dict[str, Any]]:
    """Rows of the only table."""
    json.dumps(report.to_json(), allow_nan=False)
    return list(report.table("modules").rows)


def test_it_is_offered_by_the_hook() -> None:
    (offered,) = lora_lab_analyses()
    assert isinstance(offered, Analysis)
    assert (offered.id, offered.takes_models) == ("rmt", True)


def test_offering_it_loads_nothing_heavy() -> None:
    code = "import sys, lora_lab_rmt.plugin as p; p.lora_lab_analyses(); print(*sys.modules)"
    here = Path(__file__).resolve()
    path = f"{here.parents[1]}:{here.parents[3]}"
    shown = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "scipy"} & set(shown.stdout.split())


def test_random_factors_hold_no_surprise(make_adapter: Callable[..., Any]) -> None:
    """Of 60 random modules about one in a hundred has a direction beyond the 99 % quantile."""
    factors = {f"m.{i}": (0.3 * gaussian(8, 90, seed=i), 5 * gaussian(70, 8, seed=1000 + i)) for i in range(60)}
    adapter, reader = make_adapter(factors, scaling=2.0)
    report = RandomMatrixView().run(AnalysisContext((adapter,), reader))
    rows = rows_of(report)
    assert sum(row["learnt"] > 0 for row in rows) <= 4
    mean = np.mean([row["singular_values"] for row in rows], axis=0)
    np.testing.assert_allclose(rows[0]["random_expected"], mean, rtol=0.1)
    assert report.findings[0].code == "no_noise_level"
    assert "ill-posed" in report.findings[0].message


def test_a_planted_direction_is_found(make_adapter: Callable[..., Any]) -> None:
    lora_A, lora_B = gaussian(8, 90, seed=1), gaussian(70, 8, seed=2)
    lora_B[:, 0] += 6 * lora_B[:, 1] + 6 * lora_B[:, 2]
    adapter, reader = make_adapter({"m": (lora_A, lora_B)})
    (row,) = rows_of(RandomMatrixView().run(AnalysisContext((adapter,), reader)))
    assert row["learnt"] == 1
    assert row["exceeding"] == ["1"]
    assert row["edge"] == row["random_upper"][0]
    sigma, chance = row["singular_values"], row["random_expected"]
    by_hand = (sigma[0] ** 2 - chance[0] ** 2) / sum(value**2 for value in sigma)
    assert row["excess_energy"] == pytest.approx(by_hand, rel=1e-12)


def test_the_random_factors_have_the_norms_of_the_real_ones(make_adapter: Callable[..., Any]) -> None:
    """Mean energy of random factors is s²‖B‖²‖A‖²/r; multiplying B and dividing A changes nothing."""
    lora_A, lora_B = gaussian(16, 200, seed=3) * 0.1, gaussian(300, 16, seed=4)
    energy = 4.0 * float(lora_A.double().norm() ** 2 * lora_B.double().norm() ** 2) / 16
    found = []
    for factor in (1.0, 2.0**20):
        adapter, reader = make_adapter({"m": (lora_A / factor, lora_B * factor)}, scaling=-2.0)
        (row,) = rows_of(RandomMatrixView().run(AnalysisContext((adapter,), reader)))
        found.append(row)
    assert math.fsum(value**2 for value in found[0]["random_expected"]) == pytest.approx(energy, rel=0.01)
    assert found[0] == found[1]


def test_a_zero_update_has_nothing_to_compare(make_adapter: Callable[..., Any]) -> None:
    adapter, reader = make_adapter({"m": (gaussian(4, 20, seed=1), torch.zeros(30, 4))})
    report = RandomMatrixView().run(AnalysisContext((adapter,), reader))
    (row,) = rows_of(report)
    assert (row["learnt"], row["excess_energy"], row["edge"]) == (0, None, 0.0)
    assert [finding.code for finding in report.findings] == ["no_noise_level", "zero_delta"]


def test_the_seed_decides(make_adapter: Callable[..., Any]) -> None:
    adapter, reader = make_adapter({"m": (gaussian(4, 20, seed=1), gaussian(30, 4, seed=2))})
    edges = [rows_of(RandomMatrixView().run(AnalysisContext((adapter,), reader, seed=s)))[0]["edge"] for s in (0, 0, 1)]
    assert edges[0] == edges[1] != edges[2]


def test_refused_features_and_unknown_modules_are_errors(make_adapter: Callable[..., Any]) -> None:
    adapter, reader = make_adapter({"m": (gaussian(4, 20, seed=1), gaussian(30, 4, seed=2))})
    with pytest.raises(AdapterError, match="matches 'x'"):
        RandomMatrixView().run(AnalysisContext((adapter,), reader, modules=("x",)))
    refused = replace(adapter, features=(Feature("loftq", "LoftQ", Effect.REFUSED),))
    with pytest.raises(AdapterError, match="LoftQ"):
        RandomMatrixView().run(AnalysisContext((refused,), reader))


def test_a_full_update_of_noise_and_two_directions(make_models: Callable[..., Any]) -> None:
    base = gaussian(120, 80, seed=1).double()
    noise = 0.01 * gaussian(120, 80, seed=2).double()
    learnt = 2.0 * torch.eye(120, 2, dtype=torch.float64) @ torch.eye(2, 80, dtype=torch.float64)
    models = make_models({"q.weight": base + noise + learnt}, {"q.weight": base})
    report = RandomMatrixView().run(AnalysisContext((models[0],), models[2], base=models[1]))
    (row,) = rows_of(report)
    expected = np.linalg.svd((noise + learnt).numpy(), compute_uv=False)
    np.testing.assert_allclose(row["singular_values"], expected, rtol=0, atol=1e-10 * expected[0])
    assert (row["module"], row["learnt"]) == ("q", 2)
    assert row["noise"] == pytest.approx(0.01, rel=0.03)
    assert row["edge"] == pytest.approx(row["noise"] * (math.sqrt(120) + math.sqrt(80)), rel=1e-12)
    assert row["above_edge"] >= 2
    assert 0.5 < row["excess_energy"] < 1
    markers = [column.id for column in report.table("modules").columns if column.is_marker]
    assert markers == ["edge", "threshold"]


def test_what_two_checkpoints_do_not_share_is_said(make_models: Callable[..., Any]) -> None:
    matrix = gaussian(12, 8, seed=1)
    tuned = {"a.weight": matrix + 1, "b.weight": matrix, "c.weight": matrix, "norm.weight": matrix[0]}
    models = make_models(tuned, {"a.weight": matrix, "b.weight": matrix.T, "d.weight": matrix})
    report = RandomMatrixView().run(AnalysisContext((models[0],), models[2], base=models[1]))
    assert [row["module"] for row in rows_of(report)] == ["a"]
    said = {(finding.code, finding.module) for finding in report.findings}
    assert said >= {("shape_mismatch", "b.weight"), ("only_in_model", "c.weight"), ("only_in_base", "d.weight")}


def test_an_update_of_low_rank_has_no_noise_level(make_models: Callable[..., Any]) -> None:
    base = torch.zeros(30, 20, dtype=torch.float64)
    models = make_models({"q.weight": torch.ones(30, 20, dtype=torch.float64)}, {"q.weight": base})
    report = RandomMatrixView().run(AnalysisContext((models[0],), models[2], base=models[1]))
    (row,) = rows_of(report)
    assert (row["learnt"], row["edge"], row["noise"]) == (None, None, None)
    assert [finding.code for finding in report.findings] == ["no_noise_level"]


def test_a_checkpoint_needs_its_base(make_models: Callable[..., Any]) -> None:
    tuned, base, reader = make_models({"q.weight": gaussian(4, 4, seed=1)}, {"k.weight": gaussian(4, 4, seed=1)})
    with pytest.raises(CompatibilityError, match="needs the base") as caught:
        RandomMatrixView().run(AnalysisContext((tuned,), reader))
    assert caught.value.hint == "Add --base BASE."
    with pytest.raises(CompatibilityError, match="share no matrix"):
        RandomMatrixView().run(AnalysisContext((tuned,), reader, base=base))


@pytest.mark.parametrize("shape", [(70, 40), (40, 70)])
def test_the_gram_of_the_smaller_side_is_as_accurate_as_it_says(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    tuned, original = gaussian(*shape, seed=1), gaussian(*shape, seed=2)
    monkeypatch.setattr(full, "SVD_ELEMENTS", 0)
    monkeypatch.setattr(full, "_BLOCK_ELEMENTS", 400)
    found = np.array(full.difference_spectrum(tuned, original, "q", device="cpu"))
    expected = np.linalg.svd((tuned.double() - original.double()).numpy(), compute_uv=False)
    bound = 40 * np.finfo(float).eps * expected[0] ** 2 / (2 * expected)
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("elements", [0, full.SVD_ELEMENTS])
def test_weights_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(full, "SVD_ELEMENTS", elements)
    broken = torch.full((6, 5), float("nan"))
    with pytest.raises(NumericalError, match=r"'layers\.0' hold NaN"):
        full.difference_spectrum(broken, torch.zeros(6, 5), "layers.0", device="cpu")


def test_every_quantity_is_declared(make_adapter: Callable[..., Any], make_models: Callable[..., Any]) -> None:
    adapter, reader = make_adapter({"m": (gaussian(4, 20, seed=1), gaussian(30, 4, seed=2))})
    models = make_models({"q.weight": gaussian(9, 8, seed=1)}, {"q.weight": gaussian(9, 8, seed=2)})
    reports = [
        RandomMatrixView().run(AnalysisContext((adapter,), reader)),
        RandomMatrixView().run(AnalysisContext((models[0],), models[2], base=models[1])),
    ]
    for report in reports:
        (table,) = report.tables
        assert set(table.rows[0]) == {column.id for column in table.columns}
        assert all(column.formula for column in table.columns if column.kind in (ColumnKind.NUMBER, ColumnKind.CURVE))
        assert report.parameters == {"draws": 200, "quantile": 0.99, "seed": 0}
