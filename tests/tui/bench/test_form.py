"""What is typed becomes a call and the command that does the same, or is refused under the field."""

from __future__ import annotations

import inspect
import shlex
from typing import Any

import click
import pytest

from lora_lab import Session
from lora_lab.cli.commands import program
from lora_lab.tui.bench.form import CALLS, KINDS, READS, BenchForm, Kind

SWAP = {"a": "my one", "b": "two", "base": "base"}
MORE = {"strategies": "fused, undo", "repeats": "3", "device": "cpu"}
LATENCY = {"base": "base", "grid": "1x128,2x16", "layers": "2", "rank": "4", "dtype": "bfloat16", "repeats": "5"}


@pytest.mark.parametrize(
    ("kind", "typed"),
    [("swap", SWAP), ("swap", {**SWAP, **MORE}), ("latency", {}), ("latency", {**LATENCY, "device": "cuda:1"})],
)
def test_the_command_gives_what_the_call_gives(kind: Kind, typed: dict[str, str]) -> None:
    """Parsed by the command line's own parser."""
    form = BenchForm(kind, {**typed, "grid": typed.get("grid", "")}, {"device": "auto", "seed": 7, "offline": True})
    assert form.missing() is None
    assert form.faults() == {}
    words = shlex.split(form.command())
    assert words[:3] == ["lora-lab", "bench", kind]
    group = program.get_command(click.Context(program), "bench")
    assert isinstance(group, click.Group)
    command = group.commands[kind]
    parsed: dict[str, Any] = command.make_context(kind, words[3:]).params
    arguments = form.arguments()
    known = inspect.signature(getattr(Session, CALLS[kind])).parameters
    assert set(arguments) <= set(known)
    for name, value in arguments.items():
        if name == "adapters":
            assert list(parsed["sources"]) == value
        elif name == "strategies":
            assert ",".join(parsed["strategies"]) == ",".join(value)
        else:
            assert parsed[name] == value
    assert (parsed["seed"], parsed["offline"]) == (7, True)


def test_fields_of_the_other_kind_are_not_read() -> None:
    """What was typed for one is kept and not used by the other."""
    typed = {**SWAP, **MORE, **LATENCY}
    for kind in KINDS:
        form = BenchForm(kind, typed)
        for name in set(typed) - set(READS[kind]):
            assert form.value(name) == ""
    assert "adapters" not in BenchForm("latency", typed).arguments()
    assert "grid" not in BenchForm("swap", typed).arguments()


@pytest.mark.parametrize(
    ("name", "typed"),
    [("repeats", "0"), ("repeats", "-1"), ("layers", "1.5"), ("rank", "²"), ("grid", "32"), ("device", "gpu")],
)
def test_what_cannot_be_used_is_said_under_its_field(name: str, typed: str) -> None:
    """One sentence."""
    assert list(BenchForm("latency", {name: typed}).faults()) == [name]


def test_what_is_needed_is_asked_for() -> None:
    """Both adapters and their base, of a swap alone."""
    assert BenchForm("swap", {"b": "two"}).missing() == "Give the first adapter and the model of both."
    assert BenchForm("latency", {}).missing() is None
    assert BenchForm("swap", SWAP).title == "bench swap my one ⇄ two"
    assert BenchForm("latency", {}).title == "bench latency GPT-2 medium"
