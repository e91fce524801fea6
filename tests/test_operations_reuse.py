"""Overlapped objects: subclasses, use after use, and what is refused while one is pending."""

from __future__ import annotations

import socket
import threading

import pytest

from completionport import Operation, OperationPending, Overlapped
from support import (
    LONG,
    Background,
    assert_quiet,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)


class PerIo(Overlapped):
    """The article's PER_IO_DATA: the buffer and what is being done with it."""

    def __init__(self, size):
        self.buffer = bytearray(size)
        self.purpose = None


def test_a_new_overlapped_is_idle():
    overlapped = Overlapped()
    assert overlapped.operation is Operation.NONE
    assert overlapped.handle is None
    assert overlapped.pending is False
    assert overlapped.transferred == 0
    assert overlapped.error is None
    assert overlapped.cancel() is False


def test_a_subclass_has_attributes_slots_and_arguments_of_its_own():
    class Slotted(Overlapped):
        __slots__ = ("value",)

        def __init__(self, value, *, other=None):
            self.value = value

    assert PerIo(10).buffer == bytearray(10)
    assert Slotted(5, other=6).value == 5
    with pytest.raises(AttributeError):
        Slotted(5).other = 1


def test_the_packet_gives_the_same_object_back(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        mine = PerIo(10)
        mine.purpose = "receive"
        assert handle.recv(mine.buffer, overlapped=mine) is mine
        far.sendall(b"hello")
        done = take_one(port)
        assert done.overlapped is mine
        assert done.overlapped.purpose == "receive"
        assert mine.buffer[: done.transferred] == b"hello"


def test_one_object_serves_the_whole_echo_loop(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        mine = PerIo(100)
        handle.recv(mine.buffer, overlapped=mine)
        for number in range(100):
            message = b"message %d" % number
            far.sendall(message)
            done = take_one(port)
            assert mine.operation is Operation.RECV
            handle.send(memoryview(mine.buffer)[: done.transferred], overlapped=mine)
            assert take_one(port).overlapped is mine
            assert mine.operation is Operation.SEND
            assert far.recv(100) == message
            handle.recv(mine.buffer, overlapped=mine)
        far.close()
        assert tuple(take_one(port)) == (0, "key", mine, None)


def test_one_object_can_serve_several_handles_in_turn(port, make_pair):
    (one, far_one), (two, far_two) = make_pair(), make_pair()
    mine = Overlapped()
    with port.associate(one, 1) as first, port.associate(two, 2) as second:
        first.recv(10, overlapped=mine)
        assert mine.handle is first
        far_one.sendall(b"one")
        take_one(port)
        second.recv(10, overlapped=mine)
        assert mine.handle is second
        far_two.sendall(b"two")
        assert take_one(port).key == 2
        assert mine.result() == b"two"


def test_all_kinds_of_operations_with_one_object(port, listener, tmp_path):
    mine = Overlapped()
    with socket.socket() as sock, port.associate(sock, "sock") as client:
        server = port.associate(listener, "listener")
        client.connect(listener.getsockname(), overlapped=mine)
        take_one(port)
        assert (mine.operation, mine.result()) == (Operation.CONNECT, 0)
        server.accept(overlapped=mine)
        take_one(port)
        assert mine.operation is Operation.ACCEPT
        with mine.result() as peer:
            client.send(b"hello", overlapped=mine)
            take_one(port)
            assert (mine.operation, mine.result()) == (Operation.SEND, 5)
            peer.sendall(b"answer")
            client.recv(10, overlapped=mine)
            take_one(port)
            assert (mine.operation, mine.result()) == (Operation.RECV, b"answer")
            client.disconnect(overlapped=mine)
            take_one(port)
            assert (mine.operation, mine.result()) == (Operation.DISCONNECT, 0)
    with (tmp_path / "file").open("w+b") as file, port.associate(file, "file") as handle:
        handle.write(b"text", 0, overlapped=mine)
        take_one(port)
        assert (mine.operation, mine.result()) == (Operation.WRITE, 4)
        handle.read(10, 0, overlapped=mine)
        take_one(port)
        assert (mine.operation, mine.result()) == (Operation.READ, b"text")
    server.close()
    assert_quiet(port)


def test_a_pending_object_refuses_another_operation(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        mine = handle.recv(10)
        for start in (
            lambda: handle.recv(10, overlapped=mine),
            lambda: handle.send(b"x", overlapped=mine),
        ):
            with pytest.raises(OperationPending):
                start()
        far.sendall(b"hello")
        take_one(port)
        assert mine.result() == b"hello"
        assert_quiet(port)


def test_an_object_is_pending_until_its_packet_was_taken(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        mine = handle.send(b"x")
        assert far.recv(1) == b"x"
        assert mine.pending
        with pytest.raises(OperationPending):
            handle.recv(10, overlapped=mine)
        with pytest.raises(OperationPending):
            mine.result()
        take_one(port)
        assert not mine.pending
        assert mine.result() == 1
        assert mine.result() == 1


def test_an_object_of_another_port_is_refused_while_pending(make_port, make_pair):
    first, second = make_port(), make_port()
    (one, _), (two, _) = make_pair(), make_pair()
    with first.associate(one, 1) as handle_one, second.associate(two, 2) as handle_two:
        mine = handle_one.recv(10)
        with pytest.raises(OperationPending):
            handle_two.recv(10, overlapped=mine)
        assert second.stats()["pending"] == 0


def test_an_object_stays_free_when_its_call_fails(port, pair):
    near, far = pair
    mine = PerIo(10)
    with port.associate(near, "key") as handle, socket.socket() as unconnected:
        with pytest.raises(ValueError, match=r"size|negative"):
            handle.recv(-1, overlapped=mine)
        with pytest.raises(TypeError):
            handle.send("text", overlapped=mine)
        other = port.associate(unconnected, "other")
        with other, pytest.raises(OSError, match="not connected"):
            other.recv(mine.buffer, overlapped=mine)
        assert not mine.pending
        assert (mine.operation, mine.handle) == (Operation.NONE, None)
        with pytest.raises(ValueError, match=r"not( been)? used"):
            mine.result()
        mine.buffer.extend(b"may be resized")
        handle.recv(10, overlapped=mine)
        far.sendall(b"hello")
        take_one(port)
        assert mine.result() == b"hello"


def test_an_aborted_object_can_be_used_again(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        mine = handle.recv(10)
        handle.cancel(mine)
        assert take_one(port).error is not None
        handle.recv(10, overlapped=mine)
        assert mine.error is None
        far.sendall(b"hello")
        assert take_one(port).error is None
        assert mine.result() == b"hello"


def test_two_threads_that_use_one_object_at_once_start_one_operation(make_port, make_pair):
    port = make_port(4)
    pairs = [make_pair("local") for _ in range(2)]
    handles = [port.associate(near, number) for number, (near, _) in enumerate(pairs)]
    for _ in range(200):
        mine = Overlapped()
        barrier = threading.Barrier(2)

        def start(handle, mine=mine, barrier=barrier):
            barrier.wait(LONG)
            try:
                handle.recv(10, overlapped=mine)
            except OperationPending:
                return None
            return handle

        starters = [Background(start, handle) for handle in handles]
        started = [handle for handle in (thread.outcome() for thread in starters) if handle]
        assert len(started) == 1
        assert mine.handle is started[0]
        assert port.stats()["pending"] == 1
        pairs[handles.index(started[0])][1].sendall(b"hello")
        assert take_one(port).overlapped is mine
        assert mine.result() == b"hello"
    assert_quiet(port)
    for handle in handles:
        handle.close()


def test_an_object_used_again_by_the_thread_that_took_it_gives_one_packet_each(make_port, pair):
    near, far = pair
    port = make_port(2)
    with port.associate(near, "key") as handle:
        received = []

        def work():
            while (done := port.get(LONG)).key == "key":
                received.append(done.overlapped.result())
                handle.recv(1, overlapped=done.overlapped)

        handle.recv(1)
        worker = Background(work)
        wait_for_stats(port, waiting=1)
        for number in range(200):
            far.sendall(bytes([number]))
        wait_until(lambda: len(received) == 200)
        port.post(key="stop")
        worker.outcome()
        assert b"".join(received) == bytes(range(200))
        assert handle.cancel() == 1
        take(port, 1)
        assert_quiet(port)
