"""Good files with a few things wrong, by the thousand, judged beside the format's own library."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
from corpus.safetensors_bytes import as_bytes, entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_lab.domain.dtypes import BITS, DType
from lora_lab.errors import FileFormatError
from lora_lab.storage.header import read_header
from lora_lab.storage.reading import read_bytes

if TYPE_CHECKING:
    from pathlib import Path

thorough = settings(
    max_examples=1200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)


class Twice(str):
    """A key that may stand beside an equal one."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def judge(content: bytes, path: Path) -> bool:
    """Whether the file is accepted; never when the library refuses it, and then with the same bytes."""
    path.write_bytes(content)
    try:
        read = read_header(path)
    except FileFormatError as error:
        refused = error.message
    else:
        refused = ""
    if refused:
        assert refused.endswith(".")
        assert refused.isprintable()
        return False
    theirs = dict(safetensors.deserialize(content))
    assert theirs.keys() == read.tensors.keys()
    for name, ref in read.tensors.items():
        assert ref.dtype.value == theirs[name]["dtype"]
        assert list(ref.shape) == theirs[name]["shape"]
        assert bytes(read_bytes(ref)) == bytes(theirs[name]["data"])
    return True


def good_header(layout: list[tuple[str, DType, int]]) -> tuple[dict[str, Any], int]:
    described, position = {}, 0
    for name, dtype, count in layout:
        size = BITS[dtype] * count
        described[name] = entry(dtype.value, [count, 8], position, position + size)
        position += size
    return described, position


NAMES = ["a", "b:c", "layers.0.q_proj", "-0", "ü"]
LAYOUTS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(DType), st.integers(0, 3)),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item[0],
)
SIZES = [0, 1, 4, 7, 8, 16, 24, -1, -8, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 62]
ODD = [*SIZES, 0.0, 8.0, -0.0, 1e300, None, True, False, "", "8", "F32", [], [8], {}, {"a": 1}, float("nan")]
DTYPE_NAMES = [*(dtype.value for dtype in DType), "f32", "F33", ""]

MUTATIONS = st.tuples(
    st.sampled_from(
        [
            *("begin", "end", "side", "dtype", "shape", "offsets", "entry", "drop", "extra", "twice", "field twice"),
            *("name", "metadata", "move", "swap", "longer", "shorter", "length", "text", "blank"),
        ]
    ),
    st.integers(0, 3),
    st.sampled_from(ODD),
    st.sampled_from(SIZES),
    st.sampled_from(DTYPE_NAMES),
)


class Draft:
    """A file being spoilt."""

    def __init__(self, layout: list[tuple[str, DType, int]]) -> None:
        self.header, self.size = good_header(layout)
        self.length_change = 0
        self.edits: list[tuple[str, str]] = []

    def spoil(self, what: str, which: int, odd: Any, size: int, dtype: str) -> None:
        odd = copy.deepcopy(odd)  # later spoiling may reach into it
        names = list(self.header)
        name = names[which % len(names)]
        at = self.header[name]
        if not isinstance(at, dict) or "data_offsets" not in at or not isinstance(at["data_offsets"], list):
            return
        if what in ("begin", "end") and at["data_offsets"]:
            at["data_offsets"][what == "end" and len(at["data_offsets"]) > 1] = odd
        elif what == "side" and isinstance(at.get("shape"), list):
            at["shape"][which % 2 :] = [odd, size]
        elif what == "dtype":
            at["dtype"] = dtype
        elif what in ("shape", "offsets"):
            at["shape" if what == "shape" else "data_offsets"] = odd
        elif what == "entry":
            self.header[name] = odd
        elif what == "drop":
            at.pop(("dtype", "shape", "data_offsets")[which % 3], None)
        elif what == "extra":
            at["more"] = odd
        elif what == "twice":
            self.header = {Twice(name): odd if which % 2 else dict(at), **self.header}
        elif what == "field twice":
            self.header[name] = {Twice("dtype"): dtype, **at}
        elif what == "name":
            self.header = {
                ("__metadata__" if which == 3 else key + "\x1b" if key == name else key): v
                for key, v in self.header.items()
            }
        elif what == "metadata":
            self.header = {"__metadata__": [{"k": "v"}, {"k": odd}, odd, {"a:b": '{"c": "d"}'}][which], **self.header}
        else:
            self._spoil_layout(what, which, size, name)

    def _spoil_layout(self, what: str, which: int, size: int, name: str) -> None:
        if what == "move":  # a true file in another order of names
            self.header = {name: self.header.pop(name), **self.header}
        elif what == "swap":
            self.header = dict(zip(self.header, reversed(list(self.header.values())), strict=True))
        elif what == "longer":
            self.size += which + 1
        elif what == "shorter":
            self.size = max(0, self.size - which - 1)
        elif what == "length":
            self.length_change = [1, -1, size, 8][which]
        elif what == "text":
            old, new = [('"dtype"', '"d\\u0074ype"'), ("[0,", "[-0,"), (":", " :\t"), ("8", "8e0")][which]
            self.edits.append((old, new))
        elif what == "blank":
            self.edits.append([("{", " {"), ("}", "} "), ("{", "{\n"), ("}", "}\0")][which])

    def content(self) -> bytes:
        text = json.dumps(self.header, separators=(",", ":"), ensure_ascii=bool(self.size % 2))
        for old, new in self.edits:
            text = text.replace(old, new, 1)
        raw = text.encode()
        length = max(0, len(raw) + self.length_change) % (1 << 64)
        return as_bytes(raw, bytes(number % 251 for number in range(self.size)), length=length)


@thorough
@given(LAYOUTS, st.lists(MUTATIONS, max_size=3))
def test_spoilt_by_structure(
    tmp_path: Path, layout: list[tuple[str, DType, int]], mutations: list[tuple[Any, ...]]
) -> None:
    """One to three fields changed: refused, or read as the library reads it."""
    draft = Draft(layout)
    for mutation in mutations:
        draft.spoil(*mutation)
    accepted = judge(draft.content(), tmp_path / "x")
    assert accepted or mutations


WHOLE = [
    Draft([("a", DType.F32, 1), ("b:c", DType.BF16, 2), ("-0", DType.F4, 3)]).content(),
    Draft([("layers.0.q_proj", DType.BOOL, 0), ("ü", DType.F8_E4M3, 1)]).content(),
]


@thorough
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), min_size=1, max_size=3))
def test_spoilt_by_bytes(tmp_path: Path, content: bytes, flips: list[tuple[int, int]]) -> None:
    """One to three bytes replaced, anywhere."""
    spoilt = bytearray(content)
    for place, byte in flips:
        spoilt[place % len(spoilt)] = byte
    judge(bytes(spoilt), tmp_path / "x")


@pytest.mark.parametrize("spoil", [None, "end"])
def test_these_tests_can_fail(spoil: str | None, tmp_path: Path) -> None:
    """A draft as it is made is accepted; with an end moved it is not."""
    draft = Draft([("a", DType.F32, 1), ("b", DType.U8, 2)])
    if spoil:
        draft.spoil(spoil, 0, 24, 0, "F32")
    assert judge(draft.content(), tmp_path / "x") == (spoil is None)
