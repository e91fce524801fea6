"""Calls that wait, and what is asked of handles, through Windows' own functions."""

# The relative imports stand behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_longlong
from ctypes.wintypes import DWORD
from typing import Any

assert sys.platform == "win32"

from ...windows.api import (
    GetFileSizeEx,
    ReadFile,
    SetFilePointerEx,
    WriteFile,
    WSARecv,
    WSARecvFrom,
    WSASend,
    WSASendTo,
)
from ..constants import (
    ERROR_HANDLE_EOF,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    FILE_FLAG_OVERLAPPED,
    WSAENOTSOCK,
)
from ..structures import HANDLE, SOCKADDR
from .api import (
    DISCONNECT_EX,
    TransmitBuffersStructure,
    cancel_io,
    flush_file_buffers,
    transmit_file,
)
from .objects import (
    buffers_of,
    code_unless,
    file_of,
    file_of_socket,
    memory_of,
    size_of_name,
)


def _on_socket(sock: socket.socket, call: Callable[[int, Any], int]) -> tuple[int, int]:
    """Make a call that waits on a socket: a code and the bytes moved."""
    found = file_of_socket(sock)
    if found is None:
        return WSAENOTSOCK, 0
    count = DWORD()
    code = call(found.value, byref(count))
    return code, 0 if code else count.value


class WindowsHandles:
    """The part of `completionport.win32.system.System` about handles and calls that wait."""

    _extension: Callable[..., Any]

    def receive_now(
        self, sock: socket.socket, views: list[memoryview], flags: int, sender: SOCKADDR | None
    ) -> tuple[int, int]:
        memory: list[Any] = [DWORD(flags)]
        array = buffers_of(views, memory)
        if sender is None:
            return _on_socket(
                sock,
                lambda value, count: code_unless(
                    WSARecv(value, array, len(array), count, byref(memory[0]), None, None) == 0
                ),
            )
        name = memoryview(sender._memory)
        size = c_int(name.nbytes)
        where = memory_of(name, memory)

        def call(value: int, count: Any) -> int:
            target = where, byref(size)
            done = WSARecvFrom(
                value, array, len(array), count, byref(memory[0]), *target, None, None
            )
            return code_unless(done == 0)

        return _on_socket(sock, call)

    def send_now(
        self, sock: socket.socket, views: list[memoryview], flags: int, name: SOCKADDR | None
    ) -> tuple[int, int]:
        memory: list[Any] = []
        array = buffers_of(views, memory)
        if name is None:
            return _on_socket(
                sock,
                lambda value, count: code_unless(
                    WSASend(value, array, len(array), count, flags, None, None) == 0
                ),
            )
        target = memory_of(memoryview(bytes(name._memory)), memory), size_of_name(name)

        def call(value: int, count: Any) -> int:
            done = WSASendTo(value, array, len(array), count, flags, *target, None, None)
            return code_unless(done == 0)

        return _on_socket(sock, call)

    def transmit_now(
        self,
        sock: socket.socket,
        file: HANDLE | None,
        sizes: tuple[int, int],
        parts: tuple[memoryview, memoryview],
        flags: int,
    ) -> int:
        source = None if file is None else file_of(file)
        if source is None and file is not None:
            return ERROR_INVALID_HANDLE
        memory: list[Any] = []
        head, tail = parts
        buffers = TransmitBuffersStructure(
            memory_of(head, memory), head.nbytes, memory_of(tail, memory), tail.nbytes
        )
        number = None if source is None else source.value

        def call(value: int, count: Any) -> int:
            return code_unless(transmit_file(value, number, *sizes, None, byref(buffers), flags))

        return _on_socket(sock, call)[0]

    def disconnect_now(self, sock: socket.socket, flags: int) -> int:
        def call(value: int, count: Any) -> int:
            return code_unless(self._extension(value, *DISCONNECT_EX)(value, None, flags, 0))

        return _on_socket(sock, call)[0]

    def read_now(self, file: HANDLE | socket.socket, view: memoryview) -> tuple[int, int]:
        code, count = self._on_file(ReadFile, file, view)
        return (0, 0) if code == ERROR_HANDLE_EOF else (code, count)

    def write_now(self, file: HANDLE | socket.socket, view: memoryview) -> tuple[int, int]:
        return self._on_file(WriteFile, file, view)

    def _on_file(
        self, function: Any, file: HANDLE | socket.socket, view: memoryview
    ) -> tuple[int, int]:
        found = file_of(file)
        if found is None:
            return ERROR_INVALID_HANDLE, 0
        if found.flags & FILE_FLAG_OVERLAPPED:
            # Windows would read or write somewhere, and might return before it is done.
            return ERROR_INVALID_PARAMETER, 0
        memory: list[Any] = []
        where, count = memory_of(view, memory), DWORD()
        done = function(found.value, where, view.nbytes, byref(count), None)
        code = code_unless(done)
        return code, 0 if code else count.value

    def cancel_of_thread(self, file: HANDLE | socket.socket) -> int:
        found = file_of(file)
        return ERROR_INVALID_HANDLE if found is None else code_unless(cancel_io(found.value))

    def seek(self, handle: HANDLE, distance: int, method: int) -> tuple[int, int]:
        found, position = file_of(handle), c_longlong()
        if found is None:
            return ERROR_INVALID_HANDLE, 0
        done = SetFilePointerEx(found.value, distance, byref(position), method)
        return code_unless(done), position.value

    def file_size(self, handle: HANDLE) -> tuple[int, int]:
        found, size = file_of(handle), c_longlong()
        if found is None:
            return ERROR_INVALID_HANDLE, 0
        return code_unless(GetFileSizeEx(found.value, byref(size))), size.value

    def flush(self, handle: HANDLE) -> int:
        found = file_of(handle)
        return (
            ERROR_INVALID_HANDLE if found is None else code_unless(flush_file_buffers(found.value))
        )
