"""Copying a file by its name: opened, copied, given its mode and times, closed, in one go."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from ...interface.errors import OperationAborted

PIECE = 1 << 23  # bytes between two looks whether to go on: some milliseconds
BLOCK = 1 << 18  # bytes read and written at a time

CAN_NOT_COPY = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)
"""Of a kernel that does not copy between these two files; they can be read and written."""


def check_source(status: os.stat_result, at_most: int) -> None:
    """Refuse what is no regular file, or longer than that."""
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, os.strerror(number))
    if status.st_size > at_most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def copy_file(source: str, target: str, at_most: int, is_cancelled: Callable[[], bool]) -> int:
    """Copy a file of so many bytes or fewer to a name that is free; returned: its bytes.

    Nothing is left of a copy that fails or is cancelled.
    """
    # To open a named pipe would let go of a writer that waits for a reader.
    check_source(os.stat(source), at_most)
    # A named pipe or a terminal that has come into the file's place does not keep the thread.
    one = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(one)
        check_source(status, at_most)
        # Nobody who may not read the source may read this, at no time.
        mode = status.st_mode & 0o777
        other = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            made = os.fstat(other)
            try:
                count = _copy_data(one, other, status.st_size, is_cancelled)
                os.fchmod(other, mode)
                os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(other)
            _go_on_unless(is_cancelled)
        except BaseException:
            # What went wrong is told, not that the new file has another name by now; and whoever
            # has put another file into its place keeps it.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(target), made):
                    os.unlink(target)
            raise
        return count
    finally:
        os.close(one)


def _go_on_unless(is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled():
        raise OperationAborted()


def _copy_data(one: int, other: int, size: int, is_cancelled: Callable[[], bool]) -> int:
    copied = 0
    if hasattr(os, "copy_file_range"):
        while copied < size:
            _go_on_unless(is_cancelled)
            try:
                count = os.copy_file_range(one, other, PIECE)
            except OSError as error:
                if error.errno not in CAN_NOT_COPY:
                    raise
                break
            if not count:
                break
            copied += count
        if copied >= size > 0:
            return copied
    while data := os.read(one, BLOCK):
        _go_on_unless(is_cancelled)
        copied += len(data)
        while data:
            data = data[os.write(other, data) :]
    return copied
