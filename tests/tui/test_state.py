"""What is remembered between runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_lab.tui.library.memory import Memory
from lora_lab.tui.state import State, state_path


def test_values_survive(tmp_path: Path) -> None:
    """What was set is there next time; the file is JSON with a version."""
    path = tmp_path / "deep" / "tui.json"
    state = State(path)
    state.set("theme", "nord")
    state.save()
    assert State(path).get("theme", "") == "nord"
    assert json.loads(path.read_text())["version"] == 1
    assert [child.name for child in path.parent.iterdir()] == ["tui.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"version": 2, "values": {"theme": "nord"}}', b'{"version": 1, "values": 3}',
     b'{"version": 1}', b"[" * 100_000],
)  # fmt: skip
def test_corrupt_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    """No file can keep the program from starting."""
    path = tmp_path / "tui.json"
    path.write_bytes(content)
    state = State(path)
    assert state.get("theme", "default") == "default"
    state.set("theme", "nord")
    state.save()
    assert State(path).get("theme", "") == "nord"


def test_wrong_type_is_ignored(tmp_path: Path) -> None:
    """A value of another type than asked for is none."""
    path = tmp_path / "tui.json"
    path.write_text('{"version": 1, "values": {"theme": 3}}')
    assert State(path).get("theme", "default") == "default"


def test_unwritable_folder_is_no_error(tmp_path: Path) -> None:
    """State that cannot be kept is kept for this run."""
    (tmp_path / "file").write_text("")
    state = State(tmp_path / "file" / "tui.json")
    state.set("theme", "nord")
    state.save()
    assert state.get("theme", "") == "nord"


def test_no_path_remembers_nothing() -> None:
    """--no-state."""
    state = State(None)
    state.set("theme", "nord")
    state.save()
    assert state.get("theme", "") == "nord"


def test_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LORA_LAB_STATE_DIR wins."""
    monkeypatch.setenv("LORA_LAB_STATE_DIR", str(tmp_path))
    assert state_path() == tmp_path / "tui.json"


def test_memory_is_of_one_folder(tmp_path: Path) -> None:
    """A filter of one library does not hide the rows of another; old libraries are forgotten."""
    state = State(tmp_path / "tui.json")
    Memory(state, ["a"]).remember(filter="x", marks={"a": "/p", "c": "/q", "b": 3})
    state.save()
    state = State(tmp_path / "tui.json")
    assert Memory(state, ["a"]).text("filter") == "x"
    assert Memory(state, ["a"]).marks() == {"a": "/p"}
    assert Memory(state, ["b"]).text("filter") == ""
    for number in range(60):
        Memory(state, [f"other-{number}"]).remember(filter="y")
    assert Memory(state, ["a"]).text("filter") == ""
    assert len(state.get("library.folders", {})) == 40
