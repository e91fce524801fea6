"""AcceptEx, ConnectEx, DisconnectEx: connections made and ended by overlapped operations."""

from __future__ import annotations

import socket
import threading
import warnings

import pytest

from completionport import win32
from win32_support import (
    LONG,
    ROOM,
    WINE,
    Packet,
    assert_quiet,
    differs_on_wine,
    pending,
    reset,
    started,
    take,
    wait_for_data,
    wait_until,
)


@pytest.fixture
def bound(listener, port):
    """The listening socket, which belongs to the port with the key ``"listener"``."""
    assert win32.CreateIoCompletionPort(listener, port, "listener", 0) is port
    return listener


@pytest.fixture
def accepting(closing):
    return closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))


@pytest.fixture
def dial(closing, listener):
    def connect():
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        sock.settimeout(LONG / 1000)
        assert win32.connect(sock, listener.getsockname()) == 0
        return sock

    return connect


@pytest.fixture
def overlapped():
    return win32.OVERLAPPED()


def accept_ex(listener, sock, overlapped, room=0, buffer=None):
    """Start it: whether it is under way or has succeeded."""
    buffer = bytearray(room + 2 * ROOM) if buffer is None else buffer
    return win32.AcceptEx(listener, sock, buffer, room, ROOM, ROOM, overlapped) or (
        win32.GetLastError() == win32.ERROR_IO_PENDING
    )


def update(sock, listener):
    assert win32.setsockopt(sock, win32.SOL_SOCKET, win32.SO_UPDATE_ACCEPT_CONTEXT, listener) == 0


