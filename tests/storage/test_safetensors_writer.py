"""The writer's files are what the format's own reader expects, byte for byte the same each time."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from lora_lab.errors import FileFormatError, OperationError
from lora_lab.storage.safetensors_writer import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
ENTRIES = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), SHAPES),
    max_size=5,
)


@given(entries=ENTRIES, backwards=st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, entries: dict[str, tuple], backwards: bool) -> None:
    """Every dtype, shape, name and order: what is read is what was written, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(torch.float32).to(dtype)
        for name, (dtype, shape) in entries.items()
    }
    path = tmp_path_factory.mktemp("files") / "out.safetensors"
    write_safetensors(path, dict(reversed(tensors.items())) if backwards else tensors, {"format": "pt"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_same_bytes_whatever_the_order_and_stride(tmp_path: Path) -> None:
    """Neither the mapping's order nor a tensor's memory layout shows."""
    wide = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    thin = torch.tensor([1.5, 2.5], dtype=torch.bfloat16)
    write_safetensors(tmp_path / "one", {"wide": wide, "thin": thin}, {"b": "2", "a": "1"})
    strided = wide.T.contiguous().T
    assert not strided.is_contiguous()
    write_safetensors(tmp_path / "two", {"thin": thin, "wide": strided}, {"a": "1", "b": "2"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_data_is_placed_as_the_formats_own_writer_places_it(tmp_path: Path) -> None:
    """Aligned header, falling element size, then names: the data section is the same."""
    tensors = {
        "b": torch.ones(3, dtype=torch.float16),
        "c": torch.arange(5, dtype=torch.float64),
        "a": torch.zeros(2, dtype=torch.float16),
    }
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})

    def parts(path: Path) -> tuple[int, bytes]:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        return length % 8, raw[8 + length :]

    assert parts(tmp_path / "ours") == parts(tmp_path / "theirs")
    assert parts(tmp_path / "ours")[0] == 0


def test_metadata_is_kept(tmp_path: Path) -> None:
    """Text in, the same text out; none, no entry."""
    write_safetensors(tmp_path / "with", {"a": torch.ones(1)}, {"format": "pt", "note": "σ"})
    write_safetensors(tmp_path / "without", {"a": torch.ones(1)})
    with safe_open(tmp_path / "with", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "σ"}
    with safe_open(tmp_path / "without", "pt") as file:
        assert not file.metadata()


def test_an_existing_file_is_kept_unless_overwriting_is_asked(tmp_path: Path) -> None:
    """The old tensors stay readable after the refusal."""
    path = tmp_path / "out"
    write_safetensors(path, {"a": torch.ones(2)})
    with pytest.raises(OperationError, match="exists already"):
        write_safetensors(path, {"a": torch.zeros(2)})
    assert load(path.read_bytes())["a"].tolist() == [1, 1]
    write_safetensors(path, {"a": torch.zeros(2)}, overwrite=True)
    assert load(path.read_bytes())["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "tensors", [{"__metadata__": torch.ones(1)}, {"z": torch.ones(1, dtype=torch.complex128)}], ids=["name", "dtype"]
)
def test_what_the_format_cannot_hold(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Is refused before anything is written."""
    with pytest.raises(FileFormatError, match="cannot hold"):
        write_safetensors(tmp_path / "out", tensors)
    assert list(tmp_path.iterdir()) == []
