"""CancelIoEx, closesocket, CloseHandle: one packet for each operation, whatever comes first."""

from __future__ import annotations

import socket
import threading
import time
import warnings

import pytest

from completionport import win32
from win32_support import (
    LONG,
    Packet,
    assert_quiet,
    collect_garbage,
    differs_on_wine,
    is_in,
    pending,
    take,
    wait_until,
)

SEND_FORGOTTEN = "a send that is under way when its socket is closed gives no packet"


@pytest.fixture
def buffer():
    return bytearray(100)


def aborted(overlapped):
    """The packet of what CancelIoEx has stopped."""
    return Packet(False, 0, "key", overlapped, win32.ERROR_OPERATION_ABORTED)


class TestCancelling:
    def test_one_operation(self, port, near, far, buffer):
        first, second = win32.OVERLAPPED(), win32.OVERLAPPED()
        other = bytearray(10)
        assert pending(win32.WSARecv(near, buffer, 0, first))
        assert pending(win32.WSARecv(near, other, 0, second))
        assert win32.CancelIoEx(near, first)
        assert take(port) == aborted(first)
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", second, 0)
        assert other[:5] == b"hello"
        assert_quiet(port)

    def test_all_operations(self, port, near, buffer):
        operations = [win32.OVERLAPPED() for _ in range(5)]
        for overlapped in operations:
            assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.CancelIoEx(near, None)
        packets = [take(port) for _ in operations]
        assert {packet.overlapped for packet in packets} == set(operations)
        assert {packet.error for packet in packets} == {win32.ERROR_OPERATION_ABORTED}
        assert_quiet(port)

    @differs_on_wine("has cancelled all of nothing")
    def test_all_of_nothing_is_not_found(self, port, near):
        assert not win32.CancelIoEx(near, None)
        assert win32.GetLastError() == win32.ERROR_NOT_FOUND
        assert_quiet(port)

    def test_what_was_never_started_is_not_found(self, port, near):
        assert not win32.CancelIoEx(near, win32.OVERLAPPED())
        assert win32.GetLastError() == win32.ERROR_NOT_FOUND
        assert_quiet(port)

    def test_what_has_completed_is_not_found(self, port, near, far, buffer):
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        far.sendall(b"hello")
        assert win32.GetOverlappedResult(near, overlapped, True) == (True, 5)
        assert not win32.CancelIoEx(near, overlapped)
        assert win32.GetLastError() == win32.ERROR_NOT_FOUND
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert_quiet(port)

    def test_without_a_port_the_outcome_says_so(self, pair, buffer):
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(pair[0], buffer, 0, overlapped))
        assert win32.CancelIoEx(pair[0], overlapped)
        assert win32.GetOverlappedResult(pair[0], overlapped, True) == (False, 0)
        assert win32.GetLastError() == win32.ERROR_OPERATION_ABORTED
        assert win32.WSAGetOverlappedResult(pair[0], overlapped, False) == (False, 0)
        assert win32.WSAGetLastError() == win32.WSA_OPERATION_ABORTED

    def test_no_data_is_lost_by_it(self, port, near, far, buffer):
        overlapped = win32.OVERLAPPED()
        received = b""
        for number in range(30):
            assert win32.WSARecv(near, buffer, 0, overlapped)[0] == 0 or (
                win32.WSAGetLastError() == win32.WSA_IO_PENDING
            )
            far.sendall(bytes([number]))
            win32.CancelIoEx(near, overlapped)
            packet = take(port)
            if packet.ok:
                received += buffer[: packet.bytes]
            else:
                assert packet.error == win32.ERROR_OPERATION_ABORTED
        far.shutdown(win32.SD_SEND)
        while part := near.recv(100):
            received += part
        assert received == bytes(range(30))
        assert_quiet(port)

    def test_a_closed_socket_is_an_invalid_handle(self, near):
        win32.closesocket(near)
        assert not win32.CancelIoEx(near, None)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE


