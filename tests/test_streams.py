"""What a receive, a send and an accept do to a socket (rules 3, 4, 5, 11, 12)."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import mmap
import os
import select
import socket
import time

import pytest

from completionport import Operation
from support import (
    LONG,
    WINDOWS,
    WINE,
    Background,
    assert_quiet,
    needs_unix_sockets,
    outcome,
    pattern,
    read_exactly,
    read_to_end,
    readable,
    reset,
    shown,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)

BIG = 8_000_000
"""More than the socket buffers of both ends hold."""


class TestReceive:
    def test_recv_of_a_size_gives_bytes(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(1024)
            assert operation.operation is Operation.RECV
            assert operation.handle is handle
            assert operation.pending
            far.sendall(b"hello")
            done = take_one(port)
            assert tuple(done) == (5, "key", operation, None)
            assert not operation.pending
            assert (operation.transferred, operation.error) == (5, None)
            assert operation.result() == b"hello"
            assert type(operation.result()) is bytes

    def test_data_that_is_there_already_still_comes_as_a_packet(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            for number in range(10):
                far.sendall(b"%d" % number)
                wait_until(lambda: readable(near))
                operation = handle.recv(10)
                assert operation.pending
                assert take_one(port).overlapped is operation
                assert operation.result() == b"%d" % number
            assert_quiet(port)

    def test_recv_takes_no_more_than_its_size(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            far.sendall(b"abcdef")
            handle.recv(4)
            assert take_one(port).overlapped.result() == b"abcd"
            handle.recv(4)
            assert take_one(port).overlapped.result() == b"ef"

    @pytest.mark.parametrize(
        "make",
        [
            lambda: bytearray(8),
            lambda: memoryview(bytearray(8)),
            lambda: array.array("I", [0, 0]),
            lambda: mmap.mmap(-1, 8),
        ],
        ids=["bytearray", "memoryview", "array", "mmap"],
    )
    def test_recv_fills_a_buffer(self, port, pair, make):
        near, far = pair
        buffer = make()
        with port.associate(near, "key") as handle:
            operation = handle.recv(buffer)
            far.sendall(b"hello")
            assert take_one(port).transferred == 5
            assert operation.result() == 5
            assert bytes(buffer)[:8] == b"hello\0\0\0"
        with contextlib.suppress(AttributeError):
            buffer.close()

    def test_recv_into_a_slice_leaves_the_rest(self, port, pair):
        near, far = pair
        buffer = bytearray(b"..........")
        with port.associate(near, "key") as handle:
            handle.recv(memoryview(buffer)[2:6])
            far.sendall(b"abcdef")
            assert take_one(port).transferred == 4
            assert buffer == b"..abcd...."

    def test_recv_scatters_into_several_buffers(self, port, pair):
        near, far = pair
        buffers = [bytearray(3), bytearray(0), memoryview(bytearray(4)), bytearray(10)]
        with port.associate(near, "key") as handle:
            operation = handle.recv(buffers)
            far.sendall(b"abcdefghi")
            assert take_one(port).transferred == 9
            assert operation.result() == 9
            assert [bytes(buffer) for buffer in buffers] == [
                b"abc",
                b"",
                b"defg",
                b"hi" + b"\0" * 8,
            ]

    def test_recv_scatters_into_a_tuple(self, port, pair):
        near, far = pair
        buffers = (bytearray(2), bytearray(2))
        with port.associate(near, "key") as handle:
            handle.recv(buffers)
            far.sendall(b"abcd")
            assert take_one(port).transferred == 4
            assert buffers == (b"ab", b"cd")

    def test_recv_scatters_into_more_buffers_than_the_kernel_takes_at_once(self, port, pair):
        near, far = pair
        buffers = [bytearray(1) for _ in range(3000)]
        data = pattern(900)
        with port.associate(near, "key") as handle:
            handle.recv(buffers)
            far.sendall(data)
            done = take_one(port)
            assert done.error is None
            assert done.transferred == 900
            assert b"".join(buffers)[:900] == data

    def test_waitall_waits_until_the_buffer_is_full(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10, socket.MSG_WAITALL)
            for letter in b"abcdefghi":
                far.sendall(bytes([letter]))
                assert port.get(0.005) is None
                assert operation.pending
            far.sendall(b"jk")
            assert take_one(port).transferred == 10
            assert operation.result() == b"abcdefghij"
            handle.recv(10)
            assert take_one(port).overlapped.result() == b"k"

    def test_waitall_with_several_buffers(self, port, pair):
        near, far = pair
        buffers = [bytearray(3), bytearray(4)]
        with port.associate(near, "key") as handle:
            handle.recv(buffers, socket.MSG_WAITALL)
            far.sendall(b"abcd")
            assert port.get(0.01) is None
            far.sendall(b"efg")
            assert take_one(port).transferred == 7
            assert buffers == [b"abc", b"defg"]

    def test_waitall_gives_what_came_before_the_end(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10, socket.MSG_WAITALL)
            far.sendall(b"abc")
            assert port.get(0.01) is None
            far.shutdown(socket.SHUT_WR)
            done = take_one(port)
            assert (done.transferred, done.error) == (3, None)
            assert operation.result() == b"abc"

    def test_waitall_of_more_than_the_socket_holds(self, port, pair):
        near, far = pair
        data = pattern(BIG)
        with port.associate(near, "key") as handle:
            operation = handle.recv(BIG, socket.MSG_WAITALL)
            sender = Background(far.sendall, data)
            assert take_one(port).transferred == BIG
            assert operation.result() == data
            sender.outcome()

    def test_peek_leaves_the_data(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            handle.recv(3, socket.MSG_PEEK)
            far.sendall(b"abcdef")
            assert take_one(port).overlapped.result() in (b"abc", b"ab", b"a")
            handle.recv(10)
            assert take_one(port).overlapped.result() == b"abcdef"

    def test_end_of_stream_is_a_receive_of_nothing(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            far.close()
            assert tuple(take_one(port)) == (0, "key", operation, None)
            assert operation.result() == b""
            again = handle.recv(10)
            assert tuple(take_one(port)) == (0, "key", again, None)

    def test_end_of_stream_into_a_buffer(self, port, pair):
        near, far = pair
        buffer = bytearray(b"unchanged")
        with port.associate(near, "key") as handle:
            operation = handle.recv(buffer)
            far.shutdown(socket.SHUT_WR)
            assert tuple(take_one(port)) == (0, "key", operation, None)
            assert operation.result() == 0
            assert buffer == b"unchanged"

    def test_a_reset_is_a_packet_with_an_error(self, port, tcp):
        near, far = tcp
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            reset(far)
            done = take_one(port)
            assert isinstance(done.error, ConnectionResetError)
            assert (done.transferred, done.key) == (0, "key")
            assert done.overlapped is operation
            assert operation.error is done.error
            with pytest.raises(ConnectionResetError):
                operation.result()
            assert_quiet(port)

    def test_a_reset_reaches_a_zero_length_receive(self, port, tcp):
        near, far = tcp
        with port.associate(near, "key") as handle:
            handle.recv(0)
            reset(far)
            assert take_one(port).transferred == 0

    @pytest.mark.parametrize(
        "empty", [lambda: 0, bytearray, lambda: [bytearray()]], ids=["0", "bytearray", "list"]
    )
    def test_a_zero_length_receive_tells_that_there_is_data(self, port, pair, empty):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(empty())
            assert port.get(0.01) is None
            assert operation.pending
            far.sendall(b"abc")
            assert tuple(take_one(port)) == (0, "key", operation, None)
            assert operation.result() == (b"" if empty() == 0 else 0)
            again = handle.recv(empty())
            assert tuple(take_one(port)) == (0, "key", again, None)
            handle.recv(10)
            assert take_one(port).overlapped.result() == b"abc"
            waiting = handle.recv(empty())
            assert port.get(0.01) is None
            assert waiting.pending

    def test_a_zero_length_receive_tells_of_the_end(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(0)
            far.shutdown(socket.SHUT_WR)
            assert tuple(take_one(port)) == (0, "key", operation, None)

    def test_a_zero_length_receive_keeps_its_place_among_receives(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operations = [handle.recv(2), handle.recv(0), handle.recv(10)]
            far.sendall(b"ab")
            assert take_one(port).overlapped is operations[0]
            assert port.get(0.01) is None
            far.sendall(b"cd")
            assert [done.overlapped for done in take(port, 2)] == operations[1:]
            assert operations[2].result() == b"cd"

    @pytest.mark.parametrize("size", [10, 0])
    def test_a_receive_on_an_unconnected_socket_raises_and_gives_no_packet(self, port, size):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            with pytest.raises(OSError, match="not connected") as raised:
                handle.recv(size)
            assert raised.value.errno == errno.ENOTCONN
            assert_quiet(port)

    @needs_unix_sockets
    def test_a_receive_longer_than_its_buffer_never_shows_other_memory(self, port, nothing_left):
        # MSG_TRUNC makes the kernel report more bytes than it wrote.
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with far, port.associate(near, "key") as handle:
            operation = handle.recv(3, socket.MSG_TRUNC)
            far.send(b"0123456789")
            take_one(port)
            assert operation.result() == b"012"


class TestSend:
    def test_a_send_gives_its_packet(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.send(b"hello")
            assert operation.operation is Operation.SEND
            assert operation.pending
            assert tuple(take_one(port)) == (5, "key", operation, None)
            assert operation.result() == 5
            assert far.recv(10) == b"hello"

    def test_a_send_completes_when_all_of_it_was_taken(self, port, pair):
        near, far = pair
        data = pattern(BIG)
        with port.associate(near, "key") as handle:
            operation = handle.send(data)
            assert port.get(0.05) is None
            assert operation.pending
            reader = Background(read_exactly, far, BIG)
            assert tuple(take_one(port)) == (BIG, "key", operation, None)
            assert reader.outcome() == data

    @pytest.mark.parametrize(
        "make",
        [
            lambda: b"abcdefgh",
            lambda: bytearray(b"abcdefgh"),
            lambda: memoryview(b"..abcdefgh..")[2:10],
            lambda: array.array("H", [0x6261, 0x6463, 0x6665, 0x6867]),
            lambda: [b"abc", bytearray(b"de"), b"", memoryview(b"fgh")],
            lambda: (b"abcd", b"efgh"),
        ],
        ids=["bytes", "bytearray", "memoryview", "array", "list", "tuple"],
    )
    def test_a_send_takes_any_buffers(self, port, pair, make):
        near, far = pair
        with port.associate(near, "key") as handle:
            handle.send(make())
            assert take_one(port).transferred == 8
            assert read_exactly(far, 8) == b"abcdefgh"

    def test_a_big_gather_completes_whole(self, port, pair):
        near, far = pair
        parts = [pattern(1 + number * 97, number) for number in range(400)]
        data = b"".join(parts)
        assert len(data) > 7_000_000
        with port.associate(near, "key") as handle:
            operation = handle.send(parts)
            assert port.get(0.01) is None
            assert operation.pending
            reader = Background(read_exactly, far, len(data))
            assert take_one(port).transferred == len(data)
            assert reader.outcome() == data

    def test_a_gather_of_more_buffers_than_the_kernel_takes_at_once(self, port, pair):
        near, far = pair
        data = pattern(5000)
        with port.associate(near, "key") as handle:
            handle.send([data[at : at + 1] for at in range(5000)])
            done = take_one(port)
            assert (done.transferred, done.error) == (5000, None)
            assert read_exactly(far, 5000) == data

    @pytest.mark.parametrize("nothing", [b"", [b""], [b"", b""]], ids=shown)
    def test_a_send_of_nothing_gives_its_packet(self, port, pair, nothing):
        near, far = pair
        with port.associate(near, "key") as handle:
            operations = [handle.send(nothing), handle.send(b"after")]
            packets = take(port, 2)
            assert [done.overlapped for done in packets] == operations
            assert [done.transferred for done in packets] == [0, 5]
            assert far.recv(10) == b"after"

    def test_a_send_that_a_reset_cuts_off_is_a_packet_with_an_error(self, port, tcp):
        near, far = tcp
        with port.associate(near, "key") as handle:
            operation = handle.send(pattern(BIG))
            assert port.get(0.01) is None
            read_exactly(far, 1000)
            reset(far)
            done = take_one(port)
            assert isinstance(done.error, ConnectionError)
            assert done.overlapped is operation
            assert 1000 <= done.transferred < BIG
            with pytest.raises(ConnectionError):
                operation.result()

    def test_a_send_to_a_peer_that_has_gone_is_an_error_and_no_signal(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            far.close()
            errors = []

            def refused():
                errors.append(outcome(port, lambda: handle.send(b"x" * 1000)))
                return errors[-1]

            wait_until(refused, "a send fails")
            assert isinstance(errors[-1], ConnectionError)
            assert_quiet(port)

    @pytest.mark.xfail(WINE, reason="Wine says WSAECONNRESET; WSASend's documentation: WSAENOTCONN")
    def test_a_send_on_an_unconnected_socket_raises_and_gives_no_packet(self, port):
        with (
            socket.socket() as sock,
            port.associate(sock, "key") as handle,
        ):
            with pytest.raises(OSError, match=r"not connected|Broken pipe"):
                handle.send(b"x")
            assert_quiet(port)

    def test_urgent_data_goes_out_as_such(self, port, tcp):
        near, far = tcp
        with port.associate(near, "key") as handle:
            handle.send(b"!", socket.MSG_OOB)
            assert take_one(port).transferred == 1
            far.setblocking(False)
            wait_until(lambda: urgent(far) == b"!", "the urgent byte")


def urgent(sock):
    try:
        return sock.recv(1, socket.MSG_OOB)
    except OSError:
        return None


class TestAccept:
    def test_accept_gives_the_new_socket(self, port, listener):
        with port.associate(listener, "listener") as handle:
            operation = handle.accept()
            assert operation.operation is Operation.ACCEPT
            assert port.get(0) is None
            with socket.create_connection(listener.getsockname()) as client:
                assert tuple(take_one(port)) == (0, "listener", operation, None)
                with operation.result() as accepted:
                    assert isinstance(accepted, socket.socket)
                    assert accepted is operation.result()
                    assert (accepted.family, accepted.type) == (client.family, client.type)
                    assert accepted.getpeername() == client.getsockname()
                    assert accepted.getblocking()
                    assert WINDOWS or os.get_blocking(accepted.fileno())
                    assert not accepted.get_inheritable()
                    client.sendall(b"hello")
                    assert accepted.recv(10) == b"hello"

    def test_an_accepted_socket_can_be_associated(self, port, listener):
        with (
            port.associate(listener, "listener") as handle,
            socket.create_connection(listener.getsockname()) as client,
        ):
            handle.accept()
            accepted = take_one(port).overlapped.result()
            with port.associate(accepted, "connection") as connection:
                connection.recv(10)
                client.sendall(b"hello")
                done = take_one(port)
                assert (done.key, done.overlapped.result()) == ("connection", b"hello")

    @pytest.mark.skipif(not WINDOWS, reason="elsewhere the kernel passes over such a client")
    def test_a_client_that_has_gone_already_is_passed_over(self, port, listener, monkeypatch):
        """AcceptEx may say WSAECONNRESET at once, so its documentation: it is led there."""
        from completionport.windows import api, calls

        with port.associate(listener, "listener") as handle:
            function = "accept", api.WSAID_ACCEPTEX, api.AcceptEx_TYPE
            accept_really = calls._extension(handle._channel, *function)
            outcomes = [api.WSAECONNRESET] * 2

            def accept(*arguments):
                if not outcomes:
                    return accept_really(*arguments)
                ctypes.set_last_error(outcomes.pop())
                return 0

            monkeypatch.setattr(calls, "_extension", lambda *ignored: accept)
            operation = handle.accept()
            with socket.create_connection(listener.getsockname()) as client:
                assert tuple(take_one(port)) == (0, "listener", operation, None)
                with operation.result() as accepted:
                    assert accepted.getpeername() == client.getsockname()
            assert not outcomes

    @needs_unix_sockets
    def test_accept_of_a_unix_socket(self, port, tmp_path):
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(tmp_path / "socket"))
            server.listen()
            with port.associate(server, "listener") as handle:
                operation = handle.accept()
                client.connect(str(tmp_path / "socket"))
                take_one(port)
                with operation.result() as accepted:
                    assert accepted.family is socket.AF_UNIX
                    client.sendall(b"hello")
                    assert accepted.recv(10) == b"hello"

    def test_accept_on_a_socket_that_does_not_listen_raises(self, port, tcp):
        near, _ = tcp
        with port.associate(near, "key") as handle:
            with pytest.raises(OSError, match=r"listen|Invalid argument") as raised:
                handle.accept()
            assert raised.value.errno == errno.EINVAL
            assert_quiet(port)

    @pytest.mark.skipif(WINDOWS, reason="an AcceptEx under way takes every connection")
    def test_a_rival_for_the_same_connections_does_not_block_the_port(self, port, listener):
        # The connection that made the listener ready may be gone when the port looks.
        def rival():
            taken = 0
            while taken < 20:
                select.select([listener], [], [], LONG)
                # An engine without accept4() of its own has to make the listener non-blocking.
                with contextlib.suppress(BlockingIOError):
                    listener.accept()[0].close()
                    taken += 1

        with port.associate(listener, "listener") as handle:
            handle.accept()
            thread = Background(rival)
            deadline = time.monotonic() + LONG
            while thread.is_alive() and time.monotonic() < deadline:
                with socket.create_connection(listener.getsockname()):
                    done = port.get(0.001)
                    if done is not None:
                        done.overlapped.result().close()
                        handle.accept()
            thread.outcome()
            client = socket.create_connection(listener.getsockname())
            with client:
                while True:
                    with take_one(port).overlapped.result() as accepted:
                        if accepted.getpeername() == client.getsockname():
                            break
                    handle.accept()


class TestDisconnect:
    def test_disconnect_ends_the_stream_both_ways(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            waiting = handle.recv(10)
            handle.send(b"last words")
            ending = handle.disconnect()
            assert ending.operation is Operation.DISCONNECT
            packets = {done.overlapped: done for done in take(port, 3)}
            assert tuple(packets[ending]) == (0, "key", ending, None)
            assert tuple(packets[waiting]) == (0, "key", waiting, None)
            assert read_to_end(far) == b"last words"

    def test_disconnect_of_an_unconnected_socket_raises(self, port):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            with pytest.raises(OSError, match="not connected"):
                handle.disconnect()
            assert_quiet(port)


class TestModes:
    """Sockets in any mode work alike, and keep their mode for the program's own calls."""

    @pytest.fixture(params=["blocking", "non-blocking", "timeout", "changed later"])
    def mode(self, request):
        return request.param

    @pytest.fixture
    def handle_and_far(self, port, pair, mode):
        near, far = pair
        near.settimeout({"non-blocking": 0, "timeout": 5}.get(mode))
        with port.associate(near, "key") as handle:
            if mode == "changed later":
                near.settimeout(0)
                handle.recv(1)
                near.settimeout(None)
                far.sendall(b"x")
                take_one(port)
            yield handle, far

    def test_a_receive_waits(self, port, handle_and_far):
        handle, far = handle_and_far
        operation = handle.recv(10)
        assert port.get(0.01) is None
        assert operation.pending
        far.sendall(b"hello")
        assert take_one(port).overlapped.result() == b"hello"

    def test_a_send_completes_whole(self, port, handle_and_far):
        handle, far = handle_and_far
        data = pattern(BIG)
        operation = handle.send(data)
        assert operation.pending
        reader = Background(read_exactly, far, BIG)
        assert take_one(port).transferred == BIG
        assert reader.outcome() == data

    def test_the_mode_stays_as_it_was(self, port, tcp, mode):
        near, far = tcp
        timeout = {"non-blocking": 0, "timeout": 5}.get(mode)
        near.settimeout(timeout)
        fcntl = pytest.importorskip("fcntl", reason="Windows tells nobody a socket's mode")
        flags = fcntl.fcntl(near, fcntl.F_GETFL)
        with port.associate(near, "key") as handle:
            handle.recv(10)
            handle.send(b"x")
            take_one(port)
            far.sendall(b"x")
            take_one(port)
            assert near.gettimeout() == timeout
            assert fcntl.fcntl(near, fcntl.F_GETFL) == flags

    def test_the_program_can_still_send_on_a_blocking_socket(self, port, tcp):
        near, far = tcp
        data = pattern(BIG)
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            reader = Background(read_exactly, far, BIG)
            near.sendall(data)
            assert reader.outcome() == data
            assert operation.pending


