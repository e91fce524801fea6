"""Changes of a directory on Windows: ``ReadDirectoryChangesW``, and what it has written.

The kernel keeps what happens between two calls, from the first one on, in memory of the size that
the first one gave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator

from ..interface.errors import system_error
from ..interface.handle import Handle
from ..interface.operation import Operation
from ..watches.changes import DELETED, LOST, OTHER_TREE, Change, ChangeAction
from . import api
from .channel_state import ChannelState
from .flights import Flight

# FILE_NOTIFY_CHANGE_FILE_NAME, _DIR_NAME, _ATTRIBUTES, _SIZE, _LAST_WRITE and _SECURITY
WATCHED = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100

_HEADER = struct.Struct("III")  # FILE_NOTIFY_INFORMATION: to the next one, what, size of the name
_DELETED = (api.ERROR_ACCESS_DENIED, api.ERROR_DELETE_PENDING)
_ABORTED = (api.ERROR_OPERATION_ABORTED, api.ERROR_NOTIFY_CLEANUP)


class Changes:
    """What the bytes of such a read mean."""

    __slots__ = ("handle", "operation")

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.operation = Operation.CHANGES

    def outcome(self, data: bytes) -> tuple[int, list[Change]]:
        changes = list(_changes(data))
        return len(changes), changes


def read_changes(channel: ChannelState, flight: Flight) -> Callable[[], int]:
    """The call for a request."""
    request = flight.request
    recursive = bool(request.flags)
    if channel.recursive is None:
        channel.recursive = recursive
    elif channel.recursive != recursive:
        raise ValueError(OTHER_TREE)
    assert request.size is not None
    address, size = flight.pin(flight.make_space(request.size), True)
    flight.extra = api.DWORD()

    def call() -> int:
        if api.ReadDirectoryChanges(
            *(channel.handle, address, size, recursive, WATCHED),
            *(ctypes.addressof(flight.extra), flight.address, None),
        ):
            return 0
        code = int(api.last_error())
        if code in _DELETED:
            raise system_error(errno.ENOENT, DELETED)
        return code

    return call


def finish(channel: ChannelState, flight: Flight, code: int) -> None:
    """Put what came of it into the request."""
    request = flight.request
    if code in _ABORTED:
        return
    if code in _DELETED:
        request.fail(system_error(errno.ENOENT, DELETED))
    elif code == api.ERROR_NOTIFY_ENUM_DIR or (code == 0 and flight.count == 0):
        request.fail(system_error(errno.EOVERFLOW, LOST))
    elif code:
        request.fail(api.error(code))
    else:
        assert flight.space is not None
        request.parts = [bytes(memoryview(flight.space)[: flight.count])]
        request.complete = True


def _changes(data: bytes) -> Iterator[Change]:
    position = 0
    while True:
        step, action, size = _HEADER.unpack_from(data, position)
        begin = position + _HEADER.size
        name = data[begin : begin + size].decode("utf-16-le", "surrogatepass")
        yield Change(ChangeAction(action), name.replace("\\", os.sep))
        if not step:
            return
        position += step
