"""The store of tensors forgets rather than fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.storage.arrays import ArrayCache

MANY = 1 << 24
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor]) -> bool:
    return (
        one is not None
        and one.keys() == other.keys()
        and all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in other)
    )


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.dictionaries(
            st.text(st.characters(categories=["L"]), min_size=1, max_size=5),
            st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
            max_size=3,
        ),
        max_size=4,
    )
)
def test_what_is_put_is_got(values: dict[str, dict[str, tuple[torch.dtype, list[int]]]]) -> None:
    """Any key, any names, types and shapes, in another instance too; the memory is nobody else's."""
    folder = Path(os.environ["LORA_LAB_CACHE_DIR"])
    made = {
        key: {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}
        for key, tensors in values.items()
    }
    cache = ArrayCache(folder, limit_bytes=MANY)
    for key, tensors in made.items():
        cache.put(key, tensors)
    again = ArrayCache(folder, limit_bytes=MANY)
    for key, tensors in made.items():
        found = again.get(key)
        assert same(found, tensors)
        for tensor in found.values():
            tensor.zero_()
        assert same(again.get(key), tensors)
    assert again.get("no such key, ever") is None


def test_strides_do_not_matter(tmp_path: Path) -> None:
    """A transposed tensor comes back as what it shows."""
    cache = ArrayCache(tmp_path, limit_bytes=MANY)
    turned = torch.arange(6.0).reshape(2, 3).T
    cache.put("a", {"t": turned})
    assert same(cache.get("a"), {"t": turned})


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw + b"\0",
        lambda raw: raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:],
        lambda raw: raw.replace(b'"version":"1"', b'"version":"0"'),
        lambda raw: raw.replace(b'"crc32"', b'"crc33"'),
        lambda raw: b"not safetensors at all",
    ],
    ids=["empty", "one byte short", "half", "one byte more", "one bit", "version", "no checksum", "other"],
)
def test_damaged_is_absent(damage, tmp_path: Path) -> None:
    """Whatever stands in the file; and the next value replaces it."""
    cache = ArrayCache(tmp_path, limit_bytes=MANY)
    cache.put("a", {"t": torch.randn(30)})
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    assert damage(raw) != raw
    file.write_bytes(damage(raw))
    assert cache.get("a") is None
    cache.put("a", {"t": torch.ones(3)})
    assert same(cache.get("a"), {"t": torch.ones(3)})


def test_a_file_under_another_key_is_absent(tmp_path: Path) -> None:
    """Two keys of one name would give one base the directions of another."""
    cache = ArrayCache(tmp_path, limit_bytes=MANY)
    cache.put("a", {"t": torch.ones(3)})
    (of_a,) = tmp_path.iterdir()
    cache.put("b", {"t": torch.zeros(3)})
    (of_b,) = set(tmp_path.iterdir()) - {of_a}
    of_b.write_bytes(of_a.read_bytes())
    assert cache.get("b") is None
    assert same(cache.get("a"), {"t": torch.ones(3)})


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """A look counts as a use; the limit holds after every value."""
    for number, key in enumerate("abc"):
        ArrayCache(tmp_path, limit_bytes=45_000).put(key, {"t": torch.ones(3000)})
        newest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, ns=(number, number))
    assert ArrayCache(tmp_path, limit_bytes=45_000).get("a") is not None
    cache = ArrayCache(tmp_path, limit_bytes=45_000)
    cache.put("d", {"t": torch.ones(3000)})
    assert cache.size_bytes <= cache.limit_bytes
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]


def test_a_run_keeps_what_it_began_with(tmp_path: Path) -> None:
    """Over more than the limit: the next run finds its first values, where the oldest would have gone one by one."""
    (tmp_path / "of another base.safetensors").write_bytes(bytes(10_000))
    for _ in range(2):
        run = ArrayCache(tmp_path, limit_bytes=45_000)
        found = [key for key in "abcdef" if run.get(key) is not None]
        for key in "abcdef":
            run.put(key, {"t": torch.ones(3000)})
        assert run.size_bytes <= run.limit_bytes
    assert found == ["a", "b", "c"]
    assert not (tmp_path / "of another base.safetensors").exists()
    later = ArrayCache(tmp_path, limit_bytes=45_000)
    later.put("g", {"t": torch.ones(3000)})
    assert later.get("g") is not None


