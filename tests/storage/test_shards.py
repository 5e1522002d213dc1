"""Checkpoints of one file and of many."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from corpus.safetensors_bytes import GOOD, entry, write

from lora_lab.errors import FileFormatError, MissingFileError, UnsafeFileError
from lora_lab.storage.shards import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def one(name: str) -> dict[str, object]:
    return {"__metadata__": {"format": "pt", "shard": name}, name: entry("F32", [4], 0, 16)}


def sharded(folder: Path) -> Path:
    write(folder / ONE, one("layers.10.w"), bytes(16))
    write(folder / TWO, one("layers.2.w"), bytes(16))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"layers.10.w": ONE, "layers.2.w": TWO}}))
    return folder


def test_one_file(tmp_path: Path) -> None:
    """By its own name and by its folder's."""
    write(tmp_path / "model.safetensors", GOOD, bytes(16))
    by_folder, by_name = read_checkpoint(tmp_path), read_checkpoint(tmp_path / "model.safetensors")
    assert by_folder.tensors == by_name.tensors
    assert by_folder.path == str(tmp_path)
    assert [stamp.path for stamp in by_folder.shards] == [str(tmp_path / "model.safetensors")]
    assert by_folder.findings == ()


def test_shards(tmp_path: Path) -> None:
    """Natural order over all shards; every tensor knows its file."""
    found = read_checkpoint(sharded(tmp_path))
    assert list(found.tensors) == ["layers.2.w", "layers.10.w"]
    assert found.tensors["layers.2.w"].file.path == str(tmp_path / TWO)
    assert [stamp.path for stamp in found.shards] == [str(tmp_path / ONE), str(tmp_path / TWO)]
    assert found.metadata == {"format": "pt", "shard": "layers.10.w"}
    assert read_checkpoint(tmp_path / INDEX).tensors == found.tensors


def test_a_file_of_another_name(tmp_path: Path) -> None:
    """The only one there is the one meant; of two none is."""
    write(tmp_path / "weights.safetensors", GOOD, bytes(16))
    assert len(read_checkpoint(tmp_path).tensors) == 2
    write(tmp_path / "more.safetensors", GOOD, bytes(16))
    with pytest.raises(FileFormatError, match=r"2 safetensors files and no index .'more.safetensors', 'weights"):
        read_checkpoint(tmp_path)


def test_index_beside_one_file(tmp_path: Path) -> None:
    """The single file wins and it is told."""
    write(sharded(tmp_path) / "model.safetensors", GOOD, bytes(16))
    found = read_checkpoint(tmp_path)
    assert list(found.tensors) == ["a", "b"]
    assert [finding.code for finding in found.findings] == ["index_ignored"]


def test_findings_of_shards_are_kept(tmp_path: Path) -> None:
    """A suspicious name in a shard is told of the whole."""
    write(tmp_path / "model.safetensors", {"\x1b": entry("F32", [0], 0, 0)})
    assert [finding.code for finding in read_checkpoint(tmp_path).findings] == ["unprintable_name"]


def test_nothing_there(tmp_path: Path) -> None:
    """An empty folder, one with pickles, and none at all."""
    with pytest.raises(MissingFileError, match="holds no safetensors file"):
        read_checkpoint(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(MissingFileError):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeFileError, match=r"as pickles only .'pytorch_model.bin'"):
        read_checkpoint(tmp_path)
    with pytest.raises(MissingFileError, match="does not exist"):
        read_checkpoint(tmp_path / "gone")


def test_two_indices(tmp_path: Path) -> None:
    """Which one is meant must be said."""
    (sharded(tmp_path) / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(FileFormatError, match="holds 2 indices"):
        read_checkpoint(tmp_path)


def test_missing_shards_before_any_is_read(tmp_path: Path) -> None:
    """The broken shard that is there is not the first thing told."""
    (tmp_path / ONE).write_bytes(b"broken")
    weight_map = {"x": ONE, **{f"t{number}": f"gone-{number}.safetensors" for number in range(12)}}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(MissingFileError, match=r"12 of 13 shards .*'gone-0.*'gone-4.safetensors' and 7 more"):
        read_checkpoint(tmp_path)


def test_shard_that_leaves_by_a_link(tmp_path: Path) -> None:
    """Refused, and allowed by a word."""
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder)
    (folder / ONE).rename(tmp_path / "elsewhere")
    (folder / ONE).symlink_to("../elsewhere")
    with pytest.raises(UnsafeFileError, match="leaves its folder"):
        read_checkpoint(folder)
    assert len(read_checkpoint(folder, follow_symlinks=True).tensors) == 2


def test_index_size(tmp_path: Path) -> None:
    """An index beyond 50 MB is refused unread."""
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate((50 << 20) + 1)
    with pytest.raises(FileFormatError, match="more than the limit of 52428800"):
        read_checkpoint(tmp_path)
