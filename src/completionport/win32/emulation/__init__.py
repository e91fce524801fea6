"""Win32's functions on the library's engines, where the system is not Windows."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from ...interface.error_codes import Codes, codes_of
from ...interface.errors import PortClosed
from ...interface.handle import Overlapped
from ...shared.workers import usable_processors
from ..constants import (
    CREATE_ALWAYS,
    CREATE_NEW,
    ERROR_ABANDONED_WAIT_0,
    ERROR_ALREADY_EXISTS,
    ERROR_FILE_EXISTS,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_INCOMPLETE,
    ERROR_IO_PENDING,
    FILE_FLAG_OVERLAPPED,
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
    WSAEFAULT,
    WSAEINTR,
    WSAEINVAL,
    WSAENOTSOCK,
)
from ..outcomes import Started, Taken
from ..structures import HANDLE, OVERLAPPED, SOCKADDR, SYSTEM_INFO, sockaddr_of
from . import manager
from .files import SUCCESS, FileObject, Launch, Port, Request, has_peer
from .manager import Step
from .requests import (
    Accept,
    Connect,
    Disconnect,
    Read,
    Receive,
    ReceiveFrom,
    Send,
    Transmit,
    lost,
)
from .waiting import Event, Thread, Waitable, wait_for

ADDRESS_ROOM = 16
"""Bytes that AcceptEx wants for each address beside the address itself."""

DISPOSITIONS = {
    CREATE_NEW: os.O_CREAT | os.O_EXCL,
    CREATE_ALWAYS: os.O_CREAT | os.O_TRUNC,
    OPEN_EXISTING: 0,
    OPEN_ALWAYS: os.O_CREAT,
    TRUNCATE_EXISTING: os.O_TRUNC,
}

_sockets: weakref.WeakKeyDictionary[socket.socket, FileObject] = weakref.WeakKeyDictionary()
_sockets_lock = threading.RLock()  # guards it; again by finalizers


def _after_fork() -> None:
    global _sockets_lock
    _sockets_lock = threading.RLock()  # a thread that the child lacks may hold the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def file_of_socket(sock: socket.socket, *, synchronous: bool = False) -> FileObject | None:
    """The file object of a socket, made when it is first asked for; None for a closed one."""
    with _sockets_lock:
        file = _sockets.get(sock)
        if file is None:
            number = sock.fileno()
            if number < 0:
                return None
            file = FileObject(number, synchronous=synchronous)
            _sockets[sock] = file
            # A socket that is dropped has closed its number itself.
            weakref.finalize(sock, file.abandon).atexit = False
        return None if file.closed else file


def file_of(file: HANDLE | socket.socket) -> FileObject | None:
    """The file object of a handle; None for a handle of another kind, or a closed one."""
    if isinstance(file, socket.socket):
        return file_of_socket(file)
    found = file._object
    return found if isinstance(found, FileObject) and not found.closed else None


Begin: TypeAlias = Callable[[FileObject], tuple[Codes, int]]
"""Starts an operation on a file."""


def on_file(file: HANDLE | socket.socket, begin: Begin) -> Started:
    """Start it on a file, and tell in Windows codes how that went."""
    found = file_of(file)
    if found is None:
        return Started(ERROR_INVALID_HANDLE)
    codes, count = begin(found)
    return Started(codes.windows, count)


def on_socket(sock: socket.socket, begin: Begin) -> Started:
    """Start it on a socket, and tell in Winsock's codes how that went."""
    file = file_of_socket(sock)
    if file is None:
        return Started(WSAENOTSOCK)
    codes, count = begin(file)
    return Started(codes.winsock, count)


