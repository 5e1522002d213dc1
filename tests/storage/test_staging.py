"""A folder that appears whole: failed or killed at every call, the old one or the new one, never another."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from storage.faulty import BROKEN, FULL, FaultyDisk, Killed

from lora_lab.errors import CancelledError, OperationError
from lora_lab.storage import reading_back
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import StagedFolder

OLD = {"old.bin": b"o" * 100, "config.json": b"{}"}
PLAN = "0123456789abcdef0123"


def new_files(source: Path) -> dict[str, bytes]:
    return {"model-1.bin": b"head" + source.read_bytes()[3:-5], "sub/model-2.bin": bytes(range(200)), "empty": b""}


def write(folder: Path) -> None:
    folder.mkdir()
    for name, content in OLD.items():
        (folder / name).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(5000))
    return path


def make(target: Path, source: Path, disk: Disk, *, overwrite: bool = True, resume: bool = False) -> StagedFolder:
    """Write the new folder the way an operation does."""
    with StagedFolder(target, PLAN, disk=disk, overwrite=overwrite, resume=resume) as staged:
        if staged.is_complete:
            return staged
        for name, content in new_files(source).items():
            if name in staged.finished:
                continue
            with staged.file(name, len(content)) as file:
                if name == "model-1.bin":
                    file.write(b"head")
                    with source.open("rb") as opened:
                        file.copy_from(opened.fileno(), 3, len(content) - 4)
                        file.finish()
                else:
                    file.write(content)
        for name, content in new_files(source).items():
            assert staged.finished[name].sha256 == hashlib.sha256(content).hexdigest()
        staged.commit()
    return staged


def calls(tmp_path: Path, source: Path, *, is_there: bool) -> int:
    """How many calls an undisturbed run makes."""
    disk = FaultyDisk()
    target = tmp_path / "counted"
    if is_there:
        write(target)
    make(target, source, disk)
    assert contents(target) == new_files(source)
    return disk.calls


@pytest.fixture(params=[700, 1 << 30], ids=["in pieces", "whole"])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How far the reading back may be behind the writing."""
    monkeypatch.setattr(reading_back, "_PIECE_BYTES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("is_there", [False, True], ids=["absent", "replaced"])
@pytest.mark.parametrize("fault", ["full", "broken", "killed", "power"])
def test_every_call_may_be_the_last(fault: str, is_there: bool, tmp_path: Path, source: Path) -> None:
    """Old or new at every moment; gone on with, the same bytes and nothing left beside them."""
    total = calls(tmp_path, source, is_there=is_there)
    assert total > 20
    for at in range(total):
        place = tmp_path / f"{fault}-{at}"
        place.mkdir()
        target = place / "out"
        if is_there:
            write(target)
        code = {"full": FULL, "broken": BROKEN}.get(fault, 0)
        disk = FaultyDisk(at, code, is_losing=fault == "power")
        with suppress(OperationError, Killed):
            make(target, source, disk)
        seen = contents(target) if target.exists() else None
        assert seen in ((OLD if is_there else None), new_files(source)), at
        again = FaultyDisk()
        make(target, source, again, overwrite=True, resume=True)
        assert contents(target) == new_files(source), at
        assert [path.name for path in place.iterdir()] == ["out"], at


def test_going_on_writes_only_what_is_missing(tmp_path: Path, source: Path) -> None:
    """What was finished is kept, after its bytes were compared; a changed one is written again."""
    target = tmp_path / "out"
    total = calls(tmp_path, source, is_there=False)
    with pytest.raises(Killed):
        make(target, source, FaultyDisk(total - 6), overwrite=False)  # the last note before the last rename
    with StagedFolder(target, PLAN, resume=True) as staged:
        assert staged.finished.keys() == new_files(source).keys()
    with pytest.raises(Killed):
        make(target, source, FaultyDisk(total - 6), overwrite=False)
    changed = staged.folder / "model-1.bin"
    changed.write_bytes(b"x" * changed.stat().st_size)
    with StagedFolder(target, PLAN, resume=True) as staged:
        assert staged.finished.keys() == new_files(source).keys() - {"model-1.bin"}


def test_another_plan_starts_anew(tmp_path: Path, source: Path) -> None:
    """Files of one recipe never end up in the output of another."""
    with pytest.raises(Killed):
        make(tmp_path / "out", source, FaultyDisk(12), overwrite=False)
    with StagedFolder(tmp_path / "out", "f" * 20, resume=True) as staged:
        assert staged.finished == {}


def test_an_existing_target_is_kept(tmp_path: Path, source: Path) -> None:
    """Without the word for it nothing is replaced, and nothing is left."""
    write(tmp_path / "out")
    with pytest.raises(OperationError, match="exists already"):
        make(tmp_path / "out", source, Disk(), overwrite=False)
    assert contents(tmp_path / "out") == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    """One wins, the other is told; afterwards the name is free again."""
    with StagedFolder(tmp_path / "out", PLAN), pytest.raises(OperationError, match="Another process is writing"):
        StagedFolder(tmp_path / "out", "b" * 20).__enter__()
    with StagedFolder(tmp_path / "out", PLAN):
        pass


def test_a_cancelled_one_leaves_nothing(tmp_path: Path) -> None:
    """Cancelling is not an interruption: finished files go too."""

    def cancelled() -> None:
        with StagedFolder(tmp_path / "out", PLAN) as staged:
            with staged.file("a", 1) as file:
                file.write(b"a")
            raise CancelledError("Cancelled.")

    with pytest.raises(CancelledError):
        cancelled()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_names_what_is_kept(tmp_path: Path, source: Path) -> None:
    """A full disk after the first file: one sentence, and where the finished file is."""
    disk = FaultyDisk()
    make(tmp_path / "counted", source, disk)
    with pytest.raises(OperationError, match="disk is full") as caught:
        make(tmp_path / "out", source, FaultyDisk(disk.calls // 2 + 4, FULL), overwrite=False)
    assert "finished files are kept in" in caught.value.hint
    assert "--resume goes on" in caught.value.hint


class Reading(Disk):
    """Notes what is read back of which file, and gives one byte other than it is."""

    def __init__(self, wrong: int = -1) -> None:
        self.spans: dict[int, list[tuple[int, int]]] = {}
        self._wrong = wrong

    def read_into(self, descriptor: int, buffer: Any, offset: int) -> int:
        count = super().read_into(descriptor, buffer, offset)
        if count:
            self.spans.setdefault(os.fstat(descriptor).st_ino, []).append((offset, offset + count))
        if offset <= self._wrong < offset + count:
            buffer[self._wrong - offset] ^= 1
        return count


def in_parts(staged: StagedFolder, name: str) -> None:
    with staged.file(name, 10_000) as file:
        for part in range(100):
            file.write(bytes([part]) * 100)


def test_every_byte_is_read_back_once(piece_bytes: int, tmp_path: Path) -> None:
    """Piece by piece or at the end; the file's name comes after."""
    disk = Reading()
    with StagedFolder(tmp_path / "out", PLAN, disk=disk) as staged:
        for name in ("a", "b"):
            in_parts(staged, name)
        staged.commit()
    assert len(disk.spans) == 2
    for spans in disk.spans.values():
        assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert spans[-1][1] == 10_000
        assert (len(spans) > 10) == (piece_bytes < 10_000)


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("wrong", [0, 5_000, 9_999])
def test_one_wrong_byte_of_the_file_behind(wrong: int, tmp_path: Path) -> None:
    """Found while the next file is written; neither gets its name, and asked again it is still wrong."""

    def written() -> None:
        with StagedFolder(tmp_path / "out", PLAN, disk=Reading(wrong)) as staged:
            in_parts(staged, "a")
            with suppress(OperationError):
                in_parts(staged, "b")
            staged.commit()

    with pytest.raises(OperationError, match="a' does not come back from the disk"):
        written()
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_refused(tmp_path: Path) -> None:
    """The size is promised before the first byte; another one never gets the name."""

    def short() -> None:
        with StagedFolder(tmp_path / "out", PLAN) as staged, staged.file("a", 2) as file:
            file.write(b"a")

    with pytest.raises(OperationError, match="got 1 bytes, expected 2"):
        short()
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_the_umasks(tmp_path: Path) -> None:
    """Others may read what the umask lets them read."""
    before = os.umask(0o022)
    try:
        with StagedFolder(tmp_path / "out", PLAN) as staged:
            with staged.file("a", 1) as file:
                file.write(b"a")
            staged.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o644
