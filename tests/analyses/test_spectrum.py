"""The spectrum's Report: its numbers, its columns, what it says and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lora_lab.analyses.plugin import lora_lab_analyses
from lora_lab.analyses.spectrum import Spectrum
from lora_lab.domain.adapter import Effect, Feature, SavedRole, SavedTensor
from lora_lab.domain.base import Base
from lora_lab.domain.report import ColumnKind, Finding
from lora_lab.errors import AdapterError, CancelledError, NumericalError
from lora_lab.extension.contracts import Analysis, AnalysisContext

PROMISED = [
    "module",
    "shape",
    "rank",
    "scaling",
    "singular_values",
    "frobenius_norm",
    "spectral_norm",
    "nuclear_norm",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "numerical_rank",
    "energy_effective_rank",
    "nuclear_norm_ratio",
    "energy_rank",
]


def test_it_is_offered_by_the_hook():
    offered = {analysis.id: analysis for analysis in lora_lab_analyses()}
    assert isinstance(offered["spectrum"], Analysis)


def test_rows_are_those_of_the_dense_product(analyse, factors):
    report = analyse(Spectrum(), factors)
    rows = report.table("modules").rows
    assert [row["module"] for row in rows] == list(factors)
    for row in rows:
        lora_A, lora_B = (factor.double().numpy() for factor in factors[row["module"]])
        expected = np.linalg.svd(2.0 * lora_B @ lora_A, compute_uv=False)[: row["rank"]]
        np.testing.assert_allclose(row["singular_values"], expected, rtol=0, atol=1e-10 * max(expected[0], 1e-300))
        assert row["shape"] == [lora_B.shape[0], lora_A.shape[1]]
        assert row["scaling"] == 2.0
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(2.0 * lora_B @ lora_A), rel=1e-12)


def test_rows_hold_what_the_contract_promises(analyse, factors):
    report = analyse(Spectrum(), factors)
    table = report.table("modules")
    assert [column.id for column in table.columns] == PROMISED
    assert all(list(row) == PROMISED for row in table.rows)
    assert all(set(row["energy_rank"]) == {"0.5", "0.9", "0.95", "0.99"} for row in table.rows)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["command"] == "spectrum"
    assert document["modules"][0]["singular_values"] == table.rows[0]["singular_values"]


def test_every_quantity_is_declared(analyse, factors):
    report = analyse(Spectrum(), factors)
    columns = [*report.table("modules").columns, *report.scalars[0].columns]
    assert all(column.title for column in columns)
    named = {ColumnKind.TEXT, ColumnKind.INTEGER, ColumnKind.SHAPE}
    assert all(column.formula for column in columns if column.kind not in named)
    curve = next(column for column in columns if column.id == "singular_values")
    assert (curve.kind, curve.is_logarithmic, curve.index_title) == (ColumnKind.CURVE, True, "k")
    assert set(report.scalars[0].values) == {column.id for column in report.scalars[0].columns}


def test_a_zero_update_has_no_ratios_and_a_finding(analyse, factors):
    report = analyse(Spectrum(), factors)
    zero = report.table("modules").rows[-1]
    assert zero["singular_values"] == [0.0] * 8
    assert (zero["stable_rank"], zero["effective_rank"], zero["numerical_rank"]) == (None, None, 0)
    (finding,) = report.findings
    assert (finding.code, finding.module) == ("zero_delta", "model.layers.1.up")


def test_totals(analyse, factors):
    report = analyse(Spectrum(), factors)
    rows = report.table("modules").rows
    totals = report.to_json()["totals"]
    norms = {row["module"]: row["frobenius_norm"] for row in rows}
    assert totals["modules"] == 6
    assert totals["zero_modules"] == 1
    assert totals["parameters"] == sum(A.numel() + B.numel() for A, B in factors.values())
    assert totals["frobenius_norm"] == pytest.approx(math.sqrt(sum(norm**2 for norm in norms.values())))
    assert totals["largest_module"] == max(norms, key=norms.get)
    assert totals["largest_norm"] == max(norms.values())
    assert totals["mean_effective_rank"] == pytest.approx(np.mean([row["effective_rank"] for row in rows[:-1]]))


def test_layers_add_up(analyse, factors):
    factors["model.layers.10.q_proj"] = factors["lm_head"] = factors["model.layers.0.q_proj"]
    report = analyse(Spectrum(), factors)
    norms = {row["module"]: row["frobenius_norm"] for row in report.table("modules").rows}
    layers = report.table("layers").rows
    assert [(row["layer"], row["modules"]) for row in layers] == [(0, 3), (1, 3), (10, 1), ("–", 1)]
    assert layers[0]["frobenius_norm"] == pytest.approx(
        math.sqrt(sum(norm**2 for module, norm in norms.items() if ".0." in module))
    )
    assert layers[-1]["frobenius_norm"] == norms["lm_head"]
    assert math.hypot(*(row["frobenius_norm"] for row in layers)) == pytest.approx(
        report.to_json()["totals"]["frobenius_norm"]
    )


def test_what_the_adapter_says_of_itself_is_said_once(analyse, factors):
    del factors["model.layers.1.up"]
    said = Finding("zero_alpha", "Alpha is 0.")
    report = analyse(Spectrum(), factors, fields={"findings": (said, said)})
    assert report.findings == (said,)


def test_modules_are_chosen_before_they_are_read(make_adapter, factors):
    adapter, reader = make_adapter(factors)
    report = Spectrum().run(AnalysisContext(subjects=(adapter,), reader=reader, modules=("*.0.*", "v_proj")))
    chosen = [module for module in factors if ".0." in module or module.endswith("v_proj")]
    assert [row["module"] for row in report.table("modules").rows] == chosen
    assert reader.asked == chosen
    assert report.to_json()["totals"]["modules"] == len(chosen)


def test_no_module_that_matches_is_an_error(analyse, factors):
    with pytest.raises(AdapterError, match="No module of 'mine' matches 'nothing'"):
        analyse(Spectrum(), factors, modules=("nothing",))


def test_an_adapter_without_modules_has_an_empty_spectrum(analyse):
    report = analyse(Spectrum(), {})
    assert report.table("modules").rows == ()
    assert report.to_json()["totals"]["largest_module"] is None
    assert report.to_json()["totals"]["frobenius_norm"] == 0.0


def test_the_observer_sees_every_row_in_order(analyse, factors, watcher):
    observer = watcher()
    report = analyse(Spectrum(), factors, observer=observer)
    assert observer.told == list(report.table("modules").rows)
    assert observer.steps[-1] == (6, 6, "model.layers.1.up")
    assert [step[0] for step in observer.steps] == sorted(step[0] for step in observer.steps)


def test_cancelling_stops_reading(make_adapter, factors, watcher):
    many = {f"m.{index}.{name}": pair for index in range(200) for name, pair in factors.items()}
    adapter, reader = make_adapter(many)
    observer = watcher(cancel_after=1)
    with pytest.raises(CancelledError):
        Spectrum().run(AnalysisContext(subjects=(adapter,), reader=reader, observer=observer))
    assert len(reader.asked) < len(many)


@pytest.mark.parametrize("bad", [["q_proj"], ["v_proj"], ["q_proj", "v_proj"]])
def test_factors_that_are_not_finite_are_undefined_and_the_others_are_not(analyse, factors, bad):
    """A row of nulls and a finding for each; totals and layers are of what is left."""
    whole = analyse(Spectrum(), factors)
    broken = {name: pair for name, pair in factors.items() if name.rpartition(".")[2] in bad and ".0." in name}
    assert broken
    for lora_A, _ in broken.values():
        lora_A[1, 2] = float("nan")
    report = analyse(Spectrum(), factors)
    rows, before = report.table("modules").rows, whole.table("modules").rows
    for row, expected in zip(rows, before, strict=True):
        if row["module"] in broken:
            kept = ("module", "shape", "rank", "scaling")
            assert row == {name: expected[name] if name in kept else None for name in expected}
        else:
            assert row == expected
    assert [finding.module for finding in report.findings if finding.code == "not_finite"] == list(broken)
    totals = report.to_json()["totals"]
    assert (totals["modules"], totals["not_finite_modules"], totals["zero_modules"]) == (len(rows), len(broken), 1)
    left = [row["frobenius_norm"] for row in before if row["module"] not in broken]
    assert totals["frobenius_norm"] == pytest.approx(math.hypot(*left), rel=1e-14)
    first = next(layer for layer in report.table("layers").rows if layer["layer"] == 0)
    in_first = [row["frobenius_norm"] for row in before if ".0." in row["module"] and row["module"] not in broken]
    assert first["frobenius_norm"] == (pytest.approx(math.hypot(*in_first), rel=1e-14) if in_first else None)
    json.dumps(report.to_json(), allow_nan=False)


def test_where_no_factor_is_finite_nothing_is_computed(analyse, factors):
    """Which is no result, but an error that names the first."""
    for _, lora_B in factors.values():
        lora_B[0, 0] = float("inf")
    with pytest.raises(NumericalError, match=next(iter(factors)).replace(".", r"\.")):
        analyse(Spectrum(), factors)


def feature(identity: str, effect: Effect) -> Feature:
    return Feature(identity, identity.upper(), effect, "A detail of it.")


def test_what_is_refused_is_named(analyse, factors):
    with pytest.raises(AdapterError, match=r"'mine' cannot be computed from its files: LOFTQ: A detail of it\."):
        analyse(Spectrum(), factors, fields={"features": (feature("loftq", Effect.REFUSED),)})


def test_what_is_outside_is_said(analyse, factors):
    saved_ref = make_saved()
    features = (feature("dora", Effect.OUTSIDE), feature("pissa", Effect.OUTSIDE), feature("rslora", Effect.HONOURED))
    report = analyse(
        Spectrum(), factors, modules=("q_proj",), fields={"features": features, "saved": (saved_ref, saved_ref)}
    )
    said = {finding.code: finding.message for finding in report.findings}
    assert list(said) == ["dora", "pissa", "modules_to_save"]
    assert "magnitudes change the whole weight and need the base" in said["dora"]
    assert said["pissa"] == "PISSA: A detail of it."
    assert said["modules_to_save"].startswith("2 saved tensors of role modules_to_save")


def make_saved() -> SavedTensor:
    from lora_lab.domain.dtypes import DType
    from lora_lab.domain.tensors import FileStamp, TensorRef

    stamp = FileStamp("/nowhere/x", 10, 0, 1, 1)
    return SavedTensor("classifier", SavedRole.MODULES_TO_SAVE, TensorRef(stamp, "w", DType.F32, (2,), 0, 8))


def test_a_device_without_float64_is_said(analyse, factors):
    report = analyse(Spectrum(), factors, device="mps", modules=("q_proj",))
    assert [finding.code for finding in report.findings] == ["no_float64"]


def test_a_checkpoint_is_refused(make_adapter, factors):
    _, reader = make_adapter(factors)
    base = Base("llama", "llama", "/nowhere", {}, ())
    with pytest.raises(AdapterError, match="'llama' is a full checkpoint, expected an adapter"):
        Spectrum().run(AnalysisContext(subjects=(base,), reader=reader))


def test_the_numerical_rank_follows_the_stored_type(analyse):
    """A direction of relative size 1e-4 counts in float32 and is round-off in bfloat16."""
    lora_A = torch.eye(2, 16)
    lora_B = torch.eye(16, 2) * torch.tensor([1.0, 2.0**-13])
    ranks = [
        analyse(Spectrum(), {"m": (lora_A.to(dtype), lora_B.to(dtype))}).table("modules").rows[0]["numerical_rank"]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert ranks == [2, 1]
