"""Operations are carried out in the order in which they were posted (rule 2)."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from completionport import CompletionPort, OperationAborted, Overlapped
from support import (
    LONG,
    Background,
    assert_quiet,
    local_pair,
    pattern,
    read_exactly,
    read_to_end,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)


class Numbered(Overlapped):
    def __init__(self, number):
        self.number = number


def test_outstanding_receives_are_filled_in_order(port, pair):
    near, far = pair
    data = pattern(40_000)
    with port.associate(near, "key") as handle:
        for number in range(100):
            handle.recv(1 + number * 13, overlapped=Numbered(number))
        sender = Background(lambda: (far.sendall(data), far.shutdown(socket.SHUT_WR)))
        packets = take(port, 100)
        parts = {done.overlapped.number: done.overlapped.result() for done in packets}
        assert b"".join(parts[number] for number in range(100)) == data
        sender.outcome()
        assert_quiet(port)


def test_each_message_goes_to_the_receive_that_waited_longest(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        operations = [handle.recv(100) for _ in range(50)]
        for number, operation in enumerate(operations):
            far.sendall(b"%d" % number)
            done = take_one(port)
            assert done.overlapped is operation
            assert operation.result() == b"%d" % number


def test_receives_after_the_end_of_stream_all_get_the_end(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        operations = [handle.recv(10) for _ in range(20)]
        far.sendall(b"last words")
        far.shutdown(socket.SHUT_WR)
        assert [done.overlapped for done in take(port, 20)] == operations
        assert [operation.result() for operation in operations] == [b"last words"] + [b""] * 19


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=30),
    st.lists(st.integers(1, 5000), min_size=1, max_size=10),
)
def test_any_sizes_of_receives_and_messages_keep_the_order(engine, sizes, messages):
    data = pattern(sum(messages))
    near, far = local_pair()
    with CompletionPort(engine=engine) as port, far, port.associate(near, "key") as handle:
        operations = [handle.recv(size) for size in sizes]
        position = 0
        for size in messages:
            far.sendall(data[position : position + size])
            position += size
        far.shutdown(socket.SHUT_WR)
        take(port, len(sizes))
        received = b"".join(operation.result() for operation in operations)
        assert data.startswith(received)
        assert len(received) <= sum(sizes)
        assert received == data or operations[-1].result() != b""


def test_outstanding_sends_go_out_in_order(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        generator = random.Random(1)
        parts = [pattern(generator.randrange(1, 60_000), number) for number in range(100)]
        operations = [handle.send(part) for part in parts]
        reader = Background(read_exactly, far, sum(map(len, parts)))
        packets = take(port, 100)
        assert [done.overlapped for done in packets] == operations
        assert [done.transferred for done in packets] == [len(part) for part in parts]
        assert reader.outcome() == b"".join(parts)
        assert_quiet(port)


def test_sends_of_many_threads_do_not_mix(port, pair):
    near, far = pair
    size, each, threads = 30_000, 25, 4
    with port.associate(near, "key") as handle:

        def post(letter):
            for _ in range(each):
                handle.send(bytes([letter]) * size)

        reader = Background(read_exactly, far, size * each * threads)
        posters = [Background(post, letter) for letter in b"abcd"[:threads]]
        packets = take(port, each * threads)
        assert {(done.transferred, done.error) for done in packets} == {(size, None)}
        for poster in posters:
            poster.outcome()
        stream = reader.outcome()
    blocks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert all(len(set(block)) == 1 for block in blocks), "two sends were mixed"
    assert Counter(block[0] for block in blocks) == dict.fromkeys(b"abcd", each)


def test_a_receive_does_not_wait_for_a_blocked_send(port, pair):
    near, far = pair
    big = pattern(8_000_000)
    with port.associate(near, "key") as handle:
        sending = handle.send(big)
        receiving = handle.recv(10)
        far.sendall(b"to you")
        assert take_one(port).overlapped is receiving
        assert receiving.result() == b"to you"
        assert sending.pending
        reader = Background(read_exactly, far, len(big))
        assert take_one(port).overlapped is sending
        assert reader.outcome() == big


def test_a_send_does_not_wait_for_a_waiting_receive(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        receiving = handle.recv(10)
        sending = handle.send(b"to you")
        assert take_one(port).overlapped is sending
        assert far.recv(10) == b"to you"
        assert receiving.pending
        far.sendall(b"answer")
        assert take_one(port).overlapped is receiving


def test_sends_posted_behind_a_connect_go_out_after_it(port, listener):
    with socket.socket() as client, port.associate(client, "key") as handle:
        operations = [handle.connect(listener.getsockname())]
        operations += [handle.send(b"one "), handle.send(b"two "), handle.disconnect()]
        packets = take(port, 4)
        assert [done.overlapped for done in packets] == operations
        assert [done.error for done in packets] == [None] * 4
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(LONG)
            assert read_to_end(peer) == b"one two "


def test_a_disconnect_waits_for_the_sends_before_it(port, pair):
    near, far = pair
    big = pattern(8_000_000)
    with port.associate(near, "key") as handle:
        sending, ending = handle.send(big), handle.disconnect()
        assert sending.pending
        reader = Background(read_to_end, far)
        assert [done.overlapped for done in take(port, 2)] == [sending, ending]
        assert reader.outcome() == big
        assert sending.error is None
        assert ending.error is None


def test_accepts_take_connections_in_order(port, listener):
    with port.associate(listener, "key") as handle:
        operations = [handle.accept() for _ in range(10)]
        clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
        packets = take(port, 10)
        assert [done.overlapped for done in packets] == operations
        for operation, client in zip(operations, clients, strict=True):
            with operation.result() as accepted, client:
                assert accepted.getpeername() == client.getsockname()
        assert_quiet(port)


def test_a_cancelled_receive_leaves_the_order_of_the_others(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        first, second, third = (handle.recv(3) for _ in range(3))
        assert handle.cancel(second) == 1
        done = take_one(port)
        assert done.overlapped is second
        assert isinstance(done.error, OperationAborted)
        far.sendall(b"123")
        assert take_one(port).overlapped is first
        far.sendall(b"456")
        assert take_one(port).overlapped is third
        assert (first.result(), third.result()) == (b"123", b"456")


def test_cancelling_the_receive_in_front_lets_the_next_one_in(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        first, second = handle.recv(3), handle.recv(3)
        assert handle.cancel(first) == 1
        assert take_one(port).overlapped is first
        far.sendall(b"456")
        assert take_one(port).overlapped is second
        assert second.result() == b"456"


def test_a_receive_posted_from_a_packet_comes_behind_those_that_wait(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        operations = [handle.recv(1) for _ in range(3)]
        far.sendall(b"a")
        take_one(port)
        operations.append(handle.recv(1))
        far.sendall(b"bcd")
        take(port, 3)
        assert [operation.result() for operation in operations] == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("takers", [2, 4])
def test_several_takers_still_see_an_ordered_stream(make_port, pair, takers):
    port = make_port(takers)
    near, far = pair
    count = 400
    data = pattern(50 * count)
    parts = {}
    lock = threading.Lock()
    with port.associate(near, "key") as handle:
        # Posting under a lock makes the order of the calls known to the test.
        posted = iter(range(count))

        def post():
            with lock:
                number = next(posted, None)
                if number is not None:
                    handle.recv(50, socket.MSG_WAITALL, overlapped=Numbered(number))

        def run():
            while (done := port.get(LONG)).key == "key":
                assert done.error is None
                parts[done.overlapped.number] = done.overlapped.result()
                post()

        for _ in range(8):
            post()
        threads = [Background(run) for _ in range(takers)]
        wait_for_stats(port, waiting=takers)
        for at in range(0, len(data), 770):
            far.sendall(data[at : at + 770])
        wait_until(lambda: len(parts) == count, "every receive has its packet")
        for _ in threads:
            port.post(key="stop")
        for thread in threads:
            thread.outcome()
    assert b"".join(parts[number] for number in range(count)) == data
