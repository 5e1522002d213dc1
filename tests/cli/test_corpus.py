"""Every broken file of the corpus, through the library and the command line: one sentence, and nobody else suffers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders import write_adapter
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
