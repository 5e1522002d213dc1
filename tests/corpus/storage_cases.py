"""Files that are broken, odd or hostile, and what becomes of each: rows A, B, D and E of the list of reading cases.

`CASES` is for whoever reads files: the storage room, the command line and the screen. A case builds its file in an
empty folder and returns the path to open.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corpus.pickle_cases import PICKLES
from corpus.safetensors_bytes import GOOD, as_bytes, entry, write

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "adapter_model.safetensors"
DATA = bytes(range(16))


@dataclass(frozen=True)
class Case:
    """One file: how it is made, and what reading it gives.

    ``reader`` says what it is meant for: a ``file`` (one safetensors file), a ``checkpoint`` (a folder or an index) or
    a ``pickle``. ``fragment`` is part of the one sentence of a refusal; ``finding`` the code of what is told about an
    accepted file, if anything is.
    """

    id: str
    number: int
    build: Callable[[Path], Path]
    expect: Literal["refused", "accepted"] = "refused"
    fragment: str = ""
    finding: str = ""
    reader: Literal["file", "checkpoint", "pickle"] = "file"
    exit_code: int = 2
    needs_user: bool = False  # the system lets root do what is refused here


def raw(content: bytes) -> Callable[[Path], Path]:
    """A file of these bytes."""

    def build(folder: Path) -> Path:
        path = folder / NAME
        path.write_bytes(content)
        return path

    return build


def header(
    content: dict[str, Any] | str | bytes, data: bytes = DATA, *, length: int | None = None
) -> Callable[[Path], Path]:
    """A safetensors file of this header."""
    return raw(as_bytes(content, data, length=length))


def one(name: str = "a", **fields: Any) -> Callable[[Path], Path]:
    """A header of one tensor with some fields replaced; None takes a field away."""
    described = {**entry("F32", [4], 0, 16), **fields}
    return header({name: {key: value for key, value in described.items() if value is not None}})


def with_metadata(value: Any) -> Callable[[Path], Path]:
    """A good file with this ``__metadata__``."""
    return header({"__metadata__": value, **GOOD})


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
ZIP = b"PK\x03\x04\x00\x00\x08\x08\x00\x00" + bytes(40)


def make_folder(folder: Path) -> Path:
    path = folder / NAME
    path.mkdir()
    return path


def make_pipe(folder: Path) -> Path:
    path = folder / NAME
    os.mkfifo(path)
    return path


def make_socket(folder: Path) -> Path:
    path = folder / NAME
    os.mknod(path, stat.S_IFSOCK | 0o600)
    return path


def make_link(target: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / NAME
        path.symlink_to(target)
        return path

    return build


def make_closed(folder: Path) -> Path:
    path = write(folder / NAME, GOOD, DATA)
    path.chmod(0)
    return path


def nothing(folder: Path) -> Path:
    return folder / NAME


def huge_header(folder: Path) -> Path:
    """A hole of 96 MiB where the header should be."""
    path = folder / NAME
    with path.open("wb") as file:
        file.write((96 << 20).to_bytes(8, "little") + b'{"a')
        file.truncate(8 + (96 << 20))
    return path


def many_tensors(folder: Path) -> Path:
    text = ",".join(f'"{number:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(210_000))
    return write(folder / NAME, "{" + text + "}")


def long_metadata(folder: Path) -> Path:
    return write(folder / NAME, {"__metadata__": {"a": "x" * (17 << 20)}, **GOOD}, DATA)


def numbers(text: str) -> Callable[[Path], Path]:
    """A good header with one number written as `text`."""
    return header('{"a":{"dtype":"F32","shape":[4],"data_offsets":[' + text + ",16]}}")


FILES = [
    Case("empty", 1, raw(b""), fragment="is empty (0 bytes)"),
    Case("three_bytes", 2, raw(b"abc"), fragment="holds 3 bytes"),
    Case("nine_bytes", 2, raw(bytes(9)), fragment="holds 9 bytes"),
    Case("lfs_pointer", 3, raw(LFS_POINTER), fragment="Git LFS pointer to a file of 12345 bytes ('sha256:4d7a"),
    Case("html", 4, raw(b"\n<!DOCTYPE html><html><body>404</body></html>"), fragment="is an HTML page"),
    Case("json", 4, raw(b'{"error": "Entry not found", "status": 404}'), fragment="is a JSON document"),
    Case("gzip", 4, raw(b"\x1f\x8b\x08\x00\x00\x00\x00\x00" + bytes(600_000)), fragment="is a gzip archive"),
    Case("zip", 4, raw(ZIP), fragment="is a zip archive"),
    Case("npz", 4, raw(ZIP[:30] + b"arr_0.npy" + bytes(40)), fragment="is a NumPy .npz archive"),
    Case("pickle", 4, raw(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}q\x00."), fragment="is a Python pickle"),
    Case("tar", 4, raw(b"pickle".ljust(257, b"\0") + b"ustar" + bytes(300)), fragment="is a tar archive"),
    Case("gguf", 4, raw(b"GGUF\x03\x00\x00\x00" + bytes(64)), fragment="is a GGUF file"),
    Case("zeros", 4, raw(bytes(100)), fragment="header would have 0 bytes"),
    Case("noise", 4, raw(b"\xff" * 100), fragment="is not a safetensors file"),
    Case("folder", 5, make_folder, fragment="is a folder, expected a file"),
    Case("pipe", 6, make_pipe, fragment="is a named pipe"),
    Case("socket", 6, make_socket, fragment="is a socket"),
    Case("device", 6, make_link("/dev/zero"), fragment="is a device"),
    Case("dangling_link", 7, make_link("blobs/gone"), fragment="is a link to 'blobs/gone', which does not exist"),
    Case("absent", 7, nothing, fragment="does not exist"),
    Case("link_loop", 9, make_link(NAME), fragment="leads back to itself"),
    Case("closed", 10, make_closed, fragment="has mode 0000", exit_code=3, needs_user=True),
    Case("cut_data", 11, header(GOOD, DATA[:13]), fragment="3 of 16 bytes of data are missing"),
    Case("cut_header", 11, raw(as_bytes(GOOD, DATA)[:50]), fragment="is cut short: its header has"),
    Case("extra_bytes", 12, header(GOOD, DATA + b"PK\x05\x06"), fragment="4 extra bytes after the last tensor"),
    Case("length_beyond_file", 15, header(GOOD, DATA, length=1000), fragment="its header has 1000 bytes"),
    Case("length_2_63", 16, header(GOOD, DATA, length=1 << 63), fragment="a header of 9223372036854775808 bytes"),
    Case("length_2_64", 16, header(GOOD, DATA, length=(1 << 64) - 1), fragment="of 18446744073709551615 bytes"),
    Case("length_zero", 16, header(GOOD, DATA, length=0), fragment="header would have 0 bytes"),
    Case("length_one", 16, header(GOOD, DATA, length=1), fragment="header would have 1 bytes"),
    Case("huge_header", 17, huge_header, fragment="has 100663296 bytes, more than the limit of 16777216"),
    Case("many_tensors", 17, many_tensors, fragment="more than the limit of 200000"),
    Case("long_metadata", 18, long_metadata, fragment="more than the limit of 16777216"),
    Case("not_utf8", 19, header(b'{"\xff":1}'), fragment="is not UTF-8 text (byte 2)"),
    Case("surrogate", 19, header('{"\ud800":1}'), fragment="is not UTF-8 text"),
    Case(
        "escaped_surrogate",
        19,
        header('{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        fragment="half of a surrogate pair",
    ),
    Case("byte_order_mark", 19, header("\ufeff{}", b""), fragment="begins with byte 0xef"),
    Case("not_json", 20, header("{'a': 1}"), fragment="is not JSON"),
    Case("json_list", 20, header("[1, 2]"), fragment="begins with byte 0x5b"),
    Case("json_after_json", 20, header("{}{}", b""), fragment="is not JSON: Extra data"),
    Case("trailing_nul", 20, header("{}\0\0", b""), fragment="is not JSON: Extra data"),
    Case("nan_literal", 20, numbers("NaN"), fragment="holds NaN, which JSON does not have"),
    Case("leading_space", 21, header(b" " + as_bytes(GOOD)[8:]), fragment="begins with byte 0x20"),
    Case("deep", 22, header('{"a":' * 100_000), fragment="is nested deeper than 32 levels"),
    Case("deep_extra_field", 22, one(extra=json.loads("[" * 200 + "]" * 200)), fragment="is nested deeper than"),
    Case(
        "duplicate_tensor",
        23,
        header(
            '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}'
        ),
        fragment="holds the key 'a' twice",
    ),
    Case(
        "duplicate_escaped",
        23,
        header('{"a":0,"\\u0061":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}'),
        fragment="holds the key 'a' twice",
    ),
    Case(
        "duplicate_metadata_key",
        24,
        header('{"__metadata__":{"k":"1","k":"2"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        fragment="holds the key 'k' twice",
    ),
    Case(
        "duplicate_field",
        24,
        header('{"a":{"dtype":"F32","dtype":"I32","shape":[4],"data_offsets":[0,16]}}'),
        fragment="holds the key 'dtype' twice",
    ),
    Case(
        "duplicate_metadata", 24, header('{"__metadata__":{},"__metadata__":{}}', b""), fragment="'__metadata__' twice"
    ),
    Case("metadata_number", 25, with_metadata({"rank": 8}), fragment="'rank' in __metadata__ is a number"),
    Case("metadata_list", 25, with_metadata([]), fragment="__metadata__ is a list of 0"),
    Case("negative_offset", 26, numbers("-16"), fragment="hold '-16'"),
    Case("real_offset", 26, numbers("0.0"), fragment="hold '0.0'"),
    Case("minus_zero_offset", 26, numbers("-0"), fragment="hold '-0.0'"),
    Case("exponent_offset", 26, numbers("0e0"), fragment="hold '0.0'"),
    Case("offset_2_64", 26, numbers(str(1 << 64)), fragment="hold '18446744073709551616'"),
    Case("offset_5000_digits", 26, numbers("1" * 5000), fragment="digits"),
    Case("offset_true", 26, one(data_offsets=[False, 16]), fragment="hold a truth value"),
    Case("three_offsets", 26, one(data_offsets=[0, 8, 16]), fragment="a list of 3, expected a list of two"),
    Case("offsets_text", 26, one(data_offsets="ab"), fragment="a text, expected a list of two"),
    Case("end_before_begin", 27, one(data_offsets=[16, 0]), fragment="end at 0, before their begin at 16"),
    Case(
        "overlap",
        28,
        header({"a": entry("F32", [3], 0, 12), "b": entry("F32", [2], 8, 16)}),
        fragment="the tensors 'a' and 'b' overlap",
    ),
    Case(
        "same_range",
        28,
        header({"a": entry("F32", [4], 0, 16), "b": entry("I32", [4], 0, 16)}),
        fragment="the tensors 'a' and 'b' overlap",
    ),
    Case(
        "leading_hole", 29, one(shape=[3], data_offsets=[4, 16]), fragment="4 bytes before the tensor 'a' belong to no"
    ),
    Case(
        "middle_hole",
        29,
        header({"a": entry("F32", [1], 0, 4), "b": entry("F32", [2], 8, 16)}),
        fragment="4 bytes before the tensor 'b' belong to no",
    ),
    Case("wrong_shape", 30, one(shape=[5]), fragment="of shape [5] and dtype F32 takes 20 bytes, but its range has 16"),
    Case("wrong_dtype", 30, one(dtype="F64"), fragment="takes 32 bytes, but its range has 16"),
    Case("no_shape", 30, one(shape=None), fragment="has no shape"),
    Case("no_dtype", 30, one(dtype=None), fragment="has no dtype"),
    Case("no_offsets", 30, one(data_offsets=None), fragment="has no data_offsets"),
    Case(
        "entry_list", 30, header({"a": ["dtype", "shape", "data_offsets"]}), fragment="a list of 3, expected an object"
    ),
    Case("entry_null", 30, header({"a": None}), fragment="described by null"),
    Case("shape_text", 30, one(shape=""), fragment="is a text, expected a list"),
    Case("shape_real", 30, one(shape=[4.0]), fragment="holds '4.0'"),
    Case("shape_true", 30, one(shape=[True, 4]), fragment="holds a truth value"),
    Case("shape_negative", 30, one(shape=[-2, -2]), fragment="holds '-2'"),
    Case("shape_nested", 30, one(shape=[[4]]), fragment="holds a list of 1"),
    Case("product_overflow", 31, one(shape=[1 << 40, 1 << 40]), fragment="more elements than 64 bits can count"),
    Case(
        "product_overflow_zero", 31, header({"a": entry("F32", [1 << 40, 1 << 40, 0], 0, 0)}, b""), fragment="64 bits"
    ),
    Case("product_wraps", 31, one(shape=[1 << 31, 1 << 33, 1]), fragment="64 bits"),
    Case("unknown_dtype", 32, one(dtype="F128"), fragment="has the unsupported dtype 'F128'"),
    Case("lower_case_dtype", 32, one(dtype="f32"), fragment="has the unsupported dtype 'f32'"),
    Case("dtype_list", 32, one(dtype=["F32"]), fragment="is a list of 1, expected a text"),
    Case("four_bits", 33, one(dtype="F4", shape=[32]), expect="accepted"),
    Case("six_bits", 33, header({"a": entry("F6_E2M3", [4], 0, 3)}, b"abc"), expect="accepted"),
    Case("half_byte", 33, header({"a": entry("F4", [3], 0, 1)}, b"a"), fragment="does not end on a whole byte"),
    Case(
        "misaligned",
        34,
        header({"a": entry("U8", [1], 0, 1), "b": entry("F64", [1], 1, 9)}, DATA[:9]),
        expect="accepted",
    ),
    Case("zero_size", 35, header({"a": entry("F32", [0, 1 << 39], 0, 0), **GOOD}), expect="accepted"),
    Case("scalar", 35, header({"a": entry("F32", [], 0, 4)}, DATA[:4]), expect="accepted"),
    Case(
        "wide_zero_size",
        35,
        header({"a": entry("F32", [0, 1 << 62], 0, 0)}, b""),
        fragment="more than the limit of 2^40",
    ),
    Case("hundred_dimensions", 35, one(shape=[1] * 99 + [4]), fragment="has 100 dimensions"),
    Case("no_tensors", 36, header("{}", b""), expect="accepted"),
    Case("trailing_spaces", 36, header(as_bytes(GOOD)[8:] + b"   "), expect="accepted"),
    Case("clipboard_name", 37, one("\x1b]52;c;aGk=\x07"), expect="accepted", finding="unprintable_name"),
    Case("c1_name", 37, one("a\x9b31mred"), expect="accepted", finding="unprintable_name"),
    Case("nul_name", 37, one("a\0b"), expect="accepted", finding="unprintable_name"),
    Case("bidi_name", 37, one("a\u202eb"), expect="accepted", finding="unprintable_name"),
    Case("markup_name", 38, one("[@click=app.quit]model[/]"), expect="accepted", finding="markup_name"),
    Case("closing_markup_name", 38, one("[/nope]"), expect="accepted", finding="markup_name"),
    Case("parent_name", 39, one("../../etc/passwd"), expect="accepted", finding="path_name"),
    Case("absolute_name", 39, one("/etc/passwd"), expect="accepted", finding="path_name"),
    Case("drive_name", 39, one("C:\\x"), expect="accepted", finding="path_name"),
    Case("empty_name", 39, one(""), expect="accepted", finding="empty_name"),
    Case("long_name", 40, one("x" * 10_000), expect="accepted", finding="long_name"),
    Case("extra_field", 41, one(quantisation={"scale": 1.5}), expect="accepted", finding="extra_header_field"),
    Case(
        "nan_values", 42, header({"a": entry("F32", [2], 0, 8)}, b"\x00\x00\xc0\x7f\x00\x00\x80\x7f"), expect="accepted"
    ),
]


def folder_of(
    shards: dict[str, dict[str, Any]], weight_map: Any, extra: dict[str, bytes] | None = None
) -> Callable[[Path], Path]:
    """A sharded checkpoint; every header describes 16 bytes of data."""

    def build(folder: Path) -> Path:
        for name, content in shards.items():
            write(folder / name, content, DATA)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        for name, content in (extra or {}).items():
            (folder / name).write_bytes(content)
        return folder

    return build


def leaving_link(folder: Path) -> Path:
    inner = folder / "model"
    inner.mkdir()
    write(folder / "elsewhere.safetensors", GOOD, DATA)
    (inner / "model.safetensors").symlink_to("../elsewhere.safetensors")
    return inner


def hub_cache(folder: Path) -> Path:
    commit = folder / "models--org--name" / "snapshots" / ("0" * 40)
    blobs = folder / "models--org--name" / "blobs"
    commit.mkdir(parents=True)
    blobs.mkdir()
    write(blobs / ("f" * 64), GOOD, DATA)
    (commit / "model.safetensors").symlink_to(Path("../../blobs", "f" * 64))
    return commit


def one_file_and_pickle(folder: Path) -> Path:
    write(folder / "model.safetensors", GOOD, DATA)
    (folder / "pytorch_model.bin").write_bytes(ZIP)
    return folder


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
A, B = {"a": entry("F32", [4], 0, 16)}, {"b": entry("F32", [4], 0, 16)}
BOTH = {"a": ONE, "b": TWO}

CHECKPOINTS = [
    Case("leaving_link", 8, leaving_link, fragment="is a link that leaves its folder, to", reader="checkpoint"),
    Case("hub_cache", 8, hub_cache, expect="accepted", reader="checkpoint"),
    Case("good_shards", 64, folder_of({ONE: A, TWO: B}, BOTH), expect="accepted", reader="checkpoint"),
    *(
        Case(
            f"shard_name_{number}",
            64,
            folder_of({ONE: A}, {"a": ONE, "b": name}),
            fragment=fragment,
            reader="checkpoint",
        )
        for number, (name, fragment) in enumerate(
            [
                ("../other.safetensors", "names the shard '../other.safetensors'"),
                ("/dev/zero", "names the shard '/dev/zero'"),
                ("sub/x.safetensors", "names the shard 'sub/x.safetensors'"),
                ("sub\\x.safetensors", "expected a .safetensors file beside it"),
                ("C:x.safetensors", "names the shard 'C:x.safetensors'"),
                ("pytorch_model.bin", "names the shard 'pytorch_model.bin'"),
                ("", "names the shard ''"),
                (None, "gives no file name for the tensor 'b'"),
            ]
        )
    ),
    Case("no_weight_map", 64, folder_of({ONE: A}, None), fragment="has no weight_map", reader="checkpoint"),
    Case("empty_weight_map", 64, folder_of({ONE: A}, {}), fragment="is empty", reader="checkpoint"),
    Case(
        "missing_shards",
        65,
        folder_of({ONE: A}, {"a": ONE, "b": TWO, "c": "gone.safetensors"}),
        fragment="2 of 3 shards",
        reader="checkpoint",
    ),
    Case(
        "not_in_shard",
        66,
        folder_of({ONE: A, TWO: B}, {**BOTH, "c": TWO}),
        fragment="lists 1 tensor missing from the shards: 'c'",
        reader="checkpoint",
    ),
    Case(
        "in_two_shards",
        66,
        folder_of({ONE: A, TWO: A}, BOTH),
        fragment="is in two shards",
        reader="checkpoint",
    ),
    Case(
        "not_in_index",
        66,
        folder_of({ONE: GOOD, TWO: {"c": entry("F32", [4], 0, 16)}}, {"a": ONE, "c": TWO}),
        fragment="hold 1 tensor missing from the index: 'b'",
        reader="checkpoint",
    ),
    Case(
        "swapped_shards",
        66,
        folder_of({ONE: A, TWO: B}, {"a": TWO, "b": ONE}),
        fragment="lists 2 tensors missing from the shards",
        reader="checkpoint",
    ),
    Case(
        "pickle_beside",
        67,
        one_file_and_pickle,
        expect="accepted",
        finding="pickle_ignored",
        reader="checkpoint",
    ),
    Case(
        "pickle_beside_shards",
        67,
        folder_of({ONE: A, TWO: B}, BOTH, {"pytorch_model-00001-of-00002.bin": ZIP}),
        expect="accepted",
        finding="pickle_ignored",
        reader="checkpoint",
    ),
]

CASES = [
    *FILES,
    *CHECKPOINTS,
    *(Case(name, number, build, fragment=fragment, reader="pickle") for name, number, build, fragment in PICKLES),
]
