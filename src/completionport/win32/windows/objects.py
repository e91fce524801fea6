"""What is known of Windows' objects, and what its kernel holds on to.

The kernel writes to an OVERLAPPED and to buffers until an operation has completed, and gives
their addresses back in packets. So both are kept in a table from the call until the packet was
taken; where none will come, until it is known that the operation has completed. A completion key
is the number of an entry in another table, which has the program's key; 0 stands for what was
posted.
"""

# The relative imports stand behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import ctypes
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from ctypes import byref, c_char, c_void_p
from ctypes.wintypes import DWORD
from typing import Any, TypeAlias

assert sys.platform == "win32"

from ...windows.api import OVERLAPPED as OverlappedStructure
from ...windows.api import WSABUF, last_error
from ..constants import (
    ERROR_INVALID_PARAMETER,
    ERROR_IO_PENDING,
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
    STATUS_PENDING,
    STILL_ACTIVE,
    WSAENOTSOCK,
)
from ..outcomes import Started, is_warning
from ..structures import HANDLE, OVERLAPPED, SOCKADDR
from .api import STATUS_UNSUCCESSFUL

STATUS_CANCELLED = 0xC0000120
STATUS_CONNECTION_ABORTED = 0xC0000241
STATUSES_OF_A_CLOSE = frozenset({STATUS_CANCELLED, 0xC000013B, 0x8000000A})
"""STATUS_LOCAL_DISCONNECT of Windows before Vista, STATUS_HANDLES_CLOSED of Wine."""


