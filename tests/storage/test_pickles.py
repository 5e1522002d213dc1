"""Pickles: described without being run, converted in a child, or refused."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from corpus.pickle_cases import archive

from lora_lab.errors import FileFormatError, LoraLabError, OperationError, UnsafeFileError
from lora_lab.storage import pickle_child, pickles
from lora_lab.storage.files import sha256_of
from lora_lab.storage.header import read_header
from lora_lab.storage.pickle_names import describe_instructions
from lora_lab.storage.pickles import PickledTensor, converted_pickle, describe_pickle
from lora_lab.storage.reading import read_tensors

if TYPE_CHECKING:
    from pathlib import Path


def raw(tensor: torch.Tensor) -> list[int]:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def test_converted(tmp_path: Path) -> None:
    """Views, parameters and new types come out as they were, once, in a process without our environment."""
    wide = torch.arange(20, dtype=torch.float32).reshape(4, 5)
    tensors = {
        "column": wide[:, 1],
        "transposed": torch.randn(3, 2, dtype=torch.float64).T,
        "parameter": torch.nn.Parameter(torch.randn(3, dtype=torch.bfloat16)),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 3, dtype=torch.float16),
    }
    path = tmp_path / "adapter_model.bin"
    torch.save(tensors, path)
    result = converted_pickle(path, cache_dir=tmp_path / "cache")
    assert result == tmp_path / "cache" / f"{sha256_of(path)}.safetensors"
    assert list((tmp_path / "cache").iterdir()) == [result]
    read = {ref.name: tensor for ref, tensor in read_tensors(read_header(result).tensors.values())}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert raw(read[name]) == raw(tensor), name


def test_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call starts no process; a kept file that is broken is made again."""
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(2)}, path)
    starts: list[Any] = []

    def convert(source: Any, result: Path) -> None:
        from safetensors.torch import save_file

        starts.append(source)
        save_file({"a": torch.ones(2)}, result)

    monkeypatch.setattr(pickles, "_run_child", convert)
    first = converted_pickle(path, cache_dir=tmp_path)
    assert converted_pickle(path, cache_dir=tmp_path) == first
    assert len(starts) == 1
    first.write_bytes(b"broken")
    assert read_header(converted_pickle(path, cache_dir=tmp_path)).tensors.keys() == {"a"}
    assert len(starts) == 2


def test_what_is_no_mapping_to_tensors() -> None:
    """Nothing is left out in silence, and no view takes more than the archive has."""
    one = torch.ones(2)
    refused = {
        reason: pickle_child.refusal(content, 1000).get("reason")
        for reason, content in {
            "not_a_mapping": [one],
            "not_a_tensor": {"a": one, "step": 5},
            "not_dense": {"a": one.to_sparse()},
            "overlap": {"a": one, "b": one.expand(1000, 2)},
        }.items()
    }
    assert refused == {reason: reason for reason in refused}
    assert pickle_child.refusal({1: one}, 1000)["reason"] == "not_a_tensor"
    assert pickle_child.refusal({"a": one, "b": torch.ones(248)}, 1000) == {}
    assert pickle_child.refusal({"a": one, "b": torch.ones(249)}, 1000)["bytes"] == 1004


