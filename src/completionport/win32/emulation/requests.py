"""The operations of the program, each as the engine's steps that carry it out.

A request's methods are called with its file's lock held.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from ...interface.error_codes import Codes, codes_of
from ...interface.handle import Overlapped
from ..constants import (
    ERROR_BROKEN_PIPE,
    ERROR_HANDLE_EOF,
    TF_DISCONNECT,
    TF_REUSE_SOCKET,
    WSAEINVAL,
)
from ..structures import OVERLAPPED, SOCKADDR
from .files import Failure, FileObject, Launch, Request
from .manager import Step

END_OF_FILE = Codes(0xC0000011, ERROR_HANDLE_EOF, WSAEINVAL)
BROKEN_PIPE = Codes(0xC000014B, ERROR_BROKEN_PIPE, WSAEINVAL)

FAILS_LATER = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRINUSE,
    }
)
"""What a connect learns from the network: Windows tells it by a packet however soon it comes."""


class Receive(Request):
    """``WSARecv`` on a connection."""


class ReceiveFrom(Request):
    """``WSARecvFrom``, and ``WSARecv`` of a datagram."""

    def __init__(self, file: FileObject, overlapped: OVERLAPPED, sender: SOCKADDR | None) -> None:
        super().__init__(file, overlapped)
        self._sender = sender

    def proceed(self, step: Step) -> Launch | None:
        self.count = step.transferred
        _, _, flags, address = step.result()
        if self._sender is not None and address:
            self._sender.assign(self.file.family, address)
        if flags & socket.MSG_TRUNC:
            raise Failure(codes_of(errno.EMSGSIZE))
        return None


class Send(Request):
    """``WSASend``, ``WriteFile``."""

    takes_input = False


class Read(Request):
    """``ReadFile``: the end of a file is an error in Win32."""

    def __init__(self, file: FileObject, overlapped: OVERLAPPED, size: int) -> None:
        super().__init__(file, overlapped)
        self._size = size

    def proceed(self, step: Step) -> Launch | None:
        self.count = step.transferred
        if not self.count and self._size and not self.file.is_socket:
            raise Failure(END_OF_FILE if self.file.is_regular else BROKEN_PIPE)
        return None


class Accept(Request):
    """``AcceptEx``: accept, make it the caller's socket, and receive the first data."""

    def __init__(
        self,
        file: FileObject,
        overlapped: OVERLAPPED,
        target: FileObject,
        sock: socket.socket,
        view: memoryview,
        sizes: tuple[int, int, int],
    ) -> None:
        super().__init__(file, overlapped)
        self._target = target
        # Until it is over: the number that the connection is to get must not become another file's.
        self._sock: socket.socket | None = sock
        self._view = view
        self._sizes = sizes
        self._accepted = False
        self.more_steps = sizes[0] > 0

    def proceed(self, step: Step) -> Launch | None:
        if self._accepted:
            self.count = step.transferred
            return None
        target = self._target
        with step.result() as connection, target.lock:
            target.replace(connection)
            self._write_addresses(connection)
        self._accepted = True
        self.more_steps = False
        if not self._sizes[0]:
            return None
        return self._receive

    def ended(self) -> None:
        self._target.accepting = self._sock = None
        self._view = memoryview(b"")

    def _receive(self, step: Step) -> Overlapped | None:
        with self._target.lock:
            return self._target.handle.recv(self._view[: self._sizes[0]], 0, step)

    def _write_addresses(self, connection: socket.socket) -> None:
        start = self._sizes[0]
        for address, size in (
            (connection.getsockname(), self._sizes[1]),
            (connection.getpeername(), self._sizes[2]),
        ):
            structure = SOCKADDR()
            structure.assign(connection.family, address)
            self._view[start : start + size] = bytes(structure._memory[:size]).ljust(size, b"\0")
            start += size


class Connect(Request):
    """``ConnectEx``: connect, and send the first data."""

    takes_input = False

    def __init__(self, file: FileObject, overlapped: OVERLAPPED, views: list[memoryview]) -> None:
        super().__init__(file, overlapped)
        self._views = views
        self.more_steps = bool(views)

    def proceed(self, step: Step) -> Launch | None:
        if self.steps > 1:
            self.count = step.transferred
            return None
        self.file.had_peer = True
        self.more_steps = False
        return self._send if self._views else None

    def is_refused(self, error: OSError) -> bool:
        return self.steps <= 1 and error.errno not in FAILS_LATER

    def ended(self) -> None:
        self._views = []

    def _send(self, step: Step) -> Overlapped | None:
        return self.file.handle.send(self._views, 0, step)


class Transmit(Request):
    """``TransmitFile``: with ``TF_DISCONNECT`` the connection ends behind it."""

    takes_input = False

    def __init__(self, file: FileObject, overlapped: OVERLAPPED, flags: int) -> None:
        super().__init__(file, overlapped)
        self._flags = flags
        self.more_steps = bool(flags & TF_DISCONNECT)

    def proceed(self, step: Step) -> Launch | None:
        if not self.more_steps:
            if self._flags & TF_DISCONNECT:
                end_connection(self.file, self._flags)
            else:
                self.count = step.transferred
            return None
        self.count = step.transferred
        self.more_steps = False
        return self._disconnect

    def _disconnect(self, step: Step) -> Overlapped | None:
        return self.file.handle.disconnect(step)


class Disconnect(Request):
    """``DisconnectEx``: with ``TF_REUSE_SOCKET`` the descriptor becomes a fresh socket."""

    takes_input = False

    def __init__(self, file: FileObject, overlapped: OVERLAPPED, flags: int) -> None:
        super().__init__(file, overlapped)
        self._flags = flags

    def proceed(self, step: Step) -> Launch | None:
        end_connection(self.file, self._flags)
        return None


def end_connection(file: FileObject, flags: int) -> None:
    """The connection was shut down: the descriptor becomes a fresh socket, where that is asked."""
    file.sends_shut = file.receives_shut = True
    if flags & TF_REUSE_SOCKET:
        with socket.socket(fileno=os.dup(file.number)) as old:
            family, kind, protocol = old.family, old.type, old.proto
        with socket.socket(family, kind, protocol) as fresh:
            file.replace(fresh)


def lost(file: FileObject, request: Any) -> bool:
    """Whether a transfer needs no try: the connection is gone, or that way was shut down."""
    if file.lost:
        return True
    return file.receives_shut if request.takes_input else file.sends_shut
