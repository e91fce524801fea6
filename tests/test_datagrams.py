"""Datagrams and messages with ancillary data: the port's rules for each of their operations."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import os
import secrets
import socket
import sys
import weakref

import pytest

from completionport import (
    CompletionPort,
    HandleClosed,
    Operation,
    OperationAborted,
    OperationPending,
    Overlapped,
    PortClosed,
)
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    descriptors,
    has_ipv6,
    local_pair,
    needs_ancillary,
    needs_fork,
    needs_plain_pipes,
    needs_unix_sockets,
    outcome,
    pattern,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    wine_tells_no_refusal,
)

RIGHTS = (socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", -1))
ROOM = socket.CMSG_SPACE(4 * 10) if hasattr(socket, "CMSG_SPACE") else 100


def bound_socket(kind):
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(b"\0completionport-" + secrets.token_hex(8).encode())
    elif kind == "udp6":
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::1", 0))
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
    return sock


@pytest.fixture(
    params=[
        "udp",
        pytest.param("udp6", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        pytest.param("unix", marks=needs_unix_sockets),
    ]
)
def datagrams(request, nothing_left):
    """Two sockets with addresses, not connected: the first one for the port."""
    with bound_socket(request.param) as near, bound_socket(request.param) as far:
        far.settimeout(LONG)
        yield near, far


@pytest.fixture
def connected(datagrams):
    near, far = datagrams
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


@pytest.fixture
def messages(nothing_left):
    """A pair of Unix datagram sockets, over which descriptors can be passed."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    far.settimeout(LONG)
    with near, far:
        yield near, far


def rights(*numbers):
    return [(*RIGHTS, array.array("i", numbers))]


def passed(ancillary):
    numbers = array.array("i")
    for level, kind, data in ancillary:
        assert (level, kind) == RIGHTS
        numbers.frombytes(data)
    return list(numbers)


def at_end(pipe):
    """Whether nobody has the write end of the pipe any more."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def pipe(nothing_left):
    ends = list(os.pipe())
    yield ends
    for number in ends:
        with contextlib.suppress(OSError):
            os.close(number)


def fill(sock, size=1000):
    """Send until the kernel takes no more; returns how many."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"%06d" % count + bytes(size), socket.MSG_DONTWAIT)
            count += 1
    return count


