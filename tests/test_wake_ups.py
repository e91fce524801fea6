"""When threads are woken and what that costs, and how a pool learns that it needs one more."""

from __future__ import annotations

import hashlib
import statistics
import threading
import time

import pytest

from blocking_support import (
    GIL,
    STOP,
    Counter,
    compute_for_stats,
    serving,
    taker_in_time,
)
from completionport import PortClosed
from support import (
    LONG,
    Background,
    assert_idle,
    needs_concurrency,
    take_one,
    wait_for_stats,
    wait_until,
    wine_serves_the_first,
)


@pytest.fixture
def weighs_wake_ups(engine):
    if engine not in ("io_uring", "epoll"):
        pytest.skip("this engine does not ask what it costs to wake a thread")


@pytest.fixture
def serve(nothing_left):
    """Threads that call a function with each packet: ``serve(port, function, threads)``."""
    with serving() as make:
        yield make


@pytest.mark.alone
class TestCost:
    """What it must not cost."""

    @pytest.mark.skipif(not GIL, reason="free-threaded, the default is the number of processors")
    def test_under_the_gil_the_default_is_one(self, make_port):
        assert make_port(0).concurrency == 1

    @pytest.mark.skipif(not GIL, reason="free-threaded, as many run as there are processors")
    @pytest.mark.usefixtures("sees_who_blocks")
    def test_under_the_gil_fifteen_more_workers_stay_out_of_the_way(self, make_port, serve):
        port, inside, over = make_port(0), Counter(), threading.Event()

        def target(done):
            with inside:
                sum(range(5000))  # some 50 microseconds
            if done.transferred == 999:
                over.set()

        serve(port, target, 16)
        before = port.stats()["wakeups"]
        for number in range(1000):
            port.post(number)
        assert over.wait(LONG)
        numbers = port.stats()
        # On a busy machine one that waits for a processor may look as if it blocked.
        assert inside.most <= 1 + numbers["replaced"]
        assert numbers["wakeups"] - before <= 100 + numbers["replaced"]

    def test_an_idle_port_uses_no_processor_time(self, make_port, serve):
        port, event = make_port(2), threading.Event()

        def target(done):
            if done.transferred == "wait":
                event.wait(LONG)

        serve(port, target, 4)
        port.post("once")
        wait_for_stats(port, queued=0, waiting=4)
        assert_idle(0.5)
        port.post("wait")  # and with a thread that blocks, and nothing to do for another one
        wait_for_stats(port, waiting=3)
        assert_idle(0.5, most=0.05)
        event.set()

    @needs_concurrency
    def test_a_returning_thread_wakes_nobody(self, make_port):
        port = make_port(1)
        sleeper, began = taker_in_time(port)
        port.post("first")
        take_one(port)
        began.append(True)
        compute_for_stats(port, waiting=1, running=1)
        before = port.stats()["wakeups"]
        for number in range(200):
            port.post(number)
            assert take_one(port).transferred == number
        # Not one for each. A turn that takes long has the other thread stand by for a moment.
        assert port.stats()["wakeups"] - before <= 20
        port.post("for the one that waits")
        assert port.get(0).transferred == "for the one that waits"
        assert port.get(0) is None  # and now there is a place for it
        port.post("last")
        assert sleeper.outcome().transferred == "last"

    def test_a_returning_thread_takes_the_next_packet_without_a_context_switch(self, make_port):
        resource = pytest.importorskip("resource")
        port = make_port(1)
        sleeper, began = taker_in_time(port)
        port.post("first")
        take_one(port)
        began.append(True)
        compute_for_stats(port, waiting=1, running=1)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        for number in range(1000):
            port.post(number)
            assert port.get().transferred == number
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        assert slept <= 20  # of the whole process: a lock of the memory's, a page
        port.post("last")
        assert port.get().transferred == "last"
        assert port.get(0) is None
        port.post("for the one that waits")
        assert sleeper.outcome().transferred == "for the one that waits"

    @pytest.mark.usefixtures("weighs_wake_ups")
    def test_short_packets_are_left_to_the_thread_that_is_awake(self, make_port, serve):
        """To wake another one for them would take longer than they do."""
        port, wakeups = make_port(2), []

        def target(done):
            if done.transferred == "burst":
                for _ in range(20):
                    port.post("short")

        serve(port, target, 2)
        for _ in range(200):
            before = port.stats()["wakeups"]
            port.post("burst")
            wait_for_stats(port, waiting=2, woken=0, queued=0)
            wakeups.append(port.stats()["wakeups"] - before)
        # A thread that was stopped makes short ones look long, for a while.
        assert statistics.median(wakeups) == 1

    @pytest.mark.usefixtures("weighs_wake_ups")
    def test_a_packet_does_not_wait_for_a_long_one(self, make_port, serve):
        """What takes longer than waking another thread has that thread woken, and at once."""
        port, data = make_port(2), bytes(1_000_000)
        left_behind, over = [], threading.Semaphore(0)

        def target(done):
            if done.transferred == "first":
                port.post("second")
                # That a thread comes for it is the port's part, when it runs is the machine's.
                numbers = port.stats()
                left_behind.append(numbers["queued"] > numbers["woken"])
            hashlib.sha256(data).digest()
            over.release()

        serve(port, target, 2)
        for _ in range(120):
            port.post("first")
            for _ in range(2):
                assert over.acquire(timeout=LONG)
            wait_for_stats(port, waiting=2, woken=0, queued=0)
        assert any(left_behind[:5])  # in the first turns the port learns how long they take
        assert not any(left_behind[20:])

    def test_a_thread_on_its_way_is_told_apart_from_those_that_sleep(self, make_port, engine):
        if engine == "iocp":
            pytest.skip("Windows wakes threads, and does not tell")
        port, seen = make_port(1), []
        for number in range(200):
            waiter = Background(port.get)
            wait_for_stats(port, waiting=1, woken=0)
            port.post(number)
            seen.append(port.stats()["woken"])
            assert waiter.outcome().transferred == number
            assert port.stats()["woken"] == 0
        assert set(seen) <= {0, 1}
        assert 1 in seen

    @wine_serves_the_first
    def test_a_thread_that_keeps_up_is_the_only_one_awake(self, make_port):
        port = make_port(1)
        others = [Background(port.get) for _ in range(3)]
        wait_for_stats(port, waiting=3)
        served = []

        def work():
            while (done := port.get()).transferred is not STOP:
                served.append(done.transferred)
                if done.transferred < 500:
                    port.post(done.transferred + 1)

        worker = Background(work)
        wait_for_stats(port, waiting=4)
        before = port.stats()["wakeups"]
        port.post(0)
        wait_until(lambda: len(served) == 501)
        wait_for_stats(port, waiting=4)
        # It takes the packets that it posts itself: only the first one needed a wake-up.
        assert port.stats()["wakeups"] - before <= 20
        assert all(other.is_alive() for other in others)
        port.post(STOP)
        worker.outcome()
        for _ in others:
            port.post("end")
        for other in others:
            other.outcome()


