"""Files as they are met: regular ones only, opened without waiting, and never outside their folder."""

from __future__ import annotations

import errno
import os
import re
import stat as modes
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.tensors import FileStamp
from lora_lab.errors import FileFormatError, LoraLabError, MissingFileError, OperationError, UnsafeFileError, quoted
from lora_lab.storage.kinds import HEAD_BYTES, FileKind, kind_of
from lora_lab.storage.strict_json import JsonRefusedError, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FileKind", "inside", "open_regular", "opened", "read_json", "require_unchanged", "sha256_of", "sniff"]
__all__ += ["stamp", "stamp_of"]

_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_BLOCK_BYTES: Final = 1 << 20
_MOST_JSON_VALUES: Final = 1_000_000
_SHARED_BLOB: Final = re.compile(r"[0-9a-f]{64}")

_SPECIAL: Final = (
    (modes.S_ISDIR, "a folder"),
    (modes.S_ISFIFO, "a named pipe"),
    (modes.S_ISSOCK, "a socket"),
    (modes.S_ISCHR, "a device"),
    (modes.S_ISBLK, "a device"),
)


def stamp(path: str | Path) -> FileStamp:
    """Say what the regular file at `path` looks like now.

    Raises
    ------
    MissingFileError
        nothing there, or a link that leads nowhere.
    UnsafeFileError
        a pipe, socket or device.
    """
    with worded(path):
        found = Path(path).stat()
    _require_regular(path, found)
    return _stamp(path, found)


def stamp_of(descriptor: int, path: str | Path) -> FileStamp:
    """Say what an open file looks like now; `path` is the name it goes by."""
    return _stamp(path, os.fstat(descriptor))


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor.

    A pipe would block for ever and a device may do anything when opened, so the type is looked at first; it is
    looked at again afterwards, because the name may have been given to something else in between.

    Raises
    ------
    MissingFileError, UnsafeFileError, FileFormatError, OperationError
    """
    with worded(path):
        _require_regular(path, Path(path).stat())
        descriptor = os.open(path, _OPEN_FLAGS)
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """Hold a regular file open, as :func:`open_regular` does, for the length of a ``with`` block."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def require_unchanged(before: FileStamp, now: FileStamp) -> None:
    """Refuse a file that is no longer the one whose header was read."""
    same = (
        before.size_bytes == now.size_bytes
        and before.mtime_ns == now.mtime_ns
        and before.inode == now.inode
        and before.device == now.device
    )
    if not same:
        raise changed(before.path)


def changed(path: str | Path) -> FileFormatError:
    """The error for a file that something else wrote to."""
    return FileFormatError(
        f"{quoted(path)} changed while reading: something else wrote to it.",
        hint="Wait until it is finished, then run this again.",
    )


def sniff(path: str | Path) -> FileKind:
    """Say what the file at `path` is, from its first bytes; what :func:`open_regular` refuses is refused."""
    with opened(path) as descriptor:
        return kind_of(read_at(descriptor, path, 0, HEAD_BYTES), os.fstat(descriptor).st_size)


def read_at(descriptor: int, path: str | Path, offset: int, length: int) -> bytes:
    """Read up to `length` bytes at `offset`; fewer only where the file ends."""
    with worded(path):
        return os.pread(descriptor, length, offset)


