"""What a machine, or the container in it, has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab.benchmarks import environment
from lora_lab.benchmarks.environment import available_memory_bytes

MOST = 1 << 40


def grouped(folder: Path, most: str, now: int, files: int) -> None:
    """A control group as the kernel shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("max", most), ("current", str(now)), ("stat", f"anon 5\ninactive_file {files}\nfile 9")):
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_a_container_has_no_more_than_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest of all groups around a process counts; files that were read can be forgotten."""
    monkeypatch.setattr(environment, "_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(environment, "_GROUPS", tmp_path / "groups")
    machine = available_memory_bytes()
    (tmp_path / "cgroup").write_text("1:cpu:/elsewhere\n0::/pod/box\n")
    grouped(tmp_path / "groups" / "pod" / "box", "max", 700, 0)
    assert available_memory_bytes() == pytest.approx(machine, rel=0.5)
    grouped(tmp_path / "groups" / "pod", "1000", 700, 200)
    assert available_memory_bytes() == 500
    grouped(tmp_path / "groups" / "pod" / "box", "800", 700, 50)
    assert available_memory_bytes() == 150
    grouped(tmp_path / "groups" / "pod" / "box", "800", 900, 0)
    assert available_memory_bytes() == 0


@pytest.mark.parametrize("text", ["", "0::", "garbage", "0::/../../.."])
def test_what_is_no_group_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A machine without them, or with some of another version."""
    monkeypatch.setattr(environment, "_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(environment, "_GROUPS", tmp_path / "groups")
    (tmp_path / "cgroup").write_text(text)
    found = available_memory_bytes()
    assert found is None or found > MOST >> 20