class TestClosing:
    def test_a_socket_that_is_closed_aborts_its_operations_once(self, port, near, far, buffer):
        operations = [win32.OVERLAPPED() for _ in range(3)]
        for overlapped in operations:
            assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.closesocket(near) == 0
        packets = [take(port) for _ in operations]
        assert {packet.overlapped for packet in packets} == set(operations)
        assert {packet[:3] for packet in packets} == {(False, 0, "key")}
        assert far.recv(1) == b""
        assert_quiet(port)

    @pytest.mark.parametrize("how", ["closesocket", "close()", "dropped"])
    @pytest.mark.parametrize(
        "what",
        [
            "WSARecv",
            "WSARecvFrom",
            "ReadFile",
            pytest.param("WSASend", marks=differs_on_wine(SEND_FORGOTTEN, always=False)),
            pytest.param("WriteFile", marks=differs_on_wine(SEND_FORGOTTEN, always=False)),
        ],
    )
    def test_a_connection_that_is_closed_here_ends_what_it_moves_as_aborted(
        self, port, near, far, closing, buffer, what, how
    ):
        """What Windows says since Vista: not the code of CancelIoEx."""
        if how == "dropped":
            # A socket of Python's, which nothing holds but this test.
            near, far = socket.socketpair()
            closing(far)
            assert win32.CreateIoCompletionPort(near, port, "key", 0) is port
        overlapped = win32.OVERLAPPED()
        call = getattr(win32, what)
        if what in ("WSASend", "WriteFile"):
            buffer = bytes(32 << 20)
        arguments = (buffer, overlapped) if what.endswith("File") else (buffer, 0, overlapped)
        assert not call(near, *arguments) or pending((win32.SOCKET_ERROR, None))
        assert not win32.HasOverlappedIoCompleted(overlapped)
        if how == "closesocket":
            assert win32.closesocket(near) == 0
        elif how == "close()":
            near.close()
        else:
            with warnings.catch_warnings():
                # Where a warning is kept, it keeps the socket.
                warnings.simplefilter("ignore", ResourceWarning)
                del near
                collect_garbage()
                wait_until(lambda: win32.HasOverlappedIoCompleted(overlapped))
        assert take(port) == Packet(False, 0, "key", overlapped, win32.ERROR_CONNECTION_ABORTED)
        assert overlapped.Internal == 0xC0000241  # STATUS_CONNECTION_ABORTED
        if how == "closesocket":
            assert win32.GetOverlappedResult(near, overlapped, False)[0] is False
            assert win32.GetLastError() == win32.ERROR_CONNECTION_ABORTED
        assert_quiet(port)

    def test_what_was_cancelled_before_the_socket_was_closed_is_cancelled(self, port, near, buffer):
        operations = [win32.OVERLAPPED() for _ in range(2)]
        for overlapped in operations:
            assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.CancelIoEx(near, operations[1])
        assert win32.closesocket(near) == 0
        errors = {packet.overlapped: packet.error for packet in (take(port), take(port))}
        assert errors == {
            operations[0]: win32.ERROR_CONNECTION_ABORTED,
            operations[1]: win32.ERROR_OPERATION_ABORTED,
        }

    def test_a_datagram_socket_that_is_closed_has_no_connection_to_abort(
        self, port, closing, buffer
    ):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is port
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecvFrom(sock, buffer, 0, overlapped))
        assert win32.closesocket(sock) == 0
        assert take(port) == aborted(overlapped)

    @pytest.mark.parametrize("call", ["recv", "send"])
    def test_a_thread_that_waits_in_a_call_is_told_that_the_connection_was_aborted(
        self, near, far, call
    ):
        answers = []
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def work():
            data = bytearray(1 << 20)
            while True:
                count = getattr(win32, call)(near, data)
                if count <= 0:
                    answers.append((count, win32.WSAGetLastError()))
                    return

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        wait_until(lambda: is_in(thread, getattr(win32, call)))
        time.sleep(0.05)  # nothing tells that the system has it wait; else the answer is the second
        assert win32.closesocket(near) == 0
        thread.join(LONG / 1000)
        assert not thread.is_alive()
        expected = {win32.WSAECONNABORTED, win32.WSAENOTSOCK}
        assert answers[0][0] == win32.SOCKET_ERROR
        assert answers[0][1] in expected

    def test_a_packet_that_was_there_before_stays(self, port, near, far, buffer):
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        far.sendall(b"hello")
        assert win32.GetOverlappedResult(near, overlapped, True) == (True, 5)
        win32.closesocket(near)
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert_quiet(port)

    def test_closed_again_it_is_no_socket(self, near):
        assert win32.closesocket(near) == 0
        assert win32.closesocket(near) == win32.SOCKET_ERROR
        assert win32.WSAGetLastError() == win32.WSAENOTSOCK

    def test_asked_after_the_end_the_outcome_needs_the_socket_for_winsocks_code(
        self, port, near, buffer
    ):
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        win32.closesocket(near)
        assert not take(port).ok
        assert win32.GetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.WSAGetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.WSAGetLastError() == win32.WSAENOTSOCK

    def test_a_port_that_is_closed_does_not_keep_its_sockets_from_working(
        self, port, near, far, buffer
    ):
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.CloseHandle(port)
        far.sendall(b"hello")
        assert win32.GetOverlappedResult(near, overlapped, True) == (True, 5)


class TestAssociating:
    def test_twice_with_the_same_port(self, port, near):
        assert win32.CreateIoCompletionPort(near, port, "again", 0) is None
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER

    def test_twice_with_another_port(self, make_port, near):
        assert win32.CreateIoCompletionPort(near, make_port(), "again", 0) is None
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER

    def test_the_first_association_holds(self, port, make_port, near, far, buffer):
        other = make_port()
        win32.CreateIoCompletionPort(near, other, "again", 0)
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        far.sendall(b"x")
        assert take(port) == Packet(True, 1, "key", overlapped, 0)
        assert_quiet(other)

    def test_a_socket_that_is_not_overlapped(self, port, closing):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM, 0, None, 0, 0))
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is None
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER

    def test_a_closed_socket(self, port, pair):
        win32.closesocket(pair[0])
        assert win32.CreateIoCompletionPort(pair[0], port, "key", 0) is None
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE

    def test_a_socket_makes_its_port_where_there_is_none(self, pair, closing, buffer):
        near, far = pair
        port = closing(win32.CreateIoCompletionPort(near, None, "key", 0))
        overlapped = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        far.sendall(b"x")
        assert take(port) == Packet(True, 1, "key", overlapped, 0)

    def test_one_port_for_several_sockets_with_a_key_each(self, port, closing, buffer):
        from win32_support import connected_pair

        ends = []
        for number in range(3):
            near, far = connected_pair()
            ends.append((closing(near), closing(far)))
            win32.CreateIoCompletionPort(near, port, number, 0)
            assert pending(win32.WSARecv(near, buffer, 0, win32.OVERLAPPED()))
        for number in (2, 0, 1):
            ends[number][1].sendall(b"x")
            assert take(port).key == number