class TestAcceptEx:
    def test_without_room_for_data_it_completes_with_the_connection(
        self, port, bound, accepting, dial, overlapped
    ):
        assert accept_ex(bound, accepting, overlapped)
        client = dial()
        assert take(port) == Packet(True, 0, "listener", overlapped, 0)
        update(accepting, bound)
        assert accepting.getpeername() == client.getsockname()
        client.sendall(b"hello")
        assert accepting.recv(10) == b"hello"
        accepting.sendall(b"there")
        assert client.recv(10) == b"there"
        assert_quiet(port)

    def test_with_room_for_data_it_completes_when_some_has_come(
        self, port, bound, accepting, dial, overlapped
    ):
        buffer = bytearray(100 + 2 * ROOM)
        assert accept_ex(bound, accepting, overlapped, 100, buffer)
        client = dial()
        assert_quiet(port)
        client.sendall(b"hello")
        assert take(port) == Packet(True, 5, "listener", overlapped, 0)
        assert buffer[:5] == b"hello"
        update(accepting, bound)
        client.sendall(b"more")
        assert accepting.recv(10) == b"more"

    def test_with_room_for_data_a_client_that_sends_none_gives_no_bytes_at_its_end(
        self, port, bound, accepting, dial, overlapped
    ):
        assert accept_ex(bound, accepting, overlapped, 100)
        win32.closesocket(dial())
        assert take(port) == Packet(True, 0, "listener", overlapped, 0)

    def test_the_buffer_has_both_addresses(self, port, bound, accepting, dial, overlapped):
        buffer = bytearray(20 + 2 * ROOM)
        assert accept_ex(bound, accepting, overlapped, 20, buffer)
        client = dial()
        client.sendall(b"x")
        take(port)
        local, remote = win32.GetAcceptExSockaddrs(buffer, 20, ROOM, ROOM)
        assert local.address == bound.getsockname()
        assert remote.address == client.getsockname()
        assert win32.inet_ntoa(remote.sin_addr) == "127.0.0.1"
        assert win32.ntohs(remote.sin_port) == client.getsockname()[1]

    def test_a_client_that_waits_already(self, port, bound, accepting, dial, overlapped):
        client = dial()
        assert accept_ex(bound, accepting, overlapped)
        assert take(port) == Packet(True, 0, "listener", overlapped, 0)
        update(accepting, bound)
        assert accepting.getpeername() == client.getsockname()
        assert_quiet(port)

    def test_a_client_that_has_come_and_gone_is_accepted_and_has_ended(
        self, port, bound, accepting, dial, overlapped
    ):
        client = dial()
        client.sendall(b"bye")
        win32.closesocket(client)
        assert accept_ex(bound, accepting, overlapped)
        assert take(port) == Packet(True, 0, "listener", overlapped, 0)
        update(accepting, bound)
        assert accepting.recv(10) == b"bye"
        assert accepting.recv(10) == b""

    def test_several_accepts_take_a_client_each_in_order(self, port, bound, dial, closing):
        sockets = [closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)) for _ in range(5)]
        operations = [win32.OVERLAPPED() for _ in sockets]
        for sock, overlapped in zip(sockets, operations, strict=True):
            assert accept_ex(bound, sock, overlapped)
        clients = [dial() for _ in sockets]
        assert [take(port).overlapped for _ in sockets] == operations
        for sock, client in zip(sockets, clients, strict=True):
            update(sock, bound)
            assert sock.getpeername() == client.getsockname()

    def test_the_accepted_socket_can_belong_to_the_port_before(
        self, port, bound, accepting, dial, overlapped
    ):
        assert win32.CreateIoCompletionPort(accepting, port, "accepted", 0) is port
        assert accept_ex(bound, accepting, overlapped)
        client = dial()
        assert take(port).key == "listener"
        update(accepting, bound)
        buffer, receiving = bytearray(10), win32.OVERLAPPED()
        assert started(win32.WSARecv(accepting, buffer, 0, receiving))
        client.sendall(b"hello")
        assert take(port) == Packet(True, 5, "accepted", receiving, 0)

    def test_the_accepted_socket_can_belong_to_the_port_afterwards(
        self, port, bound, accepting, dial, overlapped
    ):
        assert accept_ex(bound, accepting, overlapped)
        client = dial()
        take(port)
        update(accepting, bound)
        assert win32.CreateIoCompletionPort(accepting, port, "accepted", 0) is port
        buffer, receiving = bytearray(10), win32.OVERLAPPED()
        assert started(win32.WSARecv(accepting, buffer, 0, receiving))
        client.sendall(b"hello")
        assert take(port) == Packet(True, 5, "accepted", receiving, 0)

    def test_without_a_port_one_can_wait_for_it(self, listener, accepting, dial, overlapped):
        assert accept_ex(listener, accepting, overlapped)
        dial()
        assert win32.GetOverlappedResult(listener, overlapped, True) == (True, 0)

    def test_a_listening_socket_that_is_closed_aborts_its_accept_once(
        self, port, bound, accepting, overlapped
    ):
        assert accept_ex(bound, accepting, overlapped)
        assert win32.closesocket(bound) == 0
        assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_OPERATION_ABORTED)
        assert_quiet(port)

    def test_a_listening_socket_that_is_closed_with_nothing_pending_gives_no_packet(
        self, port, bound
    ):
        assert win32.closesocket(bound) == 0
        assert_quiet(port)

    def test_a_listening_socket_that_is_closed_while_data_is_awaited(
        self, port, bound, accepting, dial, overlapped
    ):
        assert accept_ex(bound, accepting, overlapped, 100)
        dial()
        assert_quiet(port)
        assert win32.closesocket(bound) == 0
        assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_OPERATION_ABORTED)
        assert_quiet(port)

    def test_an_accept_socket_that_is_closed_aborts_the_accept(
        self, port, bound, accepting, overlapped
    ):
        assert accept_ex(bound, accepting, overlapped)
        assert win32.closesocket(accepting) == 0
        assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_OPERATION_ABORTED)
        assert_quiet(port)

    def test_cancelled_it_can_be_started_again(self, port, bound, accepting, dial, overlapped):
        assert accept_ex(bound, accepting, overlapped)
        assert win32.CancelIoEx(bound, overlapped)
        assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_OPERATION_ABORTED)
        assert accept_ex(bound, accepting, overlapped)
        dial()
        assert take(port) == Packet(True, 0, "listener", overlapped, 0)

    def test_cancelled_while_data_is_awaited(self, port, bound, accepting, dial, overlapped):
        assert accept_ex(bound, accepting, overlapped, 100)
        dial()
        assert_quiet(port)
        assert win32.CancelIoEx(bound, overlapped)
        assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_OPERATION_ABORTED)
        assert_quiet(port)

    @differs_on_wine("accepts, and tells of the failure by a packet")
    def test_a_socket_that_does_not_listen_accepts_nothing(
        self, port, accepting, closing, overlapped
    ):
        other = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        win32.bind(other, ("127.0.0.1", 0))
        win32.CreateIoCompletionPort(other, port, "other", 0)
        assert not win32.AcceptEx(other, accepting, bytearray(2 * ROOM), 0, ROOM, ROOM, overlapped)
        assert win32.GetLastError() == win32.WSAEINVAL
        assert_quiet(port)

    @differs_on_wine("accepts, and tells of the failure by a packet")
    def test_a_connected_socket_accepts_no_second_connection(self, port, bound, pair, overlapped):
        assert not win32.AcceptEx(bound, pair[0], bytearray(2 * ROOM), 0, ROOM, ROOM, overlapped)
        assert win32.GetLastError() == win32.WSAEINVAL
        assert_quiet(port)

    def test_a_buffer_that_is_too_small_is_refused(self, bound, accepting, overlapped):
        with pytest.raises(ValueError, match="lpOutputBuffer"):
            win32.AcceptEx(bound, accepting, bytearray(10), 0, ROOM, ROOM, overlapped)
        with socket.socket() as other, pytest.raises(TypeError, match="SOCKET"):
            win32.AcceptEx(bound, other, bytearray(2 * ROOM), 0, ROOM, ROOM, overlapped)


