"""Which thread gets a packet, how many hold one, and threads that have ended (rules 9, 10, 15)."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import statistics
import sys
import threading
import time

import pytest

from completionport import CompletionPort, PortClosed
from support import (
    LONG,
    Background,
    assert_quiet,
    compute_until,
    needs_concurrency,
    pattern,
    read_exactly,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    wine_serves_the_first,
)

STOP = object()


class Taker:
    """A thread that takes packets and holds each one until it is told to go on.

    While it holds one it blocks, so that its place goes to another thread before long, or computes.
    """

    def __init__(self, port, name=None, timeout=None, *, computing=False):
        self.computing = computing
        self.port = port
        self.name = name
        self.timeout = timeout
        self.taken = []
        self.orders = queue.SimpleQueue()
        self.thread = Background(self.run)

    def run(self):
        with contextlib.suppress(PortClosed):
            while True:
                self.taken.append(self.port.get(self.timeout))
                if self.computing:
                    compute_until(lambda: not self.orders.empty())
                if self.orders.get(timeout=LONG) is STOP:
                    return

    def go_on(self):
        self.orders.put(None)

    def end(self):
        self.orders.put(STOP)
        self.thread.outcome()

    @property
    def values(self):
        return [done and done.transferred for done in self.taken]


def start_in_order(port, count, *, computing=False):
    """Takers that came to the port one after the other."""
    takers = []
    for number in range(count):
        takers.append(Taker(port, number, computing=computing))
        wait_for_stats(port, waiting=number + 1)
    return takers


def usable_processors():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


class TestWhoIsServed:
    @wine_serves_the_first
    def test_the_thread_that_came_last_is_served_first(self, make_port):
        port = make_port(4)
        takers = start_in_order(port, 4)
        for number, taker in enumerate(reversed(takers)):
            port.post(number)
            wait_until(lambda taker=taker: taker.taken, f"packet {number} reached its thread")
            assert port.stats()["waiting"] == 3 - number
        assert [taker.values for taker in takers] == [[3], [2], [1], [0]]
        for taker in takers:
            taker.end()

    @wine_serves_the_first
    @pytest.mark.parametrize("count", [2, 4])
    def test_a_burst_goes_to_the_threads_that_wait_in_the_order_in_which_they_are_served(
        self, make_port, count
    ):
        # They are let go at about the same time, and the system may run them in any order.
        port = make_port(count + 1)
        for _ in range(30):
            takers = start_in_order(port, count)
            for number in range(count + 1):
                port.post(number)
            wait_until(lambda takers=takers: all(taker.taken for taker in takers))
            assert [taker.values for taker in takers] == [[n] for n in reversed(range(count))]
            assert take_one(port).transferred == count
            for taker in takers:
                taker.end()

    @wine_serves_the_first
    def test_one_thread_does_all_the_work_while_it_keeps_up(self, make_port):
        port = make_port(4)
        takers = start_in_order(port, 3)
        for number in range(20):
            port.post(number)
            wait_until(lambda number=number: len(takers[2].taken) == number + 1)
            takers[2].go_on()
            wait_for_stats(port, waiting=3)
        assert [taker.values for taker in takers] == [[], [], list(range(20))]
        port.close()
        for taker in takers:
            taker.end()

    @wine_serves_the_first
    def test_packets_of_operations_go_to_the_thread_that_came_last(self, make_port, tcp):
        near, far = tcp
        port = make_port(4)
        with port.associate(near, "key") as handle:
            takers = start_in_order(port, 3)
            for number, taker in enumerate(reversed(takers)):
                handle.recv(10)
                far.sendall(b"x" * (number + 1))
                wait_until(lambda taker=taker: taker.taken, f"packet {number} reached its thread")
            assert [taker.values for taker in takers] == [[3], [2], [1]]
            for taker in takers:
                taker.end()

    def test_a_thread_that_gave_up_waiting_is_passed_over(self, make_port):
        port = make_port(4)
        first = Taker(port)
        wait_for_stats(port, waiting=1)
        assert port.get(0.05) is None
        assert port.stats()["waiting"] == 1
        port.post("still here")
        wait_until(lambda: first.taken)
        first.end()

    @pytest.mark.parametrize("leaver_first", [True, False])
    def test_somebody_takes_over_when_the_thread_in_the_kernel_leaves(
        self, make_port, tcp, leaver_first
    ):
        near, far = tcp
        port = make_port(4)
        with port.associate(near, "key") as handle:
            handle.recv(10)
            if leaver_first:
                leaver = Background(port.get, 0.3)
                wait_until(lambda: port.stats()["waiting"] or not leaver.is_alive())
                stayer = Taker(port)
            else:
                stayer = Taker(port)
                wait_for_stats(port, waiting=1)
                leaver = Background(port.get, 0.3)
            assert leaver.outcome() is None
            far.sendall(b"hello")
            wait_until(lambda: stayer.taken, "the thread that stayed gets the packet")
            stayer.end()

    def test_many_threads_share_the_work(self, make_port):
        port = make_port(8)
        takers = [Background(take_until_stopped, port) for _ in range(8)]
        for number in range(4000):
            port.post(number)
        wait_for_stats(port, queued=0, running=0, waiting=8)
        for _ in takers:
            port.post(STOP)
        taken = [taker.outcome() for taker in takers]
        assert sorted(itertools.chain(*taken)) == list(range(4000))
        assert all(values == sorted(values) for values in taken)

    def test_threads_with_timeouts_and_without_lose_no_packet(self, make_port):
        port = make_port(8)
        stop = threading.Event()

        def impatient():
            taken = []
            while not stop.is_set():
                done = port.get(0.0005)
                if done is not None:
                    taken.append(done.transferred)
            return taken

        takers = [Background(impatient) for _ in range(3)]
        takers += [Background(take_until_stopped, port) for _ in range(2)]
        for number in range(3000):
            port.post(number)
            if number % 100 == 0:
                time.sleep(0.001)  # now and then the threads have to wait
        wait_for_stats(port, queued=0)
        stop.set()
        taken = [taker.outcome() for taker in takers[:3]]
        for _ in range(2):
            port.post(STOP)
        taken += [taker.outcome() for taker in takers[3:]]
        assert sorted(itertools.chain(*taken)) == list(range(3000))


def take_until_stopped(port):
    taken = []
    while (done := port.get(LONG)).transferred is not STOP:
        taken.append(done.transferred)
    return taken


class TestConcurrency:
    def test_the_default_is_as_many_as_can_run_python(self, make_port):
        gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        expected = 1 if gil else usable_processors()
        assert make_port().concurrency == expected
        assert make_port(0).concurrency == expected

    def test_the_value_is_kept(self, make_port):
        assert make_port(3).concurrency == 3
        assert make_port(1000).concurrency == 1000

    @needs_concurrency
    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_no_more_threads_than_that_hold_packets(self, make_port, limit):
        port = make_port(limit)
        takers = start_in_order(port, 5, computing=True)
        for number in range(5):
            port.post(number)
        wait_for_stats(port, running=limit, queued=5 - limit)
        assert port.get(0) is None  # no place for one more
        assert port.stats()["queued"] == 5 - limit
        wait_until(lambda: sum(len(taker.taken) for taker in takers) == limit)
        holding = [taker for taker in takers if taker.taken]
        assert len(holding) == limit
        holding[0].go_on()
        # The thread that comes back takes the next packet itself; nobody else is woken.
        wait_until(lambda: len(holding[0].taken) == 2)
        assert sum(len(taker.taken) for taker in takers) == limit + 1
        assert port.stats()["running"] == limit
        port.close()
        for taker in takers:
            taker.end()

    @needs_concurrency
    @pytest.mark.parametrize("limit", [1, 2, 4])
    def test_the_limit_holds_under_load(self, make_port, limit):
        port = make_port(limit)
        # A list takes steps of several threads one by one; who waited for a lock would be replaced.
        steps = []

        def work():
            while True:
                done = port.get(LONG)
                steps.append(1)
                stop = done.transferred is STOP
                if done.transferred == "again":
                    port.post("once")
                steps.append(-1)
                if stop:
                    return

        threads = [Background(work) for _ in range(limit + 4)]
        for _ in range(1500):
            port.post("again")
        wait_for_stats(port, queued=0, running=0)
        for _ in threads:
            port.post(STOP)
        for thread in threads:
            thread.outcome()
        assert max(itertools.accumulate(steps)) <= limit

    @needs_concurrency
    def test_a_thread_that_ends_gives_its_place_back(self, make_port):
        port = make_port(1)
        first = Taker(port, computing=True)
        wait_for_stats(port, waiting=1)
        port.post("first")
        wait_until(lambda: first.taken)
        second = Taker(port)
        wait_for_stats(port, waiting=1)
        port.post("second")
        assert port.get(0) is None
        assert second.taken == []
        first.end()
        wait_until(lambda: second.taken, "the place of the ended thread is free")
        second.end()
        wait_for_stats(port, running=0)

    def test_a_thread_that_dies_of_an_exception_gives_its_place_back(self, make_port):
        port = make_port(1)

        def die():
            port.get()
            raise KeyError("as expected")

        for number in range(5):
            dying = Background(die)
            port.post(number)
            with pytest.raises(KeyError):
                dying.outcome()
        port.post("mine")
        assert take_one(port).transferred == "mine"

    def test_a_timeout_gives_the_place_back(self, make_port):
        port = make_port(1)
        port.post("one")
        take_one(port)
        assert port.stats()["running"] == 1
        assert port.get(0) is None
        assert port.stats()["running"] == 0

    @needs_concurrency
    def test_get_at_another_port_gives_the_place_back(self, make_port):
        for _ in range(20):
            port, other = make_port(1), make_port(1)
            port.post("one")
            port.post("two")
            take_one(port)
            waiter = Background(port.get)
            # Who slept here would be replaced, as may be who computes and is given no processor.
            compute_until(
                lambda port=port, waiter=waiter: (
                    port.stats()["waiting"] == 1 or not waiter.is_alive()
                )
            )
            if port.stats()["replaced"] == 0:
                break
            waiter.outcome()
        else:
            pytest.fail("this thread was replaced each time, though it computed")
        assert other.get(0) is None
        assert waiter.outcome().transferred == "two"

    def test_get_many_takes_one_place(self, make_port):
        port = make_port(2)
        for number in range(5):
            port.post(number)
        assert len(port.get_many(4)) == 4
        assert port.stats()["running"] == 1
        assert Background(port.get).outcome().transferred == 4

    def test_a_poll_by_a_holder_takes_the_next_packet(self, make_port):
        port = make_port(1)
        for number in range(100):
            port.post(number)
        assert [port.get(0).transferred for _ in range(100)] == list(range(100))
        assert port.stats()["running"] == 1

    def test_a_closed_port_takes_no_place_along(self, make_port):
        first, second = make_port(1), make_port(1)
        first.post(1)
        take_one(first)
        first.close()
        second.post(2)
        assert take_one(second).transferred == 2


def seconds_of(function, times_in_each):
    """How long threads take that call the function so many times each, all at once."""

    def work(times):
        for _ in range(times):
            function()

    begun = time.monotonic()
    for thread in [Background(work, times) for times in times_in_each]:
        thread.outcome()
    return time.monotonic() - begun


@pytest.mark.skipif(
    getattr(sys, "_is_gil_enabled", lambda: True)() or usable_processors() < 2,
    reason="two threads that compute take two processors and an interpreter without a GIL",
)
class TestFreeThreaded:
    @pytest.mark.alone
    def test_two_workers_get_as_much_done_as_two_threads_by_themselves(self, make_port, engine):
        """Handlers of some 200 microseconds that share nothing: what the port adds is little."""
        if engine == "selectors":
            pytest.skip("its own Python code is more than a small part of so short a handler")
        packets, gains = 400, []

        def handle():
            value = 1
            for step in range(4000):
                value = (value * 31 + step) & 0xFFFF

        def seconds_of_workers(count):
            port = make_port(count)
            for _ in range(packets):
                port.post(0)
            for _ in range(count):
                port.post(STOP)

            def work():
                while port.get(LONG).transferred is not STOP:
                    handle()

            begun = time.monotonic()
            for worker in [Background(work) for _ in range(count)]:
                worker.outcome()
            return time.monotonic() - begun

        # Other programs come and go beside it: what holds shows in some nine rounds in a row.
        for _ in range(36):
            gain = seconds_of_workers(1) / seconds_of_workers(2)
            bare = seconds_of(handle, [packets]) / seconds_of(handle, [packets // 2] * 2)
            gains.append(gain / bare)
            if len(gains) >= 9 and statistics.median(gains[-9:]) > 0.75:
                return
        pytest.fail(f"two workers, against two threads by themselves: {gains}")


class TestEndedThreads:
    """Operations live longer than the thread that started them (rule 10)."""

    @pytest.mark.parametrize("waited", [False, True])
    @pytest.mark.parametrize("size", [0, 10])
    def test_a_receive_of_an_ended_thread_completes(self, make_port, pair, waited, size):
        port = make_port(2)
        near, far = pair
        with port.associate(near, "key") as handle:

            def start():
                if waited:
                    port.get(0.01)
                handle.recv(size)

            Background(start).outcome()
            assert port.get(0.05) is None
            far.sendall(b"hello")
            done = take_one(port)
            assert (done.transferred, done.error) == (min(size, 5), None)
            assert done.overlapped.result() == b"hello"[:size]
            assert_quiet(port)

    def test_it_completes_for_a_thread_that_was_waiting_all_along(self, make_port, pair):
        port = make_port(4)
        near, far = pair
        with port.associate(near, "key") as handle:
            taker = Taker(port)
            wait_for_stats(port, waiting=1)
            Background(handle.recv, 10).outcome()
            far.sendall(b"hello")
            wait_until(lambda: taker.taken)
            assert taker.taken[0].overlapped.result() == b"hello"
            taker.end()

    def test_it_completes_when_the_thread_had_waited_in_the_kernel(self, make_port, make_pair):
        # The thread that starts the operation also submits it: its own wait does so.
        port = make_port(4)
        (one, far_one), (two, far_two) = make_pair(), make_pair()
        with port.associate(one, 1) as first, port.associate(two, 2) as second:

            def start_and_take():
                first.recv(10)
                second.recv(10)
                return port.get(LONG)

            starter = Background(start_and_take)
            wait_for_stats(port, waiting=1, pending=2)
            far_one.sendall(b"one")
            assert starter.outcome().key == 1
            assert port.get(0.05) is None
            far_two.sendall(b"two")
            done = take_one(port)
            assert (done.key, done.error) == (2, None)
            assert done.overlapped.result() == b"two"

    def test_a_send_of_an_ended_thread_goes_out_whole(self, make_port, pair):
        port = make_port(2)
        near, far = pair
        data = pattern(8_000_000)
        with port.associate(near, "key") as handle:

            def start():
                handle.send(data)
                port.get(0.01)

            Background(start).outcome()
            assert port.get(0.02) is None
            reader = Background(read_exactly, far, len(data))
            assert take_one(port).transferred == len(data)
            assert reader.outcome() == data

    def test_accept_and_connect_of_ended_threads_complete(self, make_port, listener):
        port = make_port(2)
        with (
            socket.socket() as sock,
            port.associate(listener, "accept") as server,
            port.associate(sock, "connect") as client,
        ):
            Background(server.accept).outcome()
            assert port.get(0.02) is None
            Background(client.connect, listener.getsockname()).outcome()
            packets = {done.key: done for done in take(port, 2)}
            assert packets["connect"].error is None
            packets["accept"].overlapped.result().close()

    def test_operations_of_many_ended_threads_complete(self, make_port, make_pair):
        port = make_port(2)
        pairs = [make_pair("local") for _ in range(40)]
        handles = [port.associate(near, number) for number, (near, _) in enumerate(pairs)]

        def start(handle):
            handle.recv(10)
            port.get(0)

        for thread in [Background(start, handle) for handle in handles]:
            thread.outcome()
        for number, (_, far) in enumerate(pairs):
            far.sendall(b"%d" % number)
        packets = take(port, 40)
        assert {done.key: done.overlapped.result() for done in packets} == {
            number: b"%d" % number for number in range(40)
        }
        assert_quiet(port)
        for handle in handles:
            handle.close()

    def test_a_cancel_by_a_thread_that_ends_works(self, make_port, pair):
        port = make_port(2)
        near, _far = pair
        with port.associate(near, "key") as handle:
            operation = handle.recv(10)
            assert Background(handle.cancel, operation).outcome() == 1
            assert take_one(port).overlapped is operation
            assert_quiet(port)

    def test_a_port_made_by_a_thread_that_ended_works(self, engine, pair):
        near, far = pair
        port = Background(lambda: CompletionPort(2, engine=engine)).outcome()
        with port, port.associate(near, "key") as handle:
            handle.recv(10)
            far.sendall(b"hello")
            assert take_one(port).overlapped.result() == b"hello"


def test_any_thread_may_call_anything_at_the_same_time(make_port, make_pair):
    """Two directions, four takers, four starters on the same handles."""
    port = make_port(4)
    near, far = make_pair()
    each = 300
    with port.associate(near, "near") as one, port.associate(far, "far") as two:
        taken = []

        def work():
            while (done := port.get(LONG)).transferred is not STOP:
                taken.append((done.transferred, done.error))

        takers = [Background(work) for _ in range(4)]

        def start():
            for _ in range(each):
                one.send(b"x" * 10)
                two.recv(10, socket.MSG_WAITALL)
                two.send(b"y" * 10)
                one.recv(10, socket.MSG_WAITALL)

        for starter in [Background(start) for _ in range(4)]:
            starter.outcome()
        wait_until(lambda: len(taken) == 16 * each, "every operation has its packet")
        for _ in takers:
            port.post(STOP)
        for taker in takers:
            taker.outcome()
        assert taken == [(10, None)] * (16 * each)
        assert_quiet(port)


def test_ports_do_not_disturb_each_other(make_port, make_pair):
    ports = [make_port(1) for _ in range(10)]

    def echo(port):
        near, far = make_pair("local")
        with port.associate(near, "key") as handle:
            for number in range(50):
                operation = handle.recv(10)
                far.sendall(b"%d" % number)
                assert take_one(port).overlapped is operation
                assert operation.result() == b"%d" % number
            assert_quiet(port)

    for thread in [Background(echo, port) for port in ports]:
        thread.outcome()


def test_one_thread_serves_two_ports(make_port, make_pair):
    first, second = make_port(), make_port()
    (one, far_one), (two, far_two) = make_pair(), make_pair()
    with first.associate(one, 1) as handle_one, second.associate(two, 2) as handle_two:
        for _ in range(20):
            handle_one.recv(10)
            handle_two.recv(10)
            far_one.sendall(b"one")
            far_two.sendall(b"two")
            assert take_one(second).overlapped.result() == b"two"
            assert take_one(first).overlapped.result() == b"one"
