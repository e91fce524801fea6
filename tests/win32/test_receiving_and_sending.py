"""WSARecv and WSASend: when they succeed at once, when a packet comes, and with what."""

from __future__ import annotations

import threading
import weakref

import pytest

from completionport import win32
from support import read_exactly
from win32_support import (
    LONG,
    Packet,
    assert_quiet,
    collect_garbage,
    differs_on_wine,
    in_order,
    pending,
    reset,
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


def receive(sock, buffer, overlapped):
    return win32.WSARecv(sock, buffer, 0, overlapped)


def send(sock, data, overlapped):
    return win32.WSASend(sock, data, 0, overlapped)


def skip_on_success(sock):
    assert win32.SetFileCompletionNotificationModes(
        sock, win32.FILE_SKIP_COMPLETION_PORT_ON_SUCCESS
    )


class TestReceiving:
    def test_a_receive_waits_for_data_and_gives_its_packet(
        self, port, near, far, buffer, overlapped
    ):
        assert pending(receive(near, buffer, overlapped))
        assert not win32.HasOverlappedIoCompleted(overlapped)
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert buffer[:6] == b"hello\0"
        assert win32.HasOverlappedIoCompleted(overlapped)

    def test_data_that_is_there_is_received_at_once_and_the_packet_comes_all_the_same(
        self, port, near, far, buffer, overlapped
    ):
        far.sendall(b"hello")
        wait_for_data(near)
        assert receive(near, buffer, overlapped) == (0, 5)
        assert buffer[:5] == b"hello"
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert_quiet(port)

    def test_no_packet_comes_for_a_success_at_once_where_the_handle_skips_the_port(
        self, port, near, far, buffer, overlapped
    ):
        skip_on_success(near)
        far.sendall(b"hello")
        wait_for_data(near)
        assert receive(near, buffer, overlapped) == (0, 5)
        assert buffer[:5] == b"hello"
        assert win32.GetOverlappedResult(near, overlapped, False) == (True, 5)
        assert_quiet(port)

    def test_what_was_pending_gives_a_packet_where_the_handle_skips_the_port(
        self, port, near, far, buffer, overlapped
    ):
        skip_on_success(near)
        assert pending(receive(near, buffer, overlapped))
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert_quiet(port)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_the_end_of_the_stream_is_a_success_with_no_bytes(
        self, port, near, far, buffer, overlapped, when
    ):
        if when == "before":
            far.shutdown(win32.SD_SEND)
            wait_for_data(near)
            assert receive(near, buffer, overlapped) == (0, 0)
        else:
            assert pending(receive(near, buffer, overlapped))
            far.shutdown(win32.SD_SEND)
        assert take(port) == Packet(True, 0, "key", overlapped, 0)
        assert_quiet(port)

    def test_a_receive_of_nothing_says_when_there_is_data(self, port, near, far, overlapped):
        assert pending(receive(near, bytearray(), overlapped))
        far.sendall(b"hello")
        assert take(port) == Packet(True, 0, "key", overlapped, 0)
        assert near.recv(10) == b"hello"

    def test_several_buffers_are_filled_in_order(self, port, near, far, overlapped):
        whole = bytearray(20)
        buffers = [
            win32.WSABUF(3, whole),
            memoryview(whole)[10:14],
            win32.WSABUF(None, bytearray(9)),
        ]
        assert pending(win32.WSARecv(near, buffers, 0, overlapped))
        far.sendall(b"0123456789")
        assert take(port).bytes == 10
        assert whole[:4] == b"012\0"
        assert whole[10:15] == b"3456\0"
        assert buffers[2].buf[:4] == b"789\0"

    def test_several_receives_get_their_data_in_the_order_of_the_calls(self, port, near, far):
        receives = [(win32.OVERLAPPED(), bytearray(4)) for _ in range(10)]
        for overlapped, buffer in receives:
            assert started(receive(near, buffer, overlapped))
        far.sendall(in_order(40))
        for _ in receives:
            assert take(port).bytes == 4
        assert b"".join(bytes(buffer) for _, buffer in receives) == in_order(40)

    def test_msg_peek_leaves_the_data_there(self, port, near, far, buffer, overlapped):
        far.sendall(b"hello")
        wait_for_data(near)
        assert win32.WSARecv(near, buffer, win32.MSG_PEEK, overlapped) == (0, 5)
        assert take(port).bytes == 5
        assert near.recv(10) == b"hello"

    def test_a_read_file_receives_too(self, port, near, far, buffer, overlapped):
        assert not win32.ReadFile(near, buffer, overlapped)
        assert win32.GetLastError() == win32.ERROR_IO_PENDING
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert buffer[:5] == b"hello"


class TestSending:
    def test_a_send_gives_its_packet(self, port, near, far, overlapped):
        assert started(send(near, b"hello", overlapped))
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert read_exactly(far, 5) == b"hello"

    def test_several_buffers_go_out_in_order(self, port, near, far, overlapped):
        buffers = [b"one ", win32.WSABUF(4, b"two three"), bytearray(b"four")]
        assert started(win32.WSASend(near, buffers, 0, overlapped))
        assert take(port).bytes == 12
        assert read_exactly(far, 12) == b"one two four"

    def test_no_packet_comes_for_a_send_at_once_where_the_handle_skips_the_port(
        self, port, near, far, overlapped
    ):
        skip_on_success(near)
        result = send(near, b"hello", overlapped)
        if result == (0, 5):
            assert_quiet(port)
        else:
            assert pending(result)
            assert take(port).bytes == 5
        assert read_exactly(far, 5) == b"hello"

    def test_a_send_completes_when_every_byte_is_taken(self, port, near, far, overlapped):
        data = in_order(8 << 20)
        assert started(send(near, data, overlapped))
        assert read_exactly(far, len(data)) == data
        assert take(port) == Packet(True, len(data), "key", overlapped, 0)

    def test_several_sends_go_out_in_the_order_of_the_calls(self, port, near, far):
        data = in_order(4 << 20)
        part = len(data) // 8
        sends = [win32.OVERLAPPED() for _ in range(8)]
        for number, overlapped in enumerate(sends):
            piece = memoryview(data)[number * part : (number + 1) * part]
            assert started(send(near, piece, overlapped))
        assert read_exactly(far, len(data)) == data
        assert sum(take(port).bytes for _ in sends) == len(data)

    def test_sends_and_receives_do_not_stand_in_each_others_way(self, port, near, far, buffer):
        receiving, sending = win32.OVERLAPPED(), win32.OVERLAPPED()
        assert pending(receive(near, buffer, receiving))
        assert started(send(near, b"hello", sending))
        assert take(port).overlapped is sending
        assert read_exactly(far, 5) == b"hello"
        far.sendall(b"x")
        assert take(port).overlapped is receiving

    def test_a_write_file_sends_too(self, port, near, far, overlapped):
        assert win32.WriteFile(near, b"hello", overlapped) or (
            win32.GetLastError() == win32.ERROR_IO_PENDING
        )
        assert take(port) == Packet(True, 5, "key", overlapped, 0)
        assert read_exactly(far, 5) == b"hello"


class TestResets:
    def test_a_pending_receive_fails_when_the_peer_resets(
        self, port, near, far, buffer, overlapped
    ):
        assert pending(receive(near, buffer, overlapped))
        reset(far)
        assert take(port) == Packet(False, 0, "key", overlapped, win32.ERROR_NETNAME_DELETED)
        assert_quiet(port)

    def test_the_failed_operation_has_a_windows_code_and_a_winsock_code(
        self, port, near, far, buffer, overlapped
    ):
        assert pending(receive(near, buffer, overlapped))
        reset(far)
        take(port)
        assert win32.GetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.GetLastError() == win32.ERROR_NETNAME_DELETED == 64
        assert win32.WSAGetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.WSAGetLastError() == win32.WSAECONNRESET == 10054

    @pytest.mark.parametrize(
        "way",
        [
            pytest.param("receive", marks=differs_on_wine("has told itself of the reset already")),
            "send",
        ],
    )
    def test_a_call_after_the_reset_fails_at_once_and_gives_no_packet(
        self, port, near, far, buffer, overlapped, way
    ):
        reset(far)
        wait_for_data(near)
        result = (
            receive(near, buffer, overlapped) if way == "receive" else send(near, b"x", overlapped)
        )
        assert result == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAECONNRESET
        assert_quiet(port)

    @differs_on_wine("tells of a reset once, as the kernel below it does")
    @pytest.mark.parametrize("first", ["receive", "send"])
    def test_and_so_does_every_later_call(self, port, near, far, buffer, overlapped, first):
        reset(far)
        wait_for_data(near)
        calls = [
            lambda: receive(near, buffer, overlapped),
            lambda: send(near, b"x", overlapped),
        ]
        if first == "send":
            calls.reverse()
        for call in calls * 2:
            assert call() == (win32.SOCKET_ERROR, None)
            assert win32.WSAGetLastError() == win32.WSAECONNRESET
        assert_quiet(port)

    @differs_on_wine("tells of a reset once, as the kernel below it does")
    def test_a_call_behind_the_receive_that_failed_fails_at_once(
        self, port, near, far, buffer, overlapped
    ):
        assert pending(receive(near, buffer, overlapped))
        reset(far)
        take(port)
        assert receive(near, buffer, win32.OVERLAPPED()) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAECONNRESET
        assert_quiet(port)


class TestRefusals:
    @pytest.fixture
    def unconnected(self, port, closing):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is port
        return sock

    def test_nothing_is_received_without_a_connection(self, port, unconnected, buffer, overlapped):
        assert receive(unconnected, buffer, overlapped) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAENOTCONN
        assert_quiet(port)

    @differs_on_wine("calls it a reset, from the kernel's EPIPE")
    def test_nothing_is_sent_without_a_connection(self, port, unconnected, overlapped):
        assert send(unconnected, b"x", overlapped) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAENOTCONN
        assert_quiet(port)

    @pytest.mark.parametrize("way", ["receive", "send"])
    def test_a_closed_socket_is_none(self, port, near, buffer, overlapped, way):
        assert win32.closesocket(near) == 0
        result = (
            receive(near, buffer, overlapped) if way == "receive" else send(near, b"x", overlapped)
        )
        assert result == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAENOTSOCK
        assert_quiet(port)

    def test_nothing_is_sent_once_sending_was_shut_down(self, port, near, overlapped):
        assert win32.shutdown(near, win32.SD_SEND) == 0
        assert send(near, b"x", overlapped) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAESHUTDOWN
        assert_quiet(port)

    def test_an_overlapped_that_is_under_way_is_refused(self, port, near, far, buffer, overlapped):
        assert pending(receive(near, buffer, overlapped))
        assert receive(near, bytearray(5), overlapped) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSA_INVALID_PARAMETER
        far.sendall(b"x")
        assert take(port) == Packet(True, 1, "key", overlapped, 0)
        assert_quiet(port)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((b"read-only", 0, win32.OVERLAPPED()), "writable"),
            ((5, 0, win32.OVERLAPPED()), "WSABUF"),
            ((bytearray(1), 0, 0), "OVERLAPPED"),
        ],
    )
    def test_arguments_of_a_wrong_type(self, near, arguments, message):
        with pytest.raises(TypeError, match=message):
            win32.WSARecv(near, *arguments)

    def test_a_wsabuf_is_no_longer_than_its_memory(self, near, overlapped):
        with pytest.raises(ValueError, match="11 bytes"):
            win32.WSARecv(near, win32.WSABUF(11, bytearray(10)), 0, overlapped)


