"""Crash-safe writing: a file appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_lab.errors import OperationError
from lora_lab.storage import atomic
from lora_lab.storage.atomic import atomic_file, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    """Not before, and nothing else stays."""
    target = tmp_path / "out"
    with atomic_file(target) as file:
        file.write(b"whole")
        file.flush()
        assert not target.exists()
        assert len(names(tmp_path)) == 1
    assert target.read_bytes() == b"whole"
    assert names(tmp_path) == ["out"]


def fail_halfway(path: Path, overwrite: bool) -> None:
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(b"half")
        raise KeyError


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failing_block_leaves_no_trace(tmp_path: Path, overwrite: bool) -> None:
    """Its own error comes through, what was there stays, the temporary file goes."""
    if overwrite:
        (tmp_path / "out").write_bytes(b"old")
    before = names(tmp_path)
    with pytest.raises(KeyError):
        fail_halfway(tmp_path / "out", overwrite)
    assert names(tmp_path) == before
    assert not overwrite or (tmp_path / "out").read_bytes() == b"old"


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    """Nor a broken link; with the word it is, and a link is replaced, not followed."""
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "out").symlink_to(tmp_path / "kept")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for name in ("out", "nowhere"):
        with pytest.raises(OperationError, match="exists already"):
            write_bytes(tmp_path / name, b"new")
    write_bytes(tmp_path / "out", b"new", overwrite=True)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert not (tmp_path / "missing").exists()


def test_the_faster_of_two_writers_wins(tmp_path: Path) -> None:
    """A file that appears while another is written is not lost to a rename."""
    writer = atomic_file(tmp_path / "out")
    writer.__enter__().write(b"slow")
    (tmp_path / "out").write_bytes(b"fast")
    with pytest.raises(OperationError, match="exists already"):
        writer.__exit__(None, None, None)
    assert (tmp_path / "out").read_bytes() == b"fast"
    assert names(tmp_path) == ["out"]


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    """Not even on request."""
    (tmp_path / "out").mkdir()
    with pytest.raises(OperationError, match="is a folder"):
        write_bytes(tmp_path / "out", b"", overwrite=True)


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """One sentence, no traceback of the operating system's."""
    with pytest.raises(OperationError, match="out"):
        write_bytes(tmp_path / "missing" / "out", b"")


def test_the_umask_decides_the_mode(tmp_path: Path) -> None:
    """As for any new file; temporary files of the standard library would be private."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "out", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("overwrite", [False, True])
def test_order_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    """The file's bytes are on the disk before it gets its name, and the name is before the call returns."""
    steps: list[str] = []

    def fsync(descriptor: int) -> None:
        kind = "folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file"
        steps.append(f"fsync {kind}, named: {(tmp_path / 'out').exists()}")

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    write_bytes(tmp_path / "out", b"content", overwrite=overwrite)
    assert steps == ["fsync file, named: False", "fsync folder, named: True"]


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "not written")])
def test_a_disk_that_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str) -> None:
    """At the last moment, when the bytes are to reach the disk: nothing is left behind."""

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    with pytest.raises(OperationError, match=says):
        write_bytes(tmp_path / "out", b"content")
    assert names(tmp_path) == []


def test_a_full_disk_while_writing(tmp_path: Path) -> None:
    """A write in the block that the disk refuses is worded too."""
    with pytest.raises(OperationError, match="disk is full"), atomic_file(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is renamed instead, and still does not replace another."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic.os, "link", link)
    write_bytes(tmp_path / "out", b"first")
    with pytest.raises(OperationError, match="exists already"):
        write_bytes(tmp_path / "out", b"second")
    assert (tmp_path / "out").read_bytes() == b"first"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """The name holds the old bytes when the process dies in the middle of writing."""
    (tmp_path / "out").write_bytes(b"old")
    script = (
        "import os, signal, sys\n"
        "from lora_lab.storage.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1], overwrite=True) as file:\n"
        "    file.write(b'x' * 1_000_000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out").read_bytes() == b"old"


def test_json_keeps_order_and_refuses_nan(tmp_path: Path) -> None:
    """Keys as given, text as it is, a line break at the end; NaN is no JSON, and nothing is written."""
    write_json(tmp_path / "out.json", {"b": "σ", "a": [1, None]})
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["b", "a"]
    assert "σ" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert names(tmp_path) == ["out.json"]
