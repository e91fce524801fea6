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


def check_kind(status: os.stat_result) -> None:
    """Refuse what is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, os.strerror(number))


def too_long() -> OSError:
    """What a file that is longer than wanted fails with."""
    return OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def _tells_a_page(status: os.stat_result) -> bool:
    """Whether it lies on the file system of /sys, where a size says nothing."""
    try:
        return status.st_dev == os.stat("/sys/kernel").st_dev
    except OSError:
        return False


def copy_file(source: str, target: str, at_most: int, is_cancelled: Callable[[], bool]) -> int:
    """Copy a file of so many bytes or fewer to a name that is free; returned: its bytes.

    Nothing is left of a copy that fails or is cancelled. What counts is the size that the file has
    when it is opened: what is written behind that is not copied. One that says it has none (those
    of /proc) is read to its end, and so is one of /sys that is longer than wanted.
    """
    # To open a named pipe would let go of a writer that waits for a reader.
    check_kind(os.stat(source))
    # A named pipe or a terminal that has come into the file's place does not keep the thread.
    one = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(one)
        check_kind(status)
        size: int | None = status.st_size or None
        if status.st_size > at_most:
            if not _tells_a_page(status):
                raise too_long()
            size = None
        # Nobody who may not read the source may read this, at no time.
        mode = status.st_mode & 0o777
        other = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            made = os.fstat(other)
            try:
                if size is not None and has_holes(status):
                    count = _copy_with_holes(one, other, size, is_cancelled)
                else:
                    count = _copy_data(one, other, size, at_most, is_cancelled)
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


def has_holes(status: os.stat_result) -> bool:
    """Whether a file has fewer blocks than bytes."""
    blocks = getattr(status, "st_blocks", None)
    return blocks is not None and blocks * 512 < status.st_size and hasattr(os, "SEEK_DATA")


def next_data(descriptor: int, offset: int, size: int) -> tuple[int, int]:
    """Where data begins, at or behind the offset, and ends; the end of the file where none does.

    A file system that can't tell says that all of it is data.
    """
    try:
        data = os.lseek(descriptor, offset, os.SEEK_DATA)
        if data >= size:
            return size, size
        hole = os.lseek(descriptor, data, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return offset, size
        data = min(os.lseek(descriptor, 0, os.SEEK_END), size)  # it may have become shorter
        return data, data
    return data, hole if data < hole < size else size


def _copy_data(
    one: int, other: int, size: int | None, at_most: int, is_cancelled: Callable[[], bool]
) -> int:
    """Copy so many bytes, None for all there are."""
    copied = 0
    if hasattr(os, "copy_file_range") and size is not None:
        while copied < size:
            _go_on_unless(is_cancelled)
            try:
                count = os.copy_file_range(one, other, min(PIECE, size - copied))
            except OSError as error:
                if error.errno not in CAN_NOT_COPY:
                    raise
                break
            if not count:
                break
            copied += count
    while size is None or copied < size:
        _go_on_unless(is_cancelled)
        data = os.read(one, BLOCK if size is None else min(BLOCK, size - copied))
        if not data:
            break
        copied += len(data)
        if copied > at_most:
            raise too_long()
        while data:
            data = data[os.write(other, data) :]
    return copied


def _copy_with_holes(one: int, other: int, size: int, is_cancelled: Callable[[], bool]) -> int:
    """Copy what there is of data: what lies between takes no room in the copy either."""
    copied = end = 0
    by_range = hasattr(os, "copy_file_range")
    while copied < size:
        _go_on_unless(is_cancelled)
        if copied >= end:
            data, end = next_data(one, copied, size)
            if data > copied:
                copied = data
                os.ftruncate(other, data)  # the end may be a hole
                continue
        count = 0
        if by_range:
            try:
                count = os.copy_file_range(one, other, min(PIECE, end - copied), copied, copied)
            except OSError as error:
                if error.errno not in CAN_NOT_COPY:
                    raise
            by_range = count > 0
        if not by_range:
            block = os.pread(one, min(BLOCK, end - copied), copied)
            if not block:
                return copied
            while count < len(block):
                count += os.pwrite(other, block[count:], copied + count)
        copied += count
    return copied
