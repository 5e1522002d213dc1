"""Whether a base goes by the name that an adapter was trained on: every command that takes a base says it alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import write_adapter, write_base

from lora_lab import Session
from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.adapter import Adapter
from lora_lab.domain.base import Base

COMMIT = "0123456789" * 4
CACHED = f"/home/anna/.cache/huggingface/hub/models--org--Llama-7b/snapshots/{COMMIT}"


def told(trained_on: str | None, base: Base, adapter: Adapter) -> list[str]:
    return [finding.message for finding in base_name_findings(replace(adapter, base_model=trained_on), base)]


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return Session(cache=False).adapter(str(write_adapter(tmp_path / "mine")))


def local(folder: str, **configuration: Any) -> Base:
    path = f"/somewhere/{folder}"
    return Base(folder, path, path, {}, (), configuration)


def remote(locator: str, name: str) -> Base:
    return Base(name, locator, f"hf://{locator}@{COMMIT}", {}, (), {}, revision=COMMIT)


@pytest.mark.parametrize(
    ("trained_on", "base"),
    [
        ("org/llama-7b", local("folder", _name_or_path="org/Llama-7b")),
        ("org/llama-7b@main", local("folder", _name_or_path="/models/Llama-7b/")),
        ("C:\\models\\llama-7b", local("folder", _name_or_path="org/llama-7b")),
        (CACHED, local("folder", _name_or_path="org/llama-7b")),
        ("org/llama-7b", Base("0123", CACHED, CACHED, {}, (), {}, revision=COMMIT)),
        ("org/llama-7b", remote("org/Llama-7b@main", "Llama-7b")),
        ("org/llama-7b", remote("hf://org/llama-7b:inner", "inner")),
        ("llama-7b", local("llama-7b", _name_or_path="somebody/parent")),
        # nothing is known of one side
        ("org/llama-7b", local("folder")),
        ("org/llama-7b", local("folder", _name_or_path="")),
        ("org/llama-7b", local("folder", _name_or_path="./model")),
        ("org/llama-7b", local("folder", _name_or_path=3)),
        ("", remote("org/other", "other")),
        (None, remote("org/other", "other")),
        ("./checkpoint-500", remote("org/other", "other")),
        (".", remote("org/other", "other")),
    ],
)
def test_nothing_is_said(trained_on: str | None, base: Base, adapter: Adapter) -> None:
    """Of names that are one, and where a side has none."""
    assert told(trained_on, base, adapter) == []


@pytest.mark.parametrize(
    ("base", "called"),
    [
        (local("folder", _name_or_path="org/other"), "org/other"),
        (remote("org/other@main", "other"), "org/other"),
        (remote("hf://org/other:inner", "inner"), "org/other"),
        (Base("0123", CACHED, CACHED, {}, (), {}, revision=COMMIT), "Llama-7b"),
    ],
)
def test_another_name_is_said(base: Base, called: str, adapter: Adapter) -> None:
    """Both names stand in the sentence, that of the base as it is known by."""
    assert told("org/mistral-7b", base, adapter) == [
        f"'mine' was trained on 'org/mistral-7b', and this base is called '{called}'."
    ]


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """An adapter that was trained on one model, and a base that says it is another."""
    base = write_base(tmp_path / "base")
    document = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**document, "_name_or_path": "org/other"}))
    adapter = write_adapter(tmp_path / "mine", base_model_name_or_path="org/first")
    return {"adapter": str(adapter), "base": str(base), "out": str(tmp_path / "out")}


def run(command: str, adapter: str, base: str, out: str) -> Any:
    session = Session(cache=False)
    if command in ("check", "amplify", "intruders"):
        return session.analyze(command, [adapter], base=base)
    if command == "swap":
        session.merge([adapter], base=base, output=f"{out}-merged")
        return session.swap(f"{out}-merged", from_adapters=[adapter], to_adapters=[adapter], base=base, output=out)
    return session.merge([adapter], base=base, output=out, dry_run=command == "merge --dry-run")


@pytest.mark.parametrize("command", ["check", "amplify", "intruders", "merge", "merge --dry-run", "swap"])
def test_every_command_says_the_same(command: str, pair: dict[str, Any]) -> None:
    report = run(command, **pair)
    said = [finding.message for finding in report.findings if finding.code == "base_model_differs"]
    assert said == ["'mine' was trained on 'org/first', and this base is called 'org/other'."]


@pytest.mark.parametrize("command", ["check", "amplify", "intruders", "merge", "merge --dry-run", "swap"])
def test_no_command_says_it_of_a_folder_without_a_name(command: str, pair: dict[str, Any]) -> None:
    (Path(pair["base"]) / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "base_model_differs" not in {finding.code for finding in run(command, **pair).findings}


def test_the_base_behind_pissa_too(pair: dict[str, Any], tmp_path: Path) -> None:
    """Resizing counts from the base, so that another one would mean nothing."""
    adapter = write_adapter(tmp_path / "moved", base_model_name_or_path="org/first", init_lora_weights="pissa")
    report = Session(cache=False).resize(str(adapter), base=pair["base"], rank=2, output=pair["out"])
    assert "base_model_differs" in {finding.code for finding in report.findings}
