"""Messages with ancillary data: descriptors that are passed, and who has them until when."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from completionport import (
    CompletionPort,
    Operation,
    OperationAborted,
)
from datagram_support import ROOM, at_end, bound_socket, fill, passed, rights
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    local_pair,
    needs_ancillary,
    needs_fork,
    needs_unix_sockets,
    outcome,
    pattern,
    run_python,
    take,
    take_one,
    wait_until,
)


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
