"""The one object through which every byte of a large output goes.

A twin of it in the tests fails, or ends the process, at each of its calls in turn; whatever writes through here can
therefore be shown to survive any of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_COPY_BYTES: Final = 16 << 20
_NOT_HERE: Final = frozenset(
    {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.EBADF, errno.ETXTBSY}
)
_AT_FDCWD: Final = -100
_NO_REPLACE: Final = 1
_EXCHANGE: Final = 2


class Disk:
    """Files and folders, each call as durable as the system makes it; every method raises OSError."""

    def create(self, path: Path) -> int:
        """Make a file that was not there, with the mode that the umask gives, and open it."""
        return os.open(path, _CREATE, 0o666)

    def append_to(self, path: Path) -> int:
        """Open a file to write at its end, making it if need be."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def reserve(self, descriptor: int, size_bytes: int) -> None:
        """Take the room for `size_bytes`, so that a full disk is met before the work and not after it."""
        if not size_bytes or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise

    def write_at(self, descriptor: int, buffer: Any, offset: int) -> None:
        """Write all of `buffer` from `offset` on."""
        view = memoryview(buffer).cast("B")
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def append(self, descriptor: int, content: bytes) -> None:
        """Write all of `content` at the end."""
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]

    def copy_range(self, source: int, source_offset: int, target: int, target_offset: int, count: int) -> None:
        """Copy `count` bytes from file to file, by the kernel (which may share the blocks) where it can."""
        try:
            while count:
                copied = os.copy_file_range(source, target, count, source_offset, target_offset)
                if not copied:
                    raise OSError(errno.EIO, "the source ends before its bytes do")
                source_offset, target_offset, count = source_offset + copied, target_offset + copied, count - copied
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NOT_HERE:
                raise
            self._copy_through_memory(source, source_offset, target, target_offset, count)

    def _copy_through_memory(
        self, source: int, source_offset: int, target: int, target_offset: int, count: int
    ) -> None:
        while count:
            part = os.pread(source, min(count, _COPY_BYTES), source_offset)
            if not part:
                raise OSError(errno.EIO, "the source ends before its bytes do")
            self.write_at(target, part, target_offset)
            source_offset, target_offset = source_offset + len(part), target_offset + len(part)
            count -= len(part)

    def sync(self, descriptor: int) -> None:
        """Wait until the file's bytes are on the disk."""
        os.fsync(descriptor)

    def forget(self, descriptor: int) -> None:
        """Let go of what memory holds of a file, so that the next read asks the disk; where that can be said.

        Of what is not synced yet, Linux begins to write and keeps it. What is read next is asked for far ahead.
        """
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, descriptor: int, buffer: Any, offset: int) -> int:
        """Read from `offset` on into `buffer`; how many bytes, 0 at the end."""
        return os.preadv(descriptor, [buffer], offset)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in `folder` are on the disk; nothing where folders cannot be synced."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """Make a folder that was not there, in one that is."""
        path.mkdir()

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of what had it."""
        old.replace(new)

    def rename_new(self, old: Path, new: Path) -> None:
        """Give a file or folder a name that nothing has; FileExistsError otherwise."""
        if not _renameat2(old, new, _NO_REPLACE):
            if os.path.lexists(new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
            old.rename(new)

    def exchange(self, first: Path, second: Path) -> bool:
        """Let two folders swap names in one step; False where the file system cannot."""
        return _renameat2(first, second, _EXCHANGE)

    def remove(self, path: Path) -> None:
        """Remove a file that may not be there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it; links in it are not followed."""
        shutil.rmtree(path)

    def free_bytes(self, folder: Path) -> int:
        """What this user may still write where `folder` is."""
        return shutil.disk_usage(folder).free


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Call renameat2; False where the system or the file system has no such call or flag."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(old), None, str(new))