class TestAccept:
    def test_it_fills_in_the_clients_address(self, listener, dial, closing):
        client = dial()
        address = win32.SOCKADDR_IN()
        sock = closing(win32.WSAAccept(listener, address))
        assert isinstance(sock, win32.SOCKET)
        assert address.address == client.getsockname()
        assert win32.inet_ntoa(address.sin_addr) == "127.0.0.1"
        assert win32.ntohs(address.sin_port) == client.getsockname()[1]

    def test_a_thread_that_waits_in_it_gets_an_error_when_the_socket_is_closed(self, listener):
        answers = []
        begun = threading.Event()

        def wait():
            begun.set()
            answers.append((win32.accept(listener), win32.WSAGetLastError()))

        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        assert win32.closesocket(listener) == 0
        thread.join(LONG / 1000)
        assert not thread.is_alive()
        expected = {win32.WSAEINTR, win32.WSAENOTSOCK}  # the second, closed before the call
        if WINE:
            expected.add(win32.WSA_OPERATION_ABORTED)
        assert len(answers) == 1
        assert answers[0][0] is win32.INVALID_SOCKET
        assert answers[0][1] in expected


class TestConnectEx:
    @pytest.fixture
    def sock(self, port, closing):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        assert win32.CreateIoCompletionPort(sock, port, "client", 0) is port
        return sock

    def connect_ex(self, sock, address, overlapped, data=None):
        return win32.ConnectEx(sock, address, data, overlapped) or (
            win32.GetLastError() == win32.ERROR_IO_PENDING
        )

    def test_it_connects(self, port, listener, sock, closing, overlapped):
        assert self.connect_ex(sock, listener.getsockname(), overlapped)
        assert take(port) == Packet(True, 0, "client", overlapped, 0)
        assert win32.setsockopt(sock, win32.SOL_SOCKET, win32.SO_UPDATE_CONNECT_CONTEXT) == 0
        peer = closing(win32.accept(listener))
        assert sock.getpeername() == peer.getsockname()

    def test_it_sends_the_first_data(self, port, listener, sock, closing, overlapped):
        address = win32.SOCKADDR_IN()
        assert win32.getsockname(listener, address) == 0
        assert self.connect_ex(sock, address, overlapped, b"hello")
        assert take(port) == Packet(True, 5, "client", overlapped, 0)
        peer = closing(win32.accept(listener))
        wait_for_data(peer)
        assert peer.recv(10) == b"hello"

    def test_a_refusal_comes_with_the_packet(self, port, sock, overlapped):
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            assert self.connect_ex(sock, nobody.getsockname(), overlapped)
            assert take(port) == Packet(
                False, 0, "client", overlapped, win32.ERROR_CONNECTION_REFUSED
            )
        assert win32.WSAGetOverlappedResult(sock, overlapped, False) == (False, 0)
        assert win32.WSAGetLastError() == win32.WSAECONNREFUSED
        assert_quiet(port)

    @differs_on_wine("the next connect of a socket that was refused is aborted")
    def test_a_socket_that_was_refused_can_be_connected(
        self, port, listener, sock, closing, overlapped
    ):
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            for _ in range(2):
                assert self.connect_ex(sock, nobody.getsockname(), overlapped)
                refused = win32.ERROR_CONNECTION_REFUSED
                assert take(port) == Packet(False, 0, "client", overlapped, refused)
        assert self.connect_ex(sock, listener.getsockname(), overlapped, b"hello")
        assert take(port) == Packet(True, 5, "client", overlapped, 0)
        peer = closing(win32.accept(listener))
        wait_for_data(peer)
        assert peer.recv(10) == b"hello"
        assert_quiet(port)

    def test_the_socket_has_to_be_bound(self, port, listener, closing, overlapped):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert not win32.ConnectEx(sock, listener.getsockname(), None, overlapped)
        assert win32.WSAGetLastError() == win32.WSAEINVAL
        assert_quiet(port)