class TestBeforeAssociation:
    def test_a_receive_that_is_pending_gives_its_packet_to_the_port_of_later(
        self, port, pair, buffer, overlapped
    ):
        near, far = pair
        assert pending(receive(near, buffer, overlapped))
        assert win32.CreateIoCompletionPort(near, port, "late", 0) is port
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "late", overlapped, 0)
        assert_quiet(port)

    def test_what_has_completed_before_gives_no_packet(self, port, pair, buffer, overlapped):
        near, far = pair
        assert pending(receive(near, buffer, overlapped))
        far.sendall(b"hello")
        assert win32.GetOverlappedResult(near, overlapped, True) == (True, 5)
        assert win32.CreateIoCompletionPort(near, port, "late", 0) is port
        assert_quiet(port)

    def test_without_any_port_one_can_wait_for_the_operation(self, pair, buffer, overlapped):
        near, far = pair
        assert pending(receive(near, buffer, overlapped))
        assert win32.GetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.GetLastError() == win32.ERROR_IO_INCOMPLETE
        timer = threading.Timer(0.05, far.sendall, [b"hello"])
        timer.start()
        assert win32.GetOverlappedResult(near, overlapped, True) == (True, 5)
        timer.join()
        assert buffer[:5] == b"hello"

    def test_an_event_tells_of_the_operation(self, pair, closing, buffer, overlapped):
        near, far = pair
        overlapped.hEvent = closing(win32.CreateEvent(None, True, True, None))
        assert pending(receive(near, buffer, overlapped))
        assert win32.WaitForSingleObject(overlapped.hEvent, 0) == win32.WAIT_TIMEOUT
        far.sendall(b"hello")
        assert win32.WaitForSingleObject(overlapped.hEvent, LONG) == win32.WAIT_OBJECT_0
        assert win32.WSAGetOverlappedResult(near, overlapped, False) == (True, 5)


