"""Health's Report: what each code means on factors made for it, the suggested ranks, and what survives bad factors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import factors as written
from builders import write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_lab import Session
from lora_lab.analyses.health import Health
from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.report import ColumnKind
from lora_lab.errors import AdapterError, CancelledError, NumericalError
from lora_lab.extension.contracts import AnalysisContext


def made(sigma: list[float], *, seed: int = 0, rows: int = 24, columns: int = 32):
    """Factors of a module whose ΔW, at scaling 2, has these singular values."""
    generator = torch.Generator().manual_seed(seed)
    rank = len(sigma)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64)).Q
    return right.T.contiguous(), left * (torch.tensor(sigma, dtype=torch.float64) / 2.0)


def codes(report) -> list[list[str]]:
    return [row["findings"] for row in report.table("modules").rows]


def values(report):
    return report.to_json()["totals"]


@pytest.mark.parametrize(
    ("sigma", "expected", "suggested"),
    [
        ([1.0] * 8, [], 8),
        ([0.0] * 8, ["dead"], 0),
        ([1.0, 0.3] + [0.1] * 6, [], 7),  # σ₁² is 0.87 of the energy
        ([1.0, 0.1] + [0.05] * 6, ["near_rank_one", "over_parametrised"], 4),
        ([1.0] * 4 + [0.01] * 4, ["over_parametrised"], 4),
        ([1.0] * 5 + [0.01] * 3, [], 5),
        ([1.0] * 5 + [0.0] * 3, ["unused_directions"], 5),
    ],
)
def test_codes_and_suggested_ranks(analyse, sigma, expected, suggested):
    report = analyse(Health(), {"m.0.q": made(sigma)})
    (row,) = report.table("modules").rows
    assert row["findings"] == expected
    assert row["suggested_rank"] == suggested
    energy = np.array(sigma) ** 2
    if energy.any():
        assert row["relative_error"] == pytest.approx(math.sqrt(energy[suggested:].sum() / energy.sum()), abs=1e-12)
    assert [finding.code for finding in report.findings] == expected
    assert all(finding.module == "m.0.q" for finding in report.findings)


def test_a_dead_module_has_no_error(analyse):
    (row,) = analyse(Health(), {"m.0.q": made([0.0] * 8)}).table("modules").rows
    assert (row["relative_error"], row["stable_rank"], row["frobenius_norm"]) == (None, None, 0.0)


def test_one_direction_is_not_near_rank_one(analyse):
    assert codes(analyse(Health(), {"m.0.q": made([1.0])})) == [[]]


# The fixture holds nothing between examples.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8), st.floats(0.01, 0.9))
def test_the_suggested_rank_reaches_the_error_and_no_lower_one_does(analyse, sigma, error):
    lora_A, lora_B = made(sorted(sigma, reverse=True))
    dense = 2.0 * (lora_B @ lora_A).numpy()
    report = analyse(Health(), {"m.0.q": (lora_A, lora_B)}, parameters={"error": error})
    (row,) = report.table("modules").rows
    U, S, Vh = np.linalg.svd(dense)

    def left(rank):
        return np.linalg.norm(dense - (U[:, :rank] * S[:rank]) @ Vh[:rank]) / np.linalg.norm(dense)

    rank = row["suggested_rank"]
    assert left(rank) == pytest.approx(row["relative_error"], abs=1e-9)
    assert left(rank) <= error + 1e-9
    assert rank == 1 or left(rank - 1) > error - 1e-9


def test_totals_are_those_of_the_rows(analyse):
    factors = {
        "m.0.q": made([1.0] * 8),
        "m.0.v": made([1.0, 0.01, 0.01, 0.01], rows=10, columns=12),
        "m.1.q": made([0.0] * 8),
    }
    report = analyse(Health(), factors)
    totals = values(report)
    assert (totals["modules"], totals["dead"], totals["near_rank_one"], totals["over_parametrised"]) == (3, 1, 1, 1)
    assert totals["parameters"] == 2 * 8 * 56 + 4 * 22
    assert totals["suggested_parameters"] == 8 * 56 + 1 * 22
    assert totals["saved_share"] == pytest.approx(1 - (8 * 56 + 22) / (2 * 8 * 56 + 4 * 22))
    assert totals["largest_suggested_rank"] == 8
    whole = 8.0 + 1.0 + 3e-4
    assert totals["relative_error"] == pytest.approx(math.sqrt(3e-4 / whole), rel=1e-9)


def test_the_uniform_rank_holds_the_error_over_all_modules(analyse):
    spectra = [[4.0, 2.0, 0.5, 0.1], [3.0, 1.0], [1.0, 1.0, 1.0]]
    report = analyse(Health(), {f"m.{place}.q": made(sigma) for place, sigma in enumerate(spectra)})
    totals = values(report)
    whole = sum(value**2 for sigma in spectra for value in sigma)

    def left(rank):
        return math.sqrt(sum(value**2 for sigma in spectra for value in sigma[rank:]) / whole)

    expected = next(rank for rank in range(1, 5) if left(rank) <= 0.1)
    assert totals["uniform_rank"] == expected
    assert totals["uniform_rank_error"] == pytest.approx(left(expected), rel=1e-9)


def test_an_outlying_norm_is_found_among_its_like(analyse):
    factors = {f"m.{layer}.q": made([1.0 + 0.01 * layer] * 4, seed=layer) for layer in range(8)}
    factors["m.3.q"] = made([5.0] * 4)
    factors["m.0.v"] = made([50.0] * 4)  # one layer alone has nothing to be compared with
    report = analyse(Health(), factors)
    outlying = [row["module"] for row in report.table("modules").rows if "outlier_norm" in row["findings"]]
    assert outlying == ["m.3.q"]
    rows = {row["module"]: row for row in report.table("modules").rows}
    logarithms = [math.log(rows[f"m.{layer}.q"]["frobenius_norm"]) for layer in range(8)]
    middle = np.median(logarithms)
    spread = max(1.4826 * np.median(np.abs(logarithms - middle)), 0.1)
    assert rows["m.3.q"]["norm_z_score"] == pytest.approx((logarithms[3] - middle) / spread)
    assert rows["m.0.v"]["norm_z_score"] is None


def test_layers_that_agree_closely_are_no_outliers_of_each_other(analyse):
    factors = {f"m.{layer}.q": made([1.0] * 4, seed=layer) for layer in range(8)}
    factors["m.3.q"] = made([1.2] * 4)
    assert not values(analyse(Health(), factors))["outlier_norm"]


@pytest.mark.parametrize("bad", [["m.0.q"], ["m.7.q"], ["m.2.q", "m.3.q", "m.5.q"]])
def test_factors_that_are_not_finite_are_a_finding_of_their_module(make_adapter, bad):
    factors = {f"m.{layer}.q": made([1.0] * 4, seed=layer) for layer in range(8)}
    adapter, reader = make_adapter(factors)
    held = reader.factors

    def factors_or_refusal(delta):
        if delta.module in bad:
            raise NumericalError(f"The factor of '{delta.module}' holds 1 value that is NaN.")
        return held(delta)

    reader.factors = factors_or_refusal
    report = Health().run(AnalysisContext(subjects=(adapter,), reader=reader))
    rows = report.table("modules").rows
    assert [row["module"] for row in rows] == list(factors)
    assert [row["module"] for row in rows if row["findings"] == ["not_finite"]] == bad
    assert all((row["frobenius_norm"] is None) == (row["module"] in bad) for row in rows)
    (finding,) = [finding for finding in report.findings if finding.code == "not_finite"]
    assert finding.message.startswith(f"The factor of '{bad[0]}'")
    assert finding.module == (bad[0] if len(bad) == 1 else None)
    totals = values(report)
    assert totals["not_finite"] == len(bad)
    assert totals["suggested_parameters"] == totals["parameters"]


def test_a_file_with_nan_is_read_to_its_end(tmp_path):
    tensors = written(rank=4)
    tensors["base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"][0, 0] = float("nan")
    place = write_adapter(tmp_path / "mine", tensors)
    report = Session(device="cpu", cache=False).analyze("health", [str(place)])
    found = {row["module"]: row["findings"] for row in report.table("modules").rows}
    assert found == {
        "model.layers.2.self_attn.q_proj": [],
        "model.layers.2.self_attn.v_proj": ["not_finite"],
        "model.layers.10.self_attn.q_proj": [],
    }
    (finding,) = report.findings
    assert "holds 1 value that is NaN" in finding.message
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["totals"]["not_finite"] == 1


def test_a_product_beyond_float64_is_a_finding_too(analyse):
    factors = {f"m.{layer}.q": made([1.0] * 4, seed=layer) for layer in range(4)}
    factors["m.1.q"] = (factors["m.1.q"][0] * 1e200, factors["m.1.q"][1] * 1e200)
    report = analyse(Health(), factors)
    assert [row["findings"] == ["not_finite"] for row in report.table("modules").rows] == [False, True, False, False]


def test_hundreds_of_modules_are_one_finding(analyse):
    report = analyse(Health(), {f"m.{layer}.q": made([0.0] * 2, rows=3, columns=3) for layer in range(200)})
    (finding,) = report.findings
    assert finding.code == "dead"
    assert finding.message.startswith("In 200 modules ΔW is zero")
    assert finding.message.endswith("'m.0.q', 'm.1.q', 'm.2.q' and 197 more.")
    assert values(report)["saved_share"] == 1.0
    assert values(report)["uniform_rank"] is None


def test_parameters_have_defaults_and_ranges():
    defaults = parse_parameters(Health().parameters, {})
    assert defaults == {"error": 0.1, "over_share": 0.5, "rank_one_share": 0.9, "outlier": 3.5}


def test_a_parameter_changes_what_is_found(analyse):
    factors = {"m.0.q": made([1.0, 0.5, 0.25, 0.125])}
    assert codes(analyse(Health(), factors)) == [[]]
    loose = {"error": 0.5, "over_share": 0.5, "rank_one_share": 0.7, "outlier": 3.5}
    assert codes(analyse(Health(), factors, parameters=loose)) == [["near_rank_one", "over_parametrised"]]


def test_rows_hold_what_is_declared(analyse, factors):
    report = analyse(Health(), factors)
    table = report.table("modules")
    promised = {"module", "shape", "rank", "frobenius_norm", "numerical_rank", "stable_rank", "effective_rank"}
    promised |= {"findings", "suggested_rank", "relative_error"}
    assert promised <= {column.id for column in table.columns}
    assert all(list(row) == [column.id for column in table.columns] for row in table.rows)
    assert set(values(report)) == {column.id for column in report.scalars[0].columns}
    said = {ColumnKind.TEXT, ColumnKind.SHAPE}
    columns = [*table.columns, *report.scalars[0].columns]
    assert all(column.formula for column in columns if column.kind not in said and column.id != "modules")


def test_modules_are_chosen(analyse, factors):
    report = analyse(Health(), factors, modules=("v_proj",))
    assert [row["module"] for row in report.table("modules").rows] == [name for name in factors if "v_proj" in name]
    with pytest.raises(AdapterError, match="No module"):
        analyse(Health(), factors, modules=("nothing",))


def test_an_adapter_without_modules_is_healthy(analyse):
    report = analyse(Health(), {})
    assert report.table("modules").rows == ()
    assert values(report)["saved_share"] is None


def test_it_can_be_watched_and_cancelled(make_adapter, factors, watcher):
    adapter, reader = make_adapter(
        {f"m.{layer}.{name}": pair for layer in range(100) for name, pair in factors.items()}
    )
    with pytest.raises(CancelledError):
        Health().run(AnalysisContext(subjects=(adapter,), reader=reader, observer=watcher(cancel_after=1)))
    assert len(reader.asked) < len(adapter.deltas)