class TestStuck:
    """`CompletionPort._wait_until_stuck`, for pools that grow."""

    def test_an_idle_port_is_not_stuck(self, make_port):
        port = make_port(1)
        begun = time.monotonic()
        assert port._wait_until_stuck(0) is False
        assert port._wait_until_stuck(0.05) is False
        # Windows counts in ticks of up to 16 ms.
        assert time.monotonic() - begun >= 0.033

    def test_a_port_whose_thread_blocks_while_packets_wait_is_stuck(self, make_port):
        port, event = make_port(1), threading.Event()

        def block():
            port.get()
            with port.blocking():
                event.wait(LONG)

        blocker = Background(block)
        wait_for_stats(port, waiting=1)
        watcher = Background(port._wait_until_stuck, LONG)
        port.post()
        wait_for_stats(port, queued=0, blocked=1)
        assert watcher.is_alive()
        port.post("waits")
        assert watcher.outcome() is True
        event.set()
        blocker.outcome()
        assert take_one(port).transferred == "waits"

    def test_a_port_with_a_thread_that_waits_for_packets_is_not_stuck(self, make_port):
        port = make_port(1)
        taker = Background(lambda: [port.get(LONG) for _ in range(200)])
        wait_for_stats(port, waiting=1)
        watcher = Background(port._wait_until_stuck, 0.2)
        for _ in range(200):
            port.post()
        taker.outcome()
        assert watcher.outcome() is False

    def test_a_closed_port_is_told(self, make_port):
        port = make_port(1)
        watchers = [Background(port._wait_until_stuck, timeout) for timeout in (None, LONG)]
        time.sleep(0.01)  # so that they wait, most probably; it holds in any case
        port.close()
        for watcher in watchers:
            with pytest.raises(PortClosed):
                watcher.outcome()
        with pytest.raises(PortClosed):
            port._wait_until_stuck(0)

    def test_waiting_for_it_costs_nothing(self, make_port):
        port = make_port(1)
        watcher = Background(port._wait_until_stuck, LONG)
        assert_idle(0.5)
        assert watcher.is_alive()
        port.close()
        with pytest.raises(PortClosed):
            watcher.outcome()

    def test_it_holds_no_place(self, make_port):
        port = make_port(1)
        port.post()
        take_one(port)
        watcher = Background(port._wait_until_stuck, 0.1)
        for _ in range(3):
            port.post()
            take_one(port)
        assert port.stats()["running"] == 1
        assert watcher.outcome() is False
