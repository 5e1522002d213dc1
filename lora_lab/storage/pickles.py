"""Pickled weights: looked at without being run, and converted, when asked, where they can do no harm.

No scanner decides here. A pickle that needs anything but tensors is refused by name; one that does not is loaded
weights-only, by a torch that does so safely, in a process with nothing to steal and limits on what it can use. Only
the safetensors file that comes out, checked like any other, is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import FileFormatError, LoraLabError, OperationError, UnsafeFileError, quoted
from lora_lab.storage.files import opened, require_unchanged, sha256_of, sniff, stamp_of
from lora_lab.storage.header import read_header
from lora_lab.storage.kinds import TITLES, FileKind
from lora_lab.storage.pickle_names import (
    PLAIN_GLOBALS,
    PickleDescription,
    PickledTensor,
    PickleRefusedError,
    describe_instructions,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PickleDescription", "PickledTensor", "converted_pickle", "describe_pickle"]

_CHILD: Final = Path(__file__).with_name("pickle_child.py")
_INSTRUCTION_BYTES: Final = 16 << 20
_SECONDS_AT_LEAST: Final = 120
_BYTES_A_SECOND: Final = 10 << 20
_SHOWN: Final = 8
_FETCH_AGAIN: Final = "The download was probably interrupted; fetch it again."
_SAVE_AGAIN: Final = "Save it again as safetensors, where it can be trusted."


def describe_pickle(path: str | Path) -> PickleDescription:
    """Say what a torch archive would import and which tensors it holds, without running it.

    Raises
    ------
    FileFormatError
        not a zip archive as ``torch.save`` writes it, or a damaged one.
    """
    kind = sniff(path)
    if kind is not FileKind.ZIP:
        raise _not_an_archive(path, kind)
    try:
        with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file, zipfile.ZipFile(file) as archive:
            raw = archive.read(_instructions(path, archive, os.fstat(descriptor).st_size))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError):
        raise FileFormatError(f"{quoted(path)} is a damaged or truncated torch archive.", hint=_FETCH_AGAIN) from None
    try:
        return describe_instructions(raw)
    except PickleRefusedError as error:
        raise FileFormatError(f"{quoted(path)} {error}.") from None


def converted_pickle(path: str | Path, *, cache_dir: str | Path) -> Path:
    """Convert a torch archive of tensors to safetensors, in a process of its own, and return the file.

    Call it only when the user allowed pickles by name. The result is kept under the archive's sha256 and made once.

    Parameters
    ----------
    path : a ``.bin``, ``.pt`` or ``.pth`` file that ``torch.save`` wrote
    cache_dir : folder of converted files, made when missing

    Raises
    ------
    UnsafeFileError
        it needs more than tensors (what, is listed), its tensors claim more memory than the file has bytes, or
        torch is too old to be given a pickle.
    FileFormatError
        not an archive of named tensors, TorchScript, or damaged.
    OperationError
        the conversion was stopped by its limits, or `cache_dir` cannot be written.
    """
    description = describe_pickle(path)
    unsafe = [name for name in description.globals if name not in PLAIN_GLOBALS]
    if unsafe:
        raise _unsafe_globals(path, unsafe)
    _require_honest_sizes(path, description)
    target = Path(cache_dir, f"{sha256_of(path)}.safetensors")
    if target.is_file():
        with suppress(LoraLabError):
            read_header(target)
            return target
    import shutil
    import tempfile

    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent))
    except OSError as error:
        raise _unwritable(target.parent, error) from None
    try:
        result = folder / "converted.safetensors"
        _run_child(path, result)
        read_header(result)
        _keep(result, target)
    except OSError as error:
        raise _unwritable(target.parent, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _instructions(path: str | Path, archive: zipfile.ZipFile, size: int) -> zipfile.ZipInfo:
    """The entry with the pickle, once the archive is known to be laid out as torch does it."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise FileFormatError(
            f"{quoted(path)} is a TorchScript archive, which holds a program, expected tensors.", hint=_SAVE_AGAIN
        )
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FileFormatError(f"{quoted(path)} is a zip archive, but not one that torch.save wrote.")
    is_plain = all(entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1 for entry in entries)
    if not is_plain or len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > size:
        raise FileFormatError(
            f"{quoted(path)} is compressed or names a part twice, which torch.save never does.", hint=_SAVE_AGAIN
        )
    if pickles[0].file_size > _INSTRUCTION_BYTES:
        raise FileFormatError(
            f"The pickle in {quoted(path)} has {pickles[0].file_size} bytes, more than the limit of "
            f"{_INSTRUCTION_BYTES}."
        )
    return pickles[0]


