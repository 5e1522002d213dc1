"""Opening, naming, JSON, and staying inside a folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from corpus.safetensors_bytes import GOOD, write
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import FileFormatError, LoraLabError, MissingFileError, OperationError, UnsafeFileError
from lora_lab.storage import files
from lora_lab.storage.files import FileKind, inside, open_regular, read_json, sha256_of, sniff, stamp

BROKEN_JSON = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "nothing but blanks"),
    "cut": (b'{"r": 8', "is not JSON: Expecting"),
    "two": (b'{"r": 8} {"r": 8}', "is not JSON: Extra data"),
    "latin 1": (b'{"a": "\xe9"}', "is not UTF-8 text"),
    "utf-16": ('{"r": 8}'.encode("utf-16"), "is not UTF-8 text"),
    "key twice": (b'{"r": 8, "r": 16}', "holds the key 'r' twice"),
    "inner key twice": (b'{"a": [{"r": 8, "r": 16}]}', "holds the key 'r' twice"),
    "NaN": (b'{"a": NaN}', "holds NaN, which JSON does not have"),
    "infinity": (b'{"a": -Infinity}', "holds -Infinity"),
    "1e999": (b'{"a": 1e999}', "beyond every floating-point range"),
    "5000 digits": (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
    "200 digits": (b'{"a": ' + b"1" * 200 + b"}", "a number of 200 digits"),
    "200 000 deep": (b"[" * 200_000, "is nested deeper than 32 levels"),
    "100 deep": (b"[" * 100 + b"]" * 100, "is nested deeper than 32 levels"),
    "surrogate": (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    "surrogate key": (b'{"\\udfff": 1}', "half of a surrogate pair"),
    "long": (b'"' + b"x" * (1 << 20) + b'"', "more than the limit of 1048576"),
    "many": (b"[" + b"0," * 500_000 + b"0]", ""),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "is a Git LFS pointer"),
}
del BROKEN_JSON["many"]


@pytest.mark.parametrize(("content", "fragment"), BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
def test_broken_json(content: bytes, fragment: str, tmp_path: Path) -> None:
    """One sentence with the file's name, within a second."""
    path = tmp_path / "adapter_config.json"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(FileFormatError) as caught:
        read_json(path)
    assert time.process_time() - started < 1
    assert fragment in caught.value.message
    assert "adapter_config.json" in caught.value.message
    assert caught.value.message.endswith(".")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.booleans(), st.booleans())
def test_json_round_trip(value: object, is_ascii: bool, has_mark: bool) -> None:
    """What json writes is read back, with a byte order mark too."""
    path = Path(os.environ["LORA_LAB_STATE_DIR"]).with_suffix(".json")
    path.write_text(json.dumps(value, ensure_ascii=is_ascii), encoding="utf-8-sig" if has_mark else "utf-8")
    read = read_json(path)
    assert read == value
    assert type(read) is type(value)


def test_json_of_many_values_is_refused(tmp_path: Path) -> None:
    """Within the limit on bytes, but more values than anyone means."""
    path = tmp_path / "index.json"
    path.write_text("[" + "0," * 1_200_000 + "0]")
    with pytest.raises(FileFormatError, match="holds about 1200001 values, more than the limit"):
        read_json(path, limit_bytes=1 << 24)


def test_stamp(tmp_path: Path) -> None:
    """A stamp is the file's status."""
    path = write(tmp_path / "x", GOOD)
    found = path.stat()
    assert stamp(path) == files.FileStamp(str(path), found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)
    with pytest.raises(FileFormatError, match="is a folder"):
        stamp(tmp_path)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 3])