class Port:
    """A completion port."""

    def __init__(self, value: int) -> None:
        self.value = value
        # What was posted and not taken yet. Each step on it is atomic.
        self.posted: dict[int, tuple[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"port {self.value:#x}"


class Waitable:
    """An event or a thread."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.exit_code = STILL_ACTIVE  # of a thread; written by it before it ends

    def __repr__(self) -> str:
        return f"waitable {self.value:#x}"


class File:
    """What is known of a socket or of a file's handle."""

    def __init__(self, value: int, flags: int = 0) -> None:
        self.value = value
        self.flags = flags  # of `CreateFile`; constant
        self.number = 0  # its completion key, 0 before it was associated; set once
        self.key: Any = None
        self.modes = 0
        self.closed = False
        self.is_stream = False  # constant
        # Operations whose packet has not been taken, by address. Each step on it is atomic.
        self.under_way: dict[int, Io] = {}

    def __repr__(self) -> str:
        return f"file {self.value:#x}"


class Io:
    """One operation: its structure and whatever else the kernel may write to."""

    def __init__(
        self, file: File, overlapped: OVERLAPPED, memory: list[Any], is_transfer: bool
    ) -> None:
        self.file = file
        self.is_transfer = is_transfer  # it moves data on what is connected already
        self.cancelled = False  # by the program; set behind the call
        self.overlapped: OVERLAPPED | None = overlapped  # until its packet was taken
        self.memory: list[Any] | None = memory
        self.structure = OverlappedStructure(
            STATUS_PENDING, 0, overlapped._offset, overlapped._offset_high, event_of(overlapped)
        )
        self.address = ctypes.addressof(self.structure)
        event = overlapped._event
        self._has_packet = event is None or not event._is_marked

    def is_loose(self) -> bool:
        """Whether no packet comes: its file has no port, or the event says so."""
        return not (self.file.number and self._has_packet)

    @property
    def status(self) -> int:
        status = int(self.structure.Internal) & 0xFFFFFFFF
        if status in STATUSES_OF_A_CLOSE and self.file.closed:
            # One of a connection has been called differently from version to version.
            was_closed = self.is_transfer and self.file.is_stream and not self.cancelled
            return STATUS_CONNECTION_ABORTED if was_closed else STATUS_CANCELLED
        return status

    @property
    def count(self) -> int:
        return int(self.structure.InternalHigh)


_lock = threading.Lock()  # guards the numbers, and who uses an OVERLAPPED
_last_number = 0
_files: dict[int, File] = {}  # by completion key; each step on it is atomic
# Every operation from its call to `settle`, by address: whoever lets go of its OVERLAPPED, its file
# or its port, the memory that the kernel may write to stays. Each step on it is atomic.
_kept: dict[int, Io] = {}
_loose: dict[int, Io] = {}  # those that have no packet, as of a file that had no port
_sockets: weakref.WeakKeyDictionary[socket.socket, File] = weakref.WeakKeyDictionary()
_sockets_lock = threading.RLock()  # guards it; again by finalizers


def new_number() -> int:
    """A number that nothing else has."""
    global _last_number
    with _lock:
        _last_number += 1
        return _last_number


def set_key(file: File, number: int, key: Any) -> None:
    """From now on a packet with that completion key is the file's, and has the program's key."""
    file.key = key
    _files[number] = file


def unset_key(file: File, number: int, before: Any) -> None:
    """Undo `set_key`: no port took the file."""
    file.key = before
    del _files[number]


def file_of_key(number: int) -> File:
    """The file whose packets come with that completion key."""
    return _files[number]


def operations_of_key(number: int) -> dict[int, Io]:
    """The operations of that file whose packet has not been taken; none where it has gone."""
    file = _files.get(number)
    return {} if file is None else file.under_way


def event_of(overlapped: OVERLAPPED) -> int | None:
    """The event's number for the structure."""
    event = overlapped._event
    if event is None or not isinstance(event._object, Waitable):
        return None
    return event._object.value | event._is_marked


def memory_of(view: memoryview, memory: list[Any]) -> int:
    """The address of the view's bytes, which ``memory`` keeps."""
    if not view.nbytes:
        return 0
    if view.readonly:
        whole = view.obj
        data = whole if isinstance(whole, bytes) and len(whole) == view.nbytes else bytes(view)
        pointer = ctypes.c_char_p(data)
        memory.append(pointer)
        return ctypes.cast(pointer, c_void_p).value or 0
    array = (c_char * view.nbytes).from_buffer(view)
    memory.append(array)
    return ctypes.addressof(array)


def buffers_of(views: list[memoryview], memory: list[Any]) -> Any:
    """An array of WSABUF."""
    array = (WSABUF * len(views))()
    for entry, view in zip(array, views, strict=True):
        entry.len = view.nbytes
        entry.buf = memory_of(view, memory)
    memory.append(array)
    return array


def size_of_name(name: SOCKADDR) -> int:
    """Bytes of the address in it."""
    return 28 if name.sa_family == socket.AF_INET6 else 16


def file_of_socket(sock: socket.socket) -> File | None:
    """What is known of a socket; None for a closed one."""
    with _sockets_lock:
        file = _sockets.get(sock)
        if file is None:
            if sock.fileno() < 0:
                return None
            file = File(sock.fileno())
            file.is_stream = sock.type == socket.SOCK_STREAM
            _sockets[sock] = file
            weakref.finalize(sock, forget, file).atexit = False
        return None if file.closed else file


def detach(sock: socket.socket) -> int:
    """Take the handle from a socket, which is closed then; -1 where somebody has done that."""
    with _sockets_lock:
        return socket.socket.detach(sock)


def file_of(file: HANDLE | socket.socket) -> File | None:
    """What is known of a file; None for a handle of another kind, or a closed one."""
    if isinstance(file, socket.socket):
        return file_of_socket(file)
    found = file._object
    return found if isinstance(found, File) and not found.closed else None


def forget(file: File) -> None:
    """The file is closed; its key goes when its last packet was taken."""
    file.closed = True
    if not file.under_way:
        _files.pop(file.number, None)
    # No packet comes for an operation of a file without a port. Those of this one may take a moment
    # to be aborted, so each file that is closed sees to the ones before it.
    for io in list(_loose.values()):
        if io.file.closed and io.is_loose() and io.status != STATUS_PENDING:
            settle(io)


def settle(io: Io) -> None:
    """The operation has completed and no packet will come, or it was taken."""
    io.memory = io.overlapped = None
    file = io.file
    _kept.pop(io.address, None)
    _loose.pop(io.address, None)
    file.under_way.pop(io.address, None)
    if file.closed and not file.under_way:
        _files.pop(file.number, None)


Call: TypeAlias = Callable[[int, Any, int], int]
"""Starts an operation: the file's value, where the bytes are counted, the structure's address."""


def on_socket(
    sock: socket.socket,
    overlapped: OVERLAPPED,
    memory: list[Any],
    call: Call,
    *,
    is_transfer: bool = True,
) -> Started:
    """Make the call that starts an operation of a socket."""
    file = file_of_socket(sock)
    if file is None:
        return Started(WSAENOTSOCK)
    return start(file, overlapped, memory, call, is_transfer=is_transfer)


def start(
    file: File,
    overlapped: OVERLAPPED,
    memory: list[Any],
    call: Call,
    *,
    is_transfer: bool = True,
) -> Started:
    """Make the call that starts an operation; it returns 0 or an error code.

    ``is_transfer``: it moves data on what is connected already.
    """
    with _lock:
        before = overlapped._io
        if isinstance(before, Io) and before.status == STATUS_PENDING:
            return Started(ERROR_INVALID_PARAMETER)
        io = overlapped._io = Io(file, overlapped, memory, is_transfer)
    if before is not None and isinstance(before, Io) and before.is_loose():
        settle(before)
    file.under_way[io.address] = _kept[io.address] = io
    if io.is_loose():
        _loose[io.address] = io
    count = DWORD()
    code = call(file.value, byref(count), io.address)
    if code == ERROR_IO_PENDING:
        return Started(code)
    if code and io.status == STATUS_PENDING:
        io.structure.Internal = STATUS_UNSUCCESSFUL
    # A warning, as that a datagram was cut off, has a packet as success has.
    is_error = code != 0 and not is_warning(io.status)
    if is_error or io.is_loose() or file.modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS:
        settle(io)
    return Started(code, 0 if code else count.value)


def code_unless(done: int) -> int:
    """0 for what has gone well, else the last error."""
    return 0 if done else last_error()