class TestDisconnectEx:
    def test_the_peer_sees_the_end_behind_what_was_sent(self, port, near, far, overlapped):
        assert started(win32.WSASend(near, b"bye", 0, win32.OVERLAPPED()))
        assert win32.DisconnectEx(near, overlapped) or (
            win32.GetLastError() == win32.ERROR_IO_PENDING
        )
        assert far.recv(10) == b"bye"
        assert far.recv(10) == b""
        win32.closesocket(far)
        packets = [take(port), take(port)]
        assert overlapped in [packet.overlapped for packet in packets]
        assert all(packet.ok for packet in packets)

    @differs_on_wine("a disconnected socket can't be used again")
    def test_the_socket_can_be_accepted_into_again(self, port, bound, accepting, dial, overlapped):
        for number in range(3):
            assert accept_ex(bound, accepting, overlapped)
            client = dial()
            assert take(port) == Packet(True, 0, "listener", overlapped, 0)
            update(accepting, bound)
            if number == 0:
                assert win32.CreateIoCompletionPort(accepting, port, "accepted", 0) is port
            accepting.sendall(b"hello")
            assert client.recv(10) == b"hello"
            assert win32.DisconnectEx(accepting, overlapped, win32.TF_REUSE_SOCKET) or (
                win32.GetLastError() == win32.ERROR_IO_PENDING
            )
            assert client.recv(10) == b""
            win32.closesocket(client)
            assert take(port) == Packet(True, 0, "accepted", overlapped, 0)


def test_a_reset_while_first_data_is_awaited(port, bound, accepting, dial, overlapped):
    assert accept_ex(bound, accepting, overlapped, 100)
    client = dial()
    assert_quiet(port)
    reset(client)
    assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_NETNAME_DELETED)


def test_sockets_are_python_sockets_too(port, pair):
    near, far = pair
    assert isinstance(near, socket.socket)
    assert win32.send(far, b"hello") == 5
    buffer = bytearray(10)
    assert win32.recv(near, buffer) == 5
    assert buffer[:5] == b"hello"
    assert pending(win32.WSARecv(near, buffer, 0, win32.OVERLAPPED()))
    with near:
        pass
    assert near.fileno() == -1
    assert win32.closesocket(near) == win32.SOCKET_ERROR
    assert far.recv(1) == b""


def test_a_socket_of_python_does_as_well(port, overlapped):
    near, far = socket.socketpair()
    try:
        assert win32.CreateIoCompletionPort(near, port, "key", 0) is port
        buffer = bytearray(10)
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
    finally:
        far.close()
        assert win32.closesocket(near) == 0


def test_a_socket_that_is_dropped_ends_its_operations(port, overlapped):
    near, far = socket.socketpair()
    far.settimeout(LONG / 1000)
    with far:
        win32.CreateIoCompletionPort(near, port, "key", 0)
        assert pending(win32.WSARecv(near, bytearray(10), 0, overlapped))
        with warnings.catch_warnings():
            # Where a warning is kept, it keeps the socket.
            warnings.simplefilter("ignore", ResourceWarning)
            del near
            wait_until(lambda: win32.HasOverlappedIoCompleted(overlapped))
        assert take(port) == Packet(False, 0, "key", overlapped, win32.ERROR_CONNECTION_ABORTED)
