"""WSARecvFrom, WSASendTo, ReadFile, WriteFile, TransmitFile."""

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

READ_WRITE = win32.GENERIC_READ | win32.GENERIC_WRITE


@pytest.fixture
def overlapped():
    return win32.OVERLAPPED()


class TestDatagrams:
    @pytest.fixture
    def sockets(self, port, closing):
        """Two sockets with an address each; both belong to the port."""
        made = []
        for key in ("one", "two"):
            sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
            assert win32.bind(sock, ("127.0.0.1", 0)) == 0
            assert win32.CreateIoCompletionPort(sock, port, key, 0) is port
            made.append(sock)
        return made

    def test_a_datagram_comes_with_its_senders_address(self, port, sockets, overlapped):
        one, two = sockets
        sender, buffer, sending = win32.SOCKADDR_IN(), bytearray(100), win32.OVERLAPPED()
        assert pending(win32.WSARecvFrom(one, buffer, 0, overlapped, sender))
        assert started(win32.WSASendTo(two, [b"he", b"llo"], 0, one.getsockname(), sending))
        packets = {packet.overlapped: packet for packet in (take(port), take(port))}
        assert packets[sending] == Packet(True, 5, "two", sending, 0)
        assert packets[overlapped] == Packet(True, 5, "one", overlapped, 0)
        assert buffer[:5] == b"hello"
        assert sender.address == two.getsockname()
        assert win32.ntohs(sender.sin_port) == two.getsockname()[1]

    def test_a_structure_is_an_address_too(self, port, sockets, overlapped):
        one, two = sockets
        address = win32.SOCKADDR_IN()
        assert win32.getsockname(one, address) == 0
        assert started(win32.WSASendTo(two, b"hello", 0, address, overlapped))
        assert take(port).bytes == 5
        one.settimeout(LONG / 1000)
        assert one.recv(10) == b"hello"

    def test_one_that_is_there_is_received_at_once(self, port, sockets, overlapped):
        one, two = sockets
        two.sendto(b"hello", one.getsockname())
        wait_for_data(one)
        sender, buffer = win32.SOCKADDR_IN(), bytearray(100)
        assert win32.WSARecvFrom(one, buffer, 0, overlapped, sender) == (0, 5)
        assert sender.address == two.getsockname()
        assert take(port) == Packet(True, 5, "one", overlapped, 0)

    @pytest.mark.parametrize("function", ["WSARecv", "WSARecvFrom"])
    def test_one_that_is_too_long_is_cut_off_and_said_to_be(
        self, port, sockets, overlapped, function
    ):
        one, two = sockets
        buffer = bytearray(3)
        assert pending(getattr(win32, function)(one, buffer, 0, overlapped))
        two.sendto(b"hello", one.getsockname())
        assert take(port) == Packet(False, 3, "one", overlapped, win32.ERROR_MORE_DATA)
        assert buffer == b"hel"
        assert win32.WSAGetOverlappedResult(one, overlapped, False) == (False, 3)
        assert win32.WSAGetLastError() == win32.WSAEMSGSIZE

    @pytest.mark.parametrize("function", ["WSARecv", "WSARecvFrom"])
    def test_so_is_one_that_is_there_and_it_has_a_packet_too(
        self, port, sockets, overlapped, function
    ):
        """For Windows it is a warning (STATUS_BUFFER_OVERFLOW): only an error has no packet."""
        one, two = sockets
        two.sendto(b"hello", one.getsockname())
        wait_for_data(one)
        buffer = bytearray(3)
        receive = getattr(win32, function)
        assert receive(one, buffer, 0, overlapped) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEMSGSIZE
        assert buffer == b"hel"
        assert win32.WSAGetOverlappedResult(one, overlapped, False) == (False, 3)
        assert win32.WSAGetLastError() == win32.WSAEMSGSIZE
        assert take(port) == Packet(False, 3, "one", overlapped, win32.ERROR_MORE_DATA)
        assert_quiet(port)

    @pytest.mark.parametrize("without", ["a port", "a packet"])
    def test_it_has_none_where_none_is_to_come(self, port, closing, overlapped, without):
        one = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        two = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        assert win32.bind(one, ("127.0.0.1", 0)) == 0
        if without == "a packet":
            assert win32.CreateIoCompletionPort(one, port, "one", 0) is port
            mode = win32.FILE_SKIP_COMPLETION_PORT_ON_SUCCESS
            assert win32.SetFileCompletionNotificationModes(one, mode)
        for _ in range(2):
            two.sendto(b"hello", one.getsockname())
            wait_for_data(one)
            received = win32.WSARecv(one, bytearray(3), 0, overlapped)
            assert received == (win32.SOCKET_ERROR, None)
            assert win32.WSAGetLastError() == win32.WSAEMSGSIZE
            assert win32.WSAGetOverlappedResult(one, overlapped, False) == (False, 3)
        assert_quiet(port)

    def test_each_receive_takes_one_datagram(self, port, sockets):
        one, two = sockets
        receives = [(win32.OVERLAPPED(), bytearray(10)) for _ in range(5)]
        for receiving, buffer in receives:
            assert pending(win32.WSARecvFrom(one, buffer, 0, receiving))
        for number in range(5):
            two.sendto(bytes([number]) * (number + 1), one.getsockname())
        sizes = {}
        for _ in receives:
            packet = take(port)
            sizes[packet.overlapped] = packet.bytes
        assert [sizes[receiving] for receiving, _ in receives] == [1, 2, 3, 4, 5]
        assert [buffer[0] for _, buffer in receives] == [0, 1, 2, 3, 4]

    def test_a_socket_that_is_closed_aborts_its_receives(self, port, sockets, overlapped):
        one, _ = sockets
        assert pending(win32.WSARecvFrom(one, bytearray(10), 0, overlapped))
        win32.closesocket(one)
        packet = take(port)
        assert (packet.ok, packet.bytes, packet.overlapped) == (False, 0, overlapped)
        assert_quiet(port)


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "file"

    @pytest.fixture
    def file(self, path, port, closing):
        """A file of 10,000 bytes that belongs to the port."""
        path.write_bytes(in_order(10_000))
        handle = closing(win32.CreateFile(path, READ_WRITE))
        assert win32.CreateIoCompletionPort(handle, port, "file", 0) is port
        return handle

    @staticmethod
    def begun(ok):
        return ok or win32.GetLastError() == win32.ERROR_IO_PENDING

    def test_a_read_from_the_place_that_the_overlapped_says(self, port, file, overlapped):
        buffer = bytearray(100)
        overlapped.Offset = 400
        assert self.begun(win32.ReadFile(file, buffer, overlapped))
        assert take(port) == Packet(True, 100, "file", overlapped, 0)
        assert buffer == in_order(10_000)[400:500]

    def test_a_write_to_the_place_that_the_overlapped_says(self, port, file, path, overlapped):
        overlapped.Offset = 9_998
        assert self.begun(win32.WriteFile(file, b"hello", overlapped))
        assert take(port) == Packet(True, 5, "file", overlapped, 0)
        assert path.read_bytes() == in_order(10_000)[:9_998] + b"hello"

    def test_a_place_beyond_4_gib(self, port, file, path, overlapped):
        overlapped.Offset, overlapped.OffsetHigh = 5, 1
        assert self.begun(win32.WriteFile(file, b"far out", overlapped))
        assert take(port).bytes == 7
        assert path.stat().st_size == 2**32 + 12
        buffer = bytearray(7)
        assert self.begun(win32.ReadFile(file, buffer, overlapped))
        assert take(port).bytes == 7
        assert buffer == b"far out"

    def test_a_read_that_reaches_the_end_gives_what_is_there(self, port, file, overlapped):
        overlapped.Offset = 9_990
        assert self.begun(win32.ReadFile(file, bytearray(100), overlapped))
        assert take(port) == Packet(True, 10, "file", overlapped, 0)

    def test_the_end_of_the_file_is_an_error(self, port, file, overlapped):
        overlapped.Offset = 10_000
        assert not win32.ReadFile(file, bytearray(100), overlapped)
        if win32.GetLastError() == win32.ERROR_IO_PENDING:
            assert take(port) == Packet(False, 0, "file", overlapped, win32.ERROR_HANDLE_EOF)
        else:
            assert win32.GetLastError() == win32.ERROR_HANDLE_EOF
        assert_quiet(port)

    @pytest.mark.parametrize("disposition", [win32.CREATE_ALWAYS, win32.OPEN_ALWAYS])
    def test_the_last_error_says_whether_the_file_was_there(self, path, closing, disposition):
        """So CreateFile's documentation: of these two, though the call has succeeded."""
        for expected in (0, win32.ERROR_ALREADY_EXISTS):
            win32.SetLastError(win32.ERROR_NOT_FOUND)
            file = closing(win32.CreateFile(path, READ_WRITE, 3, None, disposition))
            assert file is not win32.INVALID_HANDLE_VALUE
            assert win32.GetLastError() == expected
            path.write_bytes(b"content")
        cut_off = disposition == win32.CREATE_ALWAYS
        closing(win32.CreateFile(path, READ_WRITE, 3, None, disposition))
        assert path.read_bytes() == (b"" if cut_off else b"content")

    def test_several_reads_at_a_time(self, port, file):
        reads = {}
        for number in range(20):
            overlapped = win32.OVERLAPPED()
            overlapped.Offset = number * 500
            reads[overlapped] = (number * 500, bytearray(500))
            assert self.begun(win32.ReadFile(file, reads[overlapped][1], overlapped))
        for _ in range(20):
            assert take(port).bytes == 500
        for offset, buffer in reads.values():
            assert buffer == in_order(10_000)[offset : offset + 500]

    def test_without_a_port_one_can_wait_for_it(self, path, closing, overlapped):
        path.write_bytes(b"hello")
        handle = closing(win32.CreateFile(path, win32.GENERIC_READ))
        buffer = bytearray(10)
        assert self.begun(win32.ReadFile(handle, buffer, overlapped))
        assert win32.GetOverlappedResult(handle, overlapped, True) == (True, 5)
        assert buffer[:5] == b"hello"

    def test_a_file_that_is_not_overlapped_is_read_in_the_call(
        self, port, path, closing, overlapped
    ):
        path.write_bytes(b"hello")
        handle = closing(
            win32.CreateFile(path, win32.GENERIC_READ, 0, None, win32.OPEN_EXISTING, 0)
        )
        assert win32.CreateIoCompletionPort(handle, port, "file", 0) is None
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER
        buffer = bytearray(4)
        overlapped.Offset = 1
        assert win32.ReadFile(handle, buffer, overlapped)
        assert buffer == b"ello"
        assert win32.GetOverlappedResult(handle, overlapped, False) == (True, 4)

    def test_a_file_that_is_not_there(self, path):
        assert win32.CreateFile(path, win32.GENERIC_READ) is win32.INVALID_HANDLE_VALUE
        assert win32.GetLastError() == win32.ERROR_FILE_NOT_FOUND

    def test_a_file_that_is_there_already(self, path):
        path.write_bytes(b"hello")
        assert (
            win32.CreateFile(path, READ_WRITE, 0, None, win32.CREATE_NEW)
            is win32.INVALID_HANDLE_VALUE
        )
        assert win32.GetLastError() == win32.ERROR_FILE_EXISTS
        assert win32.CloseHandle(win32.CreateFile(path, READ_WRITE, 0, None, win32.CREATE_ALWAYS))
        assert path.read_bytes() == b""

    def test_a_closed_file_is_an_invalid_handle(self, port, file, overlapped):
        assert win32.CloseHandle(file)
        assert not win32.ReadFile(file, bytearray(1), overlapped)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE
        assert not win32.CloseHandle(file)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE
        assert_quiet(port)


