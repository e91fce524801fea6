"""One request as calls that may wait: the pool's threads make them."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from functools import cache

from ...interface.errors import OperationAborted, system_error
from ...interface.operation import Operation
from ..channels.requests import LARGEST_VECTOR, Request


def _read(descriptor: int, request: Request) -> None:
    """A file's read is short only at its end."""
    offset = request.offset
    if request.direct and request.size:
        _read_aligned(descriptor, request, request.size)
        return
    while request.size is not None:
        left = request.size - request.transferred
        if offset is None:
            data = os.read(descriptor, left)
        else:
            data = os.pread(descriptor, left, offset + request.transferred)
        request.parts.append(data)
        request.transferred += len(data)
        if not data or len(data) == left:
            return
    while request.views:
        views = request.views[:LARGEST_VECTOR]
        if offset is None:
            count = os.readv(descriptor, views)
        else:
            count = os.preadv(descriptor, views, offset + request.transferred)
        request.advance(count)
        if not count:
            return


def _read_aligned(descriptor: int, request: Request, size: int) -> None:
    """Past the page cache: into memory that begins with a page."""
    with mmap.mmap(-1, size) as memory:
        with memoryview(memory) as view:
            if request.offset is None:
                count = os.readv(descriptor, [view])
            else:
                count = os.preadv(descriptor, [view], request.offset)
        request.parts.append(memory[:count])
        request.transferred = count


def _write(descriptor: int, request: Request) -> None:
    while True:
        views = request.views[:LARGEST_VECTOR]
        if request.offset is None:
            count = os.writev(descriptor, views)
        else:
            count = os.pwritev(descriptor, views, request.offset + request.transferred)
        request.advance(count)
        if not request.views:
            return
        if not count:
            raise system_error(errno.EIO)


def _sync(descriptor: int, request: Request) -> None:
    if request.flags and hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def _allocate(descriptor: int, request: Request) -> None:
    assert request.offset is not None
    # Not posix_fallocate(3): where a file system has no such thing the C library reads and writes a
    # byte of each block, which undoes what others write there meanwhile.
    while number := _fallocate()(descriptor, request.offset, request.extent):
        if number != errno.EINTR:
            raise system_error(number)


@cache
def _fallocate() -> Callable[[int, int, int], int]:
    """fallocate(2) of a descriptor, an offset and a length: 0 or an errno."""
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        # The first has the wide offsets where the C library has both kinds.
        call = getattr(library, "fallocate64", None) or library.fallocate
    except (ImportError, AttributeError, TypeError):
        raise system_error(
            errno.EOPNOTSUPP, "space can't be set aside here: that takes fallocate(2) and ctypes"
        ) from None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return lambda descriptor, offset, length: (
        ctypes.get_errno() if call(descriptor, 0, offset, length) else 0
    )


def _stat(descriptor: int, request: Request) -> None:
    if descriptor >= 0:
        request.value = os.fstat(descriptor)
    else:
        request.value = os.stat(request.path, follow_symlinks=not request.flags)


def _close(descriptor: int, request: Request) -> None:
    assert request.offset is not None
    os.close(request.offset)


def _copy(descriptor: int, request: Request) -> None:
    assert request.call is not None
    call, request.call = request.call, None
    names = request.path, request.address
    try:
        request.transferred = call(*names, request.extent, lambda: request.cancelled)
    except OSError as error:
        if not isinstance(error, OperationAborted):
            error.filename, error.filename2 = names
        raise


def _call(descriptor: int, request: Request) -> None:
    assert request.call is not None
    call, request.call = request.call, None
    request.value = call()


CALLS: dict[Operation, Callable[[int, Request], None]] = {
    Operation.READ: _read,
    Operation.WRITE: _write,
    Operation.FSYNC: _sync,
    Operation.ALLOCATE: _allocate,
    Operation.STAT: _stat,
    Operation.CLOSE: _close,
    Operation.COPY: _copy,
    Operation.CALL: _call,
}
