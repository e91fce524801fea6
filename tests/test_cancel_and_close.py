"""Cancelling, closing a handle, and a socket that is closed behind the library's back (rule 6)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys

import pytest

from completionport import Completion, CompletionPort, HandleClosed, OperationAborted, PortClosed
from completionport.engines import COMPILED
from completionport.shared import association
from support import (
    HOST,
    LONG,
    WINDOWS,
    Background,
    assert_idle,
    assert_quiet,
    descriptors,
    outcome,
    pattern,
    read_exactly,
    read_to_end,
    take,
    take_one,
    under_number,
    wait_for_stats,
    wait_until,
    wine_keeps_ports,
)

BIG = 8_000_000


def assert_aborted(done, operation, key="key"):
    assert done.overlapped is operation
    assert done.key == key
    assert isinstance(done.error, OperationAborted)
    assert isinstance(done.error, OSError)
    assert done.error.errno == errno.ECANCELED
    assert operation.error is done.error
    assert not operation.pending
    with pytest.raises(OperationAborted):
        operation.result()


class TestCancel:
    def test_a_cancelled_receive_gives_one_packet_that_says_so(self, port, pair):
        near, _far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            assert handle.cancel(operation) == 1
            done = take_one(port)
            assert_aborted(done, operation)
            assert done.transferred == 0
            assert_quiet(port)

    def test_cancel_of_everything_counts_what_it_asked_to_stop(self, port, pair):
        near, _far = pair
        with port.associate(near, "key") as handle:
            operations = [handle.recv(10) for _ in range(5)]
            operations.append(handle.send(pattern(BIG)))
            operations.append(handle.send(b"behind"))
            assert handle.cancel() == 7
            packets = {done.overlapped: done for done in take(port, 7)}
            for operation in operations:
                assert_aborted(packets[operation], operation)
            assert_quiet(port)

    def test_cancel_with_nothing_under_way_is_zero(self, port, pair):
        near, _far = pair
        with port.associate(near, "key") as handle:
            assert handle.cancel() == 0
            operation = handle.recv(10)
            handle.cancel(operation)
            take_one(port)
            assert handle.cancel(operation) == 0
            assert handle.cancel() == 0
            assert_quiet(port)

    def test_cancel_of_a_finished_operation_leaves_its_result(self, port, pair):
        near, _far = pair
        with port.associate(near, "key") as handle:
            operation = handle.send(b"hello")
            handle.cancel(operation)
            done = take_one(port)
            assert (done.transferred, done.error) == (5, None)
            assert_quiet(port)

    def test_cancel_of_another_handles_operation_is_zero(self, port, make_pair):
        (one, far), (two, _) = make_pair(), make_pair()
        with port.associate(one, 1) as first, port.associate(two, 2) as second:
            operation = first.recv(10)
            assert second.cancel(operation) == 0
            assert operation.pending
            far.sendall(b"hello")
            assert take_one(port).error is None
            assert operation.result() == b"hello"

    def test_an_operation_cancels_itself(self, port, pair):
        near, _far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            assert operation.cancel() is True
            assert_aborted(take_one(port), operation)
            assert operation.cancel() is False

    def test_cancelling_twice_gives_one_packet(self, port, pair):
        near, _far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            handle.cancel(operation)
            handle.cancel(operation)
            assert_aborted(take_one(port), operation)
            assert_quiet(port)

    def test_a_cancelled_send_says_how_much_was_taken(self, port, pair):
        near, far = pair
        data = pattern(BIG)
        with port.associate(near, "key") as handle:
            operation = handle.send(data)
            assert port.get(0.01) is None
            assert handle.cancel(operation) == 1
            done = take_one(port)
            assert_aborted(done, operation)
            assert 0 < done.transferred < BIG
            assert operation.transferred == done.transferred
            reader = Background(read_to_end, far)
            handle.send(b"the next one")
            handle.disconnect()
            take(port, 2)
            assert reader.outcome() == data[: done.transferred] + b"the next one"

    def test_a_cancelled_receive_takes_no_data_along(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            for number in range(300):
                operation = handle.recv(10)
                sender = Background(far.sendall, b"%03d" % number)
                handle.cancel(operation)
                if take_one(port).error is not None:
                    operation = handle.recv(10)
                    take_one(port)
                assert operation.result() == b"%03d" % number
                sender.outcome()
            assert_quiet(port)

    def test_a_cancelled_accept_loses_no_connection(self, port, listener):
        with port.associate(listener, "key") as handle:
            for _ in range(50):
                operation = handle.accept()
                with socket.socket() as client:
                    client.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        client.connect(listener.getsockname())
                    handle.cancel(operation)
                    if take_one(port).error is not None:
                        operation = handle.accept()
                        take_one(port)
                    with operation.result() as accepted:
                        assert accepted.getpeername() == client.getsockname()
            assert_quiet(port)

    def test_cancel_of_an_accept_and_a_connect_that_wait(self, port, listener):
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        with full, contextlib.ExitStack() as stack, port.associate(listener, "key") as handle:
            accepting = handle.accept()
            assert handle.cancel(accepting) == 1
            assert_aborted(take_one(port), accepting)

            def waits(connecting):
                return port.get(0.05) is None and connecting.pending

            # A listener with a full queue does not answer: the connection stays under way.
            for _ in range(10):
                client = stack.enter_context(port.associate(socket.socket(), "key"))
                connecting = client.connect(full.getsockname())
                if waits(connecting):
                    break
            else:
                pytest.skip("connections to a full listener are answered here")
            assert client.cancel() == 1
            assert_aborted(take_one(port), connecting)
            assert_quiet(port)

    def test_cancel_of_a_receive_that_has_a_part_loses_nothing(self, port, pair):
        near, far = pair
        buffer = bytearray(10)
        with port.associate(near, "key") as handle:
            operation = handle.recv(buffer, socket.MSG_WAITALL)
            far.sendall(b"abc")
            assert port.get(0.01) is None
            handle.cancel(operation)
            done = take_one(port)
            assert done.overlapped is operation
            far.sendall(b"def")
            following = handle.recv(6 - done.transferred, socket.MSG_WAITALL)
            take_one(port)
            assert bytes(buffer[: done.transferred]) + following.result() == b"abcdef"


class TestClose:
    def test_close_aborts_every_operation_with_one_packet_each(self, port, pair):
        near, _far = pair
        handle = port.associate(near, "key")
        operations = [handle.recv(10) for _ in range(20)]
        operations += [handle.send(pattern(BIG)), handle.send(b"behind"), handle.disconnect()]
        handle.close()
        packets = take(port, 23)
        for operation in operations:
            [done] = [done for done in packets if done.overlapped is operation]
            assert_aborted(done, operation)
        assert_quiet(port)

    def test_close_closes_the_file(self, port, pair):
        near, far = pair
        handle = port.associate(near, "key")
        assert (handle.closed, handle.fileno()) == (False, near.fileno())
        assert (handle.key, handle.file, handle.port) == ("key", near, port)
        handle.close()
        assert (handle.closed, handle.fileno()) == (True, -1)
        assert handle.key == "key"
        assert near.fileno() == -1
        assert far.recv(10) == b""
        assert port.stats()["handles"] == 0

    def test_the_peer_sees_the_end_although_a_receive_was_waiting(self, port, pair):
        near, far = pair
        handle = port.associate(near, "key")
        operation = handle.recv(10)
        handle.close()
        assert far.recv(10) == b""
        assert_aborted(take_one(port), operation)

    def test_close_of_a_listener_frees_its_address(self, port):
        server = socket.create_server((HOST, 0))
        address = server.getsockname()
        handle = port.associate(server, "key")
        operation = handle.accept()
        handle.close()
        assert_aborted(take_one(port), operation)
        with socket.socket() as client:
            wait_until(lambda: client.connect_ex(address) == errno.ECONNREFUSED)
        socket.create_server(address).close()

    def test_close_wakes_a_thread_that_waits_for_the_packets(self, make_port, pair):
        port = make_port(2)
        near, _far = pair
        handle = port.associate(near, "key")
        operation = handle.recv(10)
        taker = Background(port.get)
        wait_for_stats(port, waiting=1)
        handle.close()
        assert_aborted(taker.outcome(), operation)

    def test_closing_again_does_nothing(self, port, tcp):
        near, _far = tcp
        handle = port.associate(near, "key")
        handle.recv(10)
        handle.close()
        handle.close()
        with handle:
            pass
        take_one(port)
        assert_quiet(port)

    def test_data_that_was_sent_before_the_close_arrives(self, port, pair):
        near, far = pair
        handle = port.associate(near, "key")
        handle.send(b"last words")
        take_one(port)
        handle.close()
        assert read_to_end(far) == b"last words"

    @pytest.mark.parametrize(
        "start",
        [
            lambda handle: handle.accept(),
            lambda handle: handle.connect(("127.0.0.1", 1)),
            lambda handle: handle.recv(1),
            lambda handle: handle.recv(bytearray(1)),
            lambda handle: handle.send(b"x"),
            lambda handle: handle.read(1),
            lambda handle: handle.write(b"x"),
            lambda handle: handle.disconnect(),
        ],
        ids=["accept", "connect", "recv", "recv into", "send", "read", "write", "disconnect"],
    )
    def test_an_operation_on_a_closed_handle_raises(self, port, tcp, start):
        near, _far = tcp
        handle = port.associate(near, "key")
        handle.close()
        with pytest.raises(HandleClosed, match="closed"):
            start(handle)
        assert_quiet(port)

    def test_threads_that_close_at_the_same_time_give_one_packet_each(self, port, make_pair):
        for _ in range(20):
            near, _far = make_pair()
            handle = port.associate(near, "key")
            operations = {handle.recv(10) for _ in range(5)}
            for thread in [Background(handle.close) for _ in range(3)]:
                thread.outcome()
            assert {done.overlapped for done in take(port, 5)} == operations
            assert_quiet(port)

    def test_close_while_another_thread_starts_operations(self, make_port, make_pair):
        port = make_port()
        for kind in ("tcp", "local") * 10:
            near, _far = make_pair(kind)
            handle = port.associate(near, "key")
            started = []

            def start(handle=handle, started=started):
                with contextlib.suppress(HandleClosed):
                    while True:
                        started.append(handle.recv(10))

            thread = Background(start)
            wait_until(lambda started=started: len(started) > 5)
            handle.close()
            thread.outcome()
            packets = take(port, len(started))
            assert {done.overlapped for done in packets} == set(started)
            assert all(isinstance(done.error, OperationAborted) for done in packets)
            assert_quiet(port)

    def test_a_number_that_is_given_to_another_file_is_left_alone(self, port, make_pair):
        for number in range(100):
            near, _ = make_pair()
            handle = port.associate(near, number)
            descriptor = near.fileno()
            operations = [handle.recv(100) for _ in range(3)]
            operations.append(handle.send(pattern(BIG)))
            handle.close()
            other, far = make_pair()
            other = under_number(other, descriptor)
            far.sendall(b"for the other one")
            packets = take(port, 4)
            assert {done.overlapped for done in packets} == set(operations)
            assert all(isinstance(done.error, OperationAborted) for done in packets)
            assert read_exactly(other, 17) == b"for the other one"
            other.close()
            assert far.recv(1) == b""
            far.close()

    def test_a_descriptor_number_is_closed_with_its_handle(self, port, pair):
        near, far = pair
        descriptor = near.detach()
        with port.associate(descriptor, "key") as handle:
            assert handle.file == descriptor
            handle.recv(10)
            far.sendall(b"data")
            assert take_one(port).overlapped.result() == b"data"
        assert descriptor not in descriptors()
        assert far.recv(1) == b""

    def test_a_descriptor_number_is_closed_with_its_handle_behind_the_port_too(self, port, pair):
        near, far = pair
        descriptor = near.detach()
        handle = port.associate(descriptor, "key")
        port.close()
        handle.close()
        assert descriptor not in descriptors()
        assert far.recv(1) == b""

    @pytest.mark.skipif(WINDOWS, reason="there a handle has no number of the program's kind")
    def test_what_has_the_number_of_its_duplicate_by_then_does_not_matter(self, port, tmp_path):
        (tmp_path / "file").write_bytes(b"content")
        number = os.open(tmp_path / "file", os.O_RDONLY)
        before = descriptors()
        handle = port.associate(number, "key")
        (duplicate,) = descriptors().keys() - before.keys()
        port.close()
        with open(tmp_path / "file", "rb") as file:
            os.dup2(file.fileno(), duplicate)
        handle.close()
        os.close(duplicate)
        assert number not in descriptors()

    @pytest.mark.parametrize("is_another_one", [False, True])
    def test_so_is_that_of_a_file_unless_it_is_another_ones(self, port, tmp_path, is_another_one):
        for name in ("one", "other"):
            (tmp_path / name).write_bytes(name.encode())
        number = os.open(tmp_path / "one", os.O_RDONLY)
        handle = port.associate(number, "key")
        port.close()
        if is_another_one:
            os.close(number)
            other = os.open(tmp_path / "other", os.O_RDONLY)
            if other != number:
                os.dup2(other, number, inheritable=False)
                os.close(other)
        handle.close()
        if is_another_one:
            assert os.read(number, 10) == b"other"
            os.close(number)
        else:
            with pytest.raises(OSError, match=r"descriptor|handle"):
                os.fstat(number)

    def test_a_number_is_free_for_another_handle_once_it_is_closed(self, make_port, tmp_path):
        """The next open of the same file gets the same number, in whatever thread that is."""
        path = tmp_path / "file"
        path.write_bytes(b"content")
        port = make_port(4)

        def work():
            for _ in range(1000):
                with port.associate(os.open(path, os.O_RDONLY), "file") as handle:
                    handle.read(7, 0)

        workers = [Background(work) for _ in range(3)]
        for done in take(port, 3000):
            assert done.error is None or isinstance(done.error, OperationAborted)
        for worker in workers:
            worker.outcome()
        assert_quiet(port)

    def test_a_file_that_has_a_number_and_no_close(self, port, pair):
        class Numbered:
            def __init__(self, sock):
                self.fileno = sock.fileno

        near, far = pair
        handle = port.associate(Numbered(near), "key")
        operation = handle.recv(10)
        handle.close()
        assert_aborted(take_one(port), operation)
        # It is the program's: only the handle is closed.
        near.sendall(b"still open")
        assert read_exactly(far, 10) == b"still open"


class TestClosedBehindTheBack:
    def test_a_number_that_is_closed_already_is_no_error(self, port, pair):
        near, far = pair
        handle = port.associate(near.fileno(), "key")
        operation = handle.recv(10)
        near.close()
        handle.close()
        assert_aborted(take_one(port), operation)
        assert far.recv(1) == b""

    def test_a_number_that_stands_for_another_file_by_now_is_left_open(self, port, make_pair):
        near, _ = make_pair()
        descriptor = near.fileno()
        handle = port.associate(descriptor, "key")
        operation = handle.recv(10)
        near.close()
        other, far = make_pair()
        with under_number(other, descriptor) as other:
            handle.close()
            assert_aborted(take_one(port), operation)
            far.sendall(b"hello")
            assert other.recv(10) == b"hello"

    def test_operations_never_see_the_next_file_of_that_number(self, port, make_pair):
        for number in range(50):
            near, near_peer = make_pair()
            handle = port.associate(near, "old")
            descriptor = near.fileno()
            old = handle.recv(100)
            near.close()
            other, far = make_pair()
            other = under_number(other, descriptor)
            far.sendall(b"new")
            second = port.associate(other, "new")
            new = second.recv(100)
            done = take_one(port)
            assert (done.key, done.overlapped) == ("new", new)
            assert new.result() == b"new"
            # What is under way belongs to the old connection: it ends with that.
            if number % 2:
                near_peer.close()
            else:
                handle.close()
            done = take_one(port)
            assert (done.key, done.overlapped) == ("old", old)
            assert done.transferred == 0
            handle.close()
            second.close()
            far.close()
            near_peer.close()
        assert_quiet(port)

    def test_closing_the_handle_leaves_the_next_file_of_that_number_open(self, port, make_pair):
        near, _ = make_pair()
        handle = port.associate(near, "key")
        descriptor = near.fileno()
        handle.recv(10)
        near.close()
        other, far = make_pair()
        with under_number(other, descriptor) as other:
            handle.close()
            take_one(port)
            far.sendall(b"hello")
            assert other.recv(10) == b"hello"

    def test_new_operations_raise_or_keep_to_the_old_connection(self, port, make_pair):
        near, near_peer = make_pair()
        handle = port.associate(near, "key")
        descriptor = near.fileno()
        near.close()
        other, far = make_pair()
        with under_number(other, descriptor) as other:
            far.sendall(b"not for you")
            near_peer.sendall(b"for you")
            with contextlib.suppress(OSError):
                operation = handle.recv(100)
                error = take_one(port).error
                assert error is not None or operation.result() == b"for you"
            assert read_exactly(other, 11) == b"not for you"
            with contextlib.suppress(OSError):
                handle.send(b"data")
                take_one(port)
            far.setblocking(False)
            with pytest.raises(BlockingIOError):
                far.recv(10)
            handle.close()

    @pytest.mark.parametrize("ended", [False, True])
    def test_there_is_no_busy_loop(self, port, make_pair, ended):
        near, far = make_pair()
        handle = port.associate(near, "key")
        handle.recv(10)
        near.close()
        if ended:
            far.close()
            take_one(port)

        def wait(seconds):
            assert port.get(seconds) is None

        assert_idle(0.4, most=0.1, wait=wait)
        handle.close()

    def test_detach_is_as_harmless_as_close(self, port, make_pair):
        near, far = make_pair()
        handle = port.associate(near, "key")
        operation = handle.recv(10)
        number = near.detach()
        try:
            far.sendall(b"data")
            assert take_one(port).overlapped is operation
            handle.close()
            assert number in descriptors()
        finally:
            socket.close(number)

    def test_closing_the_port_is_harmless_too(self, make_port, make_pair):
        port = make_port()
        near, _ = make_pair()
        handle = port.associate(near, "key")
        descriptor = near.fileno()
        handle.recv(10)
        near.close()
        other, far = make_pair()
        with under_number(other, descriptor) as other:
            port.close()
            far.sendall(b"hello")
            assert other.recv(10) == b"hello"
            assert handle.closed


class TestPortClose:
    def test_the_files_stay_open(self, port, pair):
        near, far = pair
        handle = port.associate(near, "key")
        handle.recv(10)
        port.close()
        assert handle.closed
        far.sendall(b"after")
        assert near.recv(10) == b"after"
        near.sendall(b"answer")
        assert far.recv(10) == b"answer"

    @wine_keeps_ports
    def test_a_file_can_go_to_another_port_afterwards(self, make_port, pair):
        near, far = pair
        first, second = make_port(), make_port()
        handle = first.associate(near, 1)
        operation = handle.recv(10)
        first.close()
        assert not operation.pending
        with second.associate(near, 2) as handle:
            handle.recv(10, overlapped=operation)
            far.sendall(b"data")
            assert tuple(take_one(second)) == (4, 2, operation, None)
            assert operation.result() == b"data"

    def test_nothing_is_received_after_the_close(self, port, pair):
        near, far = pair
        buffer = bytearray(10)
        port.associate(near, "key").recv(buffer)
        port.close()
        far.sendall(b"late")
        assert near.recv(10) == b"late"
        assert buffer == bytearray(10)

    def test_operations_of_other_threads_meet_a_clean_end(self, engine, make_pair):
        for _ in range(10):
            port = CompletionPort(2, engine=engine)
            near, far = make_pair()
            handle = port.associate(near, "key")
            taken = []

            def work(port=port, handle=handle, taken=taken):
                with contextlib.suppress(PortClosed, HandleClosed):
                    while True:
                        handle.recv(1)
                        taken.append(port.get())

            threads = [Background(work) for _ in range(2)]
            far.sendall(b"x" * 20)
            wait_until(lambda taken=taken: len(taken) > 10)
            port.close()
            for thread in threads:
                thread.outcome()
            near.close()
            far.close()

    def test_a_handle_can_still_be_closed(self, port, pair):
        near, far = pair
        handle = port.associate(near, "key")
        port.close()
        handle.close()
        assert near.fileno() == -1
        assert far.recv(1) == b""


def test_an_operation_that_fails_at_once_leaves_the_handle_usable(port, listener):
    with socket.socket() as sock, port.associate(sock, "key") as handle:
        with pytest.raises(OSError, match="not connected"):
            handle.recv(10)
        assert outcome(port, lambda: handle.connect(listener.getsockname())) is None
        peer, _ = listener.accept()
        with peer:
            handle.recv(10)
            peer.sendall(b"hello")
            assert take_one(port).overlapped.result() == b"hello"


def test_a_number_that_has_the_same_file_again_stays_open(engine, port, tmp_path):
    """It was closed behind the port's back: what has it now was opened by somebody else."""
    if port_can_not_tell(engine):
        pytest.skip("this system can't tell whether two descriptors came from one open")
    path = tmp_path / "file"
    path.write_bytes(b"content")
    number = os.open(path, os.O_RDONLY)
    handle = port.associate(number, "key")
    os.close(number)
    assert os.open(path, os.O_RDONLY) == number
    handle.close()
    assert os.read(number, 10) == b"content"
    os.close(number)