def test_what_this_run_uses_stays_though_its_time_is_old(tmp_path: Path) -> None:
    """Where the time of a file cannot be changed, the other one still goes first."""
    ArrayCache(tmp_path, limit_bytes=45_000).put("of another run", {"t": torch.ones(3000)})
    run = ArrayCache(tmp_path, limit_bytes=29_000)
    run.put("a", {"t": torch.ones(300)})
    newest = min(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    os.utime(newest, ns=(0, 0))
    run.put("b", {"t": torch.ones(3000)})
    assert run.get("a") is not None
    assert run.get("b") is not None
    assert run.get("of another run") is None


def test_replacing_counts_once(tmp_path: Path) -> None:
    """A value put again pushes no other out."""
    cache = ArrayCache(tmp_path, limit_bytes=30_000)
    cache.put("a", {"t": torch.ones(3000)})
    for _ in range(5):
        cache.put("b", {"t": torch.ones(3000)})
    assert cache.get("a") is not None
    assert cache.get("b") is not None
    assert cache.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    """It also pushes nothing out."""
    cache = ArrayCache(tmp_path, limit_bytes=20_000)
    cache.put("small", {"t": torch.ones(10)})
    cache.put("large", {"t": torch.ones(10_000)})
    assert cache.get("large") is None
    assert cache.get("small") is not None


def test_left_over_files_count_and_go(tmp_path: Path) -> None:
    """What a killed process left."""
    (tmp_path / ".x.safetensors.0.tmp").write_bytes(bytes(50_000))
    os.utime(tmp_path / ".x.safetensors.0.tmp", ns=(0, 0))
    cache = ArrayCache(tmp_path, limit_bytes=40_000)
    assert cache.size_bytes == 50_000
    cache.put("a", {"t": torch.ones(10)})
    assert cache.size_bytes < 1000
    assert cache.get("a") is not None


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """A folder that holds something else too."""
    (tmp_path / "notes.txt").write_bytes(bytes(50_000))
    cache = ArrayCache(tmp_path, limit_bytes=20_000)
    cache.put("a", {"t": torch.ones(10)})
    assert (tmp_path / "notes.txt").exists()
    assert cache.get("a") is not None


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file in the way, a folder that is gone, a type that files have not."""
    (tmp_path / "file").write_bytes(b"")
    blocked = ArrayCache(tmp_path / "file" / "cache", limit_bytes=MANY)
    blocked.put("a", {"t": torch.ones(3)})
    assert blocked.get("a") is None
    assert blocked.size_bytes == 0
    cache = ArrayCache(tmp_path / "cache", limit_bytes=MANY)
    cache.put("a", {"t": torch.ones(3)})
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    (tmp_path / "cache").rmdir()
    assert cache.get("a") is None
    cache.put("a", {"t": torch.ones(3, dtype=torch.complex128)})
    assert cache.get("a") is None
    cache.put("a", {"t": torch.ones(3)})
    assert cache.get("a") is not None


def test_reading_needs_no_permission_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the last use is not worth failing for."""
    cache = ArrayCache(tmp_path, limit_bytes=MANY)
    cache.put("a", {"t": torch.ones(3)})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("a") is not None


def test_values_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up leaves the value from before, and no rubbish."""
    cache = ArrayCache(tmp_path, limit_bytes=MANY)
    cache.put("a", {"t": torch.ones(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.put("a", {"t": torch.zeros(3)})
    assert same(cache.get("a"), {"t": torch.ones(3)})
    assert len(list(tmp_path.iterdir())) == 1


def test_importing_it_loads_no_torch() -> None:
    """A session that asks only for its size stays quick."""
    code = "import sys, lora_lab.storage.arrays; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
