"""shutdown, DisconnectEx: which way ends, and what goes on."""

from __future__ import annotations

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
    started,
    take,
    wait_for_data,
)


@pytest.fixture
def overlapped():
    return win32.OVERLAPPED()


@pytest.fixture
def buffer():
    return bytearray(100)


def fails_with(result, code):
    return result in (win32.SOCKET_ERROR, (win32.SOCKET_ERROR, None)) and (
        win32.WSAGetLastError() == code
    )


class TestReceiving:
    @pytest.mark.parametrize("how", [win32.SD_RECEIVE, win32.SD_BOTH])
    def test_a_receive_that_is_under_way_goes_on(self, port, near, far, buffer, overlapped, how):
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.shutdown(near, how) == 0
        assert_quiet(port)
        assert not win32.HasOverlappedIoCompleted(overlapped)
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert buffer[:5] == b"hello"
        assert fails_with(win32.WSARecv(near, buffer, 0, overlapped), win32.WSAESHUTDOWN)
        assert_quiet(port)

    def test_several_that_are_under_way_go_on_in_order(self, port, near, far):
        receives = [(win32.OVERLAPPED(), bytearray(4)) for _ in range(3)]
        for overlapped, buffer in receives:
            assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.shutdown(near, win32.SD_RECEIVE) == 0
        far.sendall(in_order(12))
        for overlapped, _ in receives:
            assert take(port) == Packet(True, 4, "key", overlapped, 0)
        assert b"".join(bytes(buffer) for _, buffer in receives) == in_order(12)

    def test_so_does_its_end_when_the_peer_ends(self, port, near, far, buffer, overlapped):
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.shutdown(near, win32.SD_RECEIVE) == 0
        assert win32.shutdown(far, win32.SD_SEND) == 0
        assert take(port) == Packet(True, 0, "key", overlapped, 0)

    @pytest.mark.parametrize("how", [win32.SD_RECEIVE, win32.SD_BOTH])
    @pytest.mark.parametrize("there", [False, True])
    @pytest.mark.parametrize("what", ["WSARecv", "WSARecvFrom", "ReadFile", "recv"])
    def test_each_receive_of_later_is_refused(
        self, port, near, far, buffer, overlapped, how, there, what
    ):
        if there:
            far.sendall(b"hello")
            wait_for_data(near)
        assert win32.shutdown(near, how) == 0
        for _ in range(2):
            if what == "ReadFile":
                assert not win32.ReadFile(near, buffer, overlapped)
                assert win32.GetLastError() == win32.ERROR_PIPE_NOT_CONNECTED
            elif what == "recv":
                assert fails_with(win32.recv(near, buffer), win32.WSAESHUTDOWN)
            else:
                result = getattr(win32, what)(near, buffer, 0, overlapped)
                assert fails_with(result, win32.WSAESHUTDOWN)
        assert_quiet(port)

    @pytest.mark.parametrize("what", ["WSARecv", "WSARecvFrom", "recv"])
    def test_datagrams_too(self, port, closing, buffer, overlapped, what):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is port
        assert win32.shutdown(sock, win32.SD_RECEIVE) == 0
        if what == "recv":
            assert fails_with(win32.recv(sock, buffer), win32.WSAESHUTDOWN)
        else:
            result = getattr(win32, what)(sock, buffer, 0, overlapped)
            assert fails_with(result, win32.WSAESHUTDOWN)
        other = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        assert win32.bind(other, ("127.0.0.1", 0)) == 0
        other.settimeout(LONG / 1000)
        sending = win32.OVERLAPPED()
        assert started(win32.WSASendTo(sock, b"hello", 0, other.getsockname(), sending))
        assert other.recv(10) == b"hello"
        assert win32.shutdown(sock, win32.SD_SEND) == 0
        result = win32.WSASendTo(sock, b"hello", 0, other.getsockname(), overlapped)
        assert fails_with(result, win32.WSAESHUTDOWN)

    def test_sending_goes_on(self, near, far):
        assert win32.shutdown(near, win32.SD_RECEIVE) == 0
        assert win32.send(near, b"hello") == 5
        assert read_exactly(far, 5) == b"hello"