class TestOutcomes:
    def test_the_outcome_is_there_before_the_packet_is_taken(
        self, port, near, far, buffer, overlapped
    ):
        assert pending(receive(near, buffer, overlapped))
        far.sendall(b"hello")
        assert win32.GetOverlappedResult(near, overlapped, True) == (True, 5)
        assert win32.WSAGetOverlappedResult(near, overlapped, False) == (True, 5)
        assert take(port) == Packet(True, 5, "key", overlapped, 0)

    def test_winsock_has_its_own_word_for_what_is_under_way(self, near, buffer, overlapped):
        assert pending(receive(near, buffer, overlapped))
        assert win32.WSAGetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.WSAGetLastError() == win32.WSA_IO_INCOMPLETE

    def test_several_packets_at_once_say_how_each_has_ended(self, port, near, far, closing, buffer):
        receives = [win32.OVERLAPPED(), win32.OVERLAPPED()]
        assert pending(receive(near, buffer, receives[0]))
        far.sendall(b"hello")
        assert win32.GetOverlappedResult(near, receives[0], True) == (True, 5)
        assert pending(receive(near, buffer, receives[1]))
        reset(far)
        assert win32.GetOverlappedResult(near, receives[1], True) == (False, 0)
        entries = []
        while len(entries) < 2:
            ok, more = win32.GetQueuedCompletionStatusEx(port, 10, LONG)
            assert ok
            entries += more
        assert [entry.lpOverlapped for entry in entries] == receives
        assert [entry.dwNumberOfBytesTransferred for entry in entries] == [5, 0]
        assert entries[0].Internal == 0
        assert entries[1].Internal == receives[1].Internal == 0xC000020D  # STATUS_CONNECTION_RESET

    def test_a_pending_operation_outlives_everything(self, port, near, far):
        class PerIoData(win32.OVERLAPPED):
            pass

        data = PerIoData()
        data.buffer = bytearray(100)
        seen = weakref.ref(data)
        assert pending(receive(near, data.buffer, data))
        del data
        collect_garbage()
        far.sendall(b"hello")
        packet = take(port)
        assert packet.overlapped is seen()
        assert packet.overlapped.buffer[:5] == b"hello"
        del packet
        collect_garbage()
        assert seen() is None

    def test_an_overlapped_can_be_used_again_and_again(self, port, near, far, buffer, overlapped):
        for number in range(50):
            assert started(receive(near, buffer, overlapped))
            far.sendall(bytes([number]))
            assert take(port) == Packet(True, 1, "key", overlapped, 0)
            assert buffer[0] == number


