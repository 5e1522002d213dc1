"""Every broken file of the corpus, through the library and the command line: one sentence, and nobody else suffers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from builders import write_adapter
from corpus.adapter_cases import CASES as ADAPTERS
from corpus.adapter_cases import AdapterCase
from corpus.storage_cases import CASES, Case

from lora_lab import LoraLabError, Session
from lora_lab.cli import run
from lora_lab.safetext import is_suspicious

FILES = [case for case in CASES if case.reader == "file"]
REFUSED = [case for case in FILES if case.expect == "refused" and not (case.needs_user and os.geteuid() == 0)]

# Inside a folder the folder's own rules speak first.
IN_A_FOLDER = {
    "device": "leaves its folder",
    "absent": "has adapter_config.json but no weights",
    "link_loop": "is a link to",
}


def build(case: Case, folder: Path) -> Path:
    """The case's file as the weights of an adapter whose configuration is sound."""
    folder.mkdir(parents=True, exist_ok=True)
    case.build(folder)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def cli(*arguments: str) -> int:
    return run(list(arguments), open_application=lambda *_: 0)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.number}-{case.id}")
def test_refused_with_one_sentence(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library raises it, the command line prints it and exits with the code of the contract; stdout stays empty."""
    folder = build(case, tmp_path / "adapter")
    with pytest.raises(LoraLabError) as caught:
        Session().adapter(str(folder))
    assert IN_A_FOLDER.get(case.id, case.fragment) in caught.value.message
    for command in ("inspect", "spectrum"):
        assert cli(command, str(folder)) == case.exit_code
        printed = capsys.readouterr()
        assert printed.out == ""
        first, *hint = printed.err.splitlines()
        assert first == f"lora-lab: {caught.value.message}"
        assert len(hint) <= 1
        assert not any(is_suspicious(line) for line in printed.err.splitlines())


def test_a_library_of_broken_files_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each broken one has its reason, the good one beside them is whole, and the exit code is 0."""
    for case in FILES:
        build(case, tmp_path / f"{case.number}-{case.id}")
    write_adapter(tmp_path / "good")
    assert cli("ls", str(tmp_path), "--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["adapters"]}
    assert listed.pop("good")["error"] is None
    # What the file alone does not forbid, the adapter does: these tensors are no factors.
    assert set(listed) == {f"{case.number}-{case.id}" for case in FILES}
    assert all(entry["error"] and not is_suspicious(entry["error"]) for entry in listed.values())
    assert cli("ls", str(tmp_path)) == 0
    shown = capsys.readouterr()
    assert not any(is_suspicious(line) for line in (shown.out + shown.err).splitlines())


@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: f"{case.number}-{case.id}")
def test_adapters_that_contradict_themselves(
    case: AdapterCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused by the library and by every command in the same sentence, or read with a warning that names it."""
    folder = tmp_path / "adapter"
    case.build(folder)
    code = cli("inspect", str(folder))
    printed = capsys.readouterr()
    if case.finding:
        assert code == 0, printed.err
        assert case.finding in {finding.code for finding in Session().adapter(str(folder)).findings}
        assert cli("inspect", str(folder), "--strict") == 1
        return
    assert code == 2, printed
    assert case.fragment in printed.err
    assert printed.out == ""
    assert len(printed.err.splitlines()) <= 2
    (entry,) = Session(cache=False).scan(str(tmp_path))
    assert f"lora-lab: {entry.error}" == printed.err.splitlines()[0]


def test_a_pickle_is_read_when_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the word for it, weights only, the numbers are those of the safetensors file."""
    write_adapter(tmp_path / "safe")
    next(case for case in ADAPTERS if case.id == "pickle").build(tmp_path / "pickled")
    assert cli("spectrum", str(tmp_path / "pickled"), "--allow-pickle", "--json") == 0
    converted = json.loads(capsys.readouterr().out)
    assert converted["modules"] == Session().spectrum(str(tmp_path / "safe")).to_json()["modules"]


OTHERS = [case for case in CASES if case.reader != "file" and case.expect == "refused"]


def test_a_pickle_without_factors_is_named_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence is about the file that the person has, not about what was made of it."""
    folder = write_adapter(tmp_path / "pickled")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"conv.weight": torch.ones(2, 2)}, folder / "adapter_model.bin")
    assert cli("inspect", str(folder), "--allow-pickle") == 2
    assert f"{str(folder / 'adapter_model.bin')!r} holds 1 tensors such as 'conv.weight'" in capsys.readouterr().err


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.number}-{case.id}")
def test_checkpoints_and_pickles(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken checkpoints, and pickles that are refused even with the word for it: one sentence, nothing on stdout."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = case.build(folder)
    if case.reader == "pickle":
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
        code = cli("inspect", str(folder), "--allow-pickle")
    else:
        with pytest.raises(LoraLabError) as caught:
            Session().base(str(path))
        assert case.fragment in caught.value.message
        code = cli("inspect", str(path))
    printed = capsys.readouterr()
    assert code in (2, 3), printed
    assert printed.out == ""
    assert printed.err.startswith("lora-lab: ")
    assert len(printed.err.splitlines()) <= 2
    if case.reader == "pickle":
        assert case.fragment in printed.err