class TestSending:
    def test_what_is_being_sent_goes_out_before_the_end(self, port, near, far, overlapped):
        data = in_order(8 << 20)
        assert pending(win32.WSASend(near, data, 0, overlapped))
        assert win32.shutdown(near, win32.SD_SEND) == 0
        assert read_exactly(far, len(data)) == data
        assert far.recv(1) == b""
        assert take(port) == Packet(True, len(data), "key", overlapped, 0)

    def test_it_can_be_said_twice(self, near, far):
        for _ in range(2):
            assert win32.shutdown(near, win32.SD_SEND) == 0
        assert far.recv(1) == b""
        assert fails_with(win32.send(near, b"x"), win32.WSAESHUTDOWN)

    def test_also_when_both_sides_have_ended(self, near, far):
        assert win32.shutdown(near, win32.SD_SEND) == 0
        assert win32.shutdown(far, win32.SD_SEND) == 0
        assert win32.recv(near, bytearray(1)) == 0
        assert far.recv(1) == b""
        for how in (win32.SD_SEND, win32.SD_RECEIVE, win32.SD_BOTH):
            assert win32.shutdown(near, how) == 0


class TestRefusals:
    @pytest.mark.parametrize("how", [win32.SD_RECEIVE, win32.SD_SEND, win32.SD_BOTH])
    def test_a_listening_socket_goes_on_accepting(self, port, listener, closing, overlapped, how):
        assert win32.CreateIoCompletionPort(listener, port, "listener", 0) is port
        assert fails_with(win32.shutdown(listener, how), win32.WSAENOTCONN)
        peer = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.connect(peer, listener.getsockname()) == 0
        assert closing(win32.accept(listener)).getpeername() == peer.getsockname()

    @pytest.mark.parametrize("how", [win32.SD_RECEIVE, win32.SD_SEND, win32.SD_BOTH])
    def test_a_socket_without_a_connection(self, closing, how):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert fails_with(win32.shutdown(sock, how), win32.WSAENOTCONN)

    def test_another_number_is_no_way(self, near):
        assert fails_with(win32.shutdown(near, 7), win32.WSAEINVAL)


class TestDisconnecting:
    def test_it_ends_sending_and_goes_on_receiving(self, port, near, far, buffer, overlapped):
        receiving = win32.OVERLAPPED()
        assert pending(win32.WSARecv(near, buffer, 0, receiving))
        assert win32.DisconnectEx(near, overlapped) or (
            win32.GetLastError() == win32.ERROR_IO_PENDING
        )
        assert take(port) == Packet(True, 0, "key", overlapped, 0)
        assert far.recv(1) == b""
        assert fails_with(win32.send(near, b"x"), win32.WSAESHUTDOWN)
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", receiving, 0)
        far.sendall(b"more")
        assert win32.recv(near, buffer) == 4
        assert buffer[:5] == b"moreo"
        assert fails_with(win32.connect(near, far.getsockname()), win32.WSAEISCONN)
        assert near.getpeername() == far.getsockname()

    def test_it_can_be_done_twice(self, port, near, far):
        for _ in range(2):
            overlapped = win32.OVERLAPPED()
            assert win32.DisconnectEx(near, overlapped) or (
                win32.GetLastError() == win32.ERROR_IO_PENDING
            )
            assert take(port) == Packet(True, 0, "key", overlapped, 0)

    def test_without_a_connection(self, port, closing, overlapped):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is port
        assert not win32.DisconnectEx(sock, overlapped)
        assert win32.WSAGetLastError() == win32.WSAENOTCONN
        assert_quiet(port)

    @differs_on_wine("knows no TF_DISCONNECT")
    def test_behind_a_file_it_goes_on_receiving_too(self, port, near, far, buffer, overlapped):
        buffers = win32.TRANSMIT_FILE_BUFFERS(b"bye", b"")
        assert win32.TransmitFile(near, None, 0, 0, overlapped, buffers, win32.TF_DISCONNECT) or (
            win32.GetLastError() == win32.ERROR_IO_PENDING
        )
        assert take(port) == Packet(True, 3, "key", overlapped, 0)
        assert read_exactly(far, 3) == b"bye"
        far.settimeout(2)
        assert far.recv(1) == b""
        far.sendall(b"hello")
        assert win32.recv(near, buffer) == 5
