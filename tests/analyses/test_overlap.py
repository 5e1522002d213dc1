"""The overlap's Report of adapters in files: its numbers, its columns, what it says and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import MODULES, factors, write_adapter, write_base

from lora_lab.analyses.overlap import Overlap
from lora_lab.analyses.spectrum import Spectrum
from lora_lab.domain.report import ColumnKind
from lora_lab.errors import AdapterError, CancelledError, CompatibilityError, LoraLabError, MissingFileError
from lora_lab.extension.contracts import Analysis
from lora_lab.session import Session

Q2, Q10, V2 = "model.layers.2.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "model.layers.2.self_attn.v_proj"
PROMISED = [
    "module",
    "phi_full",
    "phi_full_random",
    "phi_first",
    "cosine",
    "rank_a",
    "rank_b",
    "dimension",
    "shape",
    "grassmann_distance",
    "projection_distance",
    "principal_angles_radians",
    "phi",
    "phi_random",
]


@pytest.fixture
def session():
    return Session(cache=False, plugins=False, offline=True, device="cpu")


@pytest.fixture
def both(tmp_path):
    """Two adapters of the same modules, of ranks 4 and 6."""
    return [str(write_adapter(tmp_path / name, rank=rank, seed=rank)) for name, rank in (("one", 4), ("two", 6))]


def overlap(session, both, modules=(), observer=None, **parameters):
    return session.analyze("overlap", both, parameters=parameters, modules=modules, observer=observer)


def singular(rank: int, module: str, side: str) -> np.ndarray:
    """Directions of the adapter that `both` wrote with this rank."""
    tensors = factors(rank=rank, seed=rank)
    lora_A = tensors[f"base_model.model.{module}.lora_A.weight"].double().numpy()
    lora_B = tensors[f"base_model.model.{module}.lora_B.weight"].double().numpy()
    matrix = {"A": lora_A, "B": lora_B}.get(side, lora_B @ lora_A)
    U, _, Vh = np.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, *matrix.shape)
    return U[:, :kept] if side in ("left", "B") else Vh[:kept].T


@pytest.mark.parametrize("side", ["right", "left", "A", "B"])
def test_rows_are_those_of_the_dense_products(session, both, side):
    report = overlap(session, both, side=side)
    rows = report.table("modules").rows
    assert [row["module"] for row in rows] == [V2, Q2, Q10] or [row["module"] for row in rows] == [Q2, V2, Q10]
    for row in rows:
        U, V = singular(4, row["module"], side), singular(6, row["module"], side)
        cross = U.T @ V
        assert (row["rank_a"], row["rank_b"], row["dimension"]) == (*cross.shape, U.shape[0])
        for i in range(cross.shape[0]):
            for j in range(cross.shape[1]):
                expected = np.linalg.norm(cross[: i + 1, : j + 1]) ** 2 / min(i + 1, j + 1)
                assert row["phi"][i][j] == pytest.approx(expected, abs=1e-10)
                assert row["phi_random"][i][j] == max(i + 1, j + 1) / U.shape[0]
        assert row["phi_first"] == row["phi"][0][0]
        assert row["phi_full"] == row["phi"][-1][-1]
        assert row["phi_full_random"] == row["phi_random"][-1][-1]
        cosines = np.linalg.svd(cross, compute_uv=False)
        assert row["projection_distance"] == pytest.approx(math.sqrt(len(cosines) - (cosines**2).sum()), abs=1e-7)
        assert row["grassmann_distance"] == pytest.approx(np.linalg.norm(row["principal_angles_radians"]))
    assert report.to_json()["side"] == side


def test_it_says_what_the_contract_promises(session, both):
    document = json.loads(json.dumps(overlap(session, both).to_json(), allow_nan=False))
    assert [list(row) for row in document["modules"]] == [PROMISED] * 3
    assert (document["side"], document["only_in_a"], document["only_in_b"]) == ("right", [], [])
    assert document["parameters"] == {"side": "right", "grid": True}
    assert [record["locator"] for record in document["inputs"]] == both
    assert document["warnings"] == []


def test_every_quantity_is_declared(session, both):
    report = overlap(session, both)
    table = report.table("modules")
    assert [column.id for column in table.columns] == PROMISED
    named = {ColumnKind.TEXT, ColumnKind.INTEGER, ColumnKind.SHAPE, ColumnKind.LIST}
    columns = [*table.columns, *(column for group in report.scalars for column in group.columns)]
    assert all(column.title and (column.formula or column.kind in named) for column in columns)
    grid = {column.id: column for column in table.columns}["phi"]
    assert (grid.kind, grid.index_title, grid.low, grid.high) == (ColumnKind.HEATMAP, "i of A, j of B", 0.0, 1.0)
    for group in report.scalars:
        assert set(group.values) == {column.id for column in group.columns}
    assert isinstance(Overlap(), Analysis)


def test_grids_can_be_left_out_and_nothing_else_changes(session, both):
    with_grid, without = overlap(session, both), overlap(session, both, grid="false")
    assert [column.id for column in without.table("modules").columns] == PROMISED[:-2]
    for row, other in zip(with_grid.table("modules").rows, without.table("modules").rows, strict=True):
        assert {key: row[key] for key in PROMISED[:-2]} == other


def test_baselines_of_one_size_are_one_list(session, both):
    rows = {row["module"]: row for row in overlap(session, both).table("modules").rows}
    assert rows[Q2]["phi_random"] is rows[Q10]["phi_random"]


def test_totals(session, both):
    report = overlap(session, both)
    totals, rows = report.to_json()["totals"], report.table("modules").rows
    dense = {}
    for rank in (4, 6):
        tensors = factors(rank=rank, seed=rank)
        dense[rank] = np.concatenate(
            [
                (
                    8
                    / rank
                    * tensors[f"base_model.model.{module}.lora_B.weight"].double().numpy()
                    @ tensors[f"base_model.model.{module}.lora_A.weight"].double().numpy()
                ).ravel()
                for module in MODULES
            ]
        )
    norms = [np.linalg.norm(dense[rank]) for rank in (4, 6)]
    assert (totals["norm_a"], totals["norm_b"]) == pytest.approx(norms, rel=1e-12)
    assert totals["cosine"] == pytest.approx(dense[4] @ dense[6] / norms[0] / norms[1], abs=1e-12)
    assert totals["mean_phi"] == pytest.approx(np.mean([row["phi_full"] for row in rows]))
    assert totals["mean_phi_random"] == pytest.approx(np.mean([row["phi_full_random"] for row in rows]))
    assert totals["modules"] == 3


def test_swapping_transposes(session, both):
    here, there = overlap(session, both), overlap(session, both[::-1])
    for row, other in zip(here.table("modules").rows, there.table("modules").rows, strict=True):
        np.testing.assert_allclose(row["phi"], np.transpose(other["phi"]), atol=1e-12)
        assert (row["rank_a"], row["rank_b"]) == (other["rank_b"], other["rank_a"])
        assert row["cosine"] == pytest.approx(other["cosine"], abs=1e-14)


def test_an_adapter_with_itself(session, both):
    report = overlap(session, [both[0], both[0]])
    for row in report.table("modules").rows:
        assert row["phi_full"] == pytest.approx(1.0, abs=1e-13)
        assert max(row["principal_angles_radians"]) < 1e-13
    assert report.to_json()["totals"]["cosine"] == pytest.approx(1.0, abs=1e-13)


# What is not everywhere


def test_modules_of_one_alone_are_listed(session, tmp_path, both):
    tensors = {name: tensor for name, tensor in factors(seed=9).items() if Q10 not in name}
    other = str(write_adapter(tmp_path / "fewer", tensors))
    document = overlap(session, [both[0], other]).to_json()
    assert (document["only_in_a"], document["only_in_b"]) == ([Q10], [])
    assert overlap(session, [other, both[0]]).to_json()["only_in_b"] == [Q10]
    assert document["totals"]["modules"] == 2


def test_modules_are_chosen_in_both(session, both):
    document = overlap(session, both, modules=("*.2.*",)).to_json()
    assert {row["module"] for row in document["modules"]} == {Q2, V2}
    with pytest.raises(AdapterError, match="No module of 'one', 'two' matches 'nothing'"):
        overlap(session, both, modules=("nothing",))


def test_adapters_without_a_common_module_are_refused(session, tmp_path, both):
    other = str(write_adapter(tmp_path / "other", factors({"h.0.attn": (8, 8)})))
    with pytest.raises(CompatibilityError, match=r"'model\.layers\.2.*' in 'one', 'h\.0\.attn' in 'other'") as caught:
        overlap(session, [both[0], other])
    assert "inspect" in caught.value.hint
    fewer = str(write_adapter(tmp_path / "fewer", {name: one for name, one in factors().items() if V2 not in name}))
    with pytest.raises(CompatibilityError, match=r"'model\.layers\.2\.self_attn\.v_proj' in 'one', none in 'fewer'"):
        overlap(session, [both[0], fewer], modules=("v_proj",))


def test_a_module_of_another_shape_is_left_out_and_the_rest_computed(session, tmp_path, both):
    other = str(write_adapter(tmp_path / "other", factors({**MODULES, Q2: (24, 20)})))
    report = overlap(session, [both[0], other])
    rows = {row["module"]: row for row in report.table("modules").rows}
    assert (rows[Q2]["phi"], rows[Q2]["cosine"], rows[Q2]["rank_a"]) == (None, None, None)
    assert rows[Q10]["phi"] is not None
    (finding,) = report.findings
    assert (finding.code, finding.module) == ("shape_mismatch", Q2)
    assert "24×16 and 24×20" in finding.message
    assert report.to_json()["totals"]["modules"] == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_is_named_and_the_rest_computed(session, tmp_path, both, value):
    tensors = factors(seed=3)
    tensors[f"base_model.model.{Q2}.lora_A.weight"][1, 2] = value
    broken = str(write_adapter(tmp_path / "broken", tensors))
    for pair in ([both[0], broken], [broken, both[0]], [broken, broken]):
        report = overlap(session, pair)
        (finding,) = report.findings
        assert (finding.code, finding.module) == ("not_finite", Q2)
        assert "lora_A.weight" in finding.message
        rows = {row["module"]: row for row in report.table("modules").rows}
        assert rows[Q2]["phi_full"] is None
        assert rows[V2]["phi_full"] is not None
        assert rows[Q10]["phi_full"] is not None
        json.dumps(report.to_json(), allow_nan=False)


def test_a_zero_update_has_no_subspace_but_its_factor_has(session, tmp_path, both):
    tensors = factors(seed=3)
    tensors[f"base_model.model.{Q2}.lora_B.weight"].zero_()
    zero = str(write_adapter(tmp_path / "zero", tensors))
    report = overlap(session, [zero, both[0]])
    row = {row["module"]: row for row in report.table("modules").rows}[Q2]
    assert (row["rank_a"], row["phi"], row["phi_full"], row["cosine"]) == (0, None, None, None)
    assert row["principal_angles_radians"] is None
    (finding,) = report.findings
    assert (finding.code, finding.module) == ("zero_delta", Q2)
    assert finding.message.startswith("A 'zero': ΔW is zero in 'model.layers.2")
    row = {row["module"]: row for row in overlap(session, [zero, both[0]], side="A").table("modules").rows}[Q2]
    assert (row["rank_a"], row["cosine"]) == (4, None)
    assert len(row["phi"]) == 4


def test_an_untrained_adapter_gets_one_finding_not_hundreds(session, tmp_path):
    modules = {f"layers.{layer}.q": (8, 8) for layer in range(40)}
    tensors = factors(modules)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    untrained = str(write_adapter(tmp_path / "untrained", tensors, target_modules=["q"]))
    other = str(write_adapter(tmp_path / "other", factors(modules, seed=1), target_modules=["q"]))
    report = overlap(session, [other, untrained])
    (finding,) = report.findings
    assert (finding.code, finding.module) == ("zero_delta", None)
    assert finding.message.startswith(
        "B 'untrained': ΔW is zero in 'layers.0.q', 'layers.1.q', 'layers.2.q' and 37 more"
    )
    assert report.to_json()["totals"]["mean_phi"] is None
    assert report.to_json()["totals"]["cosine"] is None


def test_numerically_zero_directions_are_left_out_and_it_says_so(session, tmp_path, both):
    tensors = factors(seed=3)
    for module in (Q2, Q10):
        lora_B = tensors[f"base_model.model.{module}.lora_B.weight"]
        lora_B[:, 2] = 2 * lora_B[:, 0]
        lora_A = tensors[f"base_model.model.{module}.lora_A.weight"]
        lora_A[2] = -lora_A[1] if module == Q2 else lora_A[2]
    less = str(write_adapter(tmp_path / "less", tensors))
    report = overlap(session, [less, both[0]])
    rows = {row["module"]: row for row in report.table("modules").rows}
    expected = [
        int(
            np.linalg.matrix_rank(
                tensors[f"base_model.model.{module}.lora_B.weight"].double().numpy()
                @ tensors[f"base_model.model.{module}.lora_A.weight"].double().numpy(),
                rtol=1e-6,
            )
        )
        for module in (Q2, Q10)
    ]
    assert [rows[module]["rank_a"] for module in (Q2, Q10)] == expected
    assert len(rows[Q10]["phi"]) == 3
    (finding,) = report.findings
    assert finding.code == "zero_directions"
    assert f"{min(expected)} of 4" in finding.message


def test_directions_that_cannot_be_are_not_missed(session, tmp_path):
    """A rank above a side's dimension has no more directions than that, and nothing is said."""
    modules = {"a": (3, 20)}
    both = [
        str(write_adapter(tmp_path / str(seed), factors(modules, rank=6, seed=seed), rank=6, target_modules=["a"]))
        for seed in (1, 2)
    ]
    report = overlap(session, both)
    (row,) = report.table("modules").rows
    assert (row["rank_a"], row["rank_b"]) == (3, 3)
    assert report.findings == ()