def test_an_echo_of_several_threads_and_connections(make_port, closing):
    """The article's scheme: per-handle data as the key, per-I/O data behind the OVERLAPPED."""
    from win32_support import connected_pair

    class PerIoData(win32.OVERLAPPED):
        def __init__(self):
            self.buffer = bytearray(1024)
            self.sending = False

    port = make_port()

    def work():
        while (packet := take(port)).key != "end":
            data = packet.overlapped
            if not packet.ok or (packet.bytes == 0 and not data.sending):
                win32.closesocket(packet.key)
            elif data.sending:
                data.sending = False
                receive(packet.key, data.buffer, data)
            else:
                data.sending = True
                send(packet.key, memoryview(data.buffer)[: packet.bytes], data)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    clients = []
    for _ in range(10):
        near, far = connected_pair()
        far.settimeout(LONG / 1000)
        clients.append(closing(far))
        closing(near)
        win32.CreateIoCompletionPort(near, port, near, 0)
        data = PerIoData()
        assert started(receive(near, data.buffer, data))
    for number in range(20):
        for index, client in enumerate(clients):
            client.sendall(f"{number} {index} ".encode() * 20)
        for index, client in enumerate(clients):
            expected = f"{number} {index} ".encode() * 20
            assert read_exactly(client, len(expected)) == expected
    for client in clients:
        client.shutdown(win32.SD_SEND)
        assert client.recv(1) == b""
    for _ in threads:
        win32.PostQueuedCompletionStatus(port, 0, "end", None)
    for thread in threads:
        thread.join(LONG / 1000)
        assert not thread.is_alive()
