"""Datagrams and messages: the port's rules for each of their operations."""

from __future__ import annotations

import contextlib
import errno
import gc
import select
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
from datagram_support import ROOM, bound_socket, fill
from support import (
    HOST,
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    descriptors,
    needs_ancillary,
    needs_fork,
    needs_plain_pipes,
    needs_unix_sockets,
    outcome,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wine_tells_no_refusal,
)


@pytest.fixture
def connected(datagrams):
    near, far = datagrams
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


@pytest.mark.parametrize("is_there", [True, False], ids=["it was there", "it comes"])
@pytest.mark.parametrize("name", ["recv", "recv into", "read", "recvfrom", "recvfrom into"])
def test_what_a_datagram_has_too_much_is_lost(port, connected, name, is_there):
    near, far = connected
    room = bytearray(4)

    def start(handle):
        method = getattr(handle, name.split()[0])
        return method(room if name.endswith("into") else 4)

    with port.associate(near, "key") as handle:
        if is_there:
            far.send(b"too long")
            assert select.select([near], [], [], LONG)[0]
        operation = start(handle)
        if not is_there:
            far.send(b"too long")
        assert tuple(take_one(port)) == (4, "key", operation, None)
        if name.endswith("into"):
            assert room == b"too "
        else:
            expected = (b"too ", far.getsockname()) if name == "recvfrom" else b"too "
            assert operation.result() == expected
        # Nothing else comes of it, and the next one is as it should be.
        second = handle.recv(10)
        far.send(b"next")
        assert tuple(take_one(port)) == (4, "key", second, None)
        assert second.result() == b"next"
        assert_quiet(port)


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
            gone = bound_socket("udp", HOST)
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


RECEIVES = ["recv", "recvfrom", "recvmsg"]


@pytest.mark.parametrize("is_there", [True, False], ids=["it is there", "it comes"])
@pytest.mark.parametrize("name", RECEIVES)
def test_a_stream_takes_no_receive_that_fills_nothing(port, pair, name, is_there):
    """Of a TCP stream MSG_TRUNC throws bytes away, and memory that nobody wrote was shown."""
    near, far = pair
    with port.associate(near, "key") as handle:
        if is_there:
            far.sendall(b"hello")
        buffers = [bytearray(b"x" * 50), bytearray(b"x" * 50)]
        for target in (4096, 0, bytearray(100), buffers):
            for more in (0, socket.MSG_PEEK, socket.MSG_OOB):
                with pytest.raises(OSError, match=rf"{name}\(\) takes MSG_TRUNC for") as raised:
                    getattr(handle, name)(target, flags=socket.MSG_TRUNC | more)
                assert raised.value.errno == errno.EOPNOTSUPP
        if not is_there:
            far.sendall(b"hello")
        operation = handle.recv(10)
        take_one(port)
        assert operation.result() == b"hello"
        assert_quiet(port)


@needs_ancillary
@needs_unix_sockets
@pytest.mark.parametrize("is_there", [True, False], ids=["it is there", "it comes"])
@pytest.mark.parametrize("kind", ["SOCK_DGRAM", "SOCK_SEQPACKET"])
@pytest.mark.parametrize("name", RECEIVES)
def test_a_message_that_is_longer_shows_its_own_bytes_only(
    port, nothing_left, name, kind, is_there
):
    near, far = socket.socketpair(socket.AF_UNIX, getattr(socket, kind))
    with far, near, port.associate(near, "key") as handle:
        for size in (3, 5, 8):
            if is_there:
                far.send(b"01234")
            operation = getattr(handle, name)(size, flags=socket.MSG_TRUNC)
            if not is_there:
                far.send(b"01234")
            take_one(port)
            value = operation.result()
            assert (value if name == "recv" else value[0]) == b"01234"[:size]
        assert_quiet(port)
