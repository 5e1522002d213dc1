"""Adapters whose modules are called differently by a prefix: matched, said, and never guessed."""

from __future__ import annotations

import pytest
import torch
from builders import MODULES, factors, write_adapter

from lora_lab.errors import CompatibilityError
from lora_lab.session import Session

WITH_NUMBERS = [
    "model.layers.2.self_attn.q_proj",
    "model.layers.2.self_attn.v_proj",
    "model.layers.10.self_attn.q_proj",
]


@pytest.fixture
def session():
    return Session(cache=False, plugins=False, offline=True, device="cpu")


def renamed(tensors, rename):
    """Factors of the same numbers under other names."""
    head = "base_model.model."
    return {head + rename(name.removeprefix(head)): tensor for name, tensor in tensors.items()}


def written(folder, rename=lambda name: name, *, rank=4, seed=4, **settings):
    return str(write_adapter(folder, renamed(factors(rank=rank, seed=seed), rename), rank=rank, **settings))


RENAMES = {
    "added": lambda name: f"bert.{name}",
    "wrapped twice": lambda name: f"base_model.model.{name}",
    "dropped": lambda name: name.removeprefix("model."),
    "in the middle": lambda name: name.replace("model.layers", "model.language_model.layers"),
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
@pytest.mark.parametrize("analysis", ["overlap", "diff", "interference"])
def test_a_prefix_does_not_change_a_number(session, tmp_path, analysis, rename):
    plain, other = written(tmp_path / "a"), written(tmp_path / "b", rank=6, seed=6)
    moved = written(tmp_path / "moved" / "b", rename, rank=6, seed=6)
    expected = session.analyze(analysis, [plain, other])
    report = session.analyze(analysis, [plain, moved])
    assert report.table("modules").rows == expected.table("modules").rows
    assert {row["module"] for row in report.table("modules").rows} == set(MODULES)
    assert [finding.code for finding in report.findings if finding not in expected.findings] == ["prefix_changed"]


def test_the_first_adapter_names_the_modules_and_the_change_is_said(session, tmp_path):
    a, b = written(tmp_path / "a", RENAMES["added"]), written(tmp_path / "b", seed=6)
    report = session.analyze("overlap", [a, b])
    assert all(row["module"].startswith("bert.model.") for row in report.table("modules").rows)
    (finding,) = report.findings
    assert finding.message == "'b': the prefix 'bert.' was put before its modules to match 3 modules."


def test_only_in_one_and_globs_speak_of_the_first_ones_names(session, tmp_path):
    wanted = "bert.model.layers.2.self_attn.q_proj"
    tensors = {name: tensor for name, tensor in factors(seed=6).items() if "layers.10" not in name}
    a = written(tmp_path / "a")
    b = str(write_adapter(tmp_path / "b", renamed(tensors, RENAMES["added"])))
    report = session.analyze("overlap", [b, a], modules=[wanted])
    assert [row["module"] for row in report.table("modules").rows] == [wanted]
    assert session.analyze("overlap", [a, b]).to_json()["only_in_a"] == ["model.layers.10.self_attn.q_proj"]


def test_equal_adapters_under_other_names_do_not_differ_in_weights(session, tmp_path):
    a, b = written(tmp_path / "a"), written(tmp_path / "b", RENAMES["added"])
    report = session.analyze("diff", [a, b])
    assert [row["in"] for row in report.table("modules").rows] == ["both"] * 3
    assert {row["difference_norm"] for row in report.table("modules").rows} == {0.0}


def test_saved_tensors_go_with_their_modules(session, tmp_path):
    def with_head(folder, prefix):
        head = {f"base_model.model.{prefix}score.weight": torch.ones(2, 16)}
        tensors = {**renamed(factors(), lambda name: f"{prefix}{name}"), **head}
        return str(write_adapter(folder, tensors, modules_to_save=["score"]))

    report = session.analyze("diff", [with_head(tmp_path / "a", ""), with_head(tmp_path / "b", "bert.")])
    assert report.table("saved").rows == ()


def test_an_encoder_is_not_a_decoder(session, tmp_path):
    a = written(tmp_path / "a", lambda name: name.replace("model.", "encoder.", 1))
    b = written(tmp_path / "b", lambda name: name.replace("model.", "decoder.", 1))
    with pytest.raises(CompatibilityError, match="No module is in more than one"):
        session.analyze("overlap", [a, b])
    assert {row["in"] for row in session.analyze("diff", [a, b]).table("modules").rows} == {"a", "b"}


def test_two_possible_prefixes_are_not_guessed(session, tmp_path):
    towers = {
        **renamed(factors(), lambda name: f"text.{name}"),
        **renamed(factors(seed=1), lambda name: f"vision.{name}"),
    }
    a, b = str(write_adapter(tmp_path / "a", towers)), written(tmp_path / "b")
    report = session.analyze("diff", [a, b])
    assert [row["in"] for row in report.table("modules").rows].count("both") == 0
    (finding,) = (one for one in report.findings if one.code == "prefix_ambiguous")
    assert "'text.model.layers.2" in finding.message
    assert "'vision.model.layers.2" in finding.message
    with pytest.raises(CompatibilityError, match="No module is in more than one"):
        session.analyze("overlap", [a, b])


def test_names_that_fit_as_they_are_stay(session, tmp_path):
    """A text tower beside a whole model: no tower is moved onto another while names fit as they are."""
    both = {**factors(), **renamed(factors(seed=1), RENAMES["added"])}
    a, b = str(write_adapter(tmp_path / "a", both)), written(tmp_path / "b")
    report = session.analyze("overlap", [a, b])
    assert [row["module"] for row in report.table("modules").rows] == WITH_NUMBERS
    assert [finding.code for finding in report.findings] == []


def test_other_shapes_are_not_matched_by_a_prefix(session, tmp_path):
    wide = {module: (rows * 2, columns * 2) for module, (rows, columns) in MODULES.items()}
    a = written(tmp_path / "a")
    b = str(write_adapter(tmp_path / "b", renamed(factors(wide), RENAMES["added"])))
    with pytest.raises(CompatibilityError, match="No module is in more than one"):
        session.analyze("overlap", [a, b])


@pytest.mark.parametrize("analysis", ["overlap", "interference"])
def test_modules_of_other_sizes_alone_are_refused_in_one_sentence(session, tmp_path, analysis):
    wide = {module: (rows, columns * 2) for module, (rows, columns) in MODULES.items()}
    a, b = written(tmp_path / "a"), str(write_adapter(tmp_path / "b", factors(wide)))
    with pytest.raises(CompatibilityError, match=r"None of the 3 modules.*is 24×16 and 24×32") as refused:
        session.analyze(analysis, [a, b])
    assert "lora-lab diff" in refused.value.hint
    assert len(session.analyze("diff", [a, b]).findings) == 3