def port_can_not_tell(engine):
    if WINDOWS or sys.platform != "linux":
        return True
    if engine in COMPILED:
        return False  # kcmp(2), where fcntl(2) has no answer
    with open(os.devnull) as file:
        return association.opened_together(file.fileno(), file.fileno()) is None


@pytest.mark.skipif(WINDOWS, reason="Windows' closesocket() of such a socket is the program's own")
def test_no_packet_waits_for_a_socket_that_lingers(port, make_pair):
    """SO_LINGER: its close(2) waits until the peer has taken all, or for that many seconds."""
    near, far = make_pair()
    other, sender = make_pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, int(LONG)))
    near.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += near.send(bytes(65536))
    handle = port.associate(near, "lingers")
    operation = handle.recv(10)
    near.close()
    with port.associate(other, "other") as another:
        another.recv(10)
        packets: list[Completion] = []

        def take_both():
            for _ in range(2):
                packets.append(take_one(port))

        taker = Background(take_both)
        wait_for_stats(port, waiting=1)
        closer = Background(handle.close)
        wait_until(lambda: handle.closed)
        sender.sendall(b"hello")
        wait_until(lambda: "other" in [done.key for done in packets])
        while received := len(far.recv(1 << 20)):
            sent -= received
        assert sent == 0
        closer.outcome()
        taker.outcome()
    [done] = [done for done in packets if done.key == "lingers"]
    assert done.overlapped is operation
    assert isinstance(done.error, OperationAborted)
    assert_quiet(port)
