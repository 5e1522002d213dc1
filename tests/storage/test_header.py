"""The header reader: values of good files, limits, and what a hostile header may cost."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from corpus.safetensors_bytes import GOOD, as_bytes, entry, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_lab.domain.dtypes import BITS, DType
from lora_lab.errors import FileFormatError
from lora_lab.storage import header as header_module
from lora_lab.storage.files import stamp
from lora_lab.storage.header import HeaderLimits, read_header
from lora_lab.storage.header_rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_good_file(saved: Callable[..., Path]) -> None:
    """Names, types, shapes, ranges and metadata are those that the library wrote."""
    path = saved({"b": torch.zeros(2, 3), "a": torch.zeros(4, dtype=torch.bfloat16)}, format="pt")
    read = read_header(path)
    assert read.metadata == {"format": "pt"}
    assert read.stamp == stamp(path)
    assert read.findings == ()
    assert {name: (ref.dtype, ref.shape, ref.size_bytes) for name, ref in read.tensors.items()} == {
        "b": (DType.F32, (2, 3), 24),
        "a": (DType.BF16, (4,), 8),
    }
    assert read.tensors["a"].end_bytes == path.stat().st_size
    assert all(ref.file == read.stamp and ref.name == name for name, ref in read.tensors.items())


@pytest.mark.parametrize("dtype", DType)
def test_every_dtype(dtype: DType, tmp_path: Path) -> None:
    """Eight elements of any type take as many bytes as one has bits."""
    path = write(tmp_path / "x", {"a": entry(dtype.value, [8], 0, BITS[dtype])}, bytes(BITS[dtype]))
    assert read_header(path).tensors["a"].dtype is dtype


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tensors=st.lists(
        st.tuples(st.text(max_size=12), st.sampled_from(DType), st.lists(st.integers(0, 5), max_size=3)),
        max_size=8,
        unique_by=lambda item: item[0],
    ).filter(lambda items: all(item[0] != "__metadata__" for item in items)),
    metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    is_ascii=st.booleans(),
)
def test_both_ways_agree(
    tensors: list[tuple[str, DType, list[int]]],
    metadata: dict[str, str],
    is_ascii: bool,
    tmp_path: Path,
) -> None:
    """The quick way gives what the careful one gives, or leaves the file to it."""
    position, described = 0, {}
    for name, dtype, shape in tensors:
        shape = [8, *shape]
        size = BITS[dtype] * torch.Size(shape).numel() // 8
        described[name] = entry(dtype.value, shape, position, position + size)
        position += size
    text = json.dumps({"__metadata__": metadata, **described}, ensure_ascii=is_ascii)
    path = write(tmp_path / "x", text, bytes(position))
    read = read_header(path)
    rules = Rules(described, metadata, stamp(path), 8 + len(text.encode()), 100)
    assert read.tensors == rules.tensors()
    assert list(read.tensors) == list(described)
    assert read.metadata == rules.metadata == metadata
    plain = header_module._plain(json.loads(json.dumps(described)), stamp(path), 8 + len(text.encode()))
    assert plain == read.tensors


def test_the_quick_way_is_taken(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as the library writes it never needs the careful way."""
    monkeypatch.delattr(header_module, "Rules")
    tensors = {
        f"base_model.model.layers.{i}.q_proj.lora_{ab}.weight": torch.zeros(4, 2) for i in range(12) for ab in "AB"
    }
    assert len(read_header(saved(tensors, format="pt", note="a: b")).tensors) == 24


def test_order_of_ranges_is_free(tmp_path: Path) -> None:
    """Ranges may stand in another order than names, and the header's order is kept."""
    path = write(tmp_path / "x", {"b": entry("F32", [2], 8, 16), "a": entry("F32", [2], 0, 8)}, bytes(16))
    assert list(read_header(path).tensors) == ["b", "a"]


def test_no_metadata_and_null(tmp_path: Path) -> None:
    """Metadata may be left out, or be null."""
    assert read_header(write(tmp_path / "x", GOOD, bytes(16))).metadata == {}
    assert read_header(write(tmp_path / "y", {"__metadata__": None, **GOOD}, bytes(16))).metadata == {}


def test_limits_are_the_callers(tmp_path: Path) -> None:
    """Both limits can be lowered."""
    path = write(tmp_path / "x", GOOD, bytes(16))
    with pytest.raises(FileFormatError, match="lists 2 tensors, more than the limit of 1"):
        read_header(path, limits=HeaderLimits(tensors=1))
    with pytest.raises(FileFormatError, match="more than the limit of 20"):
        read_header(path, limits=HeaderLimits(header_bytes=20))


def test_header_longer_than_the_first_read(tmp_path: Path) -> None:
    """A header of several reads is put together."""
    path = write(tmp_path / "x", {"__metadata__": {"k": "v" * 1_000_000}, **GOOD}, bytes(16))
    assert len(read_header(path).metadata["k"]) == 1_000_000


def test_many_suspicious_names_are_one_finding(tmp_path: Path) -> None:
    """A thousand bad names do not become a thousand warnings."""
    path = write(tmp_path / "x", {f"\x1b{number}": entry("U8", [0], 0, 0) for number in range(1000)})
    (finding,) = read_header(path).findings
    assert finding.message.startswith("1000 tensor names hold characters")
    assert finding.message.endswith("'\\x1b0', '\\x1b1', '\\x1b2', ….")


def filled(unit: str) -> str:
    """A list of so many units that a header with it stays just below 16 MiB."""
    return '{"a":[' + unit * (((16 << 20) - 20) // len(unit)) + "0]}"


# Where a text is parsed at all, it has at most two million commas and brackets: the costliest are just below.
BOMBS = {
    "96 MB of empty tensors": '{"0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' * 1_700_000,
    "lists": filled("[],"),
    "sparse lists": filled("[],              "),
    "sparse objects": filled("{},              "),
    "integers": filled("9999999, "),
    "real numbers": filled("1.55555, "),
    "texts": filled('"abcdef",'),
    "wide characters": '{"😀":' + filled("9999999, ")[5:-30] + "0]}",
    "tensors": "{"
    + ",".join(f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(280_000))
    + "}",
    "fields": '{"a":{' + ",".join(f'"{i:x}":1' for i in range(1_000_000)) + "}}",
    "keys": "{" + ",".join(f'"{i:x}":1' for i in range(1_000_000)) + "}",
    "depth": '{"a":' + "[" * 1_900_000,
}

MEASURE = """
import sys, time
from lora_lab.errors import FileFormatError
from lora_lab.storage.header import read_header
read_header(sys.argv[1])
peak = lambda: next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, started = peak(), time.process_time()
try:
    read_header(sys.argv[2])
except FileFormatError as error:
    refused = error.message
print(time.process_time() - started, peak() - before, refused)
"""


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_hostile_header_is_cheap_to_refuse(text: str, tmp_path: Path) -> None:
    """Below 200 MB beyond the idle process, and a second or little more of processor time."""
    good = write(tmp_path / "good", GOOD, bytes(16))
    bad = tmp_path / "bad"
    bad.write_bytes(as_bytes(text))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(good), str(bad)], capture_output=True, text=True, check=True
    )
    seconds, size, refused = done.stdout.split(maxsplit=2)
    assert int(size) < 200 << 20, refused
    assert float(seconds) < 2, refused
