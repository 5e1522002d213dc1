"""What is asked for, as a call and as a command: both write the same bytes; what is wrong is said by field."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import contents, factors, write_adapter, write_base

from lora_lab import Session
from lora_lab.cli import run
from lora_lab.tui.combining.recipe import READS, Recipe, Source, free_name, proposed_output

SESSION = {"seed": 3, "device": "cpu"}
METHODS = Session(cache=False).registry.methods


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "a base", seed=1)
    write_base(tmp_path / "tuned", seed=2)
    write_adapter(tmp_path / "one", factors(seed=1))
    write_adapter(tmp_path / "it's two", factors(seed=2))
    return tmp_path


def combination(method: str, strengths: tuple[str, str] = ("1", "1"), **more: Any) -> Recipe:
    """Of the two adapters."""
    sources = (Source("one", strengths[0]), Source("it's two", strengths[1]))
    settings = more.pop("settings", {})
    return Recipe("combine", sources, METHODS[method], settings, {"output": "out", **more}, SESSION)


RECIPES = {
    "sum": combination("linear"),
    "strengths and rank": combination("svd", ("0.7", "-.3"), rank="3", dtype="float16"),
    "energy": combination("cat", ("2", "1"), energy="0.9", modules="'*q_proj'"),
    "budget": combination("linear", parameters="300", saved="average"),
    "parameters": combination("ties", rank="2", settings={"density": "0.20", "election": "after"}),
    "chance": combination("dare_ties", rank="2", seed="11", saved="skip", settings={"density": ".4"}),
    "not given": combination("slerp", settings={"t": "0.25"}),
    "with a base": combination("svd", base="a base"),
    "resized with a base": Recipe(
        "resize", typed={"adapter": "one", "rank": "1", "base": "a base", "output": "out"}, session=SESSION
    ),
    "one wins": combination("linear", saved="from:it's two"),
    "resize": Recipe("resize", typed={"adapter": "it's two", "error": "0.2", "output": "out"}, session=SESSION),
    "extract": Recipe(
        "extract",
        typed={
            "base": "a base",
            "finetuned": "tuned",
            "rank": "3",
            "others": "yes",
            "dtype": "bfloat16",
            "output": "out",
        },
        session=SESSION,
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_writes_the_same_bytes(name: str, here: Path) -> None:
    """Defaults are left out of it, options of the session are in it."""
    recipe = RECIPES[name]
    assert recipe.lacking() is None
    assert recipe.faults() == {}
    foretold = getattr(Session(cache=False, **SESSION), recipe.operation)(**recipe.foretelling())  # type: ignore[arg-type]
    assert not (here / "out").exists()
    made = getattr(Session(cache=False, **SESSION), recipe.operation)(**recipe.arguments())  # type: ignore[arg-type]
    assert foretold.table("modules").rows == made.table("modules").rows
    by_call = contents(here / "out")
    (here / "out").rename(here / "by call")
    words = shlex.split(recipe.command())
    assert words[0] == "lora-lab"
    assert run([*words[1:], "--quiet"], open_application=lambda *_: 0) == 0
    by_command = contents(here / "out")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert by_call[file] == by_command[file]


def test_the_command_in_a_shell(here: Path) -> None:
    """As it stands, quotation marks and all."""
    recipe = RECIPES["chance"]
    Session(cache=False, **SESSION).combine(**recipe.arguments())  # type: ignore[arg-type]
    by_call = contents(here / "out")
    (here / "out").rename(here / "by call")
    binaries = here / "bin"
    binaries.mkdir()
    (binaries / "lora-lab").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m lora_lab "$@"\n')
    (binaries / "lora-lab").chmod(0o755)
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    done = subprocess.run(["sh", "-c", recipe.command()], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    by_command = contents(here / "out")
    assert by_command["adapter_model.safetensors"] == by_call["adapter_model.safetensors"]
    assert by_command["adapter_config.json"] == by_call["adapter_config.json"]


@pytest.mark.parametrize(
    ("recipe", "field", "sentence"),
    [
        (combination("linear", ("", "1")), "strength:0", "expected a finite number"),
        (combination("linear", ("1", "nan")), "strength:1", "expected a finite number"),
        (combination("ties", settings={"density": "2"}), "setting:density", "from 0 to 1"),
        (combination("ties", settings={"density": "much"}), "setting:density", "'much'"),
        (combination("svd", rank="0"), "rank", "at least 1"),
        (combination("svd", rank="2.5"), "rank", "whole number"),
        (combination("svd", energy="1.5"), "energy", "above 0 and up to 1"),
        (combination("svd", energy="0.9", error="0.1"), "error", "Both an energy and an error"),
        (combination("svd", rank="2", parameters="9"), "parameters", "expected one"),
        (combination("svd", seed="-1"), "seed", "from 0 up"),
        (combination("svd", modules="'x"), "modules", "without its second"),
        (combination("svd", output="nowhere/out"), "output", "is not there"),
    ],
)
def test_what_is_wrong_is_said_by_field(recipe: Recipe, field: str, sentence: str, here: Path) -> None:
    """One sentence each, and nothing else is refused."""
    (found,) = recipe.faults().items()
    assert found[0] == field
    assert sentence in found[1]


def test_what_an_operation_does_not_read_is_not_asked(here: Path) -> None:
    """Neither is it wrong, nor does it reach the call or the command."""
    typed = {"base": "a base", "finetuned": "tuned", "error": "oops", "saved": "skip", "adapter": "gone", "output": "o"}
    recipe = Recipe("extract", (Source("gone", "x"),), METHODS["ties"], {"density": "7"}, typed)
    assert recipe.faults() == {}
    assert recipe.command() == "lora-lab extract 'a base' tuned -o o"
    assert set(recipe.arguments()) == {"base", "finetuned", "seed", "output"}


def test_what_is_missing_is_asked_for() -> None:
    """Before anything is worked out."""
    assert "a adds one" in (Recipe("combine", method=METHODS["svd"]).lacking() or "")
    assert "a rank, an energy" in (Recipe("resize", typed={"adapter": "a"}).lacking() or "")
    assert "before training" in (Recipe("extract").lacking() or "")
    assert "after it" in (Recipe("extract", typed={"base": "b"}).lacking() or "")
    assert set(READS) == {"combine", "resize", "extract"}


def test_a_dry_run_knows_what_would_be_replaced(here: Path) -> None:
    """An output that is there is named to it, so that what is read is not replaced; a free name makes no difference."""
    assert combination("svd", output="one").foretelling()["output"] == "one"
    assert combination("svd", output="x").foretelling() == combination("svd", output="y").foretelling()


def test_a_hyphen_in_front_is_no_option(here: Path) -> None:
    """It is a folder like any other."""
    recipe = Recipe("resize", typed={"adapter": "-x", "rank": "2", "output": "-out"})
    assert recipe.command() == "lora-lab resize ./-x --rank 2 -o ./-out"


def test_names_that_are_free(here: Path) -> None:
    """Beside the input, and never one that is taken."""
    assert proposed_output("combine", ["one", "it's two"]) == "combined"
    Path("combined").mkdir()
    Path("combined-2").mkdir()
    assert proposed_output("combine", ["one", "it's two"]) == "combined-3"
    assert proposed_output("resize", [str(here / "one")]) == str(here / "one-resized")
    assert proposed_output("extract", ["a base", "tuned"]) == "tuned-lora"
    assert proposed_output("combine", ["org/name"]) == "combined-3"
    assert free_name("fresh") == "fresh"
