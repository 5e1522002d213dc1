"""Differences of adapters in files: weights against the dense matrices, settings, saved tensors, the verdict."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import MODULES, factors, write_adapter

from lora_lab.analyses.settings import setting_differences
from lora_lab.domain.report import ColumnKind
from lora_lab.errors import AdapterError
from lora_lab.session import Session

Q2, Q10, V2 = "model.layers.2.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "model.layers.2.self_attn.v_proj"
PROMISED = [
    "module",
    "in",
    "relative_difference",
    "cosine",
    "phi",
    "phi_random",
    "difference_norm",
    "rank_a",
    "rank_b",
    "scaling_a",
    "scaling_b",
    "shape_a",
    "shape_b",
]


@pytest.fixture
def diff():
    session = Session(cache=False, plugins=False, offline=True, device="cpu")

    def run(a, b, **options):
        return session.analyze("diff", [str(a), str(b)], **options)

    return run


def dense(tensors, module: str, scaling: float) -> np.ndarray:
    lora_A, lora_B = (tensors[f"base_model.model.{module}.lora_{name}.weight"].double().numpy() for name in "AB")
    return scaling * lora_B @ lora_A


def by_module(report):
    return {row["module"]: row for row in report.table("modules").rows}


def test_numbers_are_those_of_the_dense_products(diff, tmp_path):
    ours, theirs = factors(rank=4, seed=1), factors(rank=6, seed=2)
    report = diff(write_adapter(tmp_path / "a", ours, rank=4), write_adapter(tmp_path / "b", theirs, rank=6, alpha=-3))
    squares = []
    for module, row in by_module(report).items():
        one, other = dense(ours, module, 2.0), dense(theirs, module, -0.5)
        sizes = np.linalg.norm(one), np.linalg.norm(other)
        distance = np.linalg.norm(one - other)
        squares.append([distance**2, sizes[0] ** 2, sizes[1] ** 2])
        assert list(row) == PROMISED
        assert (row["in"], row["rank_a"], row["rank_b"]) == ("both", 4, 6)
        assert (row["scaling_a"], row["scaling_b"]) == (2.0, -0.5)
        assert row["shape_a"] == row["shape_b"] == list(MODULES[module])
        assert row["difference_norm"] == pytest.approx(distance, rel=1e-12)
        assert row["relative_difference"] == pytest.approx(distance / max(sizes), rel=1e-12)
        assert row["cosine"] == pytest.approx(np.vdot(one, other) / sizes[0] / sizes[1], abs=1e-12)
        U, V = (np.linalg.svd(matrix)[2][:rank].T for matrix, rank in ((one, 4), (other, min(6, *other.shape))))
        assert row["phi"] == pytest.approx(np.linalg.norm(U.T @ V) ** 2 / 4, abs=1e-10)
        assert row["phi_random"] == max(U.shape[1], V.shape[1]) / U.shape[0]
    totals = report.to_json()["totals"]
    whole = np.sqrt(np.sum(squares, axis=0))
    assert totals["difference_norm"] == pytest.approx(whole[0], rel=1e-12)
    assert totals["relative_difference"] == pytest.approx(whole[0] / max(whole[1:]), rel=1e-12)
    assert (totals["modules"], totals["differing"]) == (3, 3)
    assert (report.verdict, report.to_json()["identical"]) == (False, False)
    json.dumps(report.to_json(), allow_nan=False)


def test_every_quantity_is_declared(diff, tmp_path):
    report = diff(write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", seed=1))
    assert [column.id for column in report.table("modules").columns] == PROMISED
    kinds = {column.id: column.kind for column in report.table("config").columns}
    assert (kinds["a"], kinds["b"]) == (ColumnKind.VALUE, ColumnKind.VALUE)
    assert report.table("config").key == "key"
    for group in report.scalars:
        assert set(group.values) == {column.id for column in group.columns}


# What is identical


def test_copies_are_identical(diff, tmp_path):
    report = diff(write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b"))
    assert (report.verdict, report.findings) == (True, ())
    assert report.table("config").rows == report.table("saved").rows == ()
    for row in report.table("modules").rows:
        assert (row["difference_norm"], row["relative_difference"]) == (0.0, 0.0)
        assert row["cosine"] == pytest.approx(1.0, abs=1e-14)
        assert row["phi"] == pytest.approx(1.0, abs=1e-13)
    assert report.to_json()["totals"]["differing"] == 0


def test_a_wider_type_of_the_same_numbers_is_no_difference(diff, tmp_path):
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in factors().items()}
    wide = {name: tensor.float() for name, tensor in halves.items()}
    report = diff(write_adapter(tmp_path / "a", halves), write_adapter(tmp_path / "b", wide))
    assert report.verdict is True
    assert diff(write_adapter(tmp_path / "c", halves), write_adapter(tmp_path / "d")).verdict is False


def test_another_factorisation_differs_but_not_in_effect(diff, tmp_path):
    tensors = factors()
    other = {name: tensor * (2.0 if "lora_A" in name else 0.5) for name, tensor in tensors.items()}
    report = diff(write_adapter(tmp_path / "a", tensors), write_adapter(tmp_path / "b", other))
    assert report.verdict is False
    assert report.to_json()["totals"]["relative_difference"] < 1e-14


def test_the_last_bit_is_a_difference(diff, tmp_path):
    tensors = factors()
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    lora_B = changed[f"base_model.model.{V2}.lora_B.weight"]
    lora_B[0, 0] = torch.nextafter(lora_B[0, 0], torch.tensor(math.inf))
    report = diff(write_adapter(tmp_path / "a", tensors), write_adapter(tmp_path / "b", changed))
    rows = by_module(report)
    expected = np.linalg.norm(dense(tensors, V2, 2.0) - dense(changed, V2, 2.0))
    assert rows[V2]["difference_norm"] == pytest.approx(expected, rel=1e-8)
    assert 0 < rows[V2]["relative_difference"] < 1e-6
    assert rows[Q2]["difference_norm"] == 0.0
    assert report.to_json()["totals"]["differing"] == 1
    assert report.verdict is False


def test_a_scaling_is_a_difference(diff, tmp_path):
    report = diff(write_adapter(tmp_path / "a", alpha=8), write_adapter(tmp_path / "b", alpha=16))
    for row in report.table("modules").rows:
        assert row["relative_difference"] == pytest.approx(0.5, rel=1e-12)
        assert row["cosine"] == pytest.approx(1.0, abs=1e-14)
    assert report.to_json()["totals"]["differing"] == 3
    assert report.verdict is False


# Modules of one, shapes, zeros, NaN


def test_a_module_of_one_alone_is_its_own_difference(diff, tmp_path):
    tensors = factors()
    fewer = {name: tensor for name, tensor in tensors.items() if V2 not in name}
    whole, less = write_adapter(tmp_path / "a", tensors), write_adapter(tmp_path / "b", fewer)
    size = np.linalg.norm(dense(tensors, V2, 2.0))
    for report, where in ((diff(whole, less), "a"), (diff(less, whole), "b")):
        row = by_module(report)[V2]
        assert row["in"] == where
        assert row["difference_norm"] == pytest.approx(size, rel=1e-12)
        assert (row["relative_difference"], row["cosine"], row["phi"]) == (pytest.approx(1.0), None, None)
        absent = "b" if where == "a" else "a"
        assert (row[f"shape_{absent}"], row[f"rank_{absent}"], row[f"scaling_{absent}"]) == (None, None, None)
        assert row[f"shape_{where}"] == [8, 16]
        assert report.verdict is False
        assert report.to_json()["totals"]["differing"] == 1


def test_nothing_in_common_is_a_difference_not_an_error(diff, tmp_path):
    other = write_adapter(tmp_path / "b", factors({"h.0.q_proj": (8, 8)}), target_modules=["q_proj"])
    report = diff(write_adapter(tmp_path / "a", target_modules=["q_proj", "v_proj"]), other)
    assert {row["in"] for row in report.table("modules").rows} == {"a", "b"}
    assert report.verdict is False


def test_other_shapes_are_shown_and_left_out(diff, tmp_path):
    other = write_adapter(tmp_path / "b", factors({**MODULES, Q2: (24, 20)}))
    report = diff(write_adapter(tmp_path / "a"), other)
    row = by_module(report)[Q2]
    assert (row["shape_a"], row["shape_b"], row["difference_norm"], row["phi"]) == ([24, 16], [24, 20], None, None)
    assert [(finding.code, finding.module) for finding in report.findings] == [("shape_mismatch", Q2)]
    assert report.verdict is False


def test_two_zero_updates_differ_by_zero_of_nothing(diff, tmp_path):
    tensors = factors()
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    report = diff(write_adapter(tmp_path / "a", tensors), write_adapter(tmp_path / "b", tensors))
    row = by_module(report)[Q2]
    (finding,) = report.findings
    assert (finding.code, "undefined" in finding.message) == ("zero_delta", True)
    assert row["difference_norm"] == 0.0
    assert (row["relative_difference"], row["cosine"], row["phi"]) == (None, None, None)


def test_nan_is_named_and_never_identical(diff, tmp_path):
    tensors = factors()
    tensors[f"base_model.model.{Q2}.lora_A.weight"][0, 0] = math.nan
    report = diff(write_adapter(tmp_path / "a", tensors), write_adapter(tmp_path / "b", tensors))
    assert [(finding.code, finding.module) for finding in report.findings] == [("not_finite", Q2)]
    assert by_module(report)[Q2]["difference_norm"] is None
    assert by_module(report)[Q10]["difference_norm"] == 0.0
    assert report.verdict is False


def test_globs_restrict_everything_but_settings(diff, tmp_path):
    head = {"base_model.model.score.weight": torch.zeros(3, 4)}
    ours = factors() | head
    theirs = {name: tensor + (V2 in name) + ("score" in name) for name, tensor in ours.items()}
    both = [
        write_adapter(tmp_path / name, tensors, modules_to_save=["score"], task_type="SEQ_CLS")
        for name, tensors in (("a", ours), ("b", theirs))
    ]
    report = diff(*both, modules=("*.q_proj",))
    assert set(by_module(report)) == {Q2, Q10}
    assert report.verdict is True
    assert diff(*both, modules=("*.v_proj",)).verdict is False
    assert [row["module"] for row in diff(*both).table("saved").rows] == ["score"]
    with pytest.raises(AdapterError, match="matches 'nothing'"):
        diff(*both, modules=("nothing",))


# Everything beside the factors


def test_saved_modules_are_compared(diff, tmp_path):
    config = {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
    heads = [torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    one, other, same, wide = (
        write_adapter(tmp_path / str(place), factors() | {"base_model.model.score.weight": head}, **config)
        for place, head in enumerate((*heads, heads[0], torch.zeros(4, 5)))
    )
    (row,) = diff(one, other).table("saved").rows
    assert (row["module"], row["role"], row["in"], row["tensor"]) == (
        "score",
        "modules_to_save",
        "both",
        "base_model.model.score.weight",
    )
    a, b = (head.double().numpy() for head in heads)
    assert row["difference_norm"] == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
    sizes = np.linalg.norm(a), np.linalg.norm(b)
    assert row["relative_difference"] == pytest.approx(np.linalg.norm(a - b) / max(sizes), rel=1e-12)
    assert diff(one, other).verdict is False
    assert diff(one, same).verdict is True
    (row,) = diff(one, wide).table("saved").rows
    assert (row["shape_a"], row["shape_b"], row["difference_norm"]) == ([3, 5], [4, 5], None)
    bare = write_adapter(tmp_path / "bare", factors(), task_type="SEQ_CLS")
    (row,) = diff(bare, one).table("saved").rows
    assert (row["in"], row["shape_a"], row["shape_b"]) == ("b", None, [3, 5])


def test_magnitudes_are_compared(diff, tmp_path):
    def written(name, factor):
        magnitudes = {
            f"base_model.model.{module}.lora_magnitude_vector": factor * torch.ones(shape[0])
            for module, shape in MODULES.items()
        }
        return write_adapter(tmp_path / name, factors() | magnitudes, use_dora=True)

    one, two = written("a", 1.0), written("b", 2.0)
    report = diff(one, two)
    assert [row["role"] for row in report.table("saved").rows] == ["magnitude"] * 3
    assert {row["relative_difference"] for row in report.table("saved").rows} == {0.5}
    assert report.to_json()["totals"]["differing"] == 0
    assert report.verdict is False
    assert diff(one, written("c", 1.0)).verdict is True


def test_a_saved_tensor_that_is_not_finite_is_named(diff, tmp_path):
    config = {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
    head = torch.tensor([[1.0, math.nan]])
    one, other = (
        write_adapter(tmp_path / str(place), factors() | {"base_model.model.score.weight": one}, **config)
        for place, one in enumerate((head, torch.zeros(1, 2)))
    )
    report = diff(one, other)
    assert ("not_finite", "score") in {(finding.code, finding.module) for finding in report.findings}
    assert report.verdict is False


def test_settings_are_compared_key_by_key(diff, tmp_path):
    one = write_adapter(
        tmp_path / "a", rank_pattern={"v_proj": 4}, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]
    )
    two = write_adapter(tmp_path / "b", lora_dropout=0.0, target_modules=["v_proj", "q_proj"], revision=None)
    report = diff(one, two)
    assert report.table("config").rows == (
        {"key": "lora_dropout", "a": 0.1, "b": 0.0},
        {"key": "rank_pattern.v_proj", "a": 4, "b": None},
    )
    assert report.verdict is False


def test_what_settings_are_the_same():
    assert setting_differences({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}) == ({"key": "a.b.c", "a": 1, "b": 2},)
    assert setting_differences({"target_modules": ["q", "v"]}, {"target_modules": ["v", "q"]}) == ()
    assert len(setting_differences({"layers_to_transform": [1, 2]}, {"layers_to_transform": [2, 1]})) == 1
    assert setting_differences({"alpha_pattern": {}, "x": None}, {}) == ()
    assert setting_differences({"lora_alpha": 16}, {"lora_alpha": 16.0}) == ()
    assert len(setting_differences({"bias": 1}, {"bias": True})) == 1
    assert len(setting_differences({"x": False}, {})) == 1


def test_the_observer_sees_every_row_in_order(diff, tmp_path, watcher):
    observer = watcher()
    report = diff(write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", seed=1), observer=observer)
    assert observer.told == list(report.table("modules").rows)