class TestDatagrams:
    @pytest.fixture(params=["udp", pytest.param("unix", marks=needs_unix_sockets)])
    def datagrams(self, request, nothing_left):
        if request.param == "unix":
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        else:
            near, far = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
            for sock in (near, far):
                sock.bind(("127.0.0.1", 0))
            near.connect(far.getsockname())
            far.connect(near.getsockname())
        with near, far:
            yield near, far

    def test_datagrams_keep_their_bounds(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operations = [handle.recv(100) for _ in range(5)]
            for number in range(5):
                far.send(b"%d" % number * number)
            take(port, 5)
            assert [operation.result() for operation in operations] == [
                b"%d" % number * number for number in range(5)
            ]

    def test_each_send_is_one_datagram(self, port, datagrams):
        near, far = datagrams
        far.settimeout(LONG)
        with port.associate(near, "key") as handle:
            handle.send(b"one")
            handle.send([b"t", b"w", b"o"])
            assert [done.transferred for done in take(port, 2)] == [3, 3]
            assert [far.recv(100), far.recv(100)] == [b"one", b"two"]


def test_ten_thousand_operations_are_outstanding_at_once(port, make_pair):
    """More than any submission or completion queue holds (rule 12)."""
    pairs = [make_pair("local") for _ in range(100)]
    handles = [port.associate(near, number) for number, (near, _) in enumerate(pairs)]
    for handle in handles:
        for _ in range(100):
            handle.recv(1)
    assert port.stats()["pending"] == 10_000
    for _, far in pairs:
        far.sendall(bytes(range(100)))
    packets = take(port, 10_000)
    received = {number: [] for number in range(100)}
    for done in packets:
        received[done.key].append(done.overlapped.result()[0])
    assert all(values == list(range(100)) for values in received.values())
    for handle in handles:
        handle.close()
    assert_quiet(port)


def test_thousands_of_operations_complete_before_anyone_takes_one(port, make_pair):
    pairs = [make_pair("local") for _ in range(50)]
    handles = [port.associate(near, number) for number, (near, _) in enumerate(pairs)]
    waiting = [handle.recv(10) for handle in handles]
    for _ in range(200):
        for handle in handles:
            handle.send(b"x")
    for _, far in pairs:
        far.sendall(b"y")
    packets = take(port, 50 * 201)
    assert sum(done.transferred for done in packets) == 50 * 201
    assert all(operation.result() == b"y" for operation in waiting)
    assert_quiet(port)
    for handle in handles:
        handle.close()


def test_a_thread_that_waits_sees_operations_that_others_start(make_port, make_pair):
    port = make_port(2)
    pairs = [make_pair("local") for _ in range(20)]
    handles = [port.associate(near, number) for number, (near, _) in enumerate(pairs)]
    taker = Background(take, port, 20)
    wait_for_stats(port, waiting=1)
    for handle, (_, far) in zip(handles, pairs, strict=True):
        handle.recv(10)
        far.sendall(b"data")
    assert {done.key for done in taker.outcome()} == set(range(20))
    for handle in handles:
        handle.close()
