"""NULL for lpOverlapped, a file's own position, second handles, CancelIo."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from completionport import win32
from support import read_exactly
from win32_support import (
    LONG,
    Packet,
    assert_quiet,
    differs_on_wine,
    in_order,
    pending,
    reset,
    take,
    wait_for_data,
)

Closing = Callable[[Any], Any]
Pair = tuple[win32.SOCKET, win32.SOCKET]
READ_WRITE = win32.GENERIC_READ | win32.GENERIC_WRITE


@pytest.fixture
def make_file(closing: Closing, tmp_path: Path) -> Callable[..., win32.HANDLE]:
    def make(flags: int = win32.FILE_ATTRIBUTE_NORMAL, data: bytes = b"") -> win32.HANDLE:
        path = tmp_path / "file"
        path.write_bytes(data)
        return closing(
            win32.CreateFile(path, READ_WRITE, 3, win32.NULL, win32.OPEN_EXISTING, flags)
        )

    return make


class TestSockets:
    def test_a_receive_waits_for_data(self, pair: Pair) -> None:
        near, far = pair
        sender = threading.Thread(target=win32.send, args=(far, b"hello"))
        rooms = [bytearray(2), bytearray(10)]
        answers: list[Any] = []
        waiter = threading.Thread(
            target=lambda: answers.append(win32.WSARecv(near, rooms, 0, win32.NULL))
        )
        waiter.start()
        sender.start()
        waiter.join(LONG / 1000)
        sender.join()
        assert answers == [(0, 5)]
        assert bytes(rooms[0] + rooms[1][:3]) == b"hello"

    def test_the_end_of_the_stream_is_no_bytes(self, pair: Pair) -> None:
        near, far = pair
        assert win32.closesocket(far) == 0
        assert win32.WSARecv(near, bytearray(4), 0, win32.NULL) == (0, 0)

    def test_a_send_takes_all(self, pair: Pair) -> None:
        near, far = pair
        data = in_order(4 << 20)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(read_exactly(far, len(data))))
        reader.start()
        parts = [data[:10], data[10:1000], data[1000:]]
        assert win32.WSASend(near, parts, 0, win32.NULL) == (0, len(data))
        reader.join(LONG / 1000)
        assert received == [data]

    @differs_on_wine("it hands all buffers to one sendmsg(2), which takes 1024")
    def test_more_buffers_than_one_call_takes(self, pair: Pair) -> None:
        near, far = pair
        data = in_order(8000)
        parts = [data[start : start + 4] for start in range(0, len(data), 4)]
        assert win32.WSASend(near, parts, 0, win32.NULL) == (0, len(data))
        assert read_exactly(far, len(data)) == data

    def test_no_packet_comes(self, near: win32.SOCKET, far: win32.SOCKET, port: Any) -> None:
        assert win32.WSASend(near, b"hello", 0, win32.NULL) == (0, 5)
        assert win32.send(far, b"hello") == 5
        wait_for_data(near)
        assert win32.WSARecv(near, bytearray(5), 0, win32.NULL) == (0, 5)
        assert_quiet(port)

    @differs_on_wine("a reset is told of only once, and select() takes it")
    def test_a_reset_is_told(self, pair: Pair) -> None:
        near, far = pair
        reset(far)
        wait_for_data(near)
        assert win32.WSARecv(near, bytearray(4), 0, win32.NULL) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAECONNRESET

    @differs_on_wine("a send without a connection ends with WSAECONNRESET")
    def test_a_socket_that_is_not_connected_or_closed(self, closing: Closing) -> None:
        sock = closing(win32.socket(win32.AF_INET, win32.SOCK_STREAM))
        for code in (win32.WSAENOTCONN, win32.WSAENOTSOCK):
            assert win32.WSARecv(sock, bytearray(4), 0, win32.NULL) == (win32.SOCKET_ERROR, None)
            assert win32.WSAGetLastError() == code
            assert win32.WSASend(sock, b"data", 0, win32.NULL) == (win32.SOCKET_ERROR, None)
            assert win32.WSAGetLastError() == code
            win32.closesocket(sock)

    def test_datagrams(self, closing: Closing) -> None:
        near, far = (closing(win32.socket(win32.AF_INET, win32.SOCK_DGRAM)) for _ in range(2))
        for sock in (near, far):
            assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        sender = win32.SOCKADDR_IN()
        sent = win32.WSASendTo(near, [b"he", b"llo"], 0, far.getsockname(), win32.NULL)
        assert sent == (0, 5)
        room = bytearray(10)
        assert win32.WSARecvFrom(far, room, 0, win32.NULL, sender) == (0, 5)
        assert (room[:5], sender.address) == (b"hello", near.getsockname())

    def test_reads_and_writes_of_a_socket(self, pair: Pair) -> None:
        near, far = pair
        ok, count = win32.WriteFile(near, b"hello", win32.NULL)
        assert (ok, count) == (True, 5)
        room = bytearray(5)
        assert win32.ReadFile(far, room, win32.NULL)
        assert room == b"hello"

    def test_a_disconnect_ends_the_stream(self, pair: Pair, port: Any) -> None:
        near, far = pair
        assert win32.CreateIoCompletionPort(near, port, "key", 0) is port
        assert win32.DisconnectEx(near, win32.NULL)
        assert far.recv(1) == b""
        assert_quiet(port)

    def test_a_file_is_sent_from_its_position(
        self, pair: Pair, port: Any, make_file: Callable[..., win32.HANDLE]
    ) -> None:
        near, far = pair
        assert win32.CreateIoCompletionPort(near, port, "key", 0) is port
        file = make_file(data=b"0123456789")
        assert win32.SetFilePointerEx(file, 4) == (True, 4)
        buffers = win32.TRANSMIT_FILE_BUFFERS(b"<", b">")
        assert win32.TransmitFile(near, file, 0, 0, win32.NULL, buffers)
        assert read_exactly(far, 8) == b"<456789>"
        assert win32.TransmitFile(near, win32.NULL, 0, 0, win32.NULL, buffers)
        assert read_exactly(far, 2) == b"<>"
        assert_quiet(port)

    def test_what_is_always_overlapped_is_refused(
        self, closing: Closing, listener: win32.SOCKET
    ) -> None:
        sock = closing(win32.socket(win32.AF_INET, win32.SOCK_STREAM))
        room = bytearray(64)
        assert not win32.AcceptEx(listener, sock, room, 0, 32, 32, win32.NULL)
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER
        assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        assert not win32.ConnectEx(sock, listener.getsockname(), win32.NULL, win32.NULL)
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER


class TestFiles:
    def test_it_goes_on_where_it_was(self, make_file: Callable[..., win32.HANDLE]) -> None:
        file, room = make_file(), bytearray(4)
        assert win32.WriteFile(file, b"0123456789", win32.NULL) == (True, 10)
        assert win32.GetFileSizeEx(file) == (True, 10)
        assert win32.SetFilePointerEx(file, 2, win32.FILE_BEGIN) == (True, 2)
        assert win32.ReadFile(file, room, win32.NULL) == (True, 4)
        assert room == b"2345"
        assert win32.SetFilePointerEx(file, -1, win32.FILE_CURRENT) == (True, 5)
        assert win32.ReadFile(file, room, win32.NULL) == (True, 4)
        assert room == b"5678"
        assert win32.SetFilePointerEx(file, -1, win32.FILE_END) == (True, 9)
        assert win32.ReadFile(file, room, win32.NULL) == (True, 1)
        assert win32.FlushFileBuffers(file)

    def test_the_end_is_no_bytes_and_no_error(self, make_file: Callable[..., win32.HANDLE]) -> None:
        done = win32.ReadFile(make_file(), bytearray(4), win32.NULL)
        assert done
        assert done == (True, 0)

    def test_a_file_that_was_opened_overlapped_refuses_it(
        self, make_file: Callable[..., win32.HANDLE]
    ) -> None:
        file = make_file(win32.FILE_FLAG_OVERLAPPED, b"data")
        for done in (
            win32.ReadFile(file, bytearray(4), win32.NULL),
            win32.WriteFile(file, b"more", win32.NULL),
        ):
            assert not done
            assert done.bytes == 0
            assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER

    def test_a_place_before_the_beginning(self, make_file: Callable[..., win32.HANDLE]) -> None:
        file = make_file(data=b"data")
        for method in (win32.FILE_BEGIN, win32.FILE_CURRENT):
            assert win32.SetFilePointerEx(file, -1, method) == (False, None)
            assert win32.GetLastError() == win32.ERROR_NEGATIVE_SEEK

    def test_a_closed_file(self, make_file: Callable[..., win32.HANDLE]) -> None:
        file = make_file()
        assert win32.CloseHandle(file)
        assert not win32.ReadFile(file, bytearray(1), win32.NULL)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE
        assert win32.SetFilePointerEx(file, 0) == (False, None)
        assert win32.GetFileSizeEx(file) == (False, None)
        assert not win32.FlushFileBuffers(file)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE

    def test_wrong_arguments(self, make_file: Callable[..., win32.HANDLE]) -> None:
        file = make_file()
        with pytest.raises(TypeError):
            win32.ReadFile(file, bytearray(1), 0)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            win32.SetFilePointerEx(file, "0")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="dwMoveMethod"):
            win32.SetFilePointerEx(file, 0, 3)
        with pytest.raises(TypeError):
            win32.GetFileSizeEx(5)  # type: ignore[arg-type]


class TestDuplicateHandle:
    def duplicate(self, handle: win32.HANDLE, options: int = 0) -> win32.HANDLE:
        process = win32.GetCurrentProcess()
        options |= win32.DUPLICATE_SAME_ACCESS
        ok, other = win32.DuplicateHandle(process, handle, process, 0, False, options)
        assert ok
        assert other is not None
        return other

    def test_the_object_goes_with_its_last_handle(self, port: win32.HANDLE) -> None:
        other, third = self.duplicate(port), self.duplicate(port)
        for handle in (port, third):
            assert win32.CloseHandle(handle)
            assert not win32.PostQueuedCompletionStatus(handle, 0, 0, win32.NULL)
            assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE
            assert not win32.CloseHandle(handle)
            assert win32.PostQueuedCompletionStatus(other, 7, "key", win32.NULL)
            assert take(other) == Packet(True, 7, "key", None, 0)
        assert win32.CloseHandle(other)
        assert not win32.PostQueuedCompletionStatus(other, 0, 0, win32.NULL)

    def test_a_file_and_an_event(self, make_file: Callable[..., win32.HANDLE]) -> None:
        file = make_file(data=b"data")
        other = self.duplicate(file)
        assert win32.CloseHandle(file)
        assert win32.ReadFile(other, bytearray(4), win32.NULL) == (True, 4)
        assert win32.CloseHandle(other)
        event = win32.CreateEvent(win32.NULL, True, False, win32.NULL)
        other = self.duplicate(event, win32.DUPLICATE_CLOSE_SOURCE)
        assert not win32.SetEvent(event)
        assert win32.SetEvent(other)
        assert win32.WaitForSingleObject(other, LONG) == win32.WAIT_OBJECT_0
        assert win32.CloseHandle(other)

    def test_what_is_refused(self, port: win32.HANDLE) -> None:
        process = win32.GetCurrentProcess()
        with pytest.raises(ValueError, match="GetCurrentProcess"):
            win32.DuplicateHandle(port, port, process)
        with pytest.raises(ValueError, match="same access"):
            win32.DuplicateHandle(process, port, process, 0, True)
        with pytest.raises(TypeError):
            win32.DuplicateHandle(process, 5, process)  # type: ignore[arg-type]
        win32.CloseHandle(port)
        assert win32.DuplicateHandle(process, port, process) == (False, None)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE


class TestCancelIo:
    def test_it_ends_what_the_thread_has_started(
        self, near: win32.SOCKET, port: win32.HANDLE
    ) -> None:
        mine, theirs = win32.OVERLAPPED(), win32.OVERLAPPED()
        over = threading.Event()

        def start() -> None:
            assert pending(win32.WSARecv(near, bytearray(4), 0, theirs))
            begun.set()
            over.wait(LONG / 1000)

        begun = threading.Event()
        other = threading.Thread(target=start)
        other.start()
        assert begun.wait(LONG / 1000)
        assert pending(win32.WSARecv(near, bytearray(4), 0, mine))
        assert win32.CancelIo(near)
        packet = take(port)
        assert (packet.overlapped, packet.error) == (mine, win32.ERROR_OPERATION_ABORTED)
        assert_quiet(port)
        assert win32.CancelIo(near)  # nothing is left: that is no error
        assert win32.CancelIoEx(near, win32.NULL)
        assert take(port).overlapped is theirs
        over.set()
        other.join()

    def test_a_closed_file(self, near: win32.SOCKET) -> None:
        win32.closesocket(near)
        assert not win32.CancelIo(near)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE
        with pytest.raises(TypeError):
            win32.CancelIo(5)  # type: ignore[arg-type]