class TestReceiveFrom:
    def test_it_gives_the_datagram_and_its_sender(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operation = handle.recvfrom(100)
            assert operation.operation is Operation.RECVFROM
            assert operation.pending
            far.sendto(b"hello", near.getsockname())
            assert tuple(take_one(port)) == (5, "key", operation, None)
            assert operation.result() == (b"hello", far.getsockname())
            assert_quiet(port)

    def test_what_is_there_already_comes_at_once(self, port, datagrams):
        near, far = datagrams
        far.sendto(b"hello", near.getsockname())
        with port.associate(near, "key") as handle:
            operation = handle.recvfrom(100)
            take_one(port)
            assert operation.result() == (b"hello", far.getsockname())

    def test_a_buffer_is_filled(self, port, datagrams):
        near, far = datagrams
        buffer = bytearray(8)
        with port.associate(near, "key") as handle:
            operation = handle.recvfrom(buffer)
            far.sendto(b"hello", near.getsockname())
            take_one(port)
            assert operation.result() == (5, far.getsockname())
            assert buffer == b"hello\0\0\0"

    def test_several_buffers_are_filled_in_order(self, port, datagrams):
        near, far = datagrams
        buffers = [bytearray(3), bytearray(3)]
        with port.associate(near, "key") as handle:
            operation = handle.recvfrom(buffers)
            far.sendto(b"hello", near.getsockname())
            take_one(port)
            assert operation.result() == (5, far.getsockname())
            assert buffers == [b"hel", b"lo\0"]

    def test_an_empty_datagram_is_a_datagram(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operations = [handle.recvfrom(10), handle.recvfrom(10)]
            far.sendto(b"", near.getsockname())
            far.sendto(b"x", near.getsockname())
            assert [done.transferred for done in take(port, 2)] == [0, 1]
            sender = far.getsockname()
            assert [one.result() for one in operations] == [(b"", sender), (b"x", sender)]

    def test_what_does_not_fit_is_lost(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operations = [handle.recvfrom(3), handle.recvfrom(3)]
            far.sendto(b"0123456789", near.getsockname())
            far.sendto(b"abc", near.getsockname())
            take(port, 2)
            assert [one.result()[0] for one in operations] == [b"012", b"abc"]

    @needs_ancillary
    def test_msg_trunc_tells_the_length_of_the_datagram(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            for target, value in ((3, b"012"), (bytearray(3), 10)):
                operation = handle.recvfrom(target, socket.MSG_TRUNC)
                far.sendto(b"0123456789", near.getsockname())
                assert take_one(port).transferred == 10
                assert operation.result() == (value, far.getsockname())

    def test_a_size_of_0_waits_and_takes_nothing(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operation = handle.recvfrom(0)
            assert port.get(0.01) is None
            far.sendto(b"hello", near.getsockname())
            assert take_one(port).transferred == 0
            assert operation.result() == (b"", far.getsockname())
            following = handle.recvfrom(10)
            take_one(port)
            assert following.result()[0] == b"hello"

    @wine_tells_no_refusal
    def test_a_refused_datagram_is_an_error_and_receiving_goes_on(self, port, nothing_left):
        with bound_socket("udp") as near, bound_socket("udp") as far:
            gone = bound_socket("udp")
            address = gone.getsockname()
            gone.close()
            near.connect(address)
            with port.associate(near, "key") as handle:
                first = handle.recvfrom(10)
                handle.send(b"anybody there?")
                packets = {done.overlapped: done for done in take(port, 2)}
                assert packets[first].error.errno == errno.ECONNREFUSED
                second = handle.recvfrom(10)
                with socket.socket(type=socket.SOCK_DGRAM) as revived:
                    revived.bind(address)
                    revived.sendto(b"back", near.getsockname())
                take_one(port)
                assert second.result() == (b"back", address)
            far.close()

    def test_msg_waitall_on_recv_makes_no_two_datagrams_one(self, port, connected):
        near, far = connected
        with port.associate(near, "key") as handle:
            operations = [handle.recv(10, socket.MSG_WAITALL) for _ in range(2)]
            far.send(b"one")
            far.send(b"two")
            take(port, 2)
            assert [one.result() for one in operations] == [b"one", b"two"]


class TestSendTo:
    def test_it_sends_one_datagram_to_the_address(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operation = handle.sendto(b"hello", far.getsockname())
            assert operation.operation is Operation.SENDTO
            assert tuple(take_one(port)) == (5, "key", operation, None)
            assert operation.result() == 5
            assert far.recvfrom(100) == (b"hello", near.getsockname())

    def test_several_buffers_are_one_datagram(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            handle.sendto([b"he", bytearray(b"ll"), memoryview(b"o")], far.getsockname())
            assert take_one(port).transferred == 5
            assert far.recv(100) == b"hello"

    def test_an_empty_datagram_is_sent(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            handle.sendto(b"", far.getsockname())
            assert take_one(port).transferred == 0
            assert far.recvfrom(100) == (b"", near.getsockname())

    def test_a_name_is_looked_up(self, port, nothing_left):
        with bound_socket("udp") as near, bound_socket("udp") as far:
            far.settimeout(LONG)
            with port.associate(near, "key") as handle:
                handle.sendto(b"hello", ("localhost", far.getsockname()[1]))
                take_one(port)
                assert far.recv(100) == b"hello"

    def test_a_datagram_that_is_too_long_is_refused(self, port, nothing_left):
        with bound_socket("udp") as near, port.associate(near, "key") as handle:
            error = outcome(port, lambda: handle.sendto(bytes(70_000), ("127.0.0.1", 9)))
            assert error.errno == errno.EMSGSIZE
            assert_quiet(port)

    def test_more_parts_than_one_call_takes_are_no_two_datagrams(self, port, connected):
        near, far = connected
        with port.associate(near, "key") as handle:
            error = outcome(port, lambda: handle.send([b"x"] * 3000))
            assert error.errno == errno.EMSGSIZE
            far.settimeout(0)
            with pytest.raises(BlockingIOError):
                far.recv(10)

    @needs_unix_sockets
    def test_a_receiver_that_is_gone_is_an_error(self, port, nothing_left):
        with bound_socket("unix") as near, port.associate(near, "key") as handle:
            error = outcome(port, lambda: handle.sendto(b"x", b"\0nobody here"))
            assert error.errno == errno.ECONNREFUSED

    @needs_unix_sockets
    def test_sends_wait_for_room_and_keep_their_order(self, port, messages):
        near, far = messages
        before = fill(near)
        with port.associate(near, "key") as handle:
            operations = [handle.send(b"%06d" % (before + number)) for number in range(30)]
            operations += [
                handle.sendmsg([b"%06d" % (before + 30 + number)]) for number in range(30)
            ]
            assert all(one.pending for one in operations)
            reader = Background(lambda: [far.recv(2000)[:6] for _ in range(before + 60)])
            assert [done.overlapped for done in take(port, 60)] == operations
            assert reader.outcome() == [b"%06d" % number for number in range(before + 60)]
            assert_quiet(port)

    @needs_unix_sockets
    def test_a_full_receiver_is_an_error_where_nothing_tells_of_room(self, port, nothing_left):
        with bound_socket("unix") as near, bound_socket("unix") as far, bound_socket("unix") as one:
            one.connect(far.getsockname())
            fill(one)
            with port.associate(near, "key") as handle:
                error = outcome(port, lambda: handle.sendto(b"x", far.getsockname()))
                assert error.errno == errno.ENOBUFS
                assert_quiet(port)
                while far.recv(2000)[:6] != b"000003":
                    pass
                assert outcome(port, lambda: handle.sendto(b"x", far.getsockname())) is None


class TestMessages:
    def test_a_message_carries_flags_and_address(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operations = [handle.recvmsg(4), handle.recvmsg(bytearray(4))]
            assert operations[0].operation is Operation.RECVMSG
            far.sendto(b"long message", near.getsockname())
            far.sendto(b"ok", near.getsockname())
            assert [done.transferred for done in take(port, 2)] == [4, 2]
            sender = far.getsockname()
            assert operations[0].result() == (b"long", [], socket.MSG_TRUNC, sender)
            assert operations[1].result() == (2, [], 0, sender)

    def test_a_message_is_sent_to_an_address(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operation = handle.sendmsg([b"he", b"llo"], address=far.getsockname())
            assert operation.operation is Operation.SENDMSG
            assert tuple(take_one(port)) == (5, "key", operation, None)
            assert far.recvfrom(100) == (b"hello", near.getsockname())

    @pytest.mark.skipif(not WINDOWS, reason="there is ancillary data here")
    def test_without_ancillary_data_the_call_says_what_to_do(self, port, nothing_left):
        with bound_socket("udp") as near, port.associate(near, "key") as handle:
            with pytest.raises(OSError, match=r"socket\.share\(\)") as raised:
                handle.sendmsg(b"x", [(1, 2, b"x")], address=near.getsockname())
            assert raised.value.errno == errno.EOPNOTSUPP
            assert_quiet(port)

    @needs_ancillary
    def test_ancillary_data_of_the_network_comes_along(self, port, nothing_left):
        with bound_socket("udp") as near, bound_socket("udp") as far:
            near.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            far.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x20)
            with port.associate(near, "key") as handle:
                operation = handle.recvmsg(100, socket.CMSG_SPACE(4))
                far.sendto(b"hello", near.getsockname())
                take_one(port)
                data, ancillary, flags, address = operation.result()
                assert (data, flags, address) == (b"hello", 0, far.getsockname())
                assert ancillary == [(socket.IPPROTO_IP, socket.IP_TOS, b"\x20")]

    @needs_unix_sockets
    @pytest.mark.parametrize("pair", ["datagram", "stream"])
    def test_descriptors_are_received(self, port, pair, pipe):
        kind = socket.SOCK_DGRAM if pair == "datagram" else socket.SOCK_STREAM
        near, far = socket.socketpair(socket.AF_UNIX, kind)
        with far, port.associate(near, "key") as handle:
            operation = handle.recvmsg(100, ROOM)
            far.sendmsg([b"hello"], rights(pipe[1]))
            take_one(port)
            data, ancillary, flags, _address = operation.result()
            assert (data, flags) == (b"hello", 0)
            [number] = passed(ancillary)
            assert os.get_inheritable(number) is False
            os.write(number, b"through")
            assert os.read(pipe[0], 100) == b"through"
            os.close(number)

    @needs_unix_sockets
    @pytest.mark.parametrize("pair", ["datagram", "stream"])
    def test_descriptors_are_sent_and_may_be_closed_at_once(self, port, pair, pipe):
        kind = socket.SOCK_DGRAM if pair == "datagram" else socket.SOCK_STREAM
        near, far = socket.socketpair(socket.AF_UNIX, kind)
        far.settimeout(LONG)
        with far, port.associate(near, "key") as handle:
            handle.sendmsg(b"hello", rights(pipe[1]))
            os.close(pipe[1])
            assert take_one(port).transferred == 5
            data, ancillary, _flags, _address = far.recvmsg(100, ROOM)
            assert data == b"hello"
            [number] = passed(ancillary)
            os.write(number, b"through")
            assert os.read(pipe[0], 100) == b"through"
            os.close(number)
            assert at_end(pipe[0])

    @needs_unix_sockets
    def test_descriptors_that_wait_to_be_sent_may_be_closed(self, port, messages, pipe):
        near, far = messages
        before = fill(near)
        with port.associate(near, "key") as handle:
            operation = handle.sendmsg([b"hello"], rights(pipe[1]))
            assert operation.pending
            number = pipe[1]
            os.close(number)
            # Another file gets the number: it must not be the one that is sent.
            other = os.open(os.devnull, os.O_RDONLY)
            reader = Background(lambda: [far.recvmsg(2000, ROOM) for _ in range(before + 1)])
            assert take_one(port).error is None
            data, ancillary, _, _ = reader.outcome()[-1]
            os.close(other)
            assert data == b"hello"
            [received] = passed(ancillary)
            os.write(received, b"through")
            assert os.read(pipe[0], 100) == b"through"
            os.close(received)
            assert at_end(pipe[0])

    @needs_unix_sockets
    def test_a_long_stream_message_sends_its_descriptors_once(self, port, make_pair, pipe):
        near, far = make_pair("unix")
        data = pattern(3_000_000)
        with port.associate(near, "key") as handle:
            handle.sendmsg([data[:1000], data[1000:]], rights(pipe[1]))
            os.close(pipe[1])

            def read():
                received, numbers = b"", []
                while len(received) < len(data):
                    part, ancillary, _, _ = far.recvmsg(1 << 20, ROOM)
                    received += part
                    numbers += passed(ancillary)
                return received, numbers

            reader = Background(read)
            assert take_one(port).transferred == len(data)
            received, numbers = reader.outcome()
            assert received == data
            assert len(numbers) == 1
            os.close(numbers[0])
            assert at_end(pipe[0])

    @needs_unix_sockets
    def test_a_cancelled_send_lets_its_descriptors_go(self, port, messages, pipe):
        near, _far = messages
        fill(near)
        with port.associate(near, "key") as handle:
            operation = handle.sendmsg([b"hello"], rights(pipe[1]))
            os.close(pipe[1])
            operation.cancel()
            assert isinstance(take_one(port).error, OperationAborted)
            assert at_end(pipe[0])

    @needs_unix_sockets
    def test_a_refused_send_lets_its_descriptors_go(self, port, pipe, nothing_left):
        with bound_socket("unix") as near, port.associate(near, "key") as handle:
            error = outcome(
                port, lambda: handle.sendmsg(b"x", rights(pipe[1]), address=b"\0nobody here")
            )
            assert error.errno == errno.ECONNREFUSED
            os.close(pipe[1])
            assert at_end(pipe[0])

    @needs_unix_sockets
    @needs_fork
    def test_a_message_that_a_child_of_fork_is_refused_leaves_no_descriptor(self, engine):
        run_python(
            """
            import array, os, socket, warnings
            from completionport import CompletionPort, PortForked
            from support import descriptors
            warnings.simplefilter("ignore")
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            port = CompletionPort()
            handle = port.associate(near, "key")
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))]
            child = os.fork()
            if child == 0:
                before = descriptors()
                try:
                    handle.sendmsg(b"x", rights)
                except PortForked:
                    os._exit(0 if descriptors() == before else 2)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            handle.sendmsg(b"x", rights)
            assert port.get(20).error is None
            port.close()
            """,
            engine=engine,
        )

    @needs_unix_sockets
    def test_a_wrong_descriptor_raises_and_none_is_left(self, port, messages, pipe):
        near, _far = messages
        with port.associate(near, "key") as handle:
            with pytest.raises(OSError, match="descriptor in the ancillary data"):
                handle.sendmsg(b"x", [*rights(pipe[1]), *rights(pipe[1], 1 << 20)])
            os.close(pipe[1])
            assert at_end(pipe[0])
            assert_quiet(port)

    @needs_unix_sockets
    def test_a_message_that_meets_the_close_of_its_handle_leaves_no_descriptor(
        self, port, messages, pipe
    ):
        near, far = messages
        handle = port.associate(near, "key")
        operations = [handle.recvmsg(100, ROOM) for _ in range(2)]
        for _ in range(4):
            far.sendmsg([b"hello"], rights(pipe[1]))
        os.close(pipe[1])
        handle.close()
        assert {done.overlapped for done in take(port, 2)} == set(operations)
        for operation in operations:
            assert isinstance(operation.error, OperationAborted)
        wait_until(lambda: at_end(pipe[0]), "nobody has the pipe's other end")

    @needs_unix_sockets
    def test_a_queued_packet_closes_its_descriptors_with_the_port(self, engine, messages, pipe):
        near, far = messages
        far.sendmsg([b"hello"], rights(pipe[1]))
        os.close(pipe[1])
        port = CompletionPort(engine=engine)
        operation = port.associate(near, "key").recvmsg(100, ROOM)
        assert port.stats()["queued"] == 1
        port.close()
        assert at_end(pipe[0])
        assert isinstance(operation.error, OperationAborted)

    @needs_unix_sockets
    def test_descriptors_without_room_are_closed_by_the_kernel(self, port, messages, pipe):
        near, far = messages
        with port.associate(near, "key") as handle:
            operation = handle.recvmsg(100, socket.CMSG_SPACE(4))
            far.sendmsg([b"hello"], rights(pipe[1], pipe[1], pipe[1], pipe[1]))
            os.close(pipe[1])
            take_one(port)
            _data, ancillary, flags, _address = operation.result()
            assert flags & socket.MSG_CTRUNC
            for number in passed(ancillary):
                os.close(number)
            assert at_end(pipe[0])

    @needs_unix_sockets
    def test_a_plain_receive_drops_descriptors(self, port, messages, pipe):
        near, far = messages
        with port.associate(near, "key") as handle:
            operation = handle.recv(100)
            far.sendmsg([b"hello"], rights(pipe[1]))
            os.close(pipe[1])
            take_one(port)
            assert operation.result() == b"hello"
            assert at_end(pipe[0])


STARTS = {
    "recvfrom": lambda handle, address: handle.recvfrom(100),
    "recvfrom into": lambda handle, address: handle.recvfrom([bytearray(10), bytearray(10)]),
    "recvmsg": lambda handle, address: handle.recvmsg(100, ROOM),
    "recvmsg into": lambda handle, address: handle.recvmsg(bytearray(10)),
}


@pytest.fixture(params=list(STARTS))
def receive(request):
    return STARTS[request.param]


class TestRules:
    def test_receives_of_every_kind_are_carried_out_in_order(self, port, datagrams):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            kinds = [handle.recvfrom, handle.recv, handle.recvmsg]
            operations = [kinds[number % 3](100) for number in range(60)]
            for number in range(60):
                far.sendto(b"%d" % number, near.getsockname())
                assert take_one(port).overlapped is operations[number]
            for number, operation in enumerate(operations):
                value = operation.result()
                assert (value if number % 3 == 1 else value[0]) == b"%d" % number
            assert_quiet(port)

    def test_sends_of_many_threads_each_arrive_once(self, port, datagrams):
        near, far = datagrams
        each, threads = 40, 4  # they fit into the receiver's buffer
        with port.associate(near, "key") as handle:
            address = far.getsockname()
            reader = Background(lambda: [far.recv(100) for _ in range(each * threads)])

            def post(letter):
                for number in range(each):
                    sent = False
                    while not sent:
                        # A full receiver is an error where nothing tells of room.
                        with contextlib.suppress(OSError):
                            handle.sendto(b"%c%d" % (letter, number), address)
                            sent = True

            posters = [Background(post, letter) for letter in b"abcd"]
            packets = take(port, each * threads)
            for poster in posters:
                poster.outcome()
            assert [done.error for done in packets] == [None] * len(packets)
            received = reader.outcome()
            assert sorted(received) == sorted(
                b"%c%d" % (letter, number) for letter in b"abcd" for number in range(each)
            )

    def test_cancel_gives_one_packet_and_the_next_gets_the_datagram(self, port, datagrams, receive):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operations = [receive(handle, None) for _ in range(3)]
            assert operations[0].cancel() is True
            done = take_one(port)
            assert done.overlapped is operations[0]
            assert isinstance(done.error, OperationAborted)
            far.sendto(b"hello", near.getsockname())
            done = take_one(port)
            assert (done.overlapped, done.transferred) == (operations[1], 5)
            assert handle.cancel() == 1
            assert isinstance(take_one(port).error, OperationAborted)
            assert_quiet(port)

    def test_close_aborts_all_with_one_packet_each(self, port, datagrams, receive):
        near, _far = datagrams
        handle = port.associate(near, "key")
        operations = [receive(handle, None) for _ in range(20)]
        handle.close()
        packets = take(port, 20)
        assert {done.overlapped for done in packets} == set(operations)
        assert all(isinstance(done.error, OperationAborted) for done in packets)
        assert {(done.key, done.transferred) for done in packets} == {("key", 0)}
        assert_quiet(port)

    def test_close_of_the_port_ends_all(self, engine, datagrams, receive):
        near, far = datagrams
        port = CompletionPort(engine=engine)
        handle = port.associate(near, "key")
        operations = [receive(handle, None) for _ in range(5)]
        port.close()
        for operation in operations:
            assert isinstance(operation.error, OperationAborted)
        far.sendto(b"still open", near.getsockname())
        assert near.recv(100) == b"still open"

    def test_a_closed_handle_refuses(self, port, datagrams):
        near, far = datagrams
        address = far.getsockname()
        handle = port.associate(near, "key")
        handle.close()
        for start in (
            lambda: handle.recvfrom(1),
            lambda: handle.recvmsg(1),
            lambda: handle.sendto(b"x", address),
            lambda: handle.sendmsg(b"x", address=address),
        ):
            with pytest.raises(HandleClosed):
                start()

    def test_a_closed_port_refuses(self, engine, datagrams):
        near, far = datagrams
        port = CompletionPort(engine=engine)
        handle = port.associate(near, "key")
        port.close()
        for start in (lambda: handle.recvfrom(1), lambda: handle.sendto(b"x", far.getsockname())):
            with pytest.raises((PortClosed, HandleClosed)):
                start()

    def test_operations_of_a_thread_that_has_ended_complete(self, port, datagrams, receive):
        near, far = datagrams
        with port.associate(near, "key") as handle:
            operation = Background(receive, handle, None).outcome()
            far.sendto(b"hello", near.getsockname())
            done = take_one(port)
            assert (done.overlapped, done.transferred, done.error) == (operation, 5, None)

    @needs_unix_sockets
    def test_sends_of_a_thread_that_has_ended_complete(self, port, messages):
        near, far = messages
        before = fill(near)
        with port.associate(near, "key") as handle:
            operation = Background(handle.sendmsg, [b"last"]).outcome()
            reader = Background(lambda: [far.recv(2000) for _ in range(before + 1)])
            assert take_one(port).overlapped is operation
            assert reader.outcome()[-1] == b"last"

    def test_dropped_references_are_kept_until_the_packet_is_taken(self, port, datagrams):
        near, far = datagrams

        class PerIo(Overlapped):
            pass

        class Buffer(bytearray):
            pass

        with port.associate(near, "key") as handle:
            buffer = Buffer(10)
            alive = weakref.ref(buffer)
            handle.recvfrom(buffer, overlapped=PerIo())
            handle.recvmsg(memoryview(buffer), 1000, overlapped=PerIo())
            del buffer
            gc.collect()
            assert alive() is not None
            far.sendto(b"one", near.getsockname())
            far.sendto(b"two", near.getsockname())
            first, second = take(port, 2)
            assert first.overlapped.result() == (3, far.getsockname())
            assert second.overlapped.result() == (3, [], 0, far.getsockname())
            gc.collect()
            assert alive() is None

    @needs_unix_sockets
    def test_what_is_to_be_sent_is_kept_until_it_has_gone_out(self, port, messages):
        near, far = messages
        before = fill(near)
        with port.associate(near, "key") as handle:
            handle.sendmsg([bytes(bytearray(b"first")), bytes(bytearray(b"second"))])
            gc.collect()
            trash = [b"%d" % number * 5 for number in range(1000)]
            reader = Background(lambda: [far.recv(2000) for _ in range(before + 1)])
            take_one(port)
            assert reader.outcome()[-1] == b"firstsecond"
            del trash

    def test_one_overlapped_serves_every_kind_in_turn(self, port, datagrams):
        near, far = datagrams
        mine = Overlapped()
        with port.associate(near, "key") as handle:
            for _ in range(3):
                handle.recvfrom(100, overlapped=mine)
                with pytest.raises(OperationPending):
                    handle.sendto(b"x", far.getsockname(), overlapped=mine)
                far.sendto(b"ping", near.getsockname())
                assert take_one(port).overlapped is mine
                data, address = mine.result()
                handle.sendto(data, address, overlapped=mine)
                take_one(port)
                assert mine.result() == 4
                handle.recvmsg(100, overlapped=mine)
                far.sendto(far.recv(100), near.getsockname())
                take_one(port)
                assert mine.result() == (b"ping", [], 0, far.getsockname())
                handle.sendmsg([b"pong"], address=far.getsockname(), overlapped=mine)
                take_one(port)
                assert far.recv(100) == b"pong"

    @pytest.mark.parametrize("timeout", [None, 0.0, 5.0], ids=["blocking", "polling", "timeout"])
    def test_sockets_in_any_mode_work_alike(self, port, datagrams, timeout):
        near, far = datagrams
        near.settimeout(timeout)
        with port.associate(near, "key") as handle:
            operation = handle.recvfrom(10)
            assert port.get(0.01) is None
            far.sendto(b"hello", near.getsockname())
            take_one(port)
            handle.sendto(operation.result()[0], far.getsockname())
            take_one(port)
            assert far.recv(10) == b"hello"
            assert near.gettimeout() == timeout

    def test_several_threads_take_what_came(self, make_port, datagrams):
        port = make_port(4)
        near, far = datagrams
        with port.associate(near, "key") as handle:
            takers = [Background(take, port, 25) for _ in range(4)]
            wait_for_stats(port, waiting=4)
            operations = [handle.recvfrom(10) for _ in range(100)]
            for number in range(100):
                far.sendto(b"%d" % number, near.getsockname())
            packets = [done for taker in takers for done in taker.outcome()]
            assert {done.overlapped for done in packets} == set(operations)
            assert [one.result()[0] for one in operations] == [b"%d" % n for n in range(100)]

    @needs_fork
    def test_a_child_process_raises_and_the_parent_is_unharmed(self, engine):
        run_python(
            """
            import os, socket
            from completionport import CompletionPort, PortForked

            near = socket.socket(type=socket.SOCK_DGRAM)
            near.bind(("127.0.0.1", 0))
            far = socket.socket(type=socket.SOCK_DGRAM)
            with CompletionPort() as port:
                handle = port.associate(near, "key")
                operation = handle.recvfrom(100)
                child = os.fork()
                if child == 0:
                    for call in (lambda: handle.recvfrom(1), lambda: handle.recvmsg(1),
                                 lambda: handle.sendto(b"x", ("127.0.0.1", 9))):
                        try:
                            call()
                        except PortForked:
                            continue
                        os._exit(1)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                far.sendto(b"hello", near.getsockname())
                assert port.get(10).overlapped is operation
                assert operation.result()[0] == b"hello"
            """,
            engine=engine,
        )

    def test_the_interpreter_ends_with_receives_under_way(self, engine):
        run_python(
            """
            import socket, threading
            from completionport import CompletionPort

            near = socket.socket(type=socket.SOCK_DGRAM)
            near.bind(("127.0.0.1", 0))
            port = CompletionPort()
            handle = port.associate(near, "key")
            for _ in range(10):
                handle.recvmsg(100, 100)
            threading.Thread(target=port.get, daemon=True).start()
            """,
            engine=engine,
        )

    @needs_unix_sockets
    def test_ten_thousand_datagrams_leave_nothing_behind(self, port, messages):
        near, far = messages
        with port.associate(near, "key") as handle:
            before = None
            mine = Overlapped()
            for number in range(10_000):
                handle.recvmsg(100, ROOM, overlapped=mine)
                far.send(b"x")
                take_one(port)
                if number == 1000:
                    gc.collect()
                    before = sys.getallocatedblocks()
            gc.collect()
            assert sys.getallocatedblocks() - before < 200
            assert len(descriptors()) < 100


class TestArguments:
    @pytest.fixture
    def handle(self, port, nothing_left):
        with bound_socket("udp") as near, port.associate(near, "key") as handle:
            yield handle

    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda h: h.recvfrom("x"), TypeError, r"recvfrom\(\) takes"),
            (lambda h: h.recvfrom(-1), ValueError, r"recvfrom\(\) takes a size"),
            (lambda h: h.recvfrom(b"constant"), TypeError, "writable"),
            (lambda h: h.recvfrom(1, "x"), TypeError, "flags must be an integer"),
            (lambda h: h.recvfrom(1, socket.MSG_WAITALL), ValueError, "MSG_WAITALL"),
            (lambda h: h.recvfrom(1, 0, "x"), TypeError, "overlapped must be"),
            (lambda h: h.recvmsg(None), TypeError, r"recvmsg\(\) takes"),
            (lambda h: h.recvmsg(1, -1), ValueError, "ancillary_size must be from 0"),
            (lambda h: h.recvmsg(1, 1 << 21), ValueError, "ancillary_size must be from 0"),
            (lambda h: h.recvmsg(1, "x"), TypeError, "ancillary_size must be an integer"),
            (lambda h: h.recvmsg(1, 0, socket.MSG_WAITALL), ValueError, "MSG_WAITALL"),
            (lambda h: h.sendto("x", ("127.0.0.1", 1)), TypeError, r"sendto\(\) takes"),
            (lambda h: h.sendto(b"x", "127.0.0.1"), TypeError, "address"),
            (lambda h: h.sendto(b"x", None), TypeError, "address"),
            (lambda h: h.sendto(b"x", ("127.0.0.1", 70_000)), OverflowError, "port"),
            (lambda h: h.sendto(b"x", ("::1", 1)), OSError, "hostname"),
            (lambda h: h.sendmsg("x"), TypeError, r"sendmsg\(\) takes"),
            (lambda h: h.sendmsg([]), ValueError, "at least one buffer"),
            (lambda h: h.sendmsg(b"x", [(1, 2)]), TypeError, "ancillary data is"),
            (lambda h: h.sendmsg(b"x", [(1, 2, "x")]), TypeError, "ancillary data is"),
            (lambda h: h.sendmsg(b"x", [(1, 2, bytes(2 << 20))]), ValueError, "ancillary data has"),
            (lambda h: h.sendmsg(b"x", 5), TypeError, "ancillary data is"),
            (lambda h: h.sendmsg(b"x", [(1.5, 1, b"")]), TypeError, "ancillary data is"),
            (lambda h: h.sendmsg(b"x", [(2**40, 1, b"")]), TypeError, "ancillary data is"),
            (
                lambda h: h.sendmsg(b"x", [(1, 1, memoryview(bytes(8))[::2])]),
                TypeError,
                "ancillary data is",
            ),
        ],
    )
    def test_wrong_arguments_raise_at_the_call(self, port, handle, call, error, text):
        if WINDOWS and text in ("hostname", "ancillary data has"):
            pytest.skip("getaddrinfo has another text, and there are no ancillary data")
        with pytest.raises(error, match=text):
            call(handle)
        assert_quiet(port)

    @pytest.mark.parametrize("kind", ["file", pytest.param("pipe", marks=needs_plain_pipes)])
    def test_a_file_that_is_no_socket_is_refused(self, port, pipe, kind, tmp_path):
        with contextlib.ExitStack() as stack:
            file = pipe[0]
            if kind == "file":
                file = stack.enter_context((tmp_path / "file").open("w+b", 0))
            handle = stack.enter_context(port.associate(file, "key"))
            for start in (
                lambda: handle.recvfrom(1),
                lambda: handle.recvmsg(1),
                lambda: handle.sendto(b"x", ("127.0.0.1", 1)),
                lambda: handle.sendmsg(b"x"),
            ):
                with pytest.raises(OSError, match="socket") as raised:
                    start()
                assert raised.value.errno == errno.ENOTSOCK
        assert_quiet(port)

    @pytest.mark.skipif(WINDOWS, reason="WSASend says WSAENOTCONN there, and Wine WSAEINVAL")
    def test_a_send_without_a_destination_raises_and_gives_no_packet(self, port, handle):
        with pytest.raises(OSError, match="address") as raised:
            handle.sendmsg(b"x")
        assert raised.value.errno == errno.EDESTADDRREQ
        assert_quiet(port)

    @needs_unix_sockets
    def test_records_keep_their_bounds(self, port, nothing_left):
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far, port.associate(near, "key") as handle:
            operations = [handle.recvmsg(100), handle.recv(100, socket.MSG_WAITALL)]
            far.send(b"one")
            far.send(b"two")
            take(port, 2)
            assert operations[0].result()[0] == b"one"
            assert operations[1].result() == b"two"


def test_messages_on_a_stream_are_its_bytes(port, make_pair):
    near, far = local_pair()
    with far, port.associate(near, "key") as handle:
        operation = handle.recvmsg(100, ROOM)
        far.sendall(b"hello")
        take_one(port)
        assert operation.result()[:3] == (b"hello", [], 0)
        operation = handle.recvfrom(100)
        far.shutdown(socket.SHUT_WR)
        assert take_one(port).transferred == 0
        assert operation.result()[0] == b""
