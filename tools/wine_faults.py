"""Faults of Wine that keep tests from running there, each shown without the library.

    python tools/windows_python.py run tools/wine_faults.py

Prints for each of them how often it came about. On Windows none does: what has to happen is what
Microsoft's documentation of the function says. The tests that are skipped name their fault here.
"""

from __future__ import annotations

import contextlib
import ctypes
import msvcrt
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from ctypes import wintypes

assert sys.platform == "win32"

HANDLE, DWORD, POINTER = ctypes.c_void_p, wintypes.DWORD, ctypes.c_void_p
INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value
ERROR_NOT_FOUND = 1168
SIZE = 4 << 20
"""Bytes of the file that is sent: more than sockets hold."""
TURNS = 50
SOON = 500
"""Milliseconds within which a packet has to be there when nothing more has to happen for it."""

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
mswsock = ctypes.WinDLL("mswsock", use_last_error=True)
kernel32.CreateIoCompletionPort.restype = HANDLE
kernel32.CreateIoCompletionPort.argtypes = [HANDLE, HANDLE, ctypes.c_size_t, DWORD]
kernel32.GetQueuedCompletionStatus.argtypes = [HANDLE, POINTER, POINTER, POINTER, DWORD]
kernel32.CancelIoEx.argtypes = [HANDLE, POINTER]
kernel32.CloseHandle.argtypes = [HANDLE]
mswsock.TransmitFile.argtypes = [HANDLE, HANDLE, DWORD, DWORD, POINTER, POINTER, DWORD]


class OVERLAPPED(ctypes.Structure):
    """As the headers of Windows have it."""

    _fields_ = [
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", DWORD),
        ("OffsetHigh", DWORD),
        ("hEvent", HANDLE),
    ]


class Transmission:
    """A TransmitFile under way on a connection whose other end is `far`."""

    def __init__(self, near: socket.socket, far: socket.socket, port: int, file: int) -> None:
        self.near, self.far = near, far
        self.port = port
        self.file = file
        self.overlapped = OVERLAPPED()
        self.over = False  # its packet was taken

    def start(self) -> None:
        mswsock.TransmitFile(
            *(self.near.fileno(), self.file, 0, 0),
            *(ctypes.addressof(self.overlapped), None, 0),
        )

    def cancel(self) -> int:
        """Returned: 0, or the code of the error."""
        if kernel32.CancelIoEx(self.near.fileno(), ctypes.addressof(self.overlapped)):
            return 0
        return ctypes.get_last_error()

    def packet(self, milliseconds: int) -> int | None:
        """Take the packet. Returned: how many bytes it tells of; None when none comes."""
        count, key, address = DWORD(), ctypes.c_size_t(), ctypes.c_void_p()
        kernel32.GetQueuedCompletionStatus(
            *(self.port, ctypes.addressof(count), ctypes.addressof(key)),
            *(ctypes.addressof(address), milliseconds),
        )
        if address.value is None:
            return None
        self.over = True
        return count.value

    def receive(self) -> int:
        """Receive until nothing more comes. Returned: how many bytes came."""
        self.far.settimeout(SOON / 1000)
        received = 0
        with contextlib.suppress(TimeoutError):
            while received < SIZE and (data := self.far.recv(1 << 20)):
                received += len(data)
        return received


@contextlib.contextmanager
def transmission(path: str) -> Iterator[Transmission]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    port = kernel32.CreateIoCompletionPort(INVALID_HANDLE_VALUE, None, 0, 0)
    with near, far, open(path, "rb") as file:
        kernel32.CreateIoCompletionPort(near.fileno(), port, 0, 0)
        one = Transmission(near, far, port, msvcrt.get_osfhandle(file.fileno()))
        yield one
        # Its memory is the system's until it is over.
        near.close()
        far.close()
        if not one.over:
            one.packet(10 * SOON)
    kernel32.CloseHandle(port)


def is_not_found(path: str) -> bool:
    """CancelIoEx does not find a TransmitFile that goes on for ever after that.

    Documented: ERROR_NOT_FOUND means that there is nothing to cancel.
    """
    with transmission(path) as one:
        one.start()  # nobody receives, so it is not over until it is cancelled
        return one.cancel() == ERROR_NOT_FOUND and one.packet(SOON) is None


def ends_with_its_thread(path: str) -> bool:
    """The packet of a TransmitFile tells of less than what was sent when its thread has ended.

    Documented: the end of a thread does not end what it has begun on a file that belongs to a port,
    and the packet tells how much was sent.
    """
    with transmission(path) as one:
        thread = threading.Thread(target=one.start)
        thread.start()
        thread.join()
        received: list[int] = []
        receiver = threading.Thread(target=lambda: received.append(one.receive()))
        receiver.start()
        told = one.packet(10 * SOON)
        receiver.join()
        return told != received[0]


FAULTS = {
    "TransmitFile: CancelIoEx does not find it": is_not_found,
    "TransmitFile: lost with its thread": ends_with_its_thread,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")
        with open(path, "wb") as file:
            file.write(bytes(SIZE))
        for name, came_about in FAULTS.items():
            times = sum(came_about(path) for _ in range(TURNS))
            print(f"{name}: {times} times of {TURNS}", flush=True)


if __name__ == "__main__":
    main()
