"""What is typed, as a call and as a command: both do the same."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from builders import factors, write_adapter, write_base

from lora_lab import LoraLabError, Session
from lora_lab.cli import run
from lora_lab.tui.changing.form import FIELDS, Form


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "a base")
    write_adapter(tmp_path / "one", factors(seed=1))
    write_adapter(tmp_path / "it's two", factors(seed=2))
    Session(cache=False).merge(["one"], base="a base", output="merged", undo="merged.undo")
    return tmp_path


@pytest.mark.parametrize(
    ("call", "typed"),
    [
        ("merge", {"adapters": "one 'it'\"'\"'s two'", "strengths": "0.5 -1", "base": "a base", "dtype": "float16",
                   "rounding": "stochastic"}),
        ("unmerge", {"merged": "merged", "undo": "merged.undo"}),
        ("unmerge", {"merged": "merged", "adapters": "one"}),
        ("unmerge", {"merged": "merged", "base": "a base"}),
        ("swap", {"merged": "merged", "from_adapters": "one", "to_adapters": "\"it's two\"", "strengths_to": "2",
                  "base": "a base"}),
        ("swap", {"merged": "merged", "from_adapters": "one", "to_adapters": "\"it's two\"", "strengths_from": "0.5"}),
    ],
)  # fmt: skip
def test_the_command_writes_the_same_bytes(call: str, typed: dict[str, str], here: Path) -> None:
    """Options of the session among them."""
    by_call = Form(call, {**typed, "output": "by call"}, {"seed": 3, "device": "cpu"})  # type: ignore[arg-type]
    by_command = Form(call, {**typed, "output": "by command"}, {"seed": 3, "device": "cpu"})  # type: ignore[arg-type]
    assert by_call.missing() is None
    getattr(Session(seed=3, device="cpu", cache=False), call)(**by_call.arguments())
    words = shlex.split(by_command.command())
    assert words[0] == "lora-lab"
    assert run([*words[1:], "--quiet"], open_application=lambda *_: 0) == 0
    for path in (here / "by call").glob("*.safetensors"):
        assert path.read_bytes() == (here / "by command" / path.name).read_bytes()


@pytest.mark.parametrize("call", FIELDS)
def test_every_needed_field_is_asked_for(call: str) -> None:
    """One after the other, in the order of the form; with all of them nothing is missing."""
    typed: dict[str, str] = {}
    for one in FIELDS[call]:  # type: ignore[index]
        if one.is_needed:
            said = Form(call, typed).missing()  # type: ignore[arg-type]
            assert said is not None
            assert said.startswith(one.label)
            typed[one.id] = "x"
    typed.setdefault("base", "x")
    assert Form(call, typed).missing() is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("typed", "sentence"), [("1 zwei", "expected numbers"), ("'1", "without its second")])
def test_what_cannot_be_read_is_said(typed: str, sentence: str) -> None:
    """In the words of the form."""
    with pytest.raises(LoraLabError, match=sentence):
        Form("merge", {"strengths": typed}).arguments()


def test_what_would_be_replaced_is_named(here: Path) -> None:
    """The output and the undo file that a merge writes; an undo file that is read is not."""
    typed = {"adapters": "one", "base": "a base", "output": "merged", "undo": "merged.undo"}
    assert Form("merge", typed).replaced() == ["merged", "merged.undo"]
    assert Form("merge", {**typed, "output": "new"}).replaced() == ["merged.undo"]
    assert Form("unmerge", {"merged": "merged", "undo": "merged.undo", "output": "new"}).replaced() == []
    assert Form("verify", {"merged": "merged"}).replaced() == []
