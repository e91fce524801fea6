"""What the tests of `completionport.win32` share."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import re
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from completionport import win32

LONG = 20_000
"""Milliseconds after which something that has to happen counts as not happening."""
SHORT = 50
"""Milliseconds in which something that must not happen is waited for."""

ROOM = win32.sizeof(win32.SOCKADDR_IN) + 16
"""Bytes that AcceptEx wants for an IPv4 address."""

WINE = sys.platform == "win32" and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


def differs_on_wine(reason: str, *, always: bool = True) -> pytest.MarkDecorator:
    """For a test that holds Microsoft's documentation, where Wine does something else."""
    return pytest.mark.xfail(WINE, reason=f"Wine: {reason}", strict=always)


class Packet(NamedTuple):
    """What `GetQueuedCompletionStatus` returned, and the last error behind it."""

    ok: bool
    bytes: int
    key: Any
    overlapped: Any
    error: int


def take(port: win32.HANDLE, milliseconds: int = LONG) -> Packet:
    """The next packet, which has to come."""
    win32.SetLastError(0)
    ok, count, key, overlapped = win32.GetQueuedCompletionStatus(port, milliseconds)
    error = win32.GetLastError()
    assert ok or error != win32.WAIT_TIMEOUT, "no packet came"
    return Packet(ok, count, key, overlapped, error)


def assert_quiet(port: win32.HANDLE) -> None:
    """No packet is there, and none comes."""
    assert win32.GetQueuedCompletionStatus(port, SHORT) == (False, None, None, None)
    assert win32.GetLastError() == win32.WAIT_TIMEOUT


def wait_until(condition: Callable[[], Any]) -> None:
    """Look again and again until the condition holds."""
    deadline = time.monotonic() + LONG / 1000
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.001)


def connected_pair() -> tuple[win32.SOCKET, win32.SOCKET]:
    listener = win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)
    far = win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)
    assert listener is not None
    assert far is not None
    assert win32.bind(listener, ("127.0.0.1", 0)) == 0
    assert win32.listen(listener, 1) == 0
    assert win32.connect(far, listener.getsockname()) == 0
    near = win32.accept(listener)
    assert near is not None
    win32.closesocket(listener)
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def wait_for_data(sock: socket.socket) -> None:
    """Wait until a receive has something to tell: data, the end or an error."""
    assert select.select([sock], [], [], LONG / 1000)[0]


def reset(sock: socket.socket) -> None:
    """Close a connection so that its peer gets a reset."""
    form = "hh" if sys.platform == "win32" else "ii"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(form, 1, 0))
    win32.closesocket(sock)


def pending(result: tuple[int, int | None]) -> bool:
    """Whether WSARecv or WSASend said that the operation is under way."""
    return result == (win32.SOCKET_ERROR, None) and win32.WSAGetLastError() == win32.WSA_IO_PENDING


def started(result: tuple[int, int | None]) -> bool:
    """Whether it is under way, or has succeeded already."""
    return result[0] == 0 or pending(result)


def in_order(size: int) -> bytes:
    """Bytes in which a swap of two parts shows."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4))


def collect_garbage() -> None:
    for _ in range(3):
        gc.collect()


def is_in(thread: threading.Thread, function: Any) -> bool:
    """Whether a thread is in a call of the function."""
    # In one step of the interpreter: CPython 3.11 gives wrong frames of a thread that goes on while
    # another one walks from frame to frame.
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        _, *parts = re.split(r"^(?:Current t|T)hread 0x([0-9a-f]+).*\n", file.read(), flags=re.M)
    stacks = {int(ident, 16): stack for ident, stack in zip(parts[::2], parts[1::2], strict=True)}
    code = function.__code__
    place = rf'File "{re.escape(code.co_filename)}", line \d+ in {code.co_name}$'
    return re.search(place, stacks.get(thread.ident or 0, ""), re.M) is not None


class Taker(threading.Thread):
    """A thread that takes one packet and remembers it."""

    def __init__(self, port: win32.HANDLE) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.packet: Packet | None = None
        self.start()
        wait_until(lambda: is_in(self, win32.GetQueuedCompletionStatus))

    def run(self) -> None:
        self.packet = take(self.port)

    def outcome(self) -> Packet:
        self.join(LONG / 1000)
        assert not self.is_alive()
        assert self.packet is not None
        return self.packet


def waiting(port: win32.HANDLE, count: int) -> None:
    """Wait until so many threads, which are in the call, wait in the system."""
    if sys.platform == "win32":
        # Nothing there tells how many wait. The threads have nothing left to do but to call the
        # kernel; the test is of no worth, but does not fail, where one of them takes longer.
        time.sleep(0.1)
    else:
        wait_until(lambda: port._object.port.stats()["waiting"] == count)
