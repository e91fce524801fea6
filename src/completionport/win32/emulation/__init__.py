"""Win32's functions on the library's engines, where the system is not Windows."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import threading
from collections.abc import Callable
from typing import Any

from ...interface.error_codes import CODES, UNKNOWN, Codes, codes_of
from ...interface.errors import PortClosed
from ...shared.arguments import LARGEST_OFFSET
from ...shared.workers import usable_processors
from ..constants import (
    CREATE_ALWAYS,
    CREATE_NEW,
    ERROR_ABANDONED_WAIT_0,
    ERROR_ACCESS_DENIED,
    ERROR_ALREADY_EXISTS,
    ERROR_FILE_EXISTS,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_INCOMPLETE,
    ERROR_PATH_NOT_FOUND,
    FILE_APPEND_DATA,
    FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_OVERLAPPED,
    FILE_READ_DATA,
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
    FILE_SKIP_SET_EVENT_ON_HANDLE,
    FILE_WRITE_DATA,
    GENERIC_ALL,
    GENERIC_READ,
    GENERIC_WRITE,
    INFINITE,
    OPEN_ALWAYS,
    OPEN_EXISTING,
    STATUS_PENDING,
    TRUNCATE_EXISTING,
    WAIT_FAILED,
    WAIT_TIMEOUT,
    WSA_IO_INCOMPLETE,
    WSAENOTSOCK,
)
from ..outcomes import Started, Taken
from ..structures import HANDLE, OVERLAPPED, SYSTEM_INFO, Written
from . import manager
from .files import IN_USE, SUCCESS, FileObject, Port, Request
from .handles import EngineHandles
from .lookup import file_of, file_of_socket, on_file, place_of, transfer
from .options import EngineOptions
from .requests import Read, Send
from .sockets import EngineSockets
from .waiting import Event, Thread, Waitable, wait_for

DISPOSITIONS = {
    CREATE_NEW: os.O_CREAT | os.O_EXCL,
    CREATE_ALWAYS: os.O_CREAT | os.O_TRUNC,
    OPEN_EXISTING: 0,
    OPEN_ALWAYS: os.O_CREAT,
    TRUNCATE_EXISTING: os.O_TRUNC,
}


READING = GENERIC_READ | GENERIC_ALL | FILE_READ_DATA
WRITING = GENERIC_WRITE | GENERIC_ALL | FILE_WRITE_DATA | FILE_APPEND_DATA
KNOWN_MODES = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE
END_OF_FILE = 2**64 - 1
"""The place in an OVERLAPPED that stands for the end of the file, wherever that is."""


def code_of_open(error: OSError, name: str) -> int:
    """The Windows code of an open that has failed: a missing folder is no missing file."""
    folder = os.path.dirname(name) or "."
    if error.errno == errno.ENOTDIR:
        return ERROR_PATH_NOT_FOUND
    if error.errno == errno.ENOENT and not (name and os.path.isdir(folder)):
        return ERROR_PATH_NOT_FOUND
    return codes_of(error.errno).windows


def codes_of_status(status: int) -> Codes:
    """The codes of an NTSTATUS that the program itself has written."""
    if not status & 0x80000000:
        return SUCCESS
    # Several have that of a reset.
    known = [codes_of(errno.ECONNRESET), *CODES.values()]
    return next((codes for codes in known if codes.status == status), UNKNOWN)


class EngineSystem(EngineSockets, EngineHandles, EngineOptions):
    """`completionport.win32.system.System` on the engine that a `CompletionPort` takes."""

    def __init__(self) -> None:
        self._started = 0  # WSAStartup calls without their WSACleanup; _lock
        self._lock = threading.Lock()

    # -- ports

    def create_port(self, concurrency: int) -> HANDLE:
        return HANDLE(Port(concurrency or usable_processors()))

    def associate(self, file: HANDLE | socket.socket, port: HANDLE, key: Any) -> int:
        target = port._object
        if not isinstance(target, Port):
            return ERROR_INVALID_HANDLE
        found = file_of(file)
        if found is None:
            return ERROR_INVALID_HANDLE
        with found.lock:
            if found.synchronous or found.port is not None:
                return ERROR_INVALID_PARAMETER
            found.port = target
            found.key = key
        return 0

    def take(
        self, port: HANDLE, count: int, milliseconds: int, alertable: bool
    ) -> tuple[int, list[Taken]]:
        source = port._object
        if not isinstance(source, Port):
            return ERROR_INVALID_HANDLE, []
        timeout = None if milliseconds == INFINITE else milliseconds / 1000
        try:
            if count > 1:
                packets = source.port.get_many(count, timeout)
            else:
                packet = source.port.get(timeout)
                packets = [] if packet is None else [packet]
        except PortClosed:
            return ERROR_ABANDONED_WAIT_0, []
        taken = []
        for packet in packets:
            key, codes = packet.key
            taken.append(
                Taken(packet.transferred, key, packet.overlapped, codes.status, codes.windows)
            )
        return (0 if taken else WAIT_TIMEOUT), taken

    def post(self, port: HANDLE, count: int, key: Any, overlapped: Any) -> int:
        target = port._object
        if not isinstance(target, Port) or not target.deliver(count, key, overlapped, SUCCESS):
            return ERROR_INVALID_HANDLE
        return 0

    def set_modes(self, file: HANDLE | socket.socket, flags: int) -> int:
        found = file_of(file)
        if found is None:
            return ERROR_INVALID_HANDLE
        if found.synchronous or flags & ~KNOWN_MODES:
            return ERROR_INVALID_PARAMETER
        with found.lock:
            found.modes |= flags  # as in Windows, nothing takes them back
        return 0

    def cancel(self, file: HANDLE | socket.socket, overlapped: OVERLAPPED | None) -> int:
        found = file_of(file)
        return ERROR_INVALID_HANDLE if found is None else found.cancel(overlapped)

    def result(
        self, file: HANDLE | socket.socket, overlapped: OVERLAPPED, wait: bool, winsock: bool
    ) -> tuple[int, int]:
        if winsock and (not isinstance(file, socket.socket) or file.fileno() < 0):
            return WSAENOTSOCK, 0
        request = overlapped._io
        if request is None:
            return 0, 0
        if isinstance(request, Written):
            codes = codes_of_status(request.status)
        if request.status == STATUS_PENDING:
            if not wait or isinstance(request, Written):
                return (WSA_IO_INCOMPLETE if winsock else ERROR_IO_INCOMPLETE), 0
            assert isinstance(request, Request)
            wait_for([request], False, None)
        if isinstance(request, Request):
            codes = request.codes
        return (codes.winsock if winsock else codes.windows), request.count

    def close(self, handle: HANDLE) -> int:
        found, handle._object = handle._object, None
        if isinstance(found, Port):
            found.port.close()
        elif isinstance(found, FileObject):
            found.close()
        elif found is None:
            return ERROR_INVALID_HANDLE
        return 0

    # -- sockets

    def startup(self, version: int) -> int:
        with self._lock:
            self._started += 1
        return 0

    def cleanup(self) -> int:
        with self._lock:
            self._started = max(self._started - 1, 0)
            last = self._started == 0
        if last:
            manager.close_if_unused()
        return 0

    # -- files

    def create_file(
        self, name: str, access: int, share: int, disposition: int, flags: int
    ) -> tuple[int, HANDLE | None]:
        needs_right = disposition == TRUNCATE_EXISTING
        if disposition not in DISPOSITIONS or (needs_right and not access & GENERIC_WRITE):
            return ERROR_INVALID_PARAMETER, None
        readable, writable = bool(access & READING), bool(access & WRITING)
        mode = os.O_RDONLY
        if writable:
            mode = os.O_RDWR if readable else os.O_WRONLY
        code = 0
        takes_folders = bool(flags & FILE_FLAG_BACKUP_SEMANTICS)
        # Whether it made the file is known only of an open that makes it in any case.
        alone = os.O_EXCL if disposition in (CREATE_ALWAYS, OPEN_ALWAYS) else 0
        try:
            try:
                number = os.open(name, mode | DISPOSITIONS[disposition] | alone, 0o666)
            except FileExistsError:
                if not alone:
                    return ERROR_FILE_EXISTS, None
                code = ERROR_ALREADY_EXISTS
                number = os.open(name, mode | DISPOSITIONS[disposition], 0o666)
            except IsADirectoryError:
                # Linux opens a folder for reading only.
                if not takes_folders or disposition != OPEN_EXISTING:
                    raise
                number = os.open(name, os.O_RDONLY)
        except OSError as error:
            return code_of_open(error, name), None
        if not takes_folders and stat.S_ISDIR(os.fstat(number).st_mode):
            os.close(number)
            return ERROR_ACCESS_DENIED, None
        file = FileObject(
            number,
            synchronous=not flags & FILE_FLAG_OVERLAPPED,
            readable=readable,
            writable=writable,
        )
        return code, HANDLE(file)

    def read(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        def begin(found: FileObject) -> tuple[Codes, int]:
            if not found.readable:
                return codes_of(errno.EACCES), 0
            place = place_of(overlapped) if found.is_regular else None
            if place is not None and place > LARGEST_OFFSET:
                return IN_USE, 0
            request = Read(found, overlapped, view.nbytes)
            return transfer(found, request, lambda step: found.handle.read(view, place, step))

        return on_file(file, begin)

    def write(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        def begin(found: FileObject) -> tuple[Codes, int]:
            if not found.writable:
                return codes_of(errno.EACCES), 0
            request = Send(found, overlapped)
            place = place_of(overlapped) if found.is_regular else None
            if place == END_OF_FILE:
                return transfer(
                    found, request, lambda step: found.appending.write(view, None, step)
                )
            if place is not None and place > LARGEST_OFFSET:
                return IN_USE, 0
            return transfer(found, request, lambda step: found.handle.write(view, place, step))

        return on_file(file, begin)

    # -- threads and waiting

    def create_thread(self, function: Callable[[Any], Any], argument: Any) -> HANDLE:
        return HANDLE(Thread(function, argument))

    def exit_code(self, thread: HANDLE) -> tuple[int, int]:
        found = thread._object
        return (0, found.exit_code) if isinstance(found, Thread) else (ERROR_INVALID_HANDLE, 0)

    def create_event(self, manual: bool, signalled: bool) -> HANDLE:
        return HANDLE(Event(manual, signalled))

    def set_event(self, event: HANDLE, signalled: bool) -> int:
        found = event._object
        if not isinstance(found, Event):
            return ERROR_INVALID_HANDLE
        if signalled:
            found.set()
        else:
            found.reset()
        return 0

    def wait(
        self, handles: list[HANDLE | socket.socket], everything: bool, milliseconds: int
    ) -> tuple[int, int]:
        waitables: list[Waitable] = []
        for handle in handles:
            found: object
            found = file_of_socket(handle) if isinstance(handle, socket.socket) else handle._object
            if not isinstance(found, Waitable):
                return ERROR_INVALID_HANDLE, WAIT_FAILED
            waitables.append(found)
        return 0, wait_for(
            waitables, everything, None if milliseconds == INFINITE else milliseconds
        )

    def system_info(self) -> SYSTEM_INFO:
        return SYSTEM_INFO(usable_processors(), mmap.PAGESIZE, mmap.ALLOCATIONGRANULARITY)
