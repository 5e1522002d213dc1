"""Pickled weights that must not be loaded: rows 68 to 70."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "adapter_model.bin"

# What each would do if it were loaded: write a file beside itself.
CANARY = "canary"


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def archive(instructions: bytes, **parts: bytes) -> bytes:
    """A zip archive as torch.save lays it out, with these instructions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", instructions)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
        for name, content in parts.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return buffer.getvalue()


def raw(content: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / NAME
        path.write_bytes(content)
        return path

    return build


def calling(text: str, protocol: int = 2) -> Callable[[Path], Path]:
    """An archive whose pickle runs `text` as Python when it is loaded."""

    def build(folder: Path) -> Path:
        program = f"open({str(folder / CANARY)!r}, 'w').close()\n{text}"
        return raw(archive(pickle.dumps({"a": Calls(exec, program)}, protocol=protocol)))(folder)

    return build


def saved(make: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """What torch.save makes of an object that `make` builds from torch."""

    def build(folder: Path) -> Path:
        import torch

        torch.save(make(torch), folder / NAME)
        return folder / NAME

    return build


def torch_script(folder: Path) -> Path:
    return raw(archive(b"\x80\x02}q\x00.", constants_pkl=b"").replace(b"constants_pkl", b"constants.pkl"))(folder)


def cut_archive(folder: Path) -> Path:
    return raw(archive(pickle.dumps({"a": 1}), data__0=bytes(100))[:200])(folder)


def compressed(folder: Path) -> Path:
    path = folder / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
        file.writestr("archive/data/0", bytes(1 << 20))
    return path


def legacy_tar(folder: Path) -> Path:
    path = folder / NAME
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            file.addfile(tarfile.TarInfo(name))
    return path


def protocol_0_pickle(folder: Path) -> Path:
    return raw(pickle.dumps({"a": 1}, protocol=0))(folder)


PICKLES: list[tuple[str, int, Callable[[Path], Path], str]] = [
    ("call_exec", 68, calling("pass"), "needs more than tensors: '__builtin__.exec'"),
    ("call_exec_protocol_4", 68, calling("pass", 4), "needs more than tensors: 'builtins.exec'"),
    (
        "call_by_old_instruction",
        68,
        raw(archive(b"(S'true'\nios\nsystem\n.")),
        "needs more than tensors: 'os.system'",
    ),
    ("call_by_extension", 68, raw(archive(b"\x80\x02\x82\x01)R.")), "'copyreg.extension 1'"),
    (
        "many_globals",
        68,
        raw(archive(b"\x80\x02" + b"".join(b"cm\nf%d\n0" % number for number in range(100)) + b"N.")),
        "and 92 more",
    ),
    ("module_object", 68, saved(lambda torch: {"a": torch.nn.Linear(2, 2)}), "'torch.nn.modules.linear.Linear'"),
    ("stride_0", 69, saved(lambda torch: {"a": torch.zeros(1).expand(10**6, 10**6)}), "they take 4000000000000 bytes"),
    (
        "overlapping",
        69,
        saved(lambda torch: dict.fromkeys("abcdefgh", torch.zeros(1000))),
        "they take",
    ),
    ("torch_script", 70, torch_script, "is a TorchScript archive"),
    ("cut_archive", 70, cut_archive, "is a damaged or truncated torch archive"),
    ("compressed", 70, compressed, "is compressed or names a part twice"),
    ("legacy_tar", 70, legacy_tar, "is a tar archive of an old torch"),
    ("bare_pickle", 70, raw(pickle.dumps({"a": 1})), "is a bare pickle of an old torch"),
    ("protocol_0_pickle", 70, protocol_0_pickle, "of no known format"),
    ("empty_bin", 70, raw(b""), "is empty (0 bytes)"),
    ("other_zip", 70, raw(archive(b"").replace(b"data.pkl", b"note.txt")), "not one that torch.save wrote"),
    ("broken_instructions", 70, raw(archive(b"\x80\x02RRRR.")), "its instructions make no sense"),
    ("nothing_pickled", 70, raw(archive(b"")), "its instructions make no sense"),
    (
        "size_lie",
        69,
        raw(
            archive(
                b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n"
                b"U\x010U\x03cpu\x8a\x05\x00\x00\x00\x00\x01tQK\x00\x8a\x05\x00\x00\x00\x00\x01\x85K\x01\x85\x89"
                b"ccollections\nOrderedDict\n)RtRs.",
                data__0=bytes(16),
            )
        ),
        "they take 17179869184 bytes",
    ),
]