def read_json(path: str | Path, *, limit_bytes: int = _BLOCK_BYTES) -> Any:
    """Read one JSON document: UTF-8, with or without a byte order mark, no key twice, no NaN.

    Parameters
    ----------
    path : a regular file
    limit_bytes : a longer file is refused before it is read

    Raises
    ------
    FileFormatError
        empty, too long, or anything that :func:`~lora_lab.storage.strict_json.parse_json` refuses.
    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise FileFormatError(f"{quoted(path)} is empty (0 bytes), expected JSON.", hint=_FETCH_AGAIN)
        if size > limit_bytes:
            raise FileFormatError(f"{quoted(path)} has {size} bytes, more than the limit of {limit_bytes} for JSON.")
        raw = read_at(descriptor, path, 0, limit_bytes + 1)
    kind = kind_of(raw[:HEAD_BYTES], size)
    if kind is FileKind.LFS_POINTER:
        raise FileFormatError(f"{quoted(path)} is a Git LFS pointer, expected JSON.", hint="Run `git lfs pull`.")
    try:
        return parse_json(raw, most_values=_MOST_JSON_VALUES)
    except JsonRefusedError as error:
        raise FileFormatError(f"{quoted(path)} {error}.", hint="Mend the file, or fetch it again.") from None


def inside(folder: str | Path, name: str, *, follow_symlinks: bool = False) -> Path:
    """Join `name`, which an index or a listing gave, to `folder`, and make sure that it stays there.

    A link may lead to another place in the folder, or from ``models--ORG--NAME/snapshots/COMMIT/…`` to ``blobs/HASH``
    beside ``snapshots`` or to ``blobs/HA/HASH`` beside ``models--ORG--NAME``, which is how the Hub's cache keeps files.

    Parameters
    ----------
    folder : where the name was found
    name : relative, with forward slashes
    follow_symlinks : allow links that lead anywhere

    Raises
    ------
    UnsafeFileError
        the name is absolute, holds ``..``, a drive or a backslash, or is a link that leaves the folder.
    MissingFileError
        the name is a link that leads nowhere.
    """
    parts = name.split("/")
    is_plain = not PureWindowsPath(name).drive and "\\" not in name and "\0" not in name
    if not is_plain or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFileError(
            f"The name {quoted(name)} in {quoted(folder)} leads out of that folder, expected a name inside it."
        )
    path = Path(folder, *parts)
    with worded(path):
        real = Path(os.path.realpath(path))
        if path.is_symlink() and not path.exists():
            raise _missing(path)
        home = Path(os.path.realpath(folder))
    if follow_symlinks or real.is_relative_to(home) or _is_cached_blob(home, real):
        return path
    raise UnsafeFileError(
        f"{quoted(path)} is a link that leaves its folder, to {quoted(real)}.",
        hint="Pass --follow-symlinks if you trust it.",
    )


def sha256_of(path: str | Path) -> str:
    """Hash a file's bytes: 64 hexadecimal digits."""
    import hashlib  # loads OpenSSL, which listing a folder does not need

    digest = hashlib.sha256()
    block = bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    with opened(path) as descriptor:
        before = stamp_of(descriptor, path)
        offset = 0
        while offset < before.size_bytes:
            with worded(path):
                count = os.preadv(descriptor, [view[: before.size_bytes - offset]], offset)
            if not count:
                raise changed(path)
            digest.update(view[:count])
            offset += count
        require_unchanged(before, stamp_of(descriptor, path))
    return digest.hexdigest()


_FETCH_AGAIN: Final = "The download was probably interrupted; fetch it again."


def _stamp(path: str | Path, found: os.stat_result) -> FileStamp:
    return FileStamp(str(path), found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)


def _require_regular(path: str | Path, found: os.stat_result) -> None:
    if modes.S_ISREG(found.st_mode):
        return
    what = next((title for test, title in _SPECIAL if test(found.st_mode)), "a special file")
    if what == "a folder":
        raise FileFormatError(f"{quoted(path)} is a folder, expected a file.")
    raise UnsafeFileError(f"{quoted(path)} is {what}, expected a regular file.")


def _is_cached_blob(home: Path, real: Path) -> bool:
    """Whether `real` is ``X/blobs/HASH``, or ``blobs/HA/HASH`` beside ``X``, for a `home` in ``X/snapshots/COMMIT``."""
    parts = home.parts
    for index, part in enumerate(parts):
        if part == "snapshots" and len(parts) > index + 1:
            own, shared = Path(*parts[:index], "blobs"), Path(*parts[: index - 1], "blobs", real.name[:2])
            is_shared = parts[index - 1].startswith("models--") and _SHARED_BLOB.fullmatch(real.name) is not None
            if real.parent == own or (is_shared and real.parent == shared):
                return True
    return False


@contextmanager
def worded(path: str | Path) -> Iterator[None]:
    """Turn what the system says about `path` into a sentence."""
    try:
        yield
    except OSError as error:
        raise _explained(path, error) from None
    except ValueError:  # a zero byte, or text that the file system's encoding lacks
        raise MissingFileError(f"{quoted(path)} is not a possible file name.") from None


def _explained(path: str | Path, error: OSError) -> LoraLabError:
    number = error.errno
    if number == errno.ENOENT:
        return _missing(path)
    if number == errno.ENOTDIR:
        return MissingFileError(f"{quoted(path)} does not exist: a part of it is a file, not a folder.")
    if number == errno.ELOOP:
        return FileFormatError(f"{quoted(path)} is a link that leads back to itself.")
    if number in (errno.EACCES, errno.EPERM):
        return OperationError(
            f"{quoted(path)} may not be read{_ownership(path)}.", hint="Ask its owner for permission to read it."
        )
    reason = (error.strerror or type(error).__name__).lower()
    return OperationError(f"{quoted(path)} cannot be read: {reason}.")


def _missing(path: str | Path) -> MissingFileError:
    if str(path).startswith("hf:/"):
        return MissingFileError(f"{quoted(path)} is on the Hub, and this reads files of this machine alone.")
    try:
        target = Path(path).readlink()
    except OSError:
        return MissingFileError(f"{quoted(path)} does not exist.")
    return MissingFileError(f"{quoted(path)} is a link to {quoted(target)}, which does not exist.")


def _ownership(path: str | Path) -> str:
    """Owner and mode as a half-sentence; empty where a folder above hides them."""
    import pwd

    try:
        found = Path(path).stat()
        try:
            owner = pwd.getpwuid(found.st_uid).pw_name
        except KeyError:
            owner = str(found.st_uid)
    except OSError:
        return ": a folder above it is closed"
    return f": it belongs to {quoted(owner)} and has mode {modes.S_IMODE(found.st_mode):04o}"