def _require_honest_sizes(path: str | Path, description: PickleDescription) -> None:
    """Refuse tensors that claim more bytes than the file has, before anything is loaded."""
    size = Path(path).stat().st_size
    total = 0
    for tensor in description.tensors:
        total += tensor.size_bytes
        if total > size:
            raise _overlap(path, tensor.name, list(tensor.shape), total, size)


def _not_an_archive(path: str | Path, kind: FileKind) -> FileFormatError:
    if kind is FileKind.EMPTY:
        return FileFormatError(f"{quoted(path)} is empty (0 bytes), expected a torch archive.", hint=_FETCH_AGAIN)
    if kind is FileKind.LFS_POINTER:
        return FileFormatError(
            f"{quoted(path)} is a Git LFS pointer, not that file itself.", hint="Run `git lfs pull`."
        )
    if kind in (FileKind.PICKLE, FileKind.TAR):
        what = "a bare pickle" if kind is FileKind.PICKLE else "a tar archive"
        return FileFormatError(
            f"{quoted(path)} is {what} of an old torch, expected the zip archive that torch.save writes since 1.6.",
            hint=_SAVE_AGAIN,
        )
    return FileFormatError(f"{quoted(path)} is {TITLES[kind]}, expected a torch archive.")


def _run_child(path: str | Path, result: Path) -> None:
    """Let a fresh interpreter, which knows no token and no folder of ours, write `result`."""
    with opened(path) as descriptor:
        before = stamp_of(descriptor, path)
        try:
            # -E: no variable decides what is imported; -P: neither does the working folder or the script's own.
            done = subprocess.run(
                [sys.executable, "-E", "-P", str(_CHILD), str(result)],
                stdin=descriptor,
                capture_output=True,
                env={},
                cwd="/",
                timeout=_SECONDS_AT_LEAST + before.size_bytes // _BYTES_A_SECOND,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _stopped(path) from None
        require_unchanged(before, stamp_of(descriptor, path))
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise _stopped(path) from None
    if answer:
        raise _refused(path, answer)


def _refused(path: str | Path, answer: dict[str, Any]) -> LoraLabError:
    """Word what the child said."""
    shown, reason = quoted(path), answer.get("reason")
    if reason == "globals":
        return _unsafe_globals(path, answer["names"])
    if reason == "old_torch":
        return UnsafeFileError(
            f"{shown} is a pickle, and torch {quoted(answer['version'])} cannot be given one safely, expected 2.10 or "
            "newer.",
            hint="Run `pip install --upgrade torch`.",
        )
    if reason == "overlap":
        return _overlap(path, answer["name"], answer["shape"], answer["bytes"], answer["size"])
    if reason == "not_storable":
        return FileFormatError(f"The tensors of {shown} have a name or a dtype that safetensors does not have.")
    if reason == "not_a_mapping":
        return FileFormatError(f"{shown} holds one {quoted(answer['type'])}, expected tensors by name.")
    if reason == "not_a_tensor":
        return FileFormatError(
            f"{quoted(answer['name'])} in {shown} is of type {quoted(answer['type'])}, expected a tensor under a name."
        )
    if reason == "not_dense":
        return FileFormatError(
            f"The tensor {quoted(answer['name'])} in {shown} is sparse or quantised, expected a dense one."
        )
    return FileFormatError(f"{shown} is a damaged torch archive: its tensors cannot be loaded.", hint=_FETCH_AGAIN)


def _overlap(path: str | Path, name: str, shape: Sequence[int], total: int, size: int) -> UnsafeFileError:
    return UnsafeFileError(
        f"The tensors of {quoted(path)} overlap: up to {quoted(name)} of shape {quoted(list(shape))} they take {total} "
        f"bytes, in a file of {size}."
    )


def _unsafe_globals(path: str | Path, names: Sequence[str]) -> UnsafeFileError:
    shown = ", ".join(quoted(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return UnsafeFileError(
        f"The pickle {quoted(path)} needs more than tensors: {shown}{more}.", hint="It is not loaded. " + _SAVE_AGAIN
    )


def _stopped(path: str | Path) -> OperationError:
    return OperationError(
        f"Converting {quoted(path)} was stopped: it needed more memory, room or time than its size allows.",
        hint=_SAVE_AGAIN,
    )


def _unwritable(folder: Path, error: OSError) -> OperationError:
    reason = (error.strerror or type(error).__name__).lower()
    return OperationError(f"The folder {quoted(folder)} for converted files cannot be written: {reason}.")


def _keep(result: Path, target: Path) -> None:
    """Give the finished file its name once its bytes are on the disk."""
    descriptor = os.open(result, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    result.replace(target)