def test_sha256(size: int, tmp_path: Path) -> None:
    """The digest that hashlib gives, over several blocks too."""
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_sniff(tmp_path: Path) -> None:
    """Kinds by content, whatever the name."""
    path = write(tmp_path / "page.html", GOOD, bytes(16))
    assert sniff(path) is FileKind.SAFETENSORS
    path.write_bytes(b"\x80\x02}.")
    assert sniff(path) is FileKind.PICKLE
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert sniff(path) is FileKind.JSON
    path.write_bytes(b"plain words")
    assert sniff(path) is FileKind.UNKNOWN


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """A refused file is closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("x", "y\0z", "z" * 300):
        with pytest.raises(LoraLabError):
            open_regular(tmp_path / name)
    os.close(open_regular(write(tmp_path / "good", GOOD)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pipe_put_in_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that becomes a pipe between looking and opening is still not waited for."""
    path = write(tmp_path / "x", GOOD)
    real = os.open

    def swap(name: str, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real(name, flags)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(UnsafeFileError, match="is a named pipe"):
        open_regular(path)


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owner and mode are named; the operation failed, the file may be fine."""
    path = write(tmp_path / "x", GOOD)
    path.chmod(0o200)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OperationError, match=r"may not be read: it belongs to '.*' and has mode 0200\."):
        open_regular(path)


OUTSIDE = [
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    ".",
    "./x",
    "",
    "a//b",
    "a/",
    "C:x",
    "C:\\x",
    "a\\b",
    "\\\\s\\x",
    "a\0b",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave(name: str, tmp_path: Path) -> None:
    """Absolute, upwards, empty, with a drive or a backslash."""
    with pytest.raises(UnsafeFileError, match="leads out of that folder"):
        inside(tmp_path, name)
    with pytest.raises(UnsafeFileError):
        inside(tmp_path, name, follow_symlinks=True)


@given(st.text(min_size=1, max_size=20))
def test_no_name_leaves(name: str) -> None:
    """Whatever is accepted lies below the folder."""
    folder = Path(os.environ["LORA_LAB_STATE_DIR"]).parent
    try:
        path = inside(folder, name)
    except LoraLabError:
        return
    assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    assert path != folder


def test_names_inside(tmp_path: Path) -> None:
    """Plain names, sub-folders and links that stay."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "x").write_bytes(b"")
    (folder / "link").symlink_to("sub/x")
    assert inside(folder, "..x") == folder / "..x"
    assert inside(folder, "sub/x") == folder / "sub" / "x"
    assert inside(folder, "link") == folder / "link"
    assert inside(folder, "new") == folder / "new"


def test_links_that_leave(tmp_path: Path) -> None:
    """A link out of the folder, or a linked sub-folder, needs a word."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x").write_bytes(b"")
    (folder / "link").symlink_to("../x")
    (folder / "up").symlink_to("..")
    (folder / "gone").symlink_to("../gone")
    for name in ("link", "up/x"):
        with pytest.raises(UnsafeFileError, match="leaves its folder") as caught:
            inside(folder, name)
        assert "--follow-symlinks" in caught.value.hint
        assert inside(folder, name, follow_symlinks=True) == folder / name
    with pytest.raises(MissingFileError, match=r"is a link to '\.\./gone'"):
        inside(folder, "gone")


def test_a_linked_folder_is_itself(tmp_path: Path) -> None:
    """A folder given through a link holds what its target holds."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path / "link", "x") == tmp_path / "link" / "x"


def test_hub_cache(tmp_path: Path) -> None:
    """Links from a snapshot to blobs of the same repository or of the store for all of them, and to nothing else."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "sub").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "f00").write_bytes(b"")
    (repository / "secret").write_bytes(b"")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "f00").write_bytes(b"")
    shared = "0f" * 32
    (tmp_path / "blobs" / "0f").mkdir()
    (tmp_path / "blobs" / "0f" / shared).write_bytes(b"")
    (snapshot / "shared").symlink_to(f"../../../blobs/0f/{shared}")
    (tmp_path / "blobs" / "0f" / "short").write_bytes(b"")
    (snapshot / "short").symlink_to("../../../blobs/0f/short")
    (snapshot / "good").symlink_to("../../blobs/f00")
    (snapshot / "sub" / "good").symlink_to("../../../blobs/f00")
    (snapshot / "bad").symlink_to("../../secret")
    (snapshot / "other").symlink_to("../../../blobs/f00")
    assert inside(snapshot, "good")
    assert inside(snapshot, "sub/good")
    assert inside(snapshot / "sub", "good")
    assert inside(snapshot, "shared")
    for name in ("bad", "other", "short"):
        with pytest.raises(UnsafeFileError):
            inside(snapshot, name)
