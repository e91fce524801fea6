"""Winsock's functions on the library's engines."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from ...interface.error_codes import LOOKUPS, Codes, codes_of
from ...interface.handle import Overlapped
from ..constants import (
    ERROR_ACCESS_DENIED,
    ERROR_INVALID_HANDLE,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    STATUS_PENDING,
    WSAECONNABORTED,
    WSAEFAULT,
    WSAEINTR,
    WSAEINVAL,
    WSAENOTCONN,
    WSAENOTSOCK,
    WSAETIMEDOUT,
)
from ..outcomes import Started
from ..structures import HANDLE, OVERLAPPED, SOCKADDR, sockaddr_of
from .files import FileObject, has_peer, is_bound, is_listening
from .lookup import file_of, file_of_socket, on_socket, place_of, transfer
from .manager import Step
from .requests import Accept, Connect, Disconnect, Receive, ReceiveFrom, Send, Transmit

ADDRESS_ROOM = 16
"""Bytes that AcceptEx wants for each address beside the address itself."""


class EngineSockets:
    """The part of `completionport.win32.system.System` that is about sockets."""

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
            if file.passed_over:
                return 0, file.passed_over.pop(0)
            file.threads_inside += 1
        try:
            while True:
                try:
                    return 0, listener.accept()[0]
                except BlockingIOError:
                    # SO_RCVTIMEO is for receives: Linux ends this wait by it too.
                    if listener.gettimeout() is not None:
                        raise
        except OSError as error:
            return (WSAEINTR if file.closed else self.winsock_code(error)), None
        finally:
            with file.lock:
                file.threads_inside -= 1

    def note_connection(self, sock: socket.socket) -> None:
        file_of_socket(sock)

    def blocking(
        self, sock: socket.socket, takes_input: bool, call: Callable[[], int]
    ) -> tuple[int, int]:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK, 0
        with file.lock:
            if number := file.refusal(takes_input):
                return codes_of(number).winsock, 0
            file.threads_inside += 1
        code = count = 0
        try:
            count = call()
        except OSError as error:
            # Where the socket blocks that is what a timeout of the system's says.
            timed_out = isinstance(error, BlockingIOError) and sock.gettimeout() is None
            with file.lock:
                code = WSAETIMEDOUT if timed_out else self.winsock_code(error, file)
        finally:
            with file.lock:
                file.threads_inside -= 1
                if file.closed and (code or (takes_input and not count)):
                    code = WSAECONNABORTED if file.is_stream else WSAEINTR
        return code, count

    def connect(self, sock: socket.socket, address: Any) -> int:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK
        with file.lock:
            if file.is_changing() or is_listening(sock):
                return WSAEINVAL
            file.threads_inside += 1
        code = 0
        try:
            sock.connect(address)
        except BlockingIOError as error:
            # SO_SNDTIMEO is for sends: Linux ends this wait by it too.
            code = self.winsock_code(error) if sock.gettimeout() is not None else finish(sock)
        except OSError as error:
            code = self.winsock_code(error)
        finally:
            with file.lock:
                file.threads_inside -= 1
                if file.closed:
                    code = WSAECONNABORTED if file.is_stream else WSAEINTR
                elif not code:
                    file.had_peer = file.bound = True
        return code

    def prepare(self, sock: socket.socket, call: Callable[[], Any]) -> int:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK
        with file.lock:
            if file.is_changing():
                return WSAEINVAL
            try:
                call()
            except OSError as error:
                return self.winsock_code(error)
        return 0

    def close_socket(self, sock: socket.socket) -> int:
        file = file_of_socket(sock)
        return 0 if file is not None and file.close(sock) else WSAENOTSOCK

    def shut_down(self, sock: socket.socket, how: int) -> int:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            return WSAEINVAL
        with file.lock:
            if file.is_stream and not file.is_connected():
                return WSAENOTCONN
            if file.lost:
                return codes_of(file.lost).winsock
            if how != socket.SHUT_RD and not file.sends_shut:
                if file.is_stream:
                    file.end_sends(sock)
                file.sends_shut = True
            # The kernel is not told: it would end the receives that are under way.
            file.receives_shut |= how != socket.SHUT_WR
        return 0

    def set_option(self, sock: socket.socket, level: int, option: int, value: Any) -> int:
        if level == socket.SOL_SOCKET and option in (SO_RCVTIMEO, SO_SNDTIMEO):
            if isinstance(value, (bytes, bytearray)) and len(value) == 4:
                value = int.from_bytes(value, "little")
            if isinstance(value, int):
                if not 0 <= value <= 0xFFFFFFFF:
                    raise ValueError(f"milliseconds must be from 0 to 0xFFFFFFFF, not {value}")
                value = struct.pack("ll", value // 1000, value % 1000 * 1000)
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            return self.winsock_code(error)
        return 0

    def update_context(self, sock: socket.socket, option: int, value: Any) -> int:
        return WSAENOTSOCK if sock.fileno() < 0 else 0

    def winsock_code(self, error: OSError, file: FileObject | None = None) -> int:
        if isinstance(error, socket.gaierror):
            return LOOKUPS.get(error.errno or 0, WSAEINVAL)
        if isinstance(error, TimeoutError) and error.errno is None:
            return WSAETIMEDOUT  # of the socket object's own timeout
        return (codes_of(error.errno) if file is None else file.codes_for(error)).winsock

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
        if source is not None and not source.readable:
            return Started(ERROR_ACCESS_DENIED)
        number = None if source is None else source.duplicate()
        if number is None and file is not None:
            return Started(ERROR_INVALID_HANDLE)
        head, tail = parts

        def begin(target: FileObject) -> tuple[Codes, int]:
            def launch(step: Step) -> Overlapped | None:
                if number is None:
                    return target.handle.send([head, tail], 0, step)
                place, count = place_of(overlapped), sizes[0] or None
                return target.handle.sendfile(
                    number, place, count, head=head, tail=tail, overlapped=step
                )

            with target.lock:
                if not (target.is_stream and (target.lost or target.is_connected())):
                    return codes_of(errno.ENOTCONN), 0
            return transfer(target, Transmit(target, overlapped, flags, sock), launch)

        try:
            return on_socket(sock, begin)
        finally:
            if number is not None:
                os.close(number)  # the engine has one of its own

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
        if not sizes[2]:
            return Started(WSAEFAULT)
        # A listener has an address, so no two threads can take the locks of two of them here.
        if not target.is_stream or not is_listening(listener) or is_bound(sock):
            return Started(WSAEINVAL)
        least = (28 if sock.family == socket.AF_INET6 else 16) + ADDRESS_ROOM
        too_small = 0 < sizes[1] < least or sizes[2] < least  # which Windows finds later
        request = Accept(file, overlapped, target, sock, view, sizes, too_small)
        with file.lock, target.lock:
            if has_peer(sock) or target.is_changing():
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
            with file.lock:
                if is_listening(sock) or file.is_changing() or not is_bound(sock):
                    return codes_of(errno.EINVAL), 0
                if file.is_connected():
                    return codes_of(errno.EISCONN), 0
                request = file.connecting = Connect(file, overlapped, views)
                outcome = file.start(request, lambda step: file.handle.connect(where, step))
                if outcome[0].status != STATUS_PENDING:
                    file.connecting = None
            return outcome

        return on_socket(sock, begin)

    def disconnect_ex(self, sock: socket.socket, overlapped: OVERLAPPED, flags: int) -> Started:
        def begin(file: FileObject) -> tuple[Codes, int]:
            with file.lock:
                if not file.is_stream or not file.is_connected():
                    return codes_of(errno.ENOTCONN), 0
            request = Disconnect(file, overlapped, flags, sock)
            return file.start(request, request.end)

        return on_socket(sock, begin)


def finish(sock: socket.socket) -> int:
    """Wait for a connect that goes on, and tell how it ends: a Winsock code."""
    with contextlib.suppress(ValueError):  # it was closed meanwhile
        select.select([], [sock], [])
    try:
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        number = error.errno or errno.EBADF
    return codes_of(number).winsock if number else 0