# What surrounds ΔW


def test_different_bases_are_a_finding(session, tmp_path, both):
    other = str(write_adapter(tmp_path / "other", factors(seed=5), base_model_name_or_path="another"))
    (finding,) = overlap(session, [both[0], other]).findings
    assert finding.code == "different_bases"
    assert "'base' ('one'), 'another' ('other')" in finding.message


def test_what_is_outside_is_said_of_the_adapter_that_has_it(session, tmp_path, both):
    tensors = factors(seed=5)
    tensors |= {
        f"base_model.model.{module}.lora_magnitude_vector": torch.ones(shape[0]) for module, shape in MODULES.items()
    }
    dora = str(write_adapter(tmp_path / "dora", tensors, use_dora=True))
    (finding,) = overlap(session, [both[0], dora]).findings
    assert finding.code == "dora"
    assert finding.message.startswith("B 'dora': DoRA")


def test_what_has_no_update_of_its_own_is_refused(session, tmp_path, both):
    pissa = str(write_adapter(tmp_path / "pissa", factors(seed=5), init_lora_weights="pissa"))
    with pytest.raises(AdapterError, match="'pissa' cannot be computed from its files") as refused:
        overlap(session, [both[0], pissa])
    assert "amplify, intruders, combine and resize compute it with --base" in refused.value.hint
    with pytest.raises(MissingFileError, match="holds no adapter"):
        overlap(session, [both[0], str(write_base(tmp_path / "base"))])


