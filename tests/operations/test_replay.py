"""A receipt done again: the same bytes, or a refusal before the first one; and what a receipt may not ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import contents, factors, write_adapter, write_sharded

from lora_lab import LoraLabError, Session
from lora_lab.domain.report import Report
from lora_lab.errors import CompatibilityError, FileFormatError, MissingFileError, OperationError
from lora_lab.operations.replay import Recipe, replay

RECEIPT = "lora_lab_receipt.json"


def session(seed: int = 0) -> Session:
    return Session(cache=False, seed=seed)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def merged(tmp_path: Path, base: Path, adapter: Path) -> Path:
    session().merge([str(adapter)], base=str(base), output=tmp_path / "merged")
    return tmp_path / "merged"


def weights(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name != RECEIPT}


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / RECEIPT
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"strengths": [0.3]},
        {"dtype": "float32"},
        {"dtype": "float16"},
        {"rounding": "stochastic"},
        {"modules": ["*q_proj"]},
    ],
)
def test_the_same_bytes(how: dict[str, Any], base: Path, adapter: Path, tmp_path: Path) -> None:
    """Whatever was asked for, the seed too, though the session that replays has another one."""
    session(seed=7).merge([str(adapter)], base=str(base), output=tmp_path / "out", **how)
    report = session().replay(tmp_path / "out", output=tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "out")
    assert (report.command, report.verdict) == ("replay", True)
    rows = report.table("files").rows
    assert {row["path"] for row in rows} == set(weights(tmp_path / "out"))
    assert all(row["ok"] and row["expected"] == row["sha256"] for row in rows)
    values = report.scalars[0].values
    assert (values["operation"], values["arguments"]["seed"]) == ("merge", 7)
    assert not [finding for finding in report.findings if finding.code.startswith("other_")]


def test_two_adapters_and_a_receipt_by_its_path(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Order and strengths are the receipt's; the receipt may lie anywhere."""
    second = write_adapter(tmp_path / "second", factors(seed=9), alpha=3)
    session().merge([str(second), str(adapter)], base=str(base), output=tmp_path / "out", strengths=[-1, 0.5])
    moved = tmp_path / "kept.json"
    moved.write_text((tmp_path / "out" / RECEIPT).read_text())
    assert session().replay(moved, output=tmp_path / "again").verdict is True
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_unmerge_and_swap_again(base: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    """What goes back and what goes over are replayed as well."""
    second = write_adapter(tmp_path / "second", factors(seed=9))
    how = {"base": str(base)}
    session().unmerge(str(merged), output=tmp_path / "back", **how)
    session().swap(
        str(merged), from_adapters=[str(adapter)], to_adapters=[str(second)], output=tmp_path / "over", **how
    )
    for name in ("back", "over"):
        assert session().replay(tmp_path / name, output=tmp_path / f"{name} again").verdict is True
        assert weights(tmp_path / f"{name} again") == weights(tmp_path / name)


@pytest.mark.parametrize("what", ["adapter", "base", "configuration"])
def test_an_input_that_changed(what: str, base: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    """Refused by the name of the file, with both digests, and nothing is written."""
    if what == "adapter":
        write_adapter(adapter, seed=1)
    elif what == "configuration":
        write_adapter(adapter, alpha=9)
    else:
        path = base / "model-00002-of-00002.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    name = {
        "adapter": "adapter_model.safetensors",
        "base": "model-00002-of-00002.safetensors",
        "configuration": "adapter_config.json",
    }[what]
    with pytest.raises(CompatibilityError) as caught:
        session().replay(merged, output=tmp_path / "again")
    assert name in str(caught.value)
    assert re.search(r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}\.", str(caught.value))
    assert caught.value.hint
    assert not [path for path in tmp_path.iterdir() if "again" in path.name]


def test_an_input_that_is_gone(adapter: Path, merged: Path, tmp_path: Path) -> None:
    """Named, and nothing is written."""
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(LoraLabError, match="adapter"):
        session().replay(merged, output=tmp_path / "again")
    with pytest.raises(MissingFileError):
        session().replay(tmp_path / "nowhere.json", output=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_another_folder_than_then(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locators that were relative then are found where they lay."""
    monkeypatch.chdir(tmp_path)
    session().merge(["./adapter"], base="./base", output=tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert session().replay(tmp_path / "out", output=tmp_path / "again").verdict is True


def test_a_receipt_that_says_other_bytes(merged: Path, tmp_path: Path) -> None:
    """The files are named that came out differently, are missing or are new."""

    def change(document: dict[str, Any]) -> None:
        first, second, *_ = document["outputs"]
        first["sha256"] = "0" * 64
        second["path"] = "other.json"

    edit(merged, change)
    report = session().replay(merged, output=tmp_path / "again")
    assert report.verdict is False
    (finding,) = [finding for finding in report.findings if finding.code == "other_bytes"]
    for told in ("(other bytes)", "'other.json' (missing)", "(new)"):
        assert told in finding.message
    assert len([row for row in report.table("files").rows if not row["ok"]]) == 3


def test_other_versions_are_told(merged: Path, tmp_path: Path) -> None:
    """Where something else than the inputs may explain a difference."""
    edit(merged, lambda document: document["versions"].update(torch="1.0", python="2.7\x1b[31m"))
    report = session().replay(merged, output=tmp_path / "again")
    (finding,) = [finding for finding in report.findings if finding.code == "other_versions"]
    assert f"torch '1.0' then, {torch.__version__} now" in finding.message
    assert "\x1b" not in finding.message


@pytest.mark.parametrize("operation", ["push", "replay", "verify", "__init__", "base", "Merge", "merge\n"])
def test_other_operations_are_refused(operation: str, merged: Path, tmp_path: Path) -> None:
    """A file does not choose what a session does: three names, and no other attribute."""
    edit(merged, lambda document: document.update(operation=operation))
    with pytest.raises(OperationError, match="expected one of: merge, unmerge, swap"):
        session().replay(merged, output=tmp_path / "again")
    assert not (tmp_path / "again").exists()


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an output elsewhere": (lambda d: d["arguments"].update(output="/etc/passwd"), "arguments.output"),
    "overwriting": (lambda d: d["arguments"].update(overwrite=True), "arguments.overwrite"),
    "an unknown word": (lambda d: d["arguments"].update(pickle=True), "arguments.pickle"),
    "a strength that is text": (lambda d: d["arguments"].update(strengths=["1"]), "arguments.strengths"),
    "a strength that is a truth": (lambda d: d["arguments"].update(strengths=[True]), "arguments.strengths"),
    "a seed that is none": (lambda d: d["arguments"].update(seed="0"), "arguments.seed"),
    "integers as type": (lambda d: d["arguments"].update(dtype="I8"), "arguments.dtype"),
    "adapters as a text": (lambda d: d["arguments"].update(adapters="adapter"), "arguments.adapters"),
    "a strength that no float holds": (lambda d: d["arguments"].update(strengths=[1 << 60]), "arguments.strengths"),
    "no base": (lambda d: d["arguments"].pop("base"), "arguments.base"),
    "arguments as a list": (lambda d: d.update(arguments=[]), "arguments"),
    "a short digest": (lambda d: d["inputs"][0]["sha256"].update({"adapter_config.json": "00"}), "inputs.sha256"),
    "an output twice": (lambda d: d["outputs"].append(d["outputs"][0]), "outputs"),
    "a negative size": (lambda d: d["outputs"][0].update(size_bytes=-1), "outputs.size_bytes"),
    "another schema": (lambda d: d.update(schema="lora-lab/9"), "schema"),
    "no inputs": (lambda d: d.update(inputs=[]), "lists no inputs"),
    "no digests": (lambda d: d["inputs"][0].update(sha256={}), "no sha256 of the input"),
    "an adapter that no input is": (lambda d: d["arguments"].update(adapters=["/elsewhere"]), "/elsewhere"),
    "a base that no input is": (lambda d: d["arguments"].update(base="/elsewhere"), "/elsewhere"),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_odd_receipts_are_refused(case: str, merged: Path, tmp_path: Path) -> None:
    """In one sentence with the place in the document; nothing is written."""
    change, told = CHANGES[case]
    edit(merged, change)
    with pytest.raises(FileFormatError) as caught:
        session().replay(merged, output=tmp_path / "again")
    assert told in str(caught.value)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("operation", ["unmerge", "swap"])
def test_odd_receipts_of_the_way_back_are_refused(
    operation: str, base: Path, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    """No argument that the operation does not have in its receipts, and no locator that was not hashed."""
    if operation == "unmerge":
        session().unmerge(str(merged), base=str(base), output=tmp_path / "out")
    else:
        adapters = {"from_adapters": [str(adapter)], "to_adapters": [str(adapter)]}
        session().swap(str(merged), base=str(base), output=tmp_path / "out", **adapters)
    kept = (tmp_path / "out" / RECEIPT).read_text()
    for name, value in (("output", "/tmp/x"), ("overwrite", True), ("dry_run", True), ("write_undo", "/tmp/undo")):
        (tmp_path / "out" / RECEIPT).write_text(kept)
        edit(tmp_path / "out", lambda document, given={name: value}: document["arguments"].update(given))
        with pytest.raises(FileFormatError, match=f"arguments.{name}"):
            session().replay(tmp_path / "out", output=tmp_path / "again")
    (tmp_path / "out" / RECEIPT).write_text(kept)
    edit(tmp_path / "out", lambda document: document["arguments"].update(merged="/elsewhere"))
    with pytest.raises(FileFormatError, match="/elsewhere"):
        session().replay(tmp_path / "out", output=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not Path("/tmp/undo").exists()


def test_an_output_that_exists(merged: Path, tmp_path: Path) -> None:
    """Is kept."""
    before = contents(merged)
    with pytest.raises(OperationError):
        session().replay(merged, output=merged)
    assert contents(merged) == before


def test_what_is_run_is_the_recipe(merged: Path, adapter: Path, base: Path, tmp_path: Path) -> None:
    """Whoever runs it gets the arguments and nothing beside them, after every input was recorded."""
    seen: list[Any] = []

    def run(recipe: Recipe, output: Path) -> Report:
        seen.append((recipe.operation, dict(recipe.arguments), output))
        return session().merge([str(adapter)], base=str(base), output=output)

    own = session()
    replay(merged / RECEIPT, tmp_path / "again", record=own._record, run=run)
    document = json.loads((merged / RECEIPT).read_text())
    assert seen == [("merge", document["arguments"], tmp_path / "again")]
