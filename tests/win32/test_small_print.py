"""What Microsoft documents of handles, events, timeouts and files, and few programs need."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from completionport import win32
from win32_support import (
    LONG,
    ROOM,
    SHORT,
    Packet,
    assert_quiet,
    differs_on_wine,
    pending,
    reset,
    started,
    take,
    wait_for_data,
)

READ_WRITE = win32.GENERIC_READ | win32.GENERIC_WRITE


@pytest.fixture
def overlapped():
    return win32.OVERLAPPED()


@pytest.fixture
def buffer():
    return bytearray(100)


def begun(ok):
    return ok or win32.GetLastError() == win32.ERROR_IO_PENDING


def outcome(file, overlapped):
    """How it has ended, for which it has some seconds."""
    deadline = time.monotonic() + 5
    while not win32.HasOverlappedIoCompleted(overlapped):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.001)
    return win32.GetOverlappedResult(file, overlapped, False)


def fails_with(result, code):
    failed = result in (False, win32.SOCKET_ERROR, (win32.SOCKET_ERROR, None))
    return failed and win32.GetLastError() == code


class TestEventsWithTheLowestBitSet:
    @pytest.fixture
    def event(self, closing):
        return closing(win32.CreateEvent(None, True, False, None))

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_no_packet_comes_and_the_event_tells(
        self, port, near, far, buffer, overlapped, event, when
    ):
        overlapped.hEvent = event | 1
        for text in (b"hello", b"there"):
            if when == "before":
                far.sendall(text)
                wait_for_data(near)
                assert win32.WSARecv(near, buffer, 0, overlapped) == (0, 5)
            else:
                assert pending(win32.WSARecv(near, buffer, 0, overlapped))
                assert win32.WaitForSingleObject(event, 0) == win32.WAIT_TIMEOUT
                far.sendall(text)
            assert win32.WaitForSingleObject(event, LONG) == win32.WAIT_OBJECT_0
            assert win32.GetOverlappedResult(near, overlapped, False) == (True, 5)
            assert buffer[:5] == text
        assert_quiet(port)
        overlapped.hEvent = event
        far.sendall(b"again")
        assert started(win32.WSARecv(near, buffer, 0, overlapped))
        assert take(port) == Packet(True, 5, "key", overlapped, 0)

    def test_a_failure_has_none_either(self, port, near, far, buffer, overlapped, event):
        overlapped.hEvent = event | 1
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.CancelIoEx(near, overlapped)
        assert win32.WaitForSingleObject(event, LONG) == win32.WAIT_OBJECT_0
        assert win32.GetOverlappedResult(near, overlapped, False) == (False, 0)
        assert win32.GetLastError() == win32.ERROR_OPERATION_ABORTED
        assert_quiet(port)

    def test_it_is_the_same_handle_otherwise(self, event):
        assert win32.SetEvent(event | 1)
        assert win32.WaitForSingleObject(event, 0) == win32.WAIT_OBJECT_0
        assert win32.ResetEvent(event | 1)
        assert win32.WaitForSingleObject(event | 1, 0) == win32.WAIT_TIMEOUT
        assert event | 0 is event
        for wrong, error in ((2, ValueError), (-1, ValueError), ("1", TypeError)):
            with pytest.raises(error):
                event | wrong
        assert win32.CloseHandle(event | 1)
        assert not win32.SetEvent(event)


class TestWaiting:
    def test_a_port_is_signalled_while_it_has_packets(self, port):
        assert win32.WaitForSingleObject(port, 0) == win32.WAIT_TIMEOUT
        for number in range(2):
            assert win32.PostQueuedCompletionStatus(port, number, None, None)
        for number in range(2):
            assert win32.WaitForSingleObject(port, 0) == win32.WAIT_OBJECT_0
            assert take(port).bytes == number
        assert win32.WaitForSingleObject(port, 0) == win32.WAIT_TIMEOUT

    def test_a_packet_ends_a_wait_for_its_port(self, port, closing):
        thread = closing(
            win32.CreateThread(None, 0, lambda _: win32.WaitForSingleObject(port, LONG), None)
        )
        event = closing(win32.CreateEvent(None, True, False, None))
        assert win32.WaitForMultipleObjects([port, event, thread], False, SHORT) == (
            win32.WAIT_TIMEOUT
        )
        win32.PostQueuedCompletionStatus(port, 1, None, None)
        assert win32.WaitForSingleObject(thread, LONG) == win32.WAIT_OBJECT_0
        assert win32.GetExitCodeThread(thread) == (True, win32.WAIT_OBJECT_0)
        assert take(port).bytes == 1

    def test_an_operation_resets_its_socket_and_sets_it_at_its_end(self, pair, buffer, overlapped):
        near, far = pair
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.WaitForSingleObject(near, 0) == win32.WAIT_TIMEOUT
        timer = threading.Timer(0.05, far.sendall, [b"hello"])
        timer.start()
        assert win32.WaitForSingleObject(near, LONG) == win32.WAIT_OBJECT_0
        assert win32.WSAGetOverlappedResult(near, overlapped, False) == (True, 5)
        timer.join()

    def test_so_it_is_with_a_file(self, tmp_path, closing, buffer, overlapped):
        path = tmp_path / "file"
        path.write_bytes(b"hello")
        file = closing(win32.CreateFile(path, win32.GENERIC_READ))
        assert begun(win32.ReadFile(file, buffer, overlapped))
        assert win32.WaitForSingleObject(file, LONG) == win32.WAIT_OBJECT_0
        assert win32.GetOverlappedResult(file, overlapped, False) == (True, 5)

    def test_what_is_closed_is_an_invalid_handle(self, port, pair):
        assert win32.CloseHandle(port)
        assert win32.closesocket(pair[0]) == 0
        for thing in (port, pair[0]):
            assert win32.WaitForSingleObject(thing, 0) == win32.WAIT_FAILED
            assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE


class TestFieldsOfAnOverlapped:
    def test_they_can_be_emptied_as_c_programs_do(self, port, near, far, buffer, overlapped):
        for text in (b"hello", b"more"):
            overlapped.Internal = overlapped.InternalHigh = 0
            overlapped.Offset = overlapped.OffsetHigh = 0
            overlapped.hEvent = None
            assert pending(win32.WSARecv(near, buffer, 0, overlapped))
            far.sendall(text)
            assert take(port) == Packet(True, len(text), "key", overlapped, 0)
            assert (overlapped.Internal, overlapped.InternalHigh) == (0, len(text))

    def test_what_is_written_is_read(self, pair, overlapped):
        overlapped.Internal, overlapped.InternalHigh = 0xC000020D, 7
        assert (overlapped.Internal, overlapped.InternalHigh) == (0xC000020D, 7)
        assert win32.HasOverlappedIoCompleted(overlapped)
        assert not win32.GetOverlappedResult(pair[0], overlapped, False)[0]
        assert win32.GetLastError() == win32.ERROR_NETNAME_DELETED
        assert not win32.WSAGetOverlappedResult(pair[0], overlapped, False)[0]
        assert win32.GetLastError() == win32.WSAECONNRESET
        overlapped.Internal = 0
        assert win32.GetOverlappedResult(pair[0], overlapped, True) == (True, 7)

    def test_marked_as_under_way_it_can_be_given_to_a_call(
        self, port, near, far, buffer, overlapped
    ):
        overlapped.Internal = win32.STATUS_PENDING
        assert not win32.HasOverlappedIoCompleted(overlapped)
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        overlapped.Internal = 0  # as in C the system writes there again
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)

    @pytest.mark.parametrize("value", [None, "0", 1.0])
    def test_they_are_numbers(self, overlapped, value):
        with pytest.raises(TypeError):
            overlapped.Internal = value
        with pytest.raises(TypeError):
            overlapped.InternalHigh = value
        with pytest.raises(ValueError, match="from 0"):
            overlapped.Internal = -1


class TestClosingASocketAsAHandle:
    def test_it_is_closed_and_its_operations_end(self, port, near, far, buffer, overlapped):
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert win32.CloseHandle(near)
        assert take(port) == Packet(False, 0, "key", overlapped, win32.ERROR_CONNECTION_ABORTED)
        assert far.recv(1) == b""
        assert near.fileno() == -1
        assert fails_with(win32.CloseHandle(near), win32.ERROR_INVALID_HANDLE)
        assert fails_with(win32.closesocket(near), win32.WSAENOTSOCK)


class TestOpening:
    @differs_on_wine("empties it")
    @pytest.mark.parametrize("access", [win32.GENERIC_READ, 0, win32.FILE_WRITE_DATA])
    def test_a_file_is_not_emptied_without_the_right_to_write(self, tmp_path, access):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        file = win32.CreateFile(path, access, 3, None, win32.TRUNCATE_EXISTING)
        assert file is win32.INVALID_HANDLE_VALUE
        assert win32.GetLastError() == win32.ERROR_INVALID_PARAMETER
        assert path.read_bytes() == b"content"

    def test_with_it_it_is(self, tmp_path, closing):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        closing(win32.CreateFile(path, win32.GENERIC_WRITE, 3, None, win32.TRUNCATE_EXISTING))
        assert path.read_bytes() == b""

    @pytest.mark.parametrize("disposition", [win32.OPEN_EXISTING, win32.CREATE_ALWAYS])
    @pytest.mark.parametrize("name", ["missing/file", "file/below"])
    def test_a_missing_folder_is_no_missing_file(self, tmp_path, disposition, name):
        (tmp_path / "file").write_bytes(b"")
        file = win32.CreateFile(tmp_path / name, READ_WRITE, 3, None, disposition)
        assert file is win32.INVALID_HANDLE_VALUE
        assert win32.GetLastError() == win32.ERROR_PATH_NOT_FOUND

    @pytest.mark.parametrize("access", [win32.GENERIC_READ, READ_WRITE])
    @pytest.mark.parametrize(
        "disposition", [win32.OPEN_EXISTING, win32.OPEN_ALWAYS, win32.CREATE_ALWAYS]
    )
    def test_a_folder_is_no_file(self, tmp_path, access, disposition):
        file = win32.CreateFile(tmp_path, access, 3, None, disposition)
        assert file is win32.INVALID_HANDLE_VALUE
        assert win32.GetLastError() == win32.ERROR_ACCESS_DENIED

    @pytest.mark.parametrize("access", [win32.GENERIC_READ, READ_WRITE])
    def test_unless_it_is_asked_for(self, tmp_path, closing, access):
        flags = win32.FILE_FLAG_BACKUP_SEMANTICS | win32.FILE_FLAG_OVERLAPPED
        folder = closing(win32.CreateFile(tmp_path, access, 7, None, win32.OPEN_EXISTING, flags))
        assert folder is not win32.INVALID_HANDLE_VALUE

    def test_access_without_the_right(self, tmp_path, port, closing, buffer, overlapped):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        reading = closing(win32.CreateFile(path, win32.GENERIC_READ))
        writing = closing(win32.CreateFile(path, win32.GENERIC_WRITE))
        neither = closing(win32.CreateFile(path, 0))
        for file in (reading, writing, neither):
            assert win32.CreateIoCompletionPort(file, port, "file", 0) is port
        for file in (reading, neither):
            result = win32.WriteFile(file, b"x", overlapped)
            assert fails_with(result, win32.ERROR_ACCESS_DENIED)
        for file in (writing, neither):
            result = win32.ReadFile(file, buffer, overlapped)
            assert fails_with(result, win32.ERROR_ACCESS_DENIED)
        assert path.read_bytes() == b"content"
        assert_quiet(port)

    def test_access_without_the_right_of_a_call_that_waits(self, tmp_path, closing, buffer):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        how = (3, None, win32.OPEN_EXISTING, 0)
        reading = closing(win32.CreateFile(path, win32.GENERIC_READ, *how))
        writing = closing(win32.CreateFile(path, win32.GENERIC_WRITE, *how))
        assert not win32.WriteFile(reading, b"x", None)[0]
        assert win32.GetLastError() == win32.ERROR_ACCESS_DENIED
        assert not win32.ReadFile(writing, buffer, None)[0]
        assert win32.GetLastError() == win32.ERROR_ACCESS_DENIED
        assert path.read_bytes() == b"content"

    def test_no_packet_is_skipped_on_a_file_that_is_not_overlapped(self, tmp_path, closing):
        path = tmp_path / "file"
        path.write_bytes(b"")
        file = closing(win32.CreateFile(path, READ_WRITE, 3, None, win32.OPEN_EXISTING, 0))
        result = win32.SetFileCompletionNotificationModes(
            file, win32.FILE_SKIP_COMPLETION_PORT_ON_SUCCESS
        )
        assert fails_with(result, win32.ERROR_INVALID_PARAMETER)


class TestTheEndOfAFile:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"first ")
        return path

    def test_a_place_of_all_ones_is_the_end(self, port, path, closing):
        file = closing(win32.CreateFile(path, READ_WRITE))
        assert win32.CreateIoCompletionPort(file, port, "file", 0) is port
        for text in (b"second ", b"third"):
            overlapped = win32.OVERLAPPED()
            overlapped.Offset = overlapped.OffsetHigh = 0xFFFFFFFF
            assert begun(win32.WriteFile(file, text, overlapped))
            assert take(port) == Packet(True, len(text), "file", overlapped, 0)
        assert path.read_bytes() == b"first second third"

    def test_writers_that_do_so_side_by_side_lose_nothing(self, port, path, closing):
        files = [closing(win32.CreateFile(path, READ_WRITE)) for _ in range(2)]
        for file in files:
            assert win32.CreateIoCompletionPort(file, port, "file", 0) is port
        pieces = [bytes([number]) * 100 for number in range(60)]
        for number, piece in enumerate(pieces):
            overlapped = win32.OVERLAPPED()
            overlapped.Offset = overlapped.OffsetHigh = 0xFFFFFFFF
            assert begun(win32.WriteFile(files[number % 2], piece, overlapped))
        for _ in pieces:
            assert take(port).bytes == 100
        written = path.read_bytes()[6:]
        found = [written[index : index + 100] for index in range(0, len(written), 100)]
        assert sorted(found) == pieces

    @differs_on_wine("gives a packet for it too")
    def test_nothing_is_read_there(self, port, path, closing, buffer, overlapped):
        file = closing(win32.CreateFile(path, READ_WRITE))
        assert win32.CreateIoCompletionPort(file, port, "file", 0) is port
        overlapped.Offset = overlapped.OffsetHigh = 0xFFFFFFFF
        result = win32.ReadFile(file, buffer, overlapped)
        assert fails_with(result, win32.ERROR_INVALID_PARAMETER)
        assert_quiet(port)


class TestCallsThatWait:
    @differs_on_wine("tells of a reset once, as the kernel below it does", always=False)
    @pytest.mark.parametrize("first", ["send", "recv"])
    def test_a_connection_that_was_reset_stays_so(self, pair, buffer, first):
        near, far = pair
        reset(far)
        wait_for_data(near)
        calls = [lambda: win32.send(near, b"x"), lambda: win32.recv(near, buffer)]
        if first == "recv":
            calls.reverse()
        for call in calls * 2:
            assert fails_with(call(), win32.WSAECONNRESET)

    def test_a_receive_ends_by_its_timeout(self, pair, buffer):
        near, far = pair
        assert win32.setsockopt(near, win32.SOL_SOCKET, win32.SO_RCVTIMEO, 50) == 0
        assert fails_with(win32.recv(near, buffer), win32.WSAETIMEDOUT)
        number = (50).to_bytes(4, "little")
        assert win32.setsockopt(near, win32.SOL_SOCKET, win32.SO_RCVTIMEO, number) == 0
        assert fails_with(win32.recv(near, buffer), win32.WSAETIMEDOUT)
        assert win32.setsockopt(near, win32.SOL_SOCKET, win32.SO_RCVTIMEO, 0) == 0
        far.sendall(b"hello")
        assert win32.recv(near, buffer) == 5

    def test_an_overlapped_receive_knows_no_timeout(self, port, near, far, buffer, overlapped):
        assert win32.setsockopt(near, win32.SOL_SOCKET, win32.SO_RCVTIMEO, 10) == 0
        assert pending(win32.WSARecv(near, buffer, 0, overlapped))
        assert_quiet(port)
        far.sendall(b"hello")
        assert take(port) == Packet(True, 5, "key", overlapped, 0)

    def test_an_accept_knows_none_either(self, listener, closing):
        assert win32.setsockopt(listener, win32.SOL_SOCKET, win32.SO_RCVTIMEO, 10) == 0
        client = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        timer = threading.Timer(0.1, win32.connect, [client, listener.getsockname()])
        timer.start()
        sock = closing(win32.accept(listener))
        assert sock is not win32.INVALID_SOCKET
        timer.join()

    def test_the_timeout_of_the_socket_object_is_one_too(self, pair, buffer):
        pair[0].settimeout(0.05)
        assert fails_with(win32.recv(pair[0], buffer), win32.WSAETIMEDOUT)


class TestSocketsThatAreAboutToConnect:
    @pytest.fixture
    def accepting(self, closing):
        return closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))

    def accept_ex(self, listener, sock, overlapped, local=ROOM, remote=ROOM, buffer=None):
        buffer = bytearray(200) if buffer is None else buffer
        return win32.AcceptEx(listener, sock, buffer, 0, local, remote, overlapped)

    def test_a_listening_socket_connects_to_nobody(self, port, listener, overlapped):
        address = listener.getsockname()
        assert fails_with(win32.connect(listener, address), win32.WSAEINVAL)
        result = win32.ConnectEx(listener, address, None, overlapped)
        assert fails_with(result, win32.WSAEINVAL)

    def test_nor_does_one_that_an_accept_has(self, port, listener, accepting, closing, overlapped):
        assert begun(self.accept_ex(listener, accepting, overlapped))
        address = listener.getsockname()
        assert fails_with(win32.connect(accepting, address), win32.WSAEINVAL)
        result = win32.ConnectEx(accepting, address, None, win32.OVERLAPPED())
        assert fails_with(result, win32.WSAEINVAL)
        client = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.connect(client, address) == 0
        assert win32.GetOverlappedResult(listener, overlapped, True) == (True, 0)

    def test_a_connection_connects_no_more(self, pair, listener, overlapped):
        address = listener.getsockname()
        assert fails_with(win32.connect(pair[0], address), win32.WSAEISCONN)
        assert fails_with(win32.ConnectEx(pair[0], address, None, overlapped), win32.WSAEISCONN)

    @differs_on_wine("connects anything to what is being connected", always=False)
    def test_nothing_else_is_done_while_a_connect_is_under_way(
        self, port, closing, buffer, overlapped
    ):
        # A listener whose backlog is full lets nobody in.
        full = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.bind(full, ("127.0.0.1", 0)) == 0
        assert win32.listen(full, 0) == 0
        address = full.getsockname()
        for _ in range(3):
            filling = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
            filling.setblocking(False)
            filling.connect_ex(address)
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is port
        assert not win32.ConnectEx(sock, address, None, overlapped)
        assert win32.GetLastError() == win32.ERROR_IO_PENDING
        if not win32.HasOverlappedIoCompleted(overlapped):
            other = win32.OVERLAPPED()
            assert fails_with(win32.WSARecv(sock, buffer, 0, other), win32.WSAENOTCONN)
            assert fails_with(win32.WSASend(sock, b"x", 0, other), win32.WSAENOTCONN)
            assert fails_with(win32.recv(sock, buffer), win32.WSAENOTCONN)
            assert fails_with(win32.send(sock, b"x"), win32.WSAENOTCONN)
            assert fails_with(win32.ConnectEx(sock, address, None, other), win32.WSAEINVAL)
            assert fails_with(win32.connect(sock, address), win32.WSAEINVAL)
            assert win32.CancelIoEx(sock, overlapped)
        packet = take(port)
        assert packet == Packet(False, 0, "key", overlapped, win32.ERROR_OPERATION_ABORTED)
        assert_quiet(port)

    def test_the_local_address_can_be_left_out(self, listener, accepting, closing, overlapped):
        buffer = bytearray(ROOM)
        assert begun(self.accept_ex(listener, accepting, overlapped, 0, ROOM, buffer))
        client = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.connect(client, listener.getsockname()) == 0
        assert win32.GetOverlappedResult(listener, overlapped, True) == (True, 0)
        _, remote = win32.GetAcceptExSockaddrs(buffer, 0, 0, ROOM)
        assert remote.address == client.getsockname()

    def test_the_remote_one_can_not(self, port, listener, accepting, overlapped):
        result = self.accept_ex(listener, accepting, overlapped, ROOM, 0)
        assert fails_with(result, win32.WSAEFAULT)

    @pytest.mark.parametrize(
        "sizes",
        [
            (3, ROOM),
            pytest.param((ROOM - 1, ROOM), marks=differs_on_wine("takes what is a little short")),
            pytest.param((ROOM, ROOM - 1), marks=differs_on_wine("takes what is a little short")),
        ],
    )
    def test_a_short_one_is_found_when_a_client_comes(
        self, listener, accepting, closing, overlapped, sizes
    ):
        assert begun(self.accept_ex(listener, accepting, overlapped, *sizes))
        client = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.connect(client, listener.getsockname()) == 0
        assert win32.GetOverlappedResult(listener, overlapped, True) == (False, 0)
        assert win32.GetLastError() == win32.ERROR_INSUFFICIENT_BUFFER

    @differs_on_wine("drops the client")
    @pytest.mark.parametrize("next_one", ["accept", "AcceptEx", "AcceptEx before"])
    def test_and_the_client_is_the_next_accepts(
        self, listener, accepting, closing, overlapped, next_one
    ):
        other = win32.OVERLAPPED()
        second = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert begun(self.accept_ex(listener, accepting, overlapped, 3))
        if next_one == "AcceptEx before":
            assert begun(self.accept_ex(listener, second, other))
        client = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.connect(client, listener.getsockname()) == 0
        assert outcome(listener, overlapped) == (False, 0)
        listener.settimeout(5)
        if next_one == "accept":
            second = closing(win32.accept(listener))
        else:
            if next_one == "AcceptEx":
                assert begun(self.accept_ex(listener, second, other))
            assert outcome(listener, other) == (True, 0)
            win32.setsockopt(second, win32.SOL_SOCKET, win32.SO_UPDATE_ACCEPT_CONTEXT, listener)
        assert second.getpeername() == client.getsockname()
        third, clients = win32.OVERLAPPED(), []
        assert begun(self.accept_ex(listener, accepting, third))
        clients.append(closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)))
        assert win32.connect(clients[0], listener.getsockname()) == 0
        assert outcome(listener, third) == (True, 0)

    @differs_on_wine("accepts, and tells of the failure by a packet")
    def test_no_connection_is_accepted_into_a_datagram_socket(
        self, port, listener, closing, overlapped
    ):
        sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        assert fails_with(self.accept_ex(listener, sock, overlapped), win32.WSAEINVAL)


class TestSocketsWithoutAnAddress:
    @pytest.fixture(params=["stream", "datagram"])
    def sock(self, request, port, closing):
        kind = win32.SOCK_STREAM if request.param == "stream" else win32.SOCK_DGRAM
        sock = closing(win32.WSASocket(win32.AF_INET, kind))
        assert win32.CreateIoCompletionPort(sock, port, "key", 0) is port
        return sock

    @pytest.mark.parametrize("what", ["file", "buffers", "nothing"])
    def test_no_file_is_sent(self, port, sock, tmp_path, closing, overlapped, what):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        file = closing(win32.CreateFile(path, win32.GENERIC_READ)) if what == "file" else None
        buffers = win32.TRANSMIT_FILE_BUFFERS(b"x", b"") if what == "buffers" else None
        result = win32.TransmitFile(sock, file, 0, 0, overlapped, buffers)
        assert fails_with(result, win32.WSAENOTCONN)
        assert_quiet(port)

    @pytest.mark.parametrize("what", ["WSARecv", "WSARecvFrom", "recv"])
    def test_nothing_is_received(self, port, sock, buffer, overlapped, what, request):
        if sock.type == socket.SOCK_DGRAM:
            if what == "recv":
                sock.settimeout(1)  # it waits in Wine
            request.applymarker(differs_on_wine("waits for datagrams that can't come"))
        if what == "recv":
            result = win32.recv(sock, buffer)
        else:
            result = getattr(win32, what)(sock, buffer, 0, overlapped)
        is_stream = sock.type == socket.SOCK_STREAM
        assert fails_with(result, win32.WSAENOTCONN if is_stream else win32.WSAEINVAL)
        assert_quiet(port)

    @differs_on_wine("says what the kernel below it says")
    def test_nothing_is_sent_to_nobody(self, sock):
        assert fails_with(win32.send(sock, b"x"), win32.WSAENOTCONN)

    def test_a_datagram_socket_that_has_sent_receives(self, port, closing, buffer, overlapped):
        one = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        two = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_DGRAM))
        assert win32.bind(two, ("127.0.0.1", 0)) == 0
        assert started(win32.WSASendTo(one, b"x", 0, two.getsockname(), win32.OVERLAPPED()))
        assert pending(win32.WSARecv(one, buffer, 0, overlapped))
        two.sendto(b"hello", ("127.0.0.1", one.getsockname()[1]))
        assert win32.GetOverlappedResult(one, overlapped, True) == (True, 5)
