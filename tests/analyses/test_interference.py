"""Interference of adapters in files against their dense weighted updates."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from builders import MODULES, factors, write_adapter

from lora_lab.errors import CompatibilityError, LoraLabError
from lora_lab.session import Session

Q2, Q10, V2 = "model.layers.2.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "model.layers.2.self_attn.v_proj"
MODULE_COLUMNS = [
    "module",
    "adapters",
    "energy_ratio",
    "sign_conflict",
    "sign_conflict_random",
    "shared_subspace",
    "shared_subspace_random",
    "mean_cosine",
]
PAIR_COLUMNS = ["a", "b", "cosine", "sign_conflict", "shared_subspace", "shared_subspace_random", "modules"]


@pytest.fixture
def interference():
    session = Session(cache=False, plugins=False, offline=True, device="cpu")

    def run(paths, modules=(), observer=None, **parameters):
        return session.analyze(
            "interference", list(map(str, paths)), parameters=parameters, modules=modules, observer=observer
        )

    return run


@pytest.fixture
def three(tmp_path):
    """Three adapters of ranks 2, 3 and 4, scaled by 8/rank."""
    return [write_adapter(tmp_path / f"r{rank}", rank=rank, seed=rank) for rank in (2, 3, 4)]


def dense(rank: int, module: str) -> np.ndarray:
    tensors = factors(rank=rank, seed=rank)
    lora_A, lora_B = (tensors[f"base_model.model.{module}.lora_{name}.weight"].double().numpy() for name in "AB")
    return 8 / rank * lora_B @ lora_A


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def shared(a: int, b: int, module: str) -> float:
    U, V = (np.linalg.svd(dense(rank, module))[2][:rank].T for rank in (a, b))
    return float(np.linalg.norm(U.T @ V) ** 2 / min(a, b))


@pytest.mark.parametrize("strengths", [(1.0, 1.0, 1.0), (0.5, -2.0, 1.5)])
def test_numbers_are_those_of_the_dense_updates(interference, three, strengths):
    ranks = (2, 3, 4)
    report = interference(three, strength=list(map(str, strengths)))
    for row in report.table("modules").rows:
        module = row["module"]
        updates = [weight * dense(rank, module) for weight, rank in zip(strengths, ranks, strict=True)]
        energy = np.linalg.norm(sum(updates)) ** 2 / sum(np.linalg.norm(update) ** 2 for update in updates)
        signs = np.sign(updates)
        assert list(row) == MODULE_COLUMNS
        assert row["adapters"] == 3
        assert row["energy_ratio"] == pytest.approx(energy, rel=1e-12)
        assert row["sign_conflict"] == np.mean((signs > 0).any(axis=0) & (signs < 0).any(axis=0))
        assert row["sign_conflict_random"] == 0.75  # of eight equally likely combinations two are all the same
        assert row["mean_cosine"] == pytest.approx(
            np.mean([cosine(*two) for two in combinations(updates, 2)]), abs=1e-12
        )
        expected = [shared(a, b, module) for a, b in combinations(ranks, 2)]
        assert row["shared_subspace"] == pytest.approx(np.mean(expected), abs=1e-10)
        assert row["shared_subspace_random"] == pytest.approx(np.mean([3, 4, 4]) / 16)
    whole = [
        weight * np.concatenate([dense(rank, module).ravel() for module in MODULES])
        for weight, rank in zip(strengths, ranks, strict=True)
    ]
    pairs = report.table("pairs").rows
    for row, (a, b) in zip(pairs, combinations(range(3), 2), strict=True):
        assert list(row) == PAIR_COLUMNS
        assert (row["a"], row["b"], row["modules"]) == (f"r{ranks[a]}", f"r{ranks[b]}", 3)
        assert row["cosine"] == pytest.approx(cosine(whole[a], whole[b]), abs=1e-12)
        assert row["sign_conflict"] == np.mean(whole[a] * whole[b] < 0)
        expected = [shared(ranks[a], ranks[b], module) for module in MODULES]
        assert row["shared_subspace"] == pytest.approx(np.mean(expected), abs=1e-10)
    totals = report.to_json()["totals"]
    energy = np.linalg.norm(sum(whole)) ** 2 / sum(np.linalg.norm(one) ** 2 for one in whole)
    assert totals["energy_ratio"] == pytest.approx(energy, rel=1e-12)
    assert totals["sign_conflict_random"] == pytest.approx(0.75)
    matrix = np.array(totals["cosines"])
    assert np.diag(matrix) == pytest.approx([1.0] * 3, abs=1e-14)
    assert (matrix == matrix.T).all()
    assert matrix[0, 2] == pairs[1]["cosine"]
    assert (totals["modules"], totals["alone"], totals["adapters"]) == (3, 0, ["r2", "r3", "r4"])
    json.dumps(report.to_json(), allow_nan=False)


def test_every_quantity_is_declared(interference, three):
    report = interference(three)
    assert [column.id for column in report.table("modules").columns] == MODULE_COLUMNS
    assert [column.id for column in report.table("pairs").columns] == PAIR_COLUMNS
    for group in report.scalars:
        assert set(group.values) == {column.id for column in group.columns}


def test_one_adapter_twice_adds_up_and_against_itself_cancels(interference, three):
    twice = interference([three[0], three[0]])
    for row in twice.table("modules").rows:
        assert row["energy_ratio"] == pytest.approx(2.0, rel=1e-13)
        assert (row["sign_conflict"], row["shared_subspace"]) == (0.0, pytest.approx(1.0, abs=1e-13))
    names = twice.to_json()["totals"]["adapters"]
    assert len(set(names)) == 2
    against = interference([three[0], three[0]], strength=["1", "-1"])
    for row in against.table("modules").rows:
        assert row["energy_ratio"] == pytest.approx(0.0, abs=1e-14)
        assert (row["sign_conflict"], row["mean_cosine"]) == (1.0, pytest.approx(-1.0, abs=1e-14))


def test_orthogonal_updates_do_not_interfere(interference, tmp_path):
    both = []
    for place in (0, 1):
        tensors = factors(seed=place)
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensor[:, place * 8 : place * 8 + 8] = 0.0  # inputs that the other one leaves alone
        both.append(write_adapter(tmp_path / str(place), tensors))
    report = interference(both)
    for row in report.table("modules").rows:
        assert row["energy_ratio"] == pytest.approx(1.0, abs=1e-14)
        assert row["shared_subspace"] == pytest.approx(0.0, abs=1e-14)
        assert row["sign_conflict"] is None  # no entry has two signs


def test_signs_can_be_of_some_rows_or_of_none(interference, three):
    exact, some, none = (interference(three, **given) for given in ({}, {"sign_rows": "4"}, {"sign_rows": "0"}))
    for rows in zip(*(report.table("modules").rows for report in (exact, some, none)), strict=True):
        values = [row["sign_conflict"] for row in rows]
        assert values[2] is None
        assert abs(values[0] - values[1]) < 0.4
        assert len({row["energy_ratio"] for row in rows}) == 1
    assert exact.to_json()["totals"]["sign_conflict"] != some.to_json()["totals"]["sign_conflict"]
    assert none.to_json()["totals"]["sign_conflict"] is None
    assert none.table("pairs").rows[0]["sign_conflict"] is None


def test_modules_that_only_some_have(interference, tmp_path, three):
    tensors = {name: tensor for name, tensor in factors(seed=9).items() if Q10 not in name}
    tensors |= factors({"model.layers.30.self_attn.q_proj": (24, 16)})
    other = write_adapter(tmp_path / "other", tensors)
    report = interference([three[0], other, three[1]])
    rows = {row["module"]: row["adapters"] for row in report.table("modules").rows}
    assert rows == {Q2: 3, V2: 3, Q10: 2}
    pairs = report.table("pairs").rows
    assert [row["modules"] for row in pairs] == [2, 3, 2]
    expected = np.mean([shared(2, 3, module) for module in MODULES])
    assert pairs[1]["shared_subspace"] == pytest.approx(expected, abs=1e-10)
    products = np.concatenate([(dense(2, module) * dense(3, module)).ravel() for module in MODULES])
    assert pairs[1]["sign_conflict"] == np.mean(products < 0)
    assert (report.to_json()["totals"]["modules"], report.to_json()["totals"]["alone"]) == (3, 1)


def test_an_update_of_strength_0_has_no_direction_in_the_sum(interference, three):
    report = interference(three[:2], strength=["1", "0"])
    for row in report.table("modules").rows:
        assert (row["energy_ratio"], row["mean_cosine"], row["sign_conflict"]) == (1.0, None, None)
    assert report.to_json()["totals"]["cosines"][0][1] is None
    (finding,) = report.findings
    assert finding.code == "zero_delta"


def test_zero_updates(interference, tmp_path, three):
    tensors = factors(seed=9)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    report = interference([three[0], write_adapter(tmp_path / "zero", tensors)])
    for row in report.table("modules").rows:
        assert (row["shared_subspace"], row["shared_subspace_random"], row["mean_cosine"]) == (None, None, None)
        assert row["energy_ratio"] == 1.0
    assert report.table("pairs").rows[0]["shared_subspace"] is None


def test_what_is_wrong_is_said_and_the_rest_computed(interference, tmp_path, three):
    tensors = factors({**MODULES, Q2: (24, 20)}, seed=7)
    tensors[f"base_model.model.{V2}.lora_B.weight"][0, 0] = float("nan")
    report = interference([three[0], write_adapter(tmp_path / "odd", tensors, base_model_name_or_path="x"), three[1]])
    said = {(finding.code, finding.module) for finding in report.findings}
    assert said == {("shape_mismatch", Q2), ("not_finite", V2), ("different_bases", None)}
    rows = {row["module"]: row["energy_ratio"] for row in report.table("modules").rows}
    assert rows[Q2] is rows[V2] is None
    assert rows[Q10] is not None
    assert report.to_json()["totals"]["modules"] == 1


def test_refusals(interference, tmp_path, three):
    with pytest.raises(LoraLabError, match="2 strengths for 3 adapters"):
        interference(three, strength=["1", "1"])
    other = write_adapter(tmp_path / "other", factors({"h.0": (8, 8)}))
    with pytest.raises(CompatibilityError, match="No module is in more than one"):
        interference([three[0], other])
    with pytest.raises(LoraLabError):
        interference(three[:1])
    with pytest.raises(LoraLabError, match="sign_rows"):
        interference(three, sign_rows="-1")


def test_the_observer_sees_every_row_in_order(interference, three, watcher):
    observer = watcher()
    report = interference(three, observer=observer)
    assert observer.told == list(report.table("modules").rows)