class TestTransmitFile:
    @pytest.fixture
    def source(self, tmp_path, closing):
        path = tmp_path / "source"
        path.write_bytes(in_order(1 << 20))
        return closing(win32.CreateFile(path, win32.GENERIC_READ))

    @staticmethod
    def begun(ok):
        return ok or win32.GetLastError() == win32.ERROR_IO_PENDING

    def test_a_whole_file_between_two_buffers(self, port, near, far, source, overlapped):
        buffers = win32.TRANSMIT_FILE_BUFFERS(b"head ", bytearray(b" tail"))
        assert self.begun(win32.TransmitFile(near, source, 0, 0, overlapped, buffers))
        expected = b"head " + in_order(1 << 20) + b" tail"
        assert read_exactly(far, len(expected)) == expected
        assert take(port) == Packet(True, len(expected), "key", overlapped, 0)

    def test_a_part_of_a_file(self, port, near, far, source, overlapped):
        overlapped.Offset = 1000
        assert self.begun(win32.TransmitFile(near, source, 500, 0, overlapped))
        assert read_exactly(far, 500) == in_order(1 << 20)[1000:1500]
        assert take(port) == Packet(True, 500, "key", overlapped, 0)

    def test_buffers_alone(self, port, near, far, overlapped):
        buffers = win32.TRANSMIT_FILE_BUFFERS(b"one ", b"two")
        assert self.begun(win32.TransmitFile(near, None, 0, 0, overlapped, buffers))
        assert read_exactly(far, 7) == b"one two"
        assert take(port) == Packet(True, 7, "key", overlapped, 0)

    @differs_on_wine("knows no TF_DISCONNECT")
    def test_the_connection_can_end_behind_it(self, port, near, far, source, overlapped):
        assert self.begun(
            win32.TransmitFile(near, source, 10, 0, overlapped, None, win32.TF_DISCONNECT)
        )
        assert read_exactly(far, 10) == in_order(12)[:10]
        far.settimeout(2)
        assert far.recv(1) == b""
        win32.closesocket(far)
        assert take(port) == Packet(True, 10, "key", overlapped, 0)

    def test_without_a_connection(self, port, closing, source, overlapped):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        win32.CreateIoCompletionPort(sock, port, "key", 0)
        assert not win32.TransmitFile(sock, source, 0, 0, overlapped)
        assert win32.WSAGetLastError() == win32.WSAENOTCONN
        assert_quiet(port)
