"""The commands that make adapters out of adapters, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_lab.cli import run as run_program

SAMPLES = Path(__file__).parents[2] / "sample_adapters"


def run(*arguments: str) -> int:
    return run_program([*arguments], open_application=lambda *_: 0)


def test_combine_and_resize_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A negative strength is a value, not an option; the receipt beside the files is what --json prints."""
    a, b = (str(SAMPLES / name) for name in ("banking77-r8-seed0", "snips-r8"))
    strengths = ["--strength", "1", "--strength", "-0.5"]
    out = tmp_path / "out"
    assert run("combine", a, b, "--method", "svd", *strengths, "--rank", "4", "--json", "-o", str(out)) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((out / "lora_lab_receipt.json").read_text())
    assert said["arguments"]["strengths"] == [1.0, -0.5]
    assert {row["rank"] for row in said["modules"]} == {4}
    assert run("resize", str(out), "--error", "0.5", "-o", str(tmp_path / "small")) == 0
    assert run("replay", str(out), "-o", str(tmp_path / "again")) == 0
    assert (
        run("combine", a, b, "--method", "ties", "--param", "density=0.2", "--rank", "2", "--dry-run", "-o", "x") == 0
    )
    capsys.readouterr()
    assert run("combine", a, b, "-o", str(out)) == 3  # it is there
    assert run("combine", a, str(SAMPLES / "banking77-dora"), "-o", str(tmp_path / "no")) == 2
    assert "DoRA" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_density_is_short_for_the_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes and the same receipt's settings; a method that has none says so."""
    a, b = (str(SAMPLES / name) for name in ("banking77-r8-seed0", "snips-r8"))
    words = ("combine", a, b, "--module", "*layers.0*attn*", "--rank", "4", "--json")
    settings = []
    for name, how in (("short", ("--density", "0.3")), ("long", ("--param", "density=0.3"))):
        assert run(*words, "--method", "ties", *how, "-o", str(tmp_path / name)) == 0
        settings.append(json.loads(capsys.readouterr().out)["arguments"]["settings"])
    assert settings[0] == settings[1]
    assert settings[0]["density"] == 0.3
    short, long = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("short", "long"))
    assert short == long
    for refused in (("--method", "linear", "--density", "0.3"), ("--method", "ties", "--density", "2")):
        assert run(*words, *refused, "-o", str(tmp_path / "refused")) == 2
        assert "density" in capsys.readouterr().err


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [row["id"] for row in rows][:3] == ["linear", "cat", "svd"]
    assert all(row["summary"] for row in rows)


def test_a_sweep_and_the_table_of_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several outputs of one command; what the methods would lose, before one chooses."""
    a, b = (str(SAMPLES / name) for name in ("banking77-r8-seed0", "snips-r8"))
    sample = ["--module", "*layers.0*attn*", "--rank", "4"]
    out = str(tmp_path / "mixed")
    assert run("combine", a, b, "--sweep", "0.7,0.3", "--sweep", "0:1:0.5,-1", *sample, "--json", "-o", out) == 0
    said = json.loads(capsys.readouterr().out)
    names = ["mixed-0--1", "mixed-0.5--1", "mixed-0.7-0.3", "mixed-1--1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [row["strengths"] for row in said["sweep"]] == [[0.7, 0.3], [0.0, -1.0], [0.5, -1.0], [1.0, -1.0]]
    assert run("combine", a, b, "--sweep", "1,1", "--strength", "1", "-o", out) == 2
    assert run("combine", a, b, "--sweep", "1,x", "-o", out) == 2
    capsys.readouterr()
    assert run("methods", a, b, *sample, "--param", "density=0.3", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["id"] for row in said["methods"]} >= {"linear", "ties", "slerp"}
    assert said["parameters"] == {"rank": 4, "modules": ["*layers.0*attn*"], "whole": "refuse"}
    assert len(said["inputs"]) == 2
    assert run("methods", a, b, *sample, "--method", "linear", "--method", "dare_linear") == 0
    shown = capsys.readouterr().out
    assert "density=0.5, space=delta" in shown
    assert "{" not in shown
    assert run("methods", a, b, *sample, "--method", "slerp", "--strength", "1", "--strength", "-1") == 0
    assert "not both zero" in capsys.readouterr().err
    assert run("methods", "--rank", "4") == 2
