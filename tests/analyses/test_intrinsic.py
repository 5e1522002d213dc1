"""The intrinsic rank of a full fine-tune: every number against NumPy, and what two checkpoints may differ in."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import write_adapter
from safetensors.torch import save_file

from lora_lab import Session
from lora_lab.analyses.intrinsic import powers
from lora_lab.domain.report import ColumnKind
from lora_lab.errors import AdapterError, CancelledError, CompatibilityError, LoraLabError

ROOT = "model.layers"


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, torch.Tensor]:
    """Two layers, an embedding, norms and a bias."""
    shapes = {f"{ROOT}.{layer}.{name}.weight": shape for layer in (0, 1) for name, shape in SHAPES.items()}
    made = {name: normal(*shape, seed=place) for place, (name, shape) in enumerate(shapes.items())}
    made["model.embed_tokens.weight"] = normal(50, 12, seed=90)
    made["model.norm.weight"] = torch.ones(12)
    made[f"{ROOT}.0.q_proj.bias"] = normal(20, seed=91)
    return made


SHAPES = {"q_proj": (20, 12), "up": (9, 12), "down": (12, 12)}


def changed(tensors, *, scale: float = 0.1):
    return {
        name: tensor + normal(*tensor.shape, seed=1000 + place, scale=scale)
        for place, (name, tensor) in enumerate(tensors.items())
    }


@pytest.fixture
def compare(tmp_path):
    """Write two checkpoints and run the analysis on them."""

    def run(before, after, *, config=None, **options):
        for name, tensors in (("base", before), ("tuned", after)):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(config or {}))
        places = [str(tmp_path / name) for name in ("base", "tuned")]
        return Session(device="cpu", cache=False).analyze("intrinsic", places, **options)

    return run


def rows_of(report):
    return {row["module"]: row for row in report.table("modules").rows}


def finding(report, code):
    return next((found.message for found in report.findings if found.code == code), None)


def test_every_number_is_that_of_the_dense_difference(compare):
    before = weights()
    after = changed(before)
    report = compare(before, after)
    rows = rows_of(report)
    assert set(rows) == {name.removesuffix(".weight") for name, tensor in before.items() if tensor.ndim == 2}
    for module, row in rows.items():
        old, new = (tensors[f"{module}.weight"].double().numpy() for tensors in (before, after))
        sigma = np.linalg.svd(new - old, compute_uv=False)
        energy = np.cumsum(sigma**2) / np.sum(sigma**2)
        np.testing.assert_allclose(row["singular_values"], sigma, rtol=0, atol=1e-13 * sigma[0])
        assert row["shape"] == list(old.shape)
        assert row["base_norm"] == pytest.approx(np.linalg.norm(old), rel=1e-12)
        assert row["update_norm"] == pytest.approx(np.linalg.norm(new - old), rel=1e-12)
        assert row["relative_norm"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-12)
        assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2)
        shares = sigma / sigma.sum()
        assert row["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
        for share, rank in row["energy_rank"].items():
            assert rank == np.argmax(energy >= float(share)) + 1
        np.testing.assert_allclose(row["reconstruction_error"], np.sqrt(1 - energy), atol=1e-7)
        expected = [rank for rank in (1, 2, 4, 8, 16) if rank < len(sigma)] + [len(sigma)]
        assert [point["rank"] for point in row["reconstruction"]] == expected
        for point in row["reconstruction"]:
            assert point["relative_error"] == row["reconstruction_error"][point["rank"] - 1]


def test_the_error_is_that_of_the_best_matrix_of_lower_rank(compare):
    before = weights()
    after = changed(before)
    row = rows_of(compare(before, after))[f"{ROOT}.0.q_proj"]
    delta = (after[f"{ROOT}.0.q_proj.weight"].double() - before[f"{ROOT}.0.q_proj.weight"].double()).numpy()
    U, S, Vh = np.linalg.svd(delta, full_matrices=False)
    for point in row["reconstruction"]:
        rank = point["rank"]
        left = np.linalg.norm(delta - (U[:, :rank] * S[:rank]) @ Vh[:rank]) / np.linalg.norm(delta)
        assert point["relative_error"] == pytest.approx(left, abs=1e-12)
    assert row["reconstruction"][-1]["relative_error"] == 0.0


def test_a_low_rank_update_is_found_out(compare):
    before = {name: tensor.double() for name, tensor in weights().items()}
    name = f"{ROOT}.0.q_proj.weight"
    after = dict(before)
    after[name] = before[name] + normal(20, 3).double() @ normal(3, 12, seed=1).double()
    row = rows_of(compare(before, after))[f"{ROOT}.0.q_proj"]
    assert row["reconstruction_error"][2] < 1e-14 < row["reconstruction_error"][1]
    assert row["energy_rank"]["0.99"] <= 3


def test_totals_and_all_matrices_at_one_rank(compare):
    before = weights()
    after = changed(before)
    report = compare(before, after)
    document = report.to_json()
    totals = document["totals"]
    matrices = [name for name, tensor in before.items() if tensor.ndim == 2]
    vectors = [name for name, tensor in before.items() if tensor.ndim == 1]
    deltas = {name: (after[name].double() - before[name].double()).numpy() for name in before}
    assert totals["modules"] == len(matrices)
    assert totals["parameters"] == sum(before[name].numel() for name in matrices)
    assert totals["update_norm"] == pytest.approx(math.hypot(*(np.linalg.norm(deltas[name]) for name in matrices)))
    assert totals["others"] == len(vectors)
    assert totals["others_update_norm"] == pytest.approx(
        math.hypot(*(np.linalg.norm(deltas[name]) for name in vectors))
    )
    ratios = {name: np.linalg.norm(deltas[name]) / np.linalg.norm(before[name].double()) for name in matrices}
    assert f"{totals['largest_module']}.weight" == max(ratios, key=ratios.get)
    spectra = [np.linalg.svd(deltas[name], compute_uv=False) for name in matrices]
    for row in document["ranks"]:
        left = sum((sigma[row["rank"] :] ** 2).sum() for sigma in spectra)
        assert row["relative_error"] == pytest.approx(
            math.sqrt(left / sum((sigma**2).sum() for sigma in spectra)), abs=1e-12
        )
    assert [row["rank"] for row in document["ranks"]] == [1, 2, 4, 8, 12]
    assert document["ranks"][0]["parameters"] == sum(sum(before[name].shape) for name in matrices)
    assert document["ranks"][-1]["share"] <= 1.0


def test_equal_matrices_are_undefined_and_said_once(compare):
    before = weights()
    report = compare(before, dict(before))
    for row in report.table("modules").rows:
        assert row["update_norm"] == 0.0
        assert set(row["singular_values"]) == {0.0}
        undefined = ("stable_rank", "effective_rank", "reconstruction", "reconstruction_error")
        assert all(row[name] is None for name in undefined)
        assert set(row["energy_rank"].values()) == {None}
    (found,) = report.findings
    assert found.code == "zero_update"
    assert found.message.startswith("7 matrices are equal in both")
    totals = report.to_json()["totals"]
    assert (totals["unchanged"], totals["largest_module"], totals["mean_effective_rank"]) == (7, None, None)
    assert report.table("ranks").rows == ()


def test_an_update_from_nothing_has_no_relative_norm(compare):
    row = rows_of(compare({"a.weight": torch.zeros(3, 4)}, {"a.weight": normal(3, 4)}))["a"]
    assert row["relative_norm"] is None
    assert row["update_norm"] > 0


def test_an_update_near_the_rounding_of_bfloat16_is_said(compare):
    exact = {"a.weight": normal(60, 40), "b.weight": normal(60, 40, seed=1)}
    before = {name: tensor.bfloat16() for name, tensor in exact.items()}
    after = {
        "a.weight": (before["a.weight"].float() + normal(60, 40, seed=2, scale=1e-3)).bfloat16(),
        "b.weight": (before["b.weight"].float() + normal(60, 40, seed=3, scale=1e-1)).bfloat16(),
    }
    report = compare(before, after)
    assert finding(report, "near_rounding").endswith("'a'.")
    rows = rows_of(report)
    for name, row in rows.items():
        errors = np.linalg.norm((exact[f"{name}.weight"].bfloat16().float() - exact[f"{name}.weight"]).numpy())
        assert row["rounding_norm"] == pytest.approx(errors, rel=0.1)


def test_the_coarser_type_decides_the_rounding(compare):
    before = {"a.weight": normal(60, 40)}
    fine = rows_of(compare(before, changed(before)))["a"]["rounding_norm"]
    coarse = rows_of(compare(before, {"a.weight": changed(before)["a.weight"].bfloat16()}))["a"]["rounding_norm"]
    assert coarse == pytest.approx(2**16 * fine, rel=0.01)


def test_what_is_on_one_side_alone_is_listed(compare):
    before = weights()
    after = changed(before)
    before["old_head.weight"] = normal(3, 12)
    after["score.weight"] = normal(2, 12)
    document = compare(before, after).to_json()
    assert document["only_in_a"] == ["old_head.weight"]
    assert document["only_in_b"] == ["score.weight"]
    assert document["resized"] == []


@pytest.mark.parametrize("rows", [40, 64])
def test_a_resized_vocabulary_is_compared_on_common_rows(compare, rows):
    before = weights()
    after = changed(before)
    name = "model.embed_tokens.weight"
    after[name] = torch.cat([after[name], normal(14, 12)])[:rows]
    report = compare(before, after)
    common = min(rows, 50)
    row = rows_of(report)["model.embed_tokens"]
    assert row["shape"] == [common, 12]
    expected = np.linalg.svd(
        (
            after[name].double() - before[name].double()[:rows]
            if rows < 50
            else after[name].double()[:50] - before[name].double()
        ).numpy(),
        compute_uv=False,
    )
    np.testing.assert_allclose(row["singular_values"], expected, rtol=0, atol=1e-13 * expected[0])
    (said,) = report.to_json()["resized"]
    assert said == f"model.embed_tokens: 50 rows in the base, {rows} in the fine-tune"
    assert said in finding(report, "vocabulary_resized")


def test_other_shapes_that_differ_are_left_out_by_name(compare):
    before, after = weights(), changed(weights())
    after[f"{ROOT}.0.up.weight"] = normal(7, 12)
    after["model.norm.weight"] = torch.ones(13)
    report = compare(before, after)
    assert f"{ROOT}.0.up" not in rows_of(report)
    message = finding(report, "shape_mismatch")
    assert f"{ROOT}.0.up 9×12 and 7×12" in message
    assert "model.norm.weight 12 and 13" in message


def test_another_prefix_is_matched_and_said(compare):
    after = changed(weights())
    before = {name.removeprefix("model."): tensor for name, tensor in weights().items()}
    document = compare(before, after).to_json()
    assert document["prefix"] == "model. removed"
    assert document["only_in_a"] == document["only_in_b"] == []
    assert document["totals"]["others"] == 2
    assert {row["module"] for row in document["modules"]} == {
        name.removesuffix(".weight") for name, tensor in after.items() if tensor.ndim == 2
    }


def test_experts_are_matrices_of_their_own_and_kernels_are_flattened(compare):
    before = {
        "layers.0.mlp.experts.gate_up_proj": normal(3, 10, 8),
        "conv.weight": normal(6, 4, 3, 3, seed=1),
        "cls_token": normal(1, 1, 8, seed=2),
        "position_embeddings": normal(1, 5, 8, seed=3),
    }
    after = changed(before)
    report = compare(before, after)
    rows = rows_of(report)
    experts = [f"layers.0.mlp.experts.gate_up_proj[{expert}]" for expert in range(3)]
    assert set(rows) == {*experts, "conv", "position_embeddings"}
    assert rows["conv"]["shape"] == [6, 36]
    assert rows["position_embeddings"]["shape"] == [5, 8]
    assert report.to_json()["totals"]["others"] == 1
    for expert, name in enumerate(experts):
        stored = "layers.0.mlp.experts.gate_up_proj"
        expected = np.linalg.svd(
            (after[stored][expert].double() - before[stored][expert].double()).numpy(), compute_uv=False
        )
        np.testing.assert_allclose(rows[name]["singular_values"], expected, rtol=0, atol=1e-13 * expected[0])


def test_a_tied_head_is_compared_with_the_embedding(compare):
    before = weights()
    after = changed(before)
    after["lm_head.weight"] = after["model.embed_tokens.weight"].clone()
    report = compare(before, after, config={"tie_word_embeddings": True})
    rows = rows_of(report)
    assert rows["lm_head"]["singular_values"] == rows["model.embed_tokens"]["singular_values"]


def test_integers_are_left_out_by_name(compare):
    before, after = weights(), changed(weights())
    for tensors in (before, after):
        tensors["model.position_ids"] = torch.arange(8)[None]
    report = compare(before, after)
    assert "model.position_ids (I64 and I64)" in finding(report, "no_floats")


def test_a_matrix_that_is_not_finite_has_no_numbers_and_ends_nothing(compare):
    before, after = weights(), changed(weights())
    after[f"{ROOT}.1.up.weight"][0, 0] = float("nan")
    report = compare(before, after)
    row = rows_of(report)[f"{ROOT}.1.up"]
    assert row["shape"] == [9, 12]
    assert all(value is None for name, value in row.items() if name not in ("module", "shape"))
    assert f"'{ROOT}.1.up' holds NaN or infinity" in finding(report, "not_finite")
    assert report.to_json()["totals"]["update_norm"] > 0


def test_modules_are_chosen_before_they_are_read(compare):
    report = compare(weights(), changed(weights()), modules=("q_proj",))
    assert list(rows_of(report)) == [f"{ROOT}.0.q_proj", f"{ROOT}.1.q_proj"]
    assert report.to_json()["totals"]["others"] is None
    with pytest.raises(LoraLabError, match="No matrix matches 'nothing'"):
        compare(weights(), changed(weights()), modules=("nothing",))


def test_a_quantised_checkpoint_is_refused_by_name(compare):
    with pytest.raises(CompatibilityError, match=r"'base' is quantised \(quant_method bitsandbytes\)"):
        compare(weights(), weights(), config={"quantization_config": {"quant_method": "bitsandbytes"}})


def test_checkpoints_of_two_models_have_nothing_in_common(compare):
    with pytest.raises(CompatibilityError, match="no matrix in common"):
        compare({"a.weight": normal(3, 4)}, {"b.weight": normal(5, 6)})


def test_an_adapter_or_a_configuration_is_refused(tmp_path):
    adapter = write_adapter(tmp_path / "mine")
    model = tmp_path / "model"
    model.mkdir()
    save_file(weights(), model / "model.safetensors")
    configuration = tmp_path / "config.json"
    configuration.write_text(json.dumps({"model_type": "llama"}))
    session = Session(device="cpu", cache=False)
    with pytest.raises(AdapterError, match="'mine' is an adapter, expected two full checkpoints"):
        session.analyze("intrinsic", [str(model), str(adapter)])
    with pytest.raises(CompatibilityError, match="is a configuration without weights"):
        session.analyze("intrinsic", [str(configuration), str(model)])


def test_two_prefixes_that_fit_equally_well_are_refused(compare):
    part = {"q_proj.weight": normal(4, 4), "up.weight": normal(4, 5)}
    both = {f"{tower}.{name}": tensor for tower in ("text", "vision") for name, tensor in part.items()}
    with pytest.raises(CompatibilityError, match="2 prefixes fit equally well") as refusal:
        compare(both, part)
    assert "adapter" not in refusal.value.hint


def test_the_samples(samples):
    """A full fine-tune of the sample base is not of low rank, as the README says."""
    session = Session(device="cpu", cache=False)
    report = session.analyze("intrinsic", [str(samples / "base"), str(samples / "finetuned-banking77")])
    document = report.to_json()
    assert document["totals"]["modules"] == 29
    assert document["only_in_a"] == document["only_in_b"] == []
    errors = [row["relative_error"] for row in document["ranks"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5
    assert errors[-1] == 0.0


def test_rows_hold_what_is_declared(compare):
    report = compare(weights(), changed(weights()))
    for table in report.tables:
        assert all(list(row) == [column.id for column in table.columns] for row in table.rows)
    for group in report.scalars:
        assert set(group.values) == {column.id for column in group.columns}
    kinds = {column.id: column.kind for column in report.table("modules").columns}
    assert kinds["singular_values"] == kinds["reconstruction_error"] == ColumnKind.CURVE
    assert kinds["reconstruction"] == ColumnKind.RECORDS
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["command"] == "intrinsic"


def test_it_can_be_watched_and_cancelled(compare, watcher):
    many = {f"m.{place}.weight": normal(4, 4, seed=place) for place in range(400)}
    observer = watcher()
    report = compare(many, changed(many), observer=observer)
    assert observer.told == list(report.table("modules").rows)
    with pytest.raises(CancelledError):
        compare(many, changed(many), observer=watcher(cancel_after=1))


@pytest.mark.parametrize(
    ("most", "expected"), [(0, []), (1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_powers_of_two(most, expected):
    assert powers(most) == expected
