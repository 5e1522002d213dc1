"""Files that appear whole or not at all.

What is written goes to a temporary sibling; only when its bytes are on the disk does it take the name it was meant for.
Whoever looks at the name, after a crash or a power cut too, finds the old file, the new file or nothing, never a part.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lora_lab.errors import OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

# Links are not followed: a planted link under the temporary name must not decide what is overwritten.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Give a binary file that takes the name `path` when the block ends, and leaves no trace when it raises.

    Parameters
    ----------
    path : the name to appear; its folder must exist
    overwrite : whether a file already there is replaced; a folder never is

    Yields
    ------
    a writable binary file, seekable, a sibling of `path` with the mode that the umask gives new files

    Raises
    ------
    OperationError
        `path` exists and may not be replaced, its folder is missing, or the disk says no.

    Notes
    -----
    Order: write, fsync of the file, rename, fsync of the folder. Without `overwrite` the name is taken by a hard link,
    which fails where another writer was faster; file systems without links fall back to a look and a rename.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_file(Path(folder) / "note") as file:
    ...         _ = file.write(b"whole")
    ...     [found.name for found in Path(folder).iterdir()]
    ['note']
    """
    target = Path(path)
    _require_free(target, overwrite=overwrite)
    with explained(target):
        temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, _CREATE, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            with explained(target):
                file.flush()
                os.fsync(file.fileno())
        with explained(target):
            _publish(temporary, target, overwrite=overwrite)
    except OSError as error:
        raise _worded(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def write_bytes(path: str | Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write `content` to `path`, whole or not at all, as :func:`atomic_file` does."""
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(content)


def write_json(path: str | Path, value: Any, *, overwrite: bool = False) -> None:
    """Write `value` as indented UTF-8 JSON with a final line break; keys keep their order, NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(), overwrite=overwrite)


def sync_folder(folder: str | Path) -> None:
    """Make names given in `folder` survive a power cut; where folders cannot be synced, do nothing."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _require_free(target: Path, *, overwrite: bool) -> None:
    if target.is_dir() and not target.is_symlink():
        raise OperationError(f"{quoted(target)} is a folder; a file was to be written there.")
    if not overwrite and os.path.lexists(target):
        raise _occupied(target)


def _publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise _occupied(target) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK):
            raise
        _require_free(target, overwrite=False)
        temporary.rename(target)


def _occupied(target: Path) -> OperationError:
    return OperationError(f"{quoted(target)} exists already.", hint="Choose another name, or allow overwriting it.")


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn what the system refuses inside the block into one sentence about `target`."""
    try:
        yield
    except OSError as error:
        raise _worded(target, error) from error


def _worded(target: Path, error: OSError) -> OperationError:
    if error.errno == errno.ENOSPC:
        return OperationError(
            f"The disk is full: {quoted(target)} was not written.", hint="Free some space, then run this again."
        )
    return OperationError(f"{quoted(target)} was not written: {error.strerror or error}.")
