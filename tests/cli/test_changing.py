"""Merging, taking back, swapping and proving from the command line: bytes, fields, exit codes, sentences."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from builders import factors, write_adapter, write_base

from lora_lab.cli import run as run_program

PROMISED = {
    *("schema", "command", "inputs", "warnings", "operation", "arguments", "outputs", "modules", "seconds"),
    *("bytes_read", "bytes_written", "peak_memory_bytes", "versions"),
}
FIDELITY = {
    *("module", "changed_fraction", "intended_norm", "realised_norm", "realised_cosine", "effective_strength"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "one", factors(seed=1))
    write_adapter(tmp_path / "two", factors(seed=2))
    return tmp_path


def run(arguments: list[str]) -> int:
    return run_program(arguments, open_application=lambda *_: 0)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """What the command prints as JSON."""
    got = run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert got == code, err
    document: dict[str, Any] = json.loads(out)
    return document


def weights(folder: Path) -> dict[str, str]:
    """sha256 of every file of weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def test_merge_says_what_the_contract_promises(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the receipt beside the output says the same."""
    document = said(capsys, "merge", "one", "--base", "base", "-o", "out")
    assert document.keys() >= PROMISED
    assert document["modules"]
    assert all(row.keys() >= FIDELITY for row in document["modules"])
    receipt = json.loads((here / "out" / "lora_lab_receipt.json").read_text())
    assert {**receipt, "warnings": []} == {**document, "warnings": []}
    assert weights(here / "out") == {
        row["path"]: row["sha256"] for row in document["outputs"] if row["path"].endswith(".safetensors")
    }


@pytest.mark.parametrize("how", [("--undo", "kept.undo"), ("--base", "base")], ids=["undo", "base"])
def test_unmerging_gives_the_bytes_back(here: Path, how: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """To the bit, and it says how it knows."""
    said(capsys, "merge", "one", "two", "--strength", "0.5", "--strength", "-1", "--base", "base", "-o", "out",
         "--undo", "kept.undo")  # fmt: skip
    assert weights(here / "out") != weights(here / "base")
    document = said(capsys, "unmerge", "out", "-o", "back", *how)
    assert document["proof"]["exact"] is True
    assert document["warnings"] == []
    assert weights(here / "back") == weights(here / "base")


def test_subtracting_warns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, a warning with the figures, and where to read on."""
    said(capsys, "merge", "one", "--base", "base", "-o", "out")
    document = said(capsys, "unmerge", "out", "--adapter", "one", "-o", "back")
    assert [warning["code"] for warning in document["warnings"]] == ["inexact_unmerge"]
    assert document["proof"]["exact"] is False
    assert "--base and --undo are exact" in document["warnings"][0]["message"]


def test_swapping_exactly_is_merging_the_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the undo file, with the base, and nearly without either."""
    said(capsys, "merge", "one", "--base", "base", "-o", "out", "--undo", "kept.undo")
    said(capsys, "merge", "two", "--strength", "0.7", "--base", "base", "-o", "wanted")
    swap = ("swap", "out", "--from", "one", "--to", "two", "--strength-to", "0.7")
    said(capsys, *swap, "--undo", "kept.undo", "-o", "by_undo")
    said(capsys, *swap, "--base", "base", "-o", "by_base")
    assert weights(here / "by_undo") == weights(here / "by_base") == weights(here / "wanted")
    document = said(capsys, *swap, "-o", "by_pass")
    assert [warning["code"] for warning in document["warnings"]] == ["inexact_swap"]
    said(capsys, "verify", "by_pass", "--base", "base", "--adapter", "one", code=1)


def test_an_adapter_is_verified_by_its_receipt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What combine wrote has hashes too; without a receipt there is nothing to prove of an adapter."""
    said(capsys, "combine", "one", "two", "--method", "cat", "-o", "both")
    assert said(capsys, "verify", "both")["ok"] is True
    path = here / "both" / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert said(capsys, "verify", "both", code=1)["ok"] is False
    assert run(["verify", "one"]) == 2
    assert "is an adapter" in capsys.readouterr().err


def test_verify_says_yes_no_and_neither(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0, 1 and 4; what is not established is never 0."""
    said(capsys, "merge", "one", "--base", "base", "-o", "out")
    assert said(capsys, "verify", "out")["ok"] is True
    assert said(capsys, "verify", "out", "--base", "base", "--adapter", "one")["arithmetic"] is True
    assert said(capsys, "verify", "out", "--base", "base", "--adapter", "two", code=1)["ok"] is False
    assert said(capsys, "verify", "base", code=4)["ok"] is None
    path = here / "out" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    document = said(capsys, "verify", "out", code=1)
    assert document["hashes"] is False
    assert [row["path"] for row in document["files"] if not row["ok"]] == ["model.safetensors"]


@pytest.mark.parametrize(
    "made",
    [
        ("merge", "one", "two", "--strength", "2", "--strength", "0.1", "--base", "base", "--dtype", "bfloat16",
         "--rounding", "stochastic", "--seed", "3", "--module", "*q_proj"),
        ("unmerge", "merged", "--adapter", "one", "--module", "*q_proj"),
        ("unmerge", "merged", "--base", "base"),
        ("unmerge", "merged", "--undo", "merged.undo"),
        ("swap", "merged", "--from", "one", "--to", "two", "--strength-to", "0.3"),
        ("swap", "merged", "--from", "one", "--to", "two", "--undo", "merged.undo"),
    ],
    ids=["merge", "subtracted", "from base", "from undo", "swap", "swap by undo"],
)  # fmt: skip
def test_replay_gives_the_same_bytes(here: Path, made: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was done, with all that was said about it."""
    said(capsys, "merge", "one", "--base", "base", "-o", "merged", "--undo", "merged.undo")
    said(capsys, *made, "-o", "first")
    document = said(capsys, "replay", "first/lora_lab_receipt.json", "-o", "again")
    assert document["ok"] is True
    assert weights(here / "again") == weights(here / "first")


def test_what_is_not_finite_needs_a_word(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and the word; with it 0, null for what is undefined, and replay and verify that agree."""
    broken = factors(seed=1)
    name = next(iter(broken))
    broken[name][0, 0] = float("nan")
    write_adapter(here / "broken", broken)
    command = ["merge", "broken", "--base", "base", "-o", "out"]
    assert run(command) == 2
    assert name in capsys.readouterr().err
    document = said(capsys, *command, "--allow-nonfinite")
    assert document["arguments"]["allow_nonfinite"] is True
    undefined = [row["module"] for row in document["modules"] if row["intended_norm"] is None]
    assert [f"base_model.model.{module}.lora_A.weight" for module in undefined] == [name]
    assert [one["module"] for one in document["warnings"] if one["code"] == "undefined_figures"] == undefined
    assert said(capsys, "replay", "out/lora_lab_receipt.json", "-o", "again")["ok"] is True
    assert said(capsys, "verify", "out", "--base", "base", "--adapter", "broken")["ok"] is True


@pytest.mark.parametrize("operation", ["merge", "combine", "resize"])
def test_words_for_opening_stand_in_the_receipt(operation: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An alpha that the file does not say is known to the replay, and to nobody who was not told."""
    path = here / "one" / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["lora_alpha"]
    path.write_text(json.dumps(config))
    command = {
        "merge": ["merge", "one", "--base", "base"],
        "combine": ["combine", "one", "two", "--method", "linear"],
        "resize": ["resize", "one", "--rank", "2"],
    }[operation]
    assert run([*command, "-o", "out"]) == 2
    assert "--alpha" in capsys.readouterr().err
    arguments = said(capsys, *command, "-o", "out", "--alpha", "6")["arguments"]
    assert (arguments["alpha"], "allow_pickle" in arguments) == (6, False)
    assert said(capsys, "replay", "out", "-o", "again")["ok"] is True
    assert said(capsys, *command, "-o", "next", "--alpha", "6", "--allow-pickle")["arguments"]["allow_pickle"] is True


def test_replay_of_another_input_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the file that changed."""
    said(capsys, "merge", "one", "--base", "base", "-o", "out")
    write_adapter(here / "one", factors(seed=4))
    assert run(["replay", "out/lora_lab_receipt.json", "-o", "again"]) == 2
    assert "adapter_model.safetensors" in capsys.readouterr().err
    assert not (here / "again").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("unmerge", "out", "--adapter", "one"),
        ("swap", "out", "--from", "one", "--to", "two"),
    ],
)
def test_a_dry_run_writes_nothing(here: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """And says how much it would be, and how much is free."""
    said(capsys, "merge", "one", "--base", "base", "-o", "out")
    before = sorted(here.iterdir())
    plan = said(capsys, *arguments, "-o", "next", "--dry-run")["plan"]
    assert sorted(here.iterdir()) == before
    real = said(capsys, *arguments, "-o", "next")
    assert plan["bytes_to_write"] == sum(row["size_bytes"] for row in real["outputs"])
    assert plan["bytes_free"] > plan["bytes_to_write"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("unmerge", "out", "-o", "x"), "Nothing says what 'out' was merged from"),
        (("unmerge", "out", "--base", "base", "--undo", "kept.undo", "-o", "x"), "Got a base and an undo file"),
        (("unmerge", "out", "--adapter", "one", "--strength", "1", "--strength", "2", "-o", "x"), "Got 2 strengths"),
        (("unmerge", "out", "--undo", "one/adapter_model.safetensors", "-o", "x"), "is no undo file"),
        (("verify", "out", "--adapter", "one"), "no base to add them to"),
        (("swap", "out", "--from", "one", "--to", "two", "--write-undo", "u", "-o", "x"), "base's bits are known"),
        (("replay", "base/config.json", "-o", "x"), "is no receipt"),
        (("replay", "org/name", "-o", "x"), "Give a lora_lab_receipt.json of this machine"),
    ],
)
def test_refusals_are_one_sentence(
    here: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, nothing written."""
    run(["merge", "one", "--base", "base", "-o", "out", "--undo", "kept.undo"])
    before = sorted(here.iterdir())
    capsys.readouterr()
    assert run(list(arguments)) == 2
    assert sentence in capsys.readouterr().err.replace('"', "'")
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("output", ["base", "one", ".", "link"])
@pytest.mark.parametrize("command", ["merge", "combine"])
def test_what_is_read_is_never_replaced(
    here: Path, command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with --overwrite, not in a dry run, not through a link, not the folder above."""
    (here / "link").symlink_to(here / "one")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    words = [command, "one", "-o", output, "--overwrite", *(["--base", "base"] if command == "merge" else [])]
    is_read = command == "merge" or output != "base"
    for more in ([], ["--dry-run"]):
        if is_read:
            assert run([*words, *more]) == 3
            assert "which is read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