def test_a_side_that_is_none_is_refused(session, both):
    with pytest.raises(LoraLabError, match="'up', expected one of right, left, A, B"):
        overlap(session, both, side="up")
    with pytest.raises(LoraLabError):
        overlap(session, both[:1])


# Orientation


def test_the_right_side_is_the_inputs_whatever_way_the_base_stores_the_weight(session, tmp_path):
    plain, turned = (
        [str(write_adapter(tmp_path / f"{flag}{seed}", factors(seed=seed), fan_in_fan_out=flag)) for seed in (1, 2)]
        for flag in (False, True)
    )
    rows, same = (overlap(session, both).table("modules").rows for both in (plain, turned))
    for row, other in zip(rows, same, strict=True):
        assert other["shape"] == row["shape"][::-1]
        kept = [key for key in PROMISED if key not in ("module", "shape")]
        assert {key: row[key] for key in kept} == {key: other[key] for key in kept}
    assert rows[0]["dimension"] == 16
    mixed = overlap(session, [plain[0], turned[1]])
    assert mixed.findings == ()
    assert [row["phi"] for row in mixed.table("modules").rows] == [row["phi"] for row in rows]


def test_an_embedding_s_inputs_are_its_words(session, tmp_path):
    both = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "base_model.model.embed_tokens.lora_embedding_A": torch.randn(4, 50, generator=generator),
            "base_model.model.embed_tokens.lora_embedding_B": torch.randn(12, 4, generator=generator),
        }
        both.append(str(write_adapter(tmp_path / str(seed), tensors, target_modules=["embed_tokens"])))
    (row,) = overlap(session, both).table("modules").rows
    assert (row["shape"], row["dimension"]) == ([50, 12], 50)
    (row,) = overlap(session, both, side="left").table("modules").rows
    assert row["dimension"] == 12


# Watching


def test_the_observer_sees_every_row_in_order(session, both, watcher):
    observer = watcher()
    report = overlap(session, both, observer=observer)
    assert observer.told == list(report.table("modules").rows)
    assert observer.steps[-1][:2] == (3, 3)


def test_cancelling_stops(session, tmp_path, watcher):
    modules = {f"layers.{layer}.q": (8, 8) for layer in range(300)}
    both = [str(write_adapter(tmp_path / str(seed), factors(modules, seed=seed))) for seed in (1, 2)]
    observer = watcher(cancel_after=1)
    with pytest.raises(CancelledError):
        overlap(session, both, observer=observer)
    assert len(observer.told) < 300


def test_norms_are_the_spectrum_s(session, both):
    norms = [session.spectrum(path).to_json()["totals"]["frobenius_norm"] for path in both]
    totals = overlap(session, both).to_json()["totals"]
    assert (totals["norm_a"], totals["norm_b"]) == pytest.approx(norms, rel=1e-14)
    assert Spectrum.id == "spectrum"
