"""The cache forgets rather than fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.storage.cache import JsonCache

MANY = 1 << 20


@given(st.dictionaries(st.text(max_size=10), st.integers() | st.text(max_size=10) | st.lists(st.none()), max_size=10))
def test_what_is_put_is_got(values: dict[str, Any]) -> None:
    """Any key, any JSON value, in another instance too."""
    folder = Path(os.environ["LORA_LAB_CACHE_DIR"])
    cache = JsonCache(folder, limit_bytes=MANY)
    for key, value in values.items():
        cache.put(key, value)
    again = JsonCache(folder, limit_bytes=MANY)
    assert {key: again.get(key) for key in values} == values
    assert again.get("no such key, ever") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"version": 0, "key": "a", "value": 1}',
        b'{"version": 1, "key": "b", "value": 1}',
        b'{"version": 1, "key": "a"}',
        b"[" * 100_000,
        b" " * (17 << 20),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_corrupt_is_absent(content: bytes, tmp_path: Path) -> None:
    """Whatever stands in the file; and the next value replaces it."""
    cache = JsonCache(tmp_path, limit_bytes=MANY)
    cache.put("a", 1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert cache.get("a") is None
    cache.put("a", 2)
    assert cache.get("a") == 2


def test_size_is_limited(tmp_path: Path) -> None:
    """The oldest go first, the newest stays, the limit holds after every value."""
    cache = JsonCache(tmp_path, limit_bytes=3000)
    for number in range(50):
        cache.put(f"{number}", "x" * 200)
        newest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, ns=(number, number + 1))
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3000
    kept = [number for number in range(50) if cache.get(f"{number}")]
    assert len(kept) >= 5
    assert kept == list(range(kept[0], 50))


def test_left_over_files_are_cleared(tmp_path: Path) -> None:
    """A temporary file of a killed process counts and goes."""
    (tmp_path / "old.tmp").write_bytes(bytes(5000))
    os.utime(tmp_path / "old.tmp", ns=(0, 0))
    JsonCache(tmp_path, limit_bytes=3000).put("a", 1)
    assert not (tmp_path / "old.tmp").exists()


def test_too_large_or_no_json_is_not_kept(tmp_path: Path) -> None:
    """A value larger than the cache, a value that JSON lacks, not a number."""
    cache = JsonCache(tmp_path, limit_bytes=1000)
    for value in ("x" * 2000, {1, 2}, float("nan")):
        cache.put("a", value)
        assert cache.get("a") is None


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file in the way, and a folder that is gone."""
    (tmp_path / "file").write_bytes(b"")
    blocked = JsonCache(tmp_path / "file" / "cache", limit_bytes=MANY)
    blocked.put("a", 1)
    assert blocked.get("a") is None
    cache = JsonCache(tmp_path / "cache", limit_bytes=MANY)
    cache.put("a", 1)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    (tmp_path / "cache").rmdir()
    assert cache.get("a") is None
    cache.put("a", 1)


def test_values_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up leaves the value from before, and no rubbish."""
    cache = JsonCache(tmp_path, limit_bytes=MANY)
    cache.put("a", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache.put("a", 2)
    assert cache.get("a") == 1
    assert len(list(tmp_path.iterdir())) == 1
    assert json.loads(next(tmp_path.iterdir()).read_bytes())["value"] == 1
