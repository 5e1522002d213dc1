"""Weights: the same values as the format's own library, and files that change underneath."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from corpus.safetensors_bytes import GOOD, entry, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_lab.domain.dtypes import DType
from lora_lab.errors import FileFormatError, LoraLabError, MissingFileError
from lora_lab.storage import reading
from lora_lab.storage.files import sha256_of
from lora_lab.storage.header import read_header
from lora_lab.storage.reading import read_bytes, read_tensor, read_tensors, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = [dtype for dtype in DType if torch_dtype(dtype) is not None]
SUB_BYTE = {DType.F4, DType.F6_E2M3, DType.F6_E3M2}
# The library reads no such type into torch.
NOT_IN_LIBRARY = {"F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"}


def test_every_type_but_the_smallest_is_read() -> None:
    """Types with whole bytes have a torch type of that size."""
    assert set(DType) - set(WHOLE) == SUB_BYTE
    assert all(torch_dtype(dtype).itemsize * 8 == dtype.bits for dtype in WHOLE)


@pytest.mark.parametrize("dtype", WHOLE)
def test_values_of_every_type(dtype: DType, tmp_path: Path) -> None:
    """Bit for bit what the library reads, misaligned too."""
    size = dtype.bits // 8
    data = b"\x01" + bytes(range(1, 6 * size + 1))
    header = {"pad": entry("U8", [1], 0, 1), "a": entry(dtype.value, [2, 3], 1, 1 + 6 * size)}
    path = write(tmp_path / "x.safetensors", header, data)
    ours = read_tensor(read_header(path).tensors["a"])
    assert ours.dtype == torch_dtype(dtype)
    assert ours.shape == (2, 3)
    assert ours.is_contiguous()
    if dtype is DType.BOOL:
        assert ours.all()
    else:
        assert bytes(ours.view(torch.uint8).flatten().tolist()) == data[1:]
    if dtype.value not in NOT_IN_LIBRARY and dtype is not DType.BOOL:
        theirs = load_file(path)["a"]
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def test_boolean_bytes_are_made_true(tmp_path: Path) -> None:
    """Bytes 2 and 255 are no values of a boolean; they count as true."""
    path = write(tmp_path / "x", {"a": entry("BOOL", [4], 0, 4)}, b"\x00\x01\x02\xff")
    assert read_tensor(read_header(path).tensors["a"]).view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_scalar_and_empty(tmp_path: Path) -> None:
    """No dimension, and no element."""
    path = write(tmp_path / "x", {"s": entry("F32", [], 0, 4), "e": entry("BF16", [0, 3], 4, 4)}, b"\x00\x00\x80\x3f")
    tensors = {ref.name: tensor for ref, tensor in read_tensors(read_header(path).tensors.values())}
    assert tensors["s"].item() == 1.0
    assert tensors["s"].shape == ()
    assert (tensors["e"].shape, tensors["e"].dtype) == ((0, 3), torch.bfloat16)


def test_shared_bytes_are_no_tensor(tmp_path: Path) -> None:
    """Four-bit elements can be copied as bytes and are refused as a tensor."""
    ref = read_header(write(tmp_path / "x", {"a": entry("F4", [4], 0, 2)}, b"ab")).tensors["a"]
    assert read_bytes(ref) == b"ab"
    with pytest.raises(FileFormatError, match=r"'a' in .* has dtype F4, whose elements share bytes"):
        read_tensor(ref)


def test_memory_is_the_callers(saved: Callable[..., Path]) -> None:
    """Writing to a tensor changes neither the file nor its neighbours nor a second reading."""
    path = saved({"a": torch.zeros(4), "b": torch.zeros(4)})
    before = sha256_of(path)
    (_, a), (_, b) = read_tensors(read_header(path).tensors.values())
    a += 1
    assert not b.any()
    assert sha256_of(path) == before
    assert not read_tensor(read_header(path).tensors["a"]).any()


@given(data=st.data())
def test_many_in_the_order_asked_for(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any selection, any order, repeats, two files, batches of any size: the same values."""
    folder = tmp_path_factory.mktemp("many")
    refs = []
    for file in range(2):
        header = {f"{i}": entry("U8", [i], i * (i - 1) // 2, i * (i + 1) // 2) for i in range(6)}
        path = write(folder / f"{file}", header, bytes(range(100 * file, 100 * file + 15)))
        refs += read_header(path).tensors.values()
    chosen = data.draw(st.lists(st.sampled_from(refs), max_size=20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BATCH_BYTES", data.draw(st.integers(1, 40)))
        patch.setattr(reading, "_MOST_BUFFERS", data.draw(st.integers(1, 4)))
        patch.setattr(reading, "_MOST_BYTES_A_READ", data.draw(st.integers(1, 8)))
        found = list(read_tensors(chosen))
    assert [ref for ref, _ in found] == chosen
    for ref, tensor in found:
        start = 100 * int(ref.file.path[-1]) + int(ref.name) * (int(ref.name) - 1) // 2
        assert tensor.tolist() == list(range(start, start + int(ref.name)))


def test_one_open_and_few_reads(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred neighbours: the file is opened once and read by one call."""
    path = saved({f"t{number:03}": torch.full((8,), number) for number in range(100)})
    refs = read_header(path).tensors.values()
    opens, reads = [], []
    real_open, real_read = os.open, os.preadv
    monkeypatch.setattr(os, "open", lambda *a, **k: opens.append(a) or real_open(*a, **k))
    monkeypatch.setattr(os, "preadv", lambda *a, **k: reads.append(a) or real_read(*a, **k))
    assert [int(tensor[0]) for _, tensor in read_tensors(refs)] == list(range(100))
    assert (len(opens), len(reads)) == (1, 1)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_are_closed(saved: Callable[..., Path]) -> None:
    """Also when the caller stops half-way."""
    path = saved({"a": torch.zeros(4), "b": torch.zeros(4)})
    before = open_files()
    reader = read_tensors(read_header(path).tensors.values())
    next(reader)
    assert open_files() == before + 1
    reader.close()
    assert open_files() == before


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def rewrite(path: Path) -> None:
    stamp = path.stat()
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(b"\x7f" * 16)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))


def replace(path: Path) -> None:
    stamp = path.stat()
    other = write(path.with_name("other"), GOOD, bytes(16))
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


CHANGES = [truncate, empty, rewrite, replace, grow]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_after_the_header(change: Callable[[Path], None], tmp_path: Path) -> None:
    """Between header and weights: an error that says so, never a value."""
    path = write(tmp_path / "x", GOOD, bytes(16))
    refs = read_header(path).tensors.values()
    change(path)
    for ref in refs:
        with pytest.raises(FileFormatError, match=r"'.*/x' changed while reading"):
            read_tensor(ref)


@pytest.mark.parametrize("change", [truncate, empty, rewrite, grow])
def test_changed_while_open(change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tensors of one reading, and in the middle of one."""
    path = write(tmp_path / "x", GOOD, bytes(16))
    monkeypatch.setattr(reading, "_BATCH_BYTES", 1)
    reader = read_tensors(read_header(path).tensors.values())
    next(reader)
    change(path)
    with pytest.raises(FileFormatError, match="changed while reading"):
        next(reader)

    path = write(tmp_path / "y", GOOD, bytes(16))
    refs = read_header(path).tensors
    real = os.preadv

    def then_change(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = real(descriptor, [buffers[0][:3]], offset)
        monkeypatch.setattr(os, "preadv", real)
        change(path)
        return count

    monkeypatch.setattr(os, "preadv", then_change)
    with pytest.raises(FileFormatError, match="changed while reading"):
        read_tensor(refs["b"])


@pytest.mark.parametrize("change", [truncate, rewrite, grow])
def test_changed_while_the_header_is_read(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header that was read while someone wrote is not used."""
    path = write(tmp_path / "x", {"__metadata__": {"k": "v" * 200_000}, **GOOD}, bytes(16))
    real = os.pread

    def then_change(descriptor: int, length: int, offset: int) -> bytes:
        content = real(descriptor, length, offset)
        monkeypatch.setattr(os, "pread", real)
        change(path)
        return content

    monkeypatch.setattr(os, "pread", then_change)
    with pytest.raises(FileFormatError, match="changed while reading"):
        read_header(path)


def test_replaced_while_open_is_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced keeps its bytes for whoever has it open."""
    path = write(tmp_path / "x", GOOD, bytes(16))
    monkeypatch.setattr(reading, "_BATCH_BYTES", 1)
    reader = read_tensors(read_header(path).tensors.values())
    next(reader)
    write(tmp_path / "new", GOOD, b"\x01" * 16).replace(path)
    assert not next(reader)[1].any()


def test_removed(tmp_path: Path) -> None:
    """A file that is gone is missing, and a disk that fails is named."""
    path = write(tmp_path / "x", GOOD, bytes(16))
    ref = read_header(path).tensors["a"]
    path.unlink()
    with pytest.raises(MissingFileError, match="does not exist"):
        read_tensor(ref)


def test_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input/output error is a sentence with the file's name."""
    ref = read_header(write(tmp_path / "x", GOOD, bytes(16))).tensors["a"]

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(LoraLabError, match=r"'.*/x' cannot be read: input/output error"):
        read_tensor(ref)
