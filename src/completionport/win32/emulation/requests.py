"""The operations of the program, each as the engine's steps that carry it out.

A request's methods are called with its file's lock held.
"""

from __future__ import annotations

import errno
import os
import socket

from ...interface.error_codes import Codes, codes_of
from ...interface.errors import OperationAborted
from ...interface.handle import Overlapped
from ...interface.port import Completion
from ..constants import (
    ERROR_BROKEN_PIPE,
    ERROR_HANDLE_EOF,
    ERROR_INSUFFICIENT_BUFFER,
    TF_DISCONNECT,
    TF_REUSE_SOCKET,
    WSAEFAULT,
    WSAEINVAL,
)
from ..structures import OVERLAPPED, SOCKADDR
from .files import PENDING, Failure, FileObject, Launch, Request
from .manager import Step

END_OF_FILE = Codes(0xC0000011, ERROR_HANDLE_EOF, WSAEINVAL)
BUFFER_TOO_SMALL = Codes(0xC0000023, ERROR_INSUFFICIENT_BUFFER, WSAEFAULT)
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

    is_transfer = True


class ReceiveFrom(Request):
    """``WSARecvFrom``, and ``WSARecv`` of a datagram."""

    is_transfer = True

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
    is_transfer = True


class Read(Request):
    """``ReadFile``: the end of a file is an error in Win32."""

    is_transfer = True

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
        too_small: bool,
    ) -> None:
        super().__init__(file, overlapped)
        self._target = target
        # The number that the connection is to get must not become another file's.
        self.keeps = sock
        self._view = view
        self._sizes = sizes
        self._too_small = too_small
        self._accepted = False
        self.more_steps = sizes[0] > 0

    def run(self, launch: Launch | None) -> bool:
        if not self.steps and not self._accepted and self.file.passed_over:
            launch = self._take(self.file.passed_over.pop(0))
        return super().run(launch)

    def proceed(self, step: Step) -> Launch | None:
        if self._accepted:
            self.count = step.transferred
            return None
        return self._take(step.result())

    def take_over(self, connection: socket.socket) -> bool:
        if self._accepted or self.cancelled or self.step is None or self.codes is not PENDING:
            return False
        self.step.target = Latecomer(self.file)
        self.step.cancel()
        self.step = None
        self.go_on(lambda: self._take(connection))
        return True

    def is_refused(self, error: OSError) -> bool:
        return super().is_refused(error) and not isinstance(error, Failure)

    def ended(self) -> None:
        self._target.accepting = None
        self._view = memoryview(b"")

    def _take(self, connection: socket.socket) -> Launch | None:
        """Make it the caller's socket. The locks of both files are taken in their order."""
        target = self._target
        with target.lock:
            error: OSError | None = OperationAborted() if target.closed else None
            if error is None and self._too_small:
                error = Failure(BUFFER_TOO_SMALL)
            if error is None:
                with connection:
                    target.replace(connection)
                    self._write_addresses(connection)
        self._accepted = True  # or it is over, and takes no other one
        self.more_steps = False
        if error is not None:
            self.file.pass_on(connection)
            raise error
        return self._receive if self._sizes[0] else None

    def _receive(self, step: Step) -> Overlapped | None:
        with self._target.lock:
            return self._target.handle.recv(self._view[: self._sizes[0]], 0, step)

    def _write_addresses(self, connection: socket.socket) -> None:
        start = self._sizes[0]
        for address, size in (
            (connection.getsockname(), self._sizes[1]),
            (connection.getpeername(), self._sizes[2]),
        ):
            if not size:
                continue
            structure = SOCKADDR()
            structure.assign(connection.family, address)
            self._view[start : start + size] = bytes(structure._memory[:size]).ljust(size, b"\0")
            start += size


class Latecomer:
    """For the step of an accept that has another connection by now."""

    def __init__(self, file: FileObject) -> None:
        self._file = file

    def arrived(self, packet: Completion) -> None:
        if packet.error is None:
            with self._file.lock:
                self._file.pass_on(packet.overlapped.result())


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
        self.file.connecting = None
        self.more_steps = False
        return self._send if self._views else None

    def is_refused(self, error: OSError) -> bool:
        return self.steps <= 1 and error.errno not in FAILS_LATER

    def ended(self) -> None:
        self._views = []
        if self.file.connecting is self:
            self.file.connecting = None

    def _send(self, step: Step) -> Overlapped | None:
        return self.file.handle.send(self._views, 0, step)


class Transmit(Request):
    """``TransmitFile``: with ``TF_DISCONNECT`` the connection ends behind it."""

    takes_input = False
    is_transfer = True

    def __init__(
        self, file: FileObject, overlapped: OVERLAPPED, flags: int, sock: socket.socket
    ) -> None:
        super().__init__(file, overlapped)
        self._flags = flags
        self.keeps = sock if flags & TF_REUSE_SOCKET else None  # its number is used again
        self.more_steps = bool(flags & TF_DISCONNECT)

    def proceed(self, step: Step) -> Launch | None:
        if self.steps > 1:
            end_connection(self.file, self._flags)
            return None
        self.count = step.transferred
        self.more_steps = False
        return self._disconnect if self._flags & TF_DISCONNECT else None

    def _disconnect(self, step: Step) -> Overlapped | None:
        return launch_end(self.file, self._flags, step)


class Disconnect(Request):
    """``DisconnectEx``: with ``TF_REUSE_SOCKET`` the descriptor becomes a fresh socket."""

    takes_input = False

    def __init__(
        self, file: FileObject, overlapped: OVERLAPPED, flags: int, sock: socket.socket
    ) -> None:
        super().__init__(file, overlapped)
        self._flags = flags
        self.keeps = sock if flags & TF_REUSE_SOCKET else None  # its number is used again

    def end(self, step: Step) -> Overlapped | None:
        """Its only step."""
        return launch_end(self.file, self._flags, step)

    def proceed(self, step: Step) -> Launch | None:
        end_connection(self.file, self._flags)
        return None


def launch_end(file: FileObject, flags: int, step: Step) -> Overlapped | None:
    """Start the end of a connection; one that is not used again goes on receiving."""
    if flags & TF_REUSE_SOCKET:
        return file.handle.disconnect(step)
    return file.handle.shutdown(socket.SHUT_WR, step)


def end_connection(file: FileObject, flags: int) -> None:
    """The connection was shut down: the descriptor becomes a fresh socket, where that is asked."""
    file.sends_shut = True
    if flags & TF_REUSE_SOCKET:
        with socket.socket(fileno=os.dup(file.number)) as old:
            family, kind, protocol = old.family, old.type, old.proto
        with socket.socket(family, kind, protocol) as fresh:
            file.replace(fresh)
