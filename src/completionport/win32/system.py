"""What the functions under Win32's names stand on: Windows itself, or the library's engines.

Both offer the same. They know nothing of the last error: they return codes.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any, Protocol

from .outcomes import Started, Taken
from .structures import HANDLE, OVERLAPPED, SOCKADDR, SYSTEM_INFO


class System(Protocol):
    """Codes are Windows codes, but for sockets, where they are Winsock codes."""

    # Ports
    def create_port(self, concurrency: int) -> HANDLE: ...
    def associate(self, file: HANDLE | socket.socket, port: HANDLE, key: Any) -> int: ...
    def take(
        self, port: HANDLE, count: int, milliseconds: int, alertable: bool
    ) -> tuple[int, list[Taken]]: ...
    def post(self, port: HANDLE, count: int, key: Any, overlapped: Any) -> int: ...
    def set_modes(self, file: HANDLE | socket.socket, flags: int) -> int: ...
    def cancel(self, file: HANDLE | socket.socket, overlapped: OVERLAPPED | None) -> int: ...
    def result(
        self, file: HANDLE | socket.socket, overlapped: OVERLAPPED, wait: bool, winsock: bool
    ) -> tuple[int, int]: ...
    def close(self, handle: HANDLE) -> int: ...

    # Sockets
    def startup(self, version: int) -> int: ...
    def cleanup(self) -> int: ...
    def new_socket(
        self, family: int, kind: int, protocol: int, flags: int
    ) -> tuple[int, int | None]: ...
    def set_synchronous(self, sock: socket.socket) -> None: ...
    def accept(self, listener: socket.socket) -> tuple[int, socket.socket | None]: ...
    def note_connection(self, sock: socket.socket) -> None:
        """It was accepted just now."""

    def blocking(
        self, sock: socket.socket, takes_input: bool, call: Callable[[], int]
    ) -> tuple[int, int]:
        """Make a call of Python's socket object that receives or sends: a code and its answer."""

    def connect(self, sock: socket.socket, address: Any) -> int: ...
    def prepare(self, sock: socket.socket, call: Callable[[], Any]) -> int:
        """Make a call of Python's socket object that gives it an address or has it listen."""

    def set_option(self, sock: socket.socket, level: int, option: int, value: Any) -> int: ...
    def close_socket(self, sock: socket.socket) -> int: ...
    def shut_down(self, sock: socket.socket, how: int) -> int: ...
    def update_context(self, sock: socket.socket, option: int, value: Any) -> int: ...
    def winsock_code(self, error: OSError) -> int: ...
    def receive(
        self, sock: socket.socket, views: list[memoryview], flags: int, overlapped: OVERLAPPED
    ) -> Started: ...
    def send(
        self, sock: socket.socket, views: list[memoryview], flags: int, overlapped: OVERLAPPED
    ) -> Started: ...
    def receive_from(
        self,
        sock: socket.socket,
        views: list[memoryview],
        flags: int,
        sender: SOCKADDR | None,
        overlapped: OVERLAPPED,
    ) -> Started: ...
    def send_to(
        self,
        sock: socket.socket,
        views: list[memoryview],
        flags: int,
        name: SOCKADDR,
        overlapped: OVERLAPPED,
    ) -> Started: ...
    def transmit_file(
        self,
        sock: socket.socket,
        file: HANDLE | None,
        sizes: tuple[int, int],
        parts: tuple[memoryview, memoryview],
        flags: int,
        overlapped: OVERLAPPED,
    ) -> Started: ...
    def accept_ex(
        self,
        listener: socket.socket,
        sock: socket.socket,
        view: memoryview,
        sizes: tuple[int, int, int],
        overlapped: OVERLAPPED,
    ) -> Started: ...
    def accept_addresses(
        self, view: memoryview, sizes: tuple[int, int, int]
    ) -> tuple[SOCKADDR, SOCKADDR]: ...
    def connect_ex(
        self,
        sock: socket.socket,
        name: SOCKADDR,
        views: list[memoryview],
        overlapped: OVERLAPPED,
    ) -> Started: ...
    def disconnect_ex(self, sock: socket.socket, overlapped: OVERLAPPED, flags: int) -> Started: ...

    # Calls that wait: a code and the bytes moved
    def receive_now(
        self, sock: socket.socket, views: list[memoryview], flags: int, sender: SOCKADDR | None
    ) -> tuple[int, int]:
        """``sender``: filled in, and the code says when a datagram was cut off."""

    def send_now(
        self, sock: socket.socket, views: list[memoryview], flags: int, name: SOCKADDR | None
    ) -> tuple[int, int]: ...
    def transmit_now(
        self,
        sock: socket.socket,
        file: HANDLE | None,
        sizes: tuple[int, int],
        parts: tuple[memoryview, memoryview],
        flags: int,
    ) -> int: ...
    def disconnect_now(self, sock: socket.socket, flags: int) -> int: ...
    def read_now(self, file: HANDLE | socket.socket, view: memoryview) -> tuple[int, int]: ...
    def write_now(self, file: HANDLE | socket.socket, view: memoryview) -> tuple[int, int]: ...

    # Options, words
    def control(self, sock: socket.socket, code: int, value: Any) -> tuple[int, Any]: ...
    def get_option(
        self, sock: socket.socket, level: int, option: int, size: int
    ) -> tuple[int, Any]: ...
    def text_of(self, code: int, language: int) -> str: ...

    # Handles
    def cancel_of_thread(self, file: HANDLE | socket.socket) -> int: ...
    def seek(self, handle: HANDLE, distance: int, method: int) -> tuple[int, int]: ...
    def file_size(self, handle: HANDLE) -> tuple[int, int]: ...
    def flush(self, handle: HANDLE) -> int: ...

    # Files
    def create_file(
        self, name: str, access: int, share: int, disposition: int, flags: int
    ) -> tuple[int, HANDLE | None]:
        """A code and the handle; ``ERROR_ALREADY_EXISTS`` with one that was there, where asked."""

    def read(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started: ...
    def write(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started: ...

    # Threads and waiting
    def create_thread(self, function: Callable[[Any], Any], argument: Any) -> HANDLE: ...
    def exit_code(self, thread: HANDLE) -> tuple[int, int]: ...
    def create_event(self, manual: bool, signalled: bool) -> HANDLE: ...
    def set_event(self, event: HANDLE, signalled: bool) -> int: ...
    def wait(
        self, handles: list[HANDLE | socket.socket], everything: bool, milliseconds: int
    ) -> tuple[int, int]: ...
    def system_info(self) -> SYSTEM_INFO: ...


system: System
"""The one of this machine."""

if sys.platform == "win32":
    from .windows import WindowsSystem

    system = WindowsSystem()
else:
    from .emulation import EngineSystem

    system = EngineSystem()