def is_listening(sock: socket.socket) -> bool:
    """Whether it accepts connections."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def is_bound(sock: socket.socket) -> bool:
    """Whether it has an address of its own."""
    try:
        name = sock.getsockname()
    except OSError:
        return False
    return bool(name[1]) if isinstance(name, tuple) else bool(name)


class EngineSystem:
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
        assert isinstance(request, Request)
        if request.status == STATUS_PENDING:
            if not wait:
                return (WSA_IO_INCOMPLETE if winsock else ERROR_IO_INCOMPLETE), 0
            wait_for([request], False, None)
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

    def new_socket(
        self, family: int, kind: int, protocol: int, flags: int
    ) -> tuple[int, int | None]:
        try:
            return 0, socket.socket(family, kind, protocol).detach()
        except OSError as error:
            return codes_of(error.errno).winsock, None

    def set_synchronous(self, sock: socket.socket) -> None:
        file_of_socket(sock, synchronous=True)

    def accept(self, listener: socket.socket) -> tuple[int, socket.socket | None]:
        file = file_of_socket(listener)
        if file is None:
            return WSAENOTSOCK, None
        with file.lock:
            file.accepting_threads += 1
        try:
            return 0, listener.accept()[0]
        except OSError as error:
            if file.closed:
                return WSAEINTR, None
            return codes_of(error.errno).winsock, None
        finally:
            with file.lock:
                file.accepting_threads -= 1

    def close_socket(self, sock: socket.socket) -> int:
        file = file_of_socket(sock)
        return 0 if file is not None and file.close(sock) else WSAENOTSOCK

    def shut_down(self, sock: socket.socket, how: int) -> int:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK
        with file.lock:
            try:
                sock.shutdown(how)
            except OSError as error:
                return codes_of(error.errno).winsock
            file.receives_shut |= how != socket.SHUT_WR
            file.sends_shut |= how != socket.SHUT_RD
        return 0

    def update_context(self, sock: socket.socket, option: int, value: Any) -> int:
        return WSAENOTSOCK if sock.fileno() < 0 else 0

    def winsock_code(self, error: OSError) -> int:
        return codes_of(error.errno).winsock

    def receive(
        self, sock: socket.socket, views: list[memoryview], flags: int, overlapped: OVERLAPPED
    ) -> Started:
        def begin(file: FileObject) -> tuple[Codes, int]:
            request = Receive(file, overlapped)
            return transfer(file, request, lambda step: file.handle.recv(views, flags, step))

        file = file_of_socket(sock)
        if file is not None and not file.is_stream:
            # Only so it is known that a datagram was cut off.
            return self.receive_from(sock, views, flags, None, overlapped)
        return on_socket(sock, begin)

    def receive_from(
        self,
        sock: socket.socket,
        views: list[memoryview],
        flags: int,
        sender: SOCKADDR | None,
        overlapped: OVERLAPPED,
    ) -> Started:
        def begin(file: FileObject) -> tuple[Codes, int]:
            request = ReceiveFrom(file, overlapped, sender)
            return transfer(file, request, lambda step: file.handle.recvmsg(views, 0, flags, step))

        return on_socket(sock, begin)

    def send(
        self, sock: socket.socket, views: list[memoryview], flags: int, overlapped: OVERLAPPED
    ) -> Started:
        def begin(file: FileObject) -> tuple[Codes, int]:
            request = Send(file, overlapped)
            return transfer(file, request, lambda step: file.handle.send(views, flags, step))

        return on_socket(sock, begin)

    def send_to(
        self,
        sock: socket.socket,
        views: list[memoryview],
        flags: int,
        name: SOCKADDR,
        overlapped: OVERLAPPED,
    ) -> Started:
        where = name.address

        def begin(file: FileObject) -> tuple[Codes, int]:
            def launch(step: Step) -> Overlapped | None:
                return file.handle.sendmsg(views, (), flags, where, step)

            return transfer(file, Send(file, overlapped), launch)

        return on_socket(sock, begin)

    def transmit_file(
        self,
        sock: socket.socket,
        file: HANDLE | None,
        sizes: tuple[int, int],
        parts: tuple[memoryview, memoryview],
        flags: int,
        overlapped: OVERLAPPED,
    ) -> Started:
        source = None if file is None else file_of(file)
        if source is None and file is not None:
            return Started(ERROR_INVALID_HANDLE)
        head, tail = parts

        def begin(target: FileObject) -> tuple[Codes, int]:
            def launch(step: Step) -> Overlapped | None:
                if source is None:
                    return target.handle.send([head, tail], 0, step)
                number, place = source.number, place_of(overlapped)
                count = sizes[0] or None
                return target.handle.sendfile(
                    number, place, count, head=head, tail=tail, overlapped=step
                )

            return transfer(target, Transmit(target, overlapped, flags), launch)

        return on_socket(sock, begin)

    def accept_ex(
        self,
        listener: socket.socket,
        sock: socket.socket,
        view: memoryview,
        sizes: tuple[int, int, int],
        overlapped: OVERLAPPED,
    ) -> Started:
        file, target = file_of_socket(listener), file_of_socket(sock)
        if file is None or target is None:
            return Started(WSAENOTSOCK)
        least = (28 if sock.family == socket.AF_INET6 else 16) + ADDRESS_ROOM
        if sizes[1] < least or sizes[2] < least:
            return Started(WSAEFAULT)
        # A listener has an address, so no two threads can take the locks of two of them here.
        if not is_listening(listener) or is_bound(sock):
            return Started(WSAEINVAL)
        request = Accept(file, overlapped, target, sock, view, sizes)
        with file.lock, target.lock:
            if has_peer(sock) or is_bound(sock) or target.accepting is not None:
                return Started(WSAEINVAL)
            target.accepting = request
            outcome = file.start(request, lambda step: file.handle.accept(step))
            if outcome[0].status != STATUS_PENDING:
                target.accepting = None
        return Started(outcome[0].winsock, outcome[1])

    def accept_addresses(
        self, view: memoryview, sizes: tuple[int, int, int]
    ) -> tuple[SOCKADDR, SOCKADDR]:
        start = sizes[0]
        middle = start + sizes[1]
        return sockaddr_of(view[start:middle]), sockaddr_of(view[middle : middle + sizes[2]])

    def connect_ex(
        self, sock: socket.socket, name: SOCKADDR, views: list[memoryview], overlapped: OVERLAPPED
    ) -> Started:
        where = name.address

        def begin(file: FileObject) -> tuple[Codes, int]:
            if not is_bound(sock):
                return codes_of(errno.EINVAL), 0
            request = Connect(file, overlapped, views)
            return file.start(request, lambda step: file.handle.connect(where, step))

        return on_socket(sock, begin)

    def disconnect_ex(self, sock: socket.socket, overlapped: OVERLAPPED, flags: int) -> Started:
        def begin(file: FileObject) -> tuple[Codes, int]:
            request = Disconnect(file, overlapped, flags)
            return file.start(request, lambda step: file.handle.disconnect(step))

        return on_socket(sock, begin)

    # -- files

    def create_file(
        self, name: str, access: int, share: int, disposition: int, flags: int
    ) -> tuple[int, HANDLE | None]:
        if disposition not in DISPOSITIONS:
            return ERROR_INVALID_PARAMETER, None
        mode = os.O_RDONLY
        if access & GENERIC_WRITE:
            mode = os.O_RDWR if access & GENERIC_READ else os.O_WRONLY
        code = 0
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
        except OSError as error:
            return codes_of(error.errno).windows, None
        return code, HANDLE(FileObject(number, synchronous=not flags & FILE_FLAG_OVERLAPPED))

    def read(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        def begin(found: FileObject) -> tuple[Codes, int]:
            place = place_of(overlapped) if found.is_regular else None
            request = Read(found, overlapped, view.nbytes)
            return transfer(found, request, lambda step: found.handle.read(view, place, step))

        return on_file(file, begin)

    def write(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        def begin(found: FileObject) -> tuple[Codes, int]:
            place = place_of(overlapped) if found.is_regular else None
            request = Send(found, overlapped)
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

    def wait(self, handles: list[HANDLE], everything: bool, milliseconds: int) -> tuple[int, int]:
        waitables = []
        for handle in handles:
            if not isinstance(handle._object, Waitable):
                return ERROR_INVALID_HANDLE, WAIT_FAILED
            waitables.append(handle._object)
        return 0, wait_for(
            waitables, everything, None if milliseconds == INFINITE else milliseconds
        )

    def system_info(self) -> SYSTEM_INFO:
        return SYSTEM_INFO(usable_processors(), mmap.PAGESIZE, mmap.ALLOCATIONGRANULARITY)


def place_of(overlapped: OVERLAPPED) -> int:
    """The place in the file that an OVERLAPPED says."""
    return overlapped.OffsetHigh << 32 | overlapped.Offset


def transfer(file: FileObject, request: Request, launch: Launch) -> tuple[Codes, int]:
    """Start a receive, a send, a read or a write."""
    if file.is_stream:
        with file.lock:
            if file.lost:
                return codes_of(file.lost), 0
            if lost(file, request):
                return codes_of(errno.ESHUTDOWN), 0
    outcome = file.start(request, launch)
    if file.synchronous and outcome[0].windows == ERROR_IO_PENDING:
        wait_for([request], False, None)
        return request.codes, request.count
    return outcome
