"""`Strand`: its packets are handed out one at a time and in order, whatever else goes on."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import socket
import threading
import time
import weakref

import pytest

from completionport import CompletionPort, OperationAborted, PortClosed, Strand
from support import (
    LONG,
    Background,
    assert_quiet,
    needs_fork,
    read_exactly,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    wine_serves_the_first,
)

SEED = int(os.environ.get("COMPLETIONPORT_SEED", "0")) or random.randrange(1, 1 << 32)


class Taker:
    """A thread that takes a packet each time it is told to, and holds it until then."""

    def __init__(self, port):
        self.port = port
        self.taken = []
        self.turns = threading.Semaphore(0)
        self.ended = False
        self.thread = Background(self.run)

    def run(self):
        while True:
            assert self.turns.acquire(timeout=LONG)
            if self.ended:
                return
            self.taken.append(self.port.get(LONG))

    def take(self):
        self.turns.release()

    def take_one(self):
        count = len(self.taken) + 1
        self.take()
        wait_until(lambda: len(self.taken) == count, "the taker has its packet")
        return self.taken[-1]

    def end(self):
        self.ended = True
        self.take()
        self.thread.outcome()


@pytest.fixture
def make_taker(nothing_left):
    with contextlib.ExitStack() as stack:

        def make(port):
            taker = Taker(port)
            stack.callback(taker.end)
            return taker

        yield make


def wait_until_back(port, strand, count):
    """Wait until so many packets stay back, while this thread is at work on one of the strand's.

    Another thread looks for packets: on Windows a completion is known when a thread takes it.
    """

    def stay_back():
        assert Background(port.get, 0).outcome() is None
        return strand.queued == count

    wait_until(stay_back)


def values(packets):
    return [done.transferred for done in packets]


class TestOneAtATime:
    def test_the_next_packet_stays_back_while_a_thread_is_at_work_on_one(
        self, make_port, make_taker
    ):
        port = make_port(4)
        strand = Strand(port)
        taker = make_taker(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        assert taker.take_one().transferred == 1
        assert port.get(0) is None
        assert port.get(0.05) is None
        assert strand.queued == 1

    @wine_serves_the_first
    def test_a_waiting_thread_is_not_woken_for_it_before(self, make_port, make_taker):
        port = make_port(4)
        strand = Strand(port)
        first, second = make_taker(port), make_taker(port)
        port.post(1, strand=strand)
        assert first.take_one().transferred == 1
        second.take()
        wait_for_stats(port, waiting=1)
        port.post(2, strand=strand)
        wait_for_stats(port, waiting=1, queued=1)
        first.take()  # it is done with its packet, and takes the next one itself
        wait_until(lambda: len(first.taken) == 2)
        assert values(first.taken) == [1, 2]
        assert second.taken == []
        port.post("other")
        wait_until(lambda: second.taken)

    def test_packets_of_other_strands_and_of_none_go_on_meanwhile(self, make_port, make_taker):
        port = make_port(4)
        held, other = Strand(port), Strand(port)
        taker = make_taker(port)
        port.post("held 1", strand=held)
        port.post("held 2", strand=held)
        port.post("other 1", strand=other)
        port.post("none")
        port.post("other 2", strand=other)
        assert taker.take_one().transferred == "held 1"
        assert values(take(port, 3)) == ["other 1", "none", "other 2"]
        assert port.get(0) is None
        assert (held.queued, other.queued) == (1, 0)

    def test_they_come_in_the_order_in_which_they_were_posted(self, make_port):
        port = make_port(4)
        strand = Strand(port)
        for number in range(100):
            port.post(number, strand=strand)
        assert values(take(port, 100)) == list(range(100))

    def test_a_long_line_does_not_keep_the_others_from_their_turn(self, make_port):
        port = make_port(1)
        strand = Strand(port)
        for number in range(50):
            port.post(number, strand=strand)
        port.post("other")
        assert "other" in values(take(port, 3))
        assert len(take(port, 48)) == 48

    def test_get_many_gives_one_of_each_strand(self, make_port):
        port = make_port(4)
        one, two = Strand(port), Strand(port)
        for number in range(3):
            port.post((1, number), strand=one)
            port.post((2, number), strand=two)
            port.post((0, number))
        seen = []
        batches = []
        while packets := port.get_many(100, 0):
            batches.append(values(packets))
            seen += batches[-1]
        for batch in batches:
            assert sum(line == 1 for line, _ in batch) <= 1
            assert sum(line == 2 for line, _ in batch) <= 1
        for line in range(3):
            assert [number for which, number in seen if which == line] == [0, 1, 2]

    def test_packets_of_get_many_hold_all_their_strands(self, make_port):
        port = make_port(4)
        one, two = Strand(port), Strand(port)
        for strand in (one, two, one, two):
            port.post(strand=strand)
        assert len(port.get_many(10)) == 2
        assert Background(port.get, 0.02).outcome() is None
        assert (one.queued, two.queued) == (1, 1)
        one.release()
        assert Background(port.get, LONG).outcome() is not None
        assert (one.queued, two.queued) == (0, 1)
        take_one(port)


class TestDoneWith:
    """When the next packet may go."""

    def test_get_lets_the_next_one_go(self, make_port):
        port = make_port(1)
        strand = Strand(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        assert take_one(port).transferred == 1
        assert port.get(0).transferred == 2
        assert port.get(0) is None

    def test_get_at_another_port_lets_it_go(self, make_port):
        port, other = make_port(4), make_port(4)
        strand = Strand(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        take_one(port)
        waiter = Background(port.get)
        wait_for_stats(port, waiting=1)
        assert other.get(0) is None
        assert waiter.outcome().transferred == 2

    def test_a_thread_that_ends_lets_it_go(self, make_port):
        port = make_port(4)
        strand = Strand(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        assert Background(port.get).outcome().transferred == 1
        assert take_one(port).transferred == 2

    def test_a_thread_that_dies_of_an_exception_lets_it_go(self, make_port):
        port = make_port(4)
        strand = Strand(port)

        def die():
            port.get()
            raise KeyError("as expected")

        for number in range(5):
            port.post(number, strand=strand)
        for _ in range(4):
            with pytest.raises(KeyError):
                Background(die).outcome()
        assert take_one(port).transferred == 4

    def test_release_lets_it_go_to_another_thread_at_once(self, make_port):
        port = make_port(2)
        strand = Strand(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        take_one(port)
        waiter = Background(port.get)
        wait_for_stats(port, waiting=1)
        strand.release()
        assert waiter.outcome().transferred == 2
        # This thread is still at work, though it has just waited; the other one has ended.
        wait_until(lambda: sum(port.stats()[name] for name in ("running", "blocked")) == 1)

    def test_release_is_for_the_thread_that_is_at_work_on_it(self, make_port, make_taker):
        port = make_port(4)
        strand, other = Strand(port), Strand(port)
        with pytest.raises(RuntimeError, match="not at work"):
            strand.release()
        taker = make_taker(port)
        port.post(1, strand=strand)
        taker.take_one()
        with pytest.raises(RuntimeError, match="not at work"):
            strand.release()
        port.post(2, strand=other)
        take_one(port)
        with pytest.raises(RuntimeError, match="not at work"):
            strand.release()
        other.release()
        with pytest.raises(RuntimeError, match="not at work"):
            other.release()

    def test_release_after_the_next_get_is_refused(self, make_port):
        port = make_port(4)
        strand = Strand(port)
        port.post(1, strand=strand)
        take_one(port)
        assert port.get(0) is None
        with pytest.raises(RuntimeError, match="not at work"):
            strand.release()

    def test_after_release_the_thread_does_not_hold_the_strand_back_a_second_time(
        self, make_port, make_taker
    ):
        port = make_port(4)
        strand = Strand(port)
        taker = make_taker(port)
        for number in range(3):
            port.post(number, strand=strand)
        take_one(port)
        strand.release()
        assert taker.take_one().transferred == 1
        # This thread's next get is not the end of the other one's work.
        assert port.get(0.02) is None
        assert strand.queued == 1
        taker.take_one()

    def test_blocking_does_not_let_it_go(self, make_port):
        port = make_port(1)
        strand = Strand(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        port.post("other")
        take_one(port)
        with port.blocking():
            assert Background(port.get, LONG).outcome().transferred == "other"
            assert Background(port.get, 0.02).outcome() is None
        assert strand.queued == 1


class TestHandles:
    def test_all_packets_of_a_handle_are_bound_to_its_strand(self, make_port, tcp):
        near, far = tcp
        port = make_port(4)
        strand = Strand(port)
        with port.associate(near, "key", strand=strand) as handle:
            far.sendall(b"abcde")
            operations = [handle.recv(1) for _ in range(5)]
            wait_until(lambda: port.stats()["queued"] == 5)
            seen = []
            for left in (4, 3, 2, 1, 0):
                done = take_one(port)
                wait_until_back(port, strand, left)
                seen.append(done.overlapped)
            assert seen == operations
            assert b"".join(one.result() for one in seen) == b"abcde"
        assert_quiet(port)

    def test_several_handles_share_a_strand(self, make_port, make_pair):
        port = make_port(4)
        strand = Strand(port)
        pairs = [make_pair("local") for _ in range(3)]
        handles = [port.associate(near, near, strand=strand) for near, _ in pairs]
        for handle, (_, far) in zip(handles, pairs, strict=True):
            far.sendall(b"hello")
            handle.recv(10)
        port.post("posted", strand=strand)
        for left in (3, 2, 1, 0):
            take_one(port)
            wait_until_back(port, strand, left)
        for handle in handles:
            handle.close()

    def test_a_closed_handle_gives_its_packets_one_at_a_time_too(self, make_port, tcp):
        near, _far = tcp
        port = make_port(4)
        strand = Strand(port)
        handle = port.associate(near, "key", strand=strand)
        for _ in range(3):
            handle.recv(10)
        handle.close()
        wait_until(lambda: port.stats()["queued"] == 3)
        packets = take(port, 1)
        wait_until_back(port, strand, 2)
        packets += take(port, 2)
        assert all(isinstance(done.error, OperationAborted) for done in packets)

    def test_what_stays_back_holds_its_buffer_until_it_is_taken(self, make_port, tcp):
        near, far = tcp
        port = make_port(4)
        strand = Strand(port)
        buffer = bytearray(6)
        with port.associate(near, "key", strand=strand) as handle:
            port.post(strand=strand)
            take_one(port)
            far.sendall(b"hello")
            handle.recv(buffer)
            wait_until_back(port, strand, 1)
            with pytest.raises(BufferError):
                buffer.append(0)
            assert take_one(port).transferred == 5
            buffer.append(0)
            assert buffer == b"hello\0\0"


class TestNumbers:
    def test_what_stays_back_counts_as_queued(self, make_port):
        port = make_port(4)
        strand = Strand(port)
        for _ in range(5):
            port.post(strand=strand)
        port.post()
        numbers = port.stats()
        assert (numbers["queued"], numbers["posted"], numbers["taken"]) == (6, 6, 0)
        assert strand.queued == 4
        take_one(port)
        numbers = port.stats()
        assert (numbers["queued"], numbers["posted"], numbers["taken"]) == (5, 6, 1)

    def test_a_strand_knows_its_port_and_does_not_keep_it(self, engine):
        port = CompletionPort(engine=engine)
        strand = Strand(port)
        assert strand.port is port
        port.close()
        gone = weakref.ref(port)
        del port
        gc.collect()
        assert gone() is None
        assert strand.port is None
        assert strand.queued == 0

    def test_a_strand_lives_as_long_as_something_is_bound_to_it(self, make_port, tcp):
        near, far = tcp
        port = make_port(4)
        port.post(1, strand=(strand := Strand(port)))
        port.post(2, strand=strand)
        handle = port.associate(near, "key", strand=Strand(port))
        del strand
        gc.collect()
        far.sendall(b"ab")
        handle.recv(1)
        handle.recv(1)
        wait_for_stats(port, queued=4)
        assert len(port.get_many(10)) == 2
        assert len(take(port, 2)) == 2
        handle.close()

    def test_strands_come_and_go(self, make_port):
        port = make_port(1)
        for number in range(1000):
            strand = Strand(port)
            port.post(number, strand=strand)
            port.post(number, strand=strand)
            gone = weakref.ref(strand) if hasattr(type(strand), "__weakref__") else None
            del strand
            assert values(take(port, 2)) == [number, number]
            assert port.get(0) is None
            if gone is not None:
                assert gone() is None


class TestClosing:
    def test_a_closed_port_lets_go_of_what_stays_back(self, make_port, tcp):
        near, far = tcp
        port = make_port(4)
        strand = Strand(port)
        buffer = bytearray(6)

        class Thing:
            pass

        thing = Thing()
        gone = weakref.ref(thing)
        handle = port.associate(near, "key", strand=strand)
        port.post(1, strand=strand)
        port.post(2, thing, strand=strand)
        far.sendall(b"hello")
        operation = handle.recv(buffer)
        take_one(port)
        wait_until_back(port, strand, 2)
        port.close()
        del thing
        gc.collect()
        assert gone() is None
        assert port.stats()["queued"] == 0
        assert strand.queued == 0
        assert not operation.pending
        buffer.append(0)  # its buffer is free
        handle.close()

    def test_a_thread_that_comes_back_to_a_closed_port_lets_nothing_go(self, make_port):
        port = make_port(4)
        strand = Strand(port)
        port.post(1, strand=strand)
        port.post(2, strand=strand)
        take_one(port)
        port.close()
        strand.release()
        with pytest.raises(PortClosed):
            port.get(0)
        assert port.stats()["queued"] == 0

    def test_an_accepted_socket_that_stays_back_is_closed_with_the_port(
        self, make_port, make_taker, listener
    ):
        port = make_port(4)
        strand = Strand(port)
        port.post(strand=strand)
        make_taker(port).take_one()
        handle = port.associate(listener, "key", strand=strand)
        with socket.create_connection(listener.getsockname(), timeout=LONG) as client:
            handle.accept()
            wait_until(lambda: port.get(0) is None and strand.queued == 1)
            port.close()
            with contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""
        handle.close()

    def test_a_strand_of_a_closed_port_is_not_made(self, make_port):
        port = make_port()
        port.close()
        with pytest.raises(PortClosed):
            Strand(port)

    @needs_fork
    def test_the_child_of_a_fork_is_told(self, engine):
        run_python(
            """
            import os, sys
            from completionport import CompletionPort, PortForked, Strand
            port = CompletionPort(2)
            strand = Strand(port)
            port.post(1, strand=strand)
            port.post(2, strand=strand)
            port.get()
            child = os.fork()
            if child == 0:
                told = 0
                for call in (lambda: Strand(port), strand.release):
                    try:
                        call()
                    except PortForked:
                        told += 1
                os._exit(0 if told == 2 else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert port.get().transferred == 2
            port.close()
            """,
            engine=engine,
        )


class TestArguments:
    @pytest.mark.parametrize("wrong", [None, "port", 3])
    def test_a_strand_needs_a_port(self, wrong):
        with pytest.raises(TypeError, match="needs a CompletionPort"):
            Strand(wrong)

    @pytest.mark.parametrize("wrong", ["strand", 3, object()])
    def test_only_a_strand_is_taken_for_one(self, port, tcp, wrong):
        with pytest.raises(TypeError, match="strand must be a Strand or None"):
            port.post(strand=wrong)
        with pytest.raises(TypeError, match="strand must be a Strand or None"):
            port.associate(tcp[0], "key", strand=wrong)
        assert_quiet(port)
        port.associate(tcp[0], "key").close()

    def test_a_strand_of_another_port_is_refused(self, make_port, tcp):
        port, other = make_port(), make_port()
        with pytest.raises(ValueError, match="another port"):
            port.post(strand=Strand(other))
        with pytest.raises(ValueError, match="another port"):
            port.associate(tcp[0], "key", strand=Strand(other))
        assert_quiet(port)
        port.associate(tcp[0], "key", strand=Strand(port)).close()

    def test_the_strand_is_given_by_name(self, port):
        with pytest.raises(TypeError):
            port.post(0, None, None, Strand(port))


class TestRandom:
    """Many threads, several strands, posts and echoes, all at once."""

    def test_one_at_a_time_in_order_and_nothing_lost(self, make_port, make_pair):
        print(f"COMPLETIONPORT_SEED={SEED}")
        dice = random.Random(SEED)
        port = make_port(dice.choice([1, 2, 4]))
        lines = [Line(port, number) for number in range(dice.randrange(2, 6))]
        free = Line(port, "free", strand=None)
        takers = [
            Background(work, port, dice.randrange(1 << 30)) for _ in range(dice.randrange(2, 8))
        ]
        pairs = [make_pair("local") for _ in lines]
        echoes = [
            Background(converse, port, line, pair, dice.randrange(1 << 30))
            for line, pair in zip(lines, pairs, strict=True)
        ]
        posters = [
            Background(post_some, line, dice.randrange(1 << 30)) for line in [*lines, *lines, free]
        ]
        for thread in [*posters, *echoes]:
            thread.outcome()
        wait_for_stats(port, queued=0)
        for _ in takers:
            port.post(key=None)
        for taker in takers:
            taker.outcome()
        for line in [*lines, free]:
            line.check()
        assert_quiet(port)


class Line:
    """What one strand's packets share, without a lock of their own."""

    def __init__(self, port, name, strand=True):
        self.port = port
        self.name = name
        self.strand = Strand(port) if strand else None
        self.posting = threading.Lock()  # guards `posted`
        self.posted = 0
        self.inside = 0
        self.most = 0
        self.seen = []  # numbers of posts, as they were taken
        self.received = 0

    def post(self):
        with self.posting:
            self.port.post(self.posted, self, strand=self.strand)
            self.posted += 1

    def enter(self, dice):
        if self.strand is None:
            return
        self.inside += 1
        self.most = max(self.most, self.inside)
        if dice.random() < 0.1:
            time.sleep(dice.random() * 0.001)  # lets other threads in, if any may come

    def leave(self):
        if self.strand is not None:
            self.inside -= 1

    def check(self):
        assert len(self.seen) == self.posted
        if self.strand is None:
            assert sorted(self.seen) == list(range(self.posted))
        else:
            assert self.most == 1
            assert self.seen == list(range(self.posted))


def work(port, seed):
    dice = random.Random(seed)
    while True:
        if dice.random() < 0.3:
            packets = port.get_many(dice.randrange(1, 8), LONG)
        else:
            packets = [port.get(LONG)]
        stops = 0
        for done in packets:
            line = done.key
            if line is None:
                stops += 1
                continue
            line.enter(dice)
            if done.overlapped is None:
                line.seen.append(done.transferred)
            else:
                done.overlapped.went_on.release()
            line.leave()
            if line.strand is not None and dice.random() < 0.2:
                line.strand.release()
        if stops:
            for _ in range(stops - 1):
                port.post(key=None)
            return


def post_some(line, seed):
    dice = random.Random(seed)
    for _ in range(300):
        line.post()
        if dice.random() < 0.02:
            time.sleep(0.0005)


def converse(port, line, pair, seed):
    """Echo some messages; their packets are of the strand as well."""
    from completionport import Overlapped

    class Signalled(Overlapped):
        def __init__(self):
            self.went_on = threading.Semaphore(0)

    dice = random.Random(seed)
    near, far = pair
    with port.associate(near, line, strand=line.strand) as handle:
        for number in range(60):
            message = bytes([number]) * dice.randrange(1, 2000)
            incoming, outgoing = Signalled(), Signalled()
            handle.recv(len(message), socket.MSG_WAITALL, incoming)
            far.sendall(message)
            assert incoming.went_on.acquire(timeout=LONG)
            wait_until(lambda one=incoming: not one.pending)
            assert incoming.result() == message
            handle.send(incoming.result(), overlapped=outgoing)
            assert read_exactly(far, len(message)) == message
            assert outgoing.went_on.acquire(timeout=LONG)
            line.received += 1
    assert line.received == 60


def test_many_threads_on_one_strand_add_up_without_a_lock(make_port):
    port = make_port(4)
    strand = Strand(port)
    total = 0

    def count():
        nonlocal total
        while port.get(LONG).transferred:
            before = total
            sum(itertools.repeat(1, 50))
            total = before + 1

    threads = [Background(count) for _ in range(4)]
    for _ in range(2000):
        port.post(1, strand=strand)
    for _ in threads:
        port.post(0, strand=strand)
    for thread in threads:
        thread.outcome()
    assert total == 2000
