"""Calls that wait, and what is asked of handles, where the system is not Windows."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ...interface.error_codes import CODES, codes_of
from ..constants import (
    ERROR_ACCESS_DENIED,
    ERROR_BROKEN_PIPE,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_NEGATIVE_SEEK,
    FILE_BEGIN,
    WSA_IO_PENDING,
    WSAEMSGSIZE,
)
from ..outcomes import Started
from ..structures import HANDLE, SOCKADDR
from .files import FileObject, Request, Unheard
from .lookup import file_of
from .waiting import wait_for

MOST_BUFFERS = 1024
"""Of one sendmsg(2): IOV_MAX."""


@contextlib.contextmanager
def descriptor_of(file: FileObject) -> Iterator[int]:
    """A number of its own for a call that waits: the file's may be another's by then."""
    number = file.duplicate()
    if number is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        yield number
    finally:
        os.close(number)


def to_the_end(started: Started, overlapped: Unheard) -> int:
    """Wait for an operation of a socket: its code."""
    request = overlapped._io
    if started.code != WSA_IO_PENDING:
        return started.code
    assert isinstance(request, Request)
    wait_for([request], False, None)
    return request.codes.winsock


def windows_code(winsock: int) -> int:
    """What the functions of files call an error that Winsock's call otherwise."""
    return next((one.windows for one in CODES.values() if one.winsock == winsock), winsock)


class EngineHandles:
    """The part of `completionport.win32.system.System` that is about handles and calls that wait.

    It takes a part that is about sockets beside it.
    """

    transmit_file: Callable[..., Started]
    disconnect_ex: Callable[..., Started]

    blocking: Callable[[socket.socket, bool, Callable[[], int]], tuple[int, int]]

    def receive_now(
        self, sock: Any, views: list[memoryview], flags: int, sender: SOCKADDR | None
    ) -> tuple[int, int]:
        cut_off = False

        def call() -> int:
            nonlocal cut_off
            count, _, answer, address = sock.recvmsg_into(views, 0, flags)
            if sock.type != socket.SOCK_STREAM:
                cut_off = bool(answer & socket.MSG_TRUNC)
                if sender is not None and address:
                    sender.assign(sock.family, address)
            return int(count)

        code, count = self.blocking(sock, True, call)
        return (code or (WSAEMSGSIZE if cut_off else 0)), count

    def send_now(
        self, sock: Any, views: list[memoryview], flags: int, name: SOCKADDR | None
    ) -> tuple[int, int]:
        if name is not None or sock.type != socket.SOCK_STREAM:
            where = () if name is None else (name.address,)
            return self.blocking(sock, False, lambda: sock.sendmsg(views, (), flags, *where))

        def call() -> int:
            left = list(views)
            total = 0
            while True:
                try:
                    count = int(sock.sendmsg(left[:MOST_BUFFERS], (), flags))
                except BlockingIOError:
                    if total:
                        return total
                    raise
                total += count
                while left and count >= left[0].nbytes:
                    count -= left.pop(0).nbytes
                if not left:
                    return total
                left[0] = left[0][count:]

        return self.blocking(sock, False, call)

    def transmit_now(
        self,
        sock: socket.socket,
        file: HANDLE | None,
        sizes: tuple[int, int],
        parts: tuple[memoryview, memoryview],
        flags: int,
    ) -> int:
        overlapped = Unheard()
        if file is not None:
            source = file_of(file)
            if source is None:
                return ERROR_INVALID_HANDLE
            if source.is_regular:
                try:
                    with descriptor_of(source) as number:
                        place = os.lseek(number, 0, os.SEEK_CUR)
                except OSError as error:
                    return codes_of(error.errno).windows
                overlapped.Offset, overlapped.OffsetHigh = place & 0xFFFFFFFF, place >> 32
        started = self.transmit_file(sock, file, sizes, parts, flags, overlapped)
        return to_the_end(started, overlapped)

    def disconnect_now(self, sock: socket.socket, flags: int) -> int:
        overlapped = Unheard()
        return to_the_end(self.disconnect_ex(sock, overlapped, flags), overlapped)

    def read_now(self, file: HANDLE | socket.socket, view: memoryview) -> tuple[int, int]:
        if isinstance(file, socket.socket):
            code, count = self.receive_now(file, [view], 0, None)
            return windows_code(code), count
        if sys.platform == "win32":
            raise NotImplementedError
        return self._on_file(file, True, lambda number: os.readv(number, [view]))

    def write_now(self, file: HANDLE | socket.socket, view: memoryview) -> tuple[int, int]:
        if isinstance(file, socket.socket):
            code, count = self.send_now(file, [view], 0, None)
            return windows_code(code), count

        def call(number: int) -> int:
            done = 0
            while done < view.nbytes:
                done += os.write(number, view[done:])
            return done

        return self._on_file(file, False, call)

    def _on_file(self, handle: HANDLE, reads: bool, call: Callable[[int], int]) -> tuple[int, int]:
        found = file_of(handle)
        if found is None:
            return ERROR_INVALID_HANDLE, 0
        if not found.synchronous:
            return ERROR_INVALID_PARAMETER, 0
        if not (found.readable if reads else found.writable):
            return ERROR_ACCESS_DENIED, 0
        try:
            with descriptor_of(found) as number:
                count = call(number)
        except OSError as error:
            return codes_of(error.errno).windows, 0
        if reads and not count and not found.is_regular:
            return ERROR_BROKEN_PIPE, 0
        return 0, count

    def seek(self, handle: HANDLE, distance: int, method: int) -> tuple[int, int]:
        file = file_of(handle)
        if file is None or not file.is_regular:
            return ERROR_INVALID_HANDLE, 0
        if method == FILE_BEGIN and distance < 0:
            return ERROR_NEGATIVE_SEEK, 0
        try:
            with descriptor_of(file) as number:
                return 0, os.lseek(number, distance, method)
        except (OSError, OverflowError):
            return ERROR_NEGATIVE_SEEK if distance < 0 else ERROR_INVALID_PARAMETER, 0

    def file_size(self, handle: HANDLE) -> tuple[int, int]:
        file = file_of(handle)
        if file is None or not file.is_regular:
            return ERROR_INVALID_HANDLE, 0
        try:
            with descriptor_of(file) as number:
                return 0, os.fstat(number).st_size
        except OSError as error:
            return codes_of(error.errno).windows, 0

    def flush(self, handle: HANDLE) -> int:
        file = file_of(handle)
        if file is None:
            return ERROR_INVALID_HANDLE
        try:
            with descriptor_of(file) as number:
                os.fsync(number)
        except OSError as error:
            return codes_of(error.errno).windows
        return 0

    def cancel_of_thread(self, file: HANDLE | socket.socket) -> int:
        """Stop what the calling thread has started."""
        found = file_of(file)
        if found is None:
            return ERROR_INVALID_HANDLE
        found.cancel(None, threading.get_ident())
        return 0
