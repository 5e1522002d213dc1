"""Fingerprints: a file is hashed once, as long as it is the same file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from builders import write_adapter, write_sharded

from lora_lab import Session
from lora_lab.session import records
from lora_lab.session.records import Fingerprints, record_of


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were really read to be hashed."""
    names: list[str] = []

    def counted(path: Any) -> str:
        names.append(Path(path).name)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    monkeypatch.setattr(records, "sha256_of", counted)
    return names


def old(path: Path, seconds: int = 0) -> None:
    """Set the time of change far enough back for it to be trusted."""
    os.utime(path, (1_700_000_000 + seconds, 1_700_000_000 + seconds))


def test_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    """The second question is answered from the stamp, by another object too; a changed or a new file is read again."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    old(path)
    cache = tmp_path / "cache"
    wanted = hashlib.sha256(b"one").hexdigest()
    assert [Fingerprints(cache).of(path) for _ in range(3)] == [wanted] * 3
    assert hashed == ["model.safetensors"]
    path.write_bytes(b"two")
    old(path, 5)
    assert Fingerprints(cache).of(path) == hashlib.sha256(b"two").hexdigest()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"uno")
    old(other, 5)
    assert Fingerprints(cache).of(other) == hashlib.sha256(b"uno").hexdigest()
    assert hashed == ["model.safetensors", "model.safetensors", "other.safetensors"]


def test_a_file_of_this_moment_is_not_remembered(tmp_path: Path, hashed: list[str]) -> None:
    """It may be written again within the tick of the clock that its stamp shows."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    fingerprints = Fingerprints(tmp_path / "cache")
    fingerprints.of(path)
    path.write_bytes(b"two")
    assert fingerprints.of(path) == hashlib.sha256(b"two").hexdigest()
    assert len(hashed) == 2


def test_a_receipt_has_the_whole_hash_of_a_large_base(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An analysis knows a large base by its headers; a merge by every byte, hashed the first time only."""
    monkeypatch.setattr(records, "_HASHED_WHOLE_BYTES", 10)
    monkeypatch.setenv("LORA_LAB_CACHE_DIR", str(tmp_path / "cache"))
    base, adapter = write_sharded(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    for path in (*base.glob("*.safetensors"), *adapter.iterdir()):
        old(path)
    session = Session()
    assert all(name.endswith("#header") for name in record_of(session.base(str(base))).sha256)
    merged = [session.merge([str(adapter)], base=str(base), output=tmp_path / name) for name in ("a", "b")]
    wanted = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.glob("*.safetensors")}
    assert [dict(report.inputs[1].sha256) for report in merged] == [wanted, wanted]
    assert sorted(name for name in hashed if name in wanted) == sorted(wanted)