def test_child_checks_for_itself(tmp_path: Path) -> None:
    """With the first look taken away, the child still loads nothing but tensors."""

    class Calls:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "canary"), "w"))

    path = tmp_path / "x.bin"
    torch.save({"a": Calls()}, path)
    with pytest.raises(UnsafeFileError, match=r"needs more than tensors: '(io|_io)\.open'\."):
        pickles._run_child(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_child_sees_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment, no module from the working folder or from a variable."""
    seen: dict[str, Any] = {}

    def spy(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        seen.update(options, arguments=arguments)
        return subprocess.CompletedProcess(arguments, 0, b"{}", b"")

    monkeypatch.setattr(subprocess, "run", spy)
    (tmp_path / "x").write_bytes(b"")
    pickles._run_child(tmp_path / "x", tmp_path / "out")
    assert seen["env"] == {}
    assert seen["cwd"] == "/"
    assert {"-E", "-P"} <= set(seen["arguments"])
    assert seen["timeout"] > 0


@pytest.mark.parametrize(
    ("answer", "kind", "fragment"),
    [
        (b"", OperationError, "was stopped: it needed more memory, room or time"),
        (b"Traceback", OperationError, "was stopped"),
        (b'{"reason": "old_torch", "version": "2.9.1"}', UnsafeFileError, "torch '2.9.1' cannot be given one safely"),
        (
            b'{"reason": "overlap", "name": "b", "shape": [9, 9], "bytes": 324, "size": 100}',
            UnsafeFileError,
            "overlap: up to 'b' of shape '.9, 9.' they take 324 bytes, in a file of 100",
        ),
        (b'{"reason": "not_a_mapping", "type": "list"}', FileFormatError, "holds one 'list', expected tensors by name"),
        (
            b'{"reason": "not_a_tensor", "name": "n", "type": "int"}',
            FileFormatError,
            "'n' in .* is of type 'int', expected",
        ),
        (b'{"reason": "unreadable", "type": "RuntimeError"}', FileFormatError, "is a damaged torch archive"),
        (
            b'{"reason": "not_dense", "name": "\\u001b[1m"}',
            FileFormatError,
            r"'\\x1b\[1m' in .* is sparse or quantised",
        ),
        (b'{"reason": "not_storable", "type": "KeyError"}', FileFormatError, "that safetensors does not have"),
        (b'{"reason": "globals", "names": ["os.system"]}', UnsafeFileError, "needs more than tensors: 'os.system'"),
    ],
)
def test_answers(
    answer: bytes, kind: type[LoraLabError], fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer of the child is one sentence of ours; torch's own text is never shown."""
    monkeypatch.setattr(subprocess, "run", lambda *a, **_: subprocess.CompletedProcess(a, 1, answer, b"\x1b[1mtorch"))
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(kind, match=fragment) as caught:
        pickles._run_child(tmp_path / "x", tmp_path / "out")
    assert caught.value.message.endswith(".")
    assert "weights_only" not in str(caught.value)


def test_time_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not end is stopped."""

    def hang(*arguments: Any, **_: Any) -> None:
        raise subprocess.TimeoutExpired(arguments, 1)

    monkeypatch.setattr(subprocess, "run", hang)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(OperationError, match="was stopped"):
        pickles._run_child(tmp_path / "x", tmp_path / "out")


def test_resources_are_limited() -> None:
    """Memory, time, files and processes, as a fresh process reports them."""
    code = """
import json, resource, runpy, sys
child = runpy.run_path(sys.argv[1])
child["limit_resources"](1000)
kinds = ("AS", "CPU", "FSIZE", "CORE", "NPROC")
print(json.dumps([resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))[1] for kind in kinds]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, pickle_child.__file__], capture_output=True, check=True, text=True
    )
    memory, seconds, room, core, processes = json.loads(done.stdout)
    assert 1 << 30 < memory < 4 << 30
    assert 60 <= seconds < 100
    assert 1000 < room < 32 << 20
    assert (core, processes) == (0, 0)


def test_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The folder is named."""
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OperationError, match=r"'.*/file' for converted files cannot be written"):
        converted_pickle(tmp_path / "x.bin", cache_dir=tmp_path / "file")


def test_described(tmp_path: Path) -> None:
    """Names, types and shapes, of both ways torch writes a tensor."""
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)),
        "c": torch.zeros(4).to(torch.float8_e5m2),
    }
    torch.save(tensors, tmp_path / "x.bin")
    found = describe_pickle(tmp_path / "x.bin")
    assert found.tensors == (
        PickledTensor("a", "float32", (2, 3)),
        PickledTensor("b", "bfloat16", (2,)),
        PickledTensor("c", "float8_e5m2", (4,)),
    )
    assert [tensor.size_bytes for tensor in found.tensors] == [24, 4, 4]
    assert "torch._utils._rebuild_tensor_v2" in found.globals


@pytest.mark.parametrize("protocol", range(6))
def test_instructions_of_every_protocol(protocol: int) -> None:
    """Containers, memo and calls of each protocol are walked to the end."""
    shared = ["x"]
    value = {
        "a": [1, 2.5, None, True, "t" * 300, b"b", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "b": {1, 2},
        "c": shared,
    }
    value["d"] = [shared, complex(1, 2), frozenset({3}), 1 << 70, io.BytesIO]
    found = describe_instructions(pickle.dumps(value, protocol=protocol))
    assert {name.rpartition(".")[2] for name in found.globals} >= {"complex", "BytesIO"}


def test_describing_imports_nothing(tmp_path: Path) -> None:
    """A module that is only named stays unloaded."""
    (tmp_path / "x.bin").write_bytes(archive(b"\x80\x02cantigravity\nfly\n)R."))
    assert describe_pickle(tmp_path / "x.bin").globals == ("antigravity.fly",)
    assert "antigravity" not in sys.modules


def test_bombs_of_instructions(tmp_path: Path) -> None:
    """More than a million instructions, or more bytes than any state needs."""
    (tmp_path / "x.bin").write_bytes(archive(b"\x80\x02" + b"N0" * 600_000 + b"N."))
    with pytest.raises(FileFormatError, match="more than 1000000 instructions"):
        describe_pickle(tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(archive(bytes(17 << 20)))
    with pytest.raises(FileFormatError, match="more than the limit of 16777216"):
        describe_pickle(tmp_path / "y.bin")


def test_parts_named_twice(tmp_path: Path) -> None:
    """Two readers could take different ones."""
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as file:
        file.writestr("archive/data.pkl", b"N.")
        file.writestr("archive/data/0", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("archive/data/0", b"2")
    with pytest.raises(FileFormatError, match="names a part twice"):
        describe_pickle(tmp_path / "x.bin")


def test_oldest_torch() -> None:
    """From 2.10 on; what is no version is too old."""
    assert [pickle_child.is_recent(text) for text in ("2.10.0", "2.13.0+cpu", "3.0.1", "2.9.9", "1.13", "dev")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
