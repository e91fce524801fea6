"""Threads that block do not keep the others from running, and count again afterwards."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import queue
import select
import socket
import statistics
import sys
import threading
import time

import pytest

from completionport import CompletionPort, Handler, Operation, PortClosed, Server, Strand
from support import (
    LONG,
    WINDOWS,
    Background,
    compute_until,
    needs_concurrency,
    needs_fork,
    read_exactly,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    wine_serves_the_first,
)

GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
STOP = object()
NOTICEABLE = 0.2 if WINDOWS else 0.05
"""Seconds of a round trip that show that it was held up: by the GIL alone it takes some switches,
and Windows counts its waits in steps of up to 16 ms."""


@pytest.fixture
def sees_who_blocks(engine):
    """Only on engines that find out by themselves."""
    if engine == "selectors":
        pytest.skip("this engine can't see who blocks")


@pytest.fixture
def weighs_wake_ups(engine):
    if engine not in ("io_uring", "epoll"):
        pytest.skip("this engine does not ask what it costs to wake a thread")


@pytest.fixture
def tells_who_blocks(engine):
    """Whether `stats` counts who was found to block, and who was let go in its place."""
    return engine != "iocp"  # there it is the kernel that sees it, and it tells nobody


needs_to_be_told = pytest.mark.skipif(
    WINDOWS, reason="the kernel of Windows tells nobody who blocks and who was let go instead"
)


def some(port, *names):
    numbers = port.stats()
    return tuple(numbers[name] for name in names)


@pytest.fixture
def serve(nothing_left):
    """Threads that call a function with each packet, until the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(port, target, count):
            def work():
                while (done := port.get()).transferred is not STOP:
                    target(done)

            threads = [Background(work) for _ in range(count)]

            def end():
                for _ in threads:
                    port.post(STOP)
                for thread in threads:
                    thread.outcome()

            stack.callback(end)
            wait_for_stats(port, waiting=count)

        yield make


class Counter:
    """How many threads are in a piece of code, now and at most."""

    def __init__(self):
        self.lock = threading.Lock()  # guards the numbers
        self.now = self.most = self.ended = 0

    def __enter__(self):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc_info):
        with self.lock:
            self.now -= 1
            self.ended += 1


def compute_for_stats(port, **expected):
    """As `wait_for_stats`, for a thread that holds a place and must not seem to block."""
    compute_until(lambda: some(port, *expected) == tuple(expected.values()))


def compute(seconds):
    """Use the processor for so long, and look at nothing else."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


class TestSayingSo:
    """`CompletionPort.blocking`."""

    @needs_concurrency
    def test_another_thread_takes_the_place_at_once(self, make_port):
        port = make_port(1)
        port.post(1)
        port.post(2)
        take_one(port)
        waiter = Background(port.get)
        compute_for_stats(port, waiting=1, running=1)
        with port.blocking():
            assert waiter.outcome().transferred == 2

    @needs_concurrency
    def test_the_thread_counts_again_at_its_end(self, make_port):
        port = make_port(1)
        other, end = queue.SimpleQueue(), threading.Event()

        def take_and_compute():
            other.put(port.get())
            compute_until(end.is_set)

        port.post(1)
        port.post(2)
        port.post(3)
        take_one(port)
        assert some(port, "running", "blocked") == (1, 0)
        with port.blocking():
            assert some(port, "running", "blocked") == (0, 1)
            holder = Background(take_and_compute)
            assert other.get(timeout=LONG).transferred == 2
            wait_for_stats(port, running=1, blocked=1)
        compute_for_stats(port, running=2, blocked=0)  # over the concurrency
        waiter = Background(port.get, 0.02)
        compute_until(lambda: not waiter.is_alive())
        assert waiter.outcome() is None  # nobody else gets in
        end.set()
        holder.outcome()
        wait_for_stats(port, running=1)
        assert port.get(0).transferred == 3

    def test_it_counts_again_after_an_exception_too(self, make_port):
        port = make_port(1)
        port.post()
        take_one(port)
        with pytest.raises(KeyError), port.blocking():
            raise KeyError("as expected")
        assert some(port, "running", "blocked") == (1, 0)

    def test_a_thread_without_a_packet_is_let_alone(self, make_port):
        port = make_port(1)
        with port.blocking():
            assert some(port, "running", "blocked") == (0, 0)
        port.post()
        take_one(port)
        assert port.get(0) is None
        with port.blocking():
            assert some(port, "running", "blocked") == (0, 0)
        assert some(port, "running", "blocked") == (0, 0)

    def test_a_packet_of_another_port_is_let_alone(self, make_port):
        port, other = make_port(1), make_port(1)
        port.post()
        take_one(port)
        with other.blocking():
            assert some(port, "running", "blocked") == (1, 0)
            assert some(other, "running", "blocked") == (0, 0)
        assert some(port, "running", "blocked") == (1, 0)
        assert some(other, "running", "blocked") == (0, 0)

    def test_one_inside_another_changes_nothing(self, make_port):
        port = make_port(1)
        port.post()
        take_one(port)
        with port.blocking():
            with port.blocking():
                assert some(port, "running", "blocked") == (0, 1)
            assert some(port, "running", "blocked") == (0, 1)
        assert some(port, "running", "blocked") == (1, 0)

    def test_it_may_be_said_again_and_again(self, make_port):
        port = make_port(1)
        port.post()
        take_one(port)
        for _ in range(100):
            with port.blocking():
                pass
        assert some(port, "running", "blocked") == (1, 0)

    def test_get_inside_takes_the_next_packet_and_a_new_place(self, make_port):
        port = make_port(1)
        port.post(1)
        port.post(2)
        take_one(port)
        with port.blocking():
            assert port.get(0).transferred == 2
            assert some(port, "running", "blocked") == (1, 0)
        assert some(port, "running", "blocked") == (1, 0)

    def test_get_inside_that_finds_nothing_leaves_no_place(self, make_port):
        port = make_port(1)
        port.post()
        take_one(port)
        with port.blocking():
            assert port.get(0) is None
            assert some(port, "running", "blocked") == (0, 0)
        assert some(port, "running", "blocked") == (0, 0)

    def test_get_at_another_port_inside_is_allowed(self, make_port):
        port, other = make_port(1), make_port(1)
        port.post()
        other.post("other")
        take_one(port)
        with port.blocking():
            assert take_one(other).transferred == "other"
            assert some(port, "running", "blocked") == (0, 0)
        assert some(port, "running", "blocked") == (0, 0)
        assert some(other, "running", "blocked") == (1, 0)

    def test_a_thread_that_ends_inside_is_gone(self, make_port):
        port = make_port(1)
        port.post()

        def end_inside():
            port.get()
            port.blocking().__enter__()

        Background(end_inside).outcome()
        wait_for_stats(port, running=0, blocked=0)

    def test_a_port_may_be_closed_meanwhile(self, make_port):
        port = make_port(1)
        port.post()
        take_one(port)
        with port.blocking():
            port.close()
        with pytest.raises(PortClosed):
            port.get(0)

    @needs_fork
    def test_the_child_of_a_fork_may_leave_it(self, engine):
        run_python(
            """
            import os
            from completionport import CompletionPort, PortForked
            port = CompletionPort(1)
            port.post()
            port.get()
            with port.blocking():
                child = os.fork()
            if child == 0:
                try:
                    with port.blocking():
                        pass
                except PortForked:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            port.get(0)
            assert port.stats()["running"] == 0
            port.close()
            """,
            engine=engine,
        )

    @needs_to_be_told
    def test_it_is_told_how_often_a_thread_was_let_go_in_place_of_another(self, make_port):
        port = make_port(1)
        port.post(1)
        port.post(2)
        take_one(port)
        waiter = Background(port.get)
        compute_for_stats(port, waiting=1)
        assert port.stats()["replaced"] == 0
        with port.blocking():
            waiter.outcome()
        assert port.stats()["replaced"] == 1

    def test_eight_that_sleep_take_as_long_as_one(self, make_port, serve):
        port, inside = make_port(1), Counter()

        def target(done):
            with port.blocking(), inside:
                time.sleep(0.3)  # it is what the test is about

        serve(port, target, 8)
        begun = time.monotonic()
        for number in range(8):
            port.post(number)
        wait_until(lambda: inside.ended == 8)
        assert time.monotonic() - begun < 1
        assert inside.most == 8

    @needs_concurrency
    def test_around_it_one_at_a_time_runs(self, make_port, serve):
        """The part outside of the block is entered by a new thread only where a place is free."""
        port, outside = make_port(1), Counter()

        def target(done):
            with outside:
                sum(range(1000))
            with port.blocking():
                time.sleep(0.001)  # it is what the test is about

        serve(port, target, 4)
        for number in range(100):
            port.post(number)
        wait_until(lambda: outside.ended == 100)
        assert outside.most == 1


@pytest.mark.usefixtures("sees_who_blocks")
class TestFoundOut:
    """A thread that blocks is replaced without a word."""

    def test_eight_that_sleep_take_little_longer_than_one(self, make_port, serve, tells_who_blocks):
        port, inside = make_port(1), Counter()

        def target(done):
            with inside:
                time.sleep(0.5)  # it is what the test is about

        serve(port, target, 8)
        begun = time.monotonic()
        for number in range(8):
            port.post(number)
        wait_until(lambda: inside.ended == 8)
        assert time.monotonic() - begun < 1
        assert inside.most == 8
        assert port.stats()["replaced"] >= 7 or not tells_who_blocks

    @needs_concurrency
    def test_of_those_that_compute_one_at_a_time_runs(self, make_port, serve):
        port, inside = make_port(1), Counter()

        def target(done):
            with inside:
                compute(0.03)

        serve(port, target, 4)
        for number in range(20):
            port.post(number)
        wait_until(lambda: inside.ended == 20)
        assert inside.most == 1

    @pytest.mark.parametrize(
        "way", ["lock", "event", "queue", "select", "recv", "join", "semaphore"]
    )
    def test_one_that_waits_is_replaced_whatever_it_waits_for(
        self, make_port, serve, tells_who_blocks, way
    ):
        port = make_port(1)
        served, waits = threading.Event(), threading.Event()
        lock, event, box = threading.Lock(), threading.Event(), queue.SimpleQueue()
        semaphore = threading.Semaphore(0)
        lock.acquire()
        near, far = socket.socketpair()
        sleeper = Background(event.wait, LONG)
        wait = {
            "lock": lambda: lock.acquire(timeout=LONG),
            "event": lambda: event.wait(LONG),
            "queue": lambda: box.get(timeout=LONG),
            "select": lambda: select.select([near], [], [], LONG),
            "recv": lambda: near.recv(1),
            "join": lambda: sleeper.join(LONG),
            "semaphore": lambda: semaphore.acquire(timeout=LONG),
        }[way]

        def target(done):
            if done.transferred == "wait":
                waits.set()
                wait()
            else:
                served.set()

        with near, far:
            serve(port, target, 2)
            port.post("wait")
            assert waits.wait(LONG)
            port.post("serve")
            assert served.wait(LONG)
            if tells_who_blocks:
                wait_for_stats(port, running=0, blocked=1)
            lock.release()
            event.set()
            box.put(None)
            far.sendall(b"x")
            semaphore.release()
            sleeper.outcome()
            wait_for_stats(port, running=0, blocked=0, waiting=2)
        assert port.stats()["replaced"] >= 1 or not tells_who_blocks

    def test_another_one_is_let_go_within_a_few_milliseconds(self, make_port, serve):
        port = make_port(1)
        delays, over = [], threading.Semaphore(0)
        began, go_on = 0.0, threading.Event()

        def target(done):
            nonlocal began
            if done.transferred == "block":
                began = time.monotonic()
                go_on.wait(LONG)
            else:
                delays.append(time.monotonic() - began)
                go_on.set()
            over.release()

        serve(port, target, 2)
        for _ in range(25):
            go_on.clear()
            port.post("block")
            port.post("serve")
            for _ in range(2):
                assert over.acquire(timeout=LONG)
        assert statistics.median(delays) < 0.05

    @needs_to_be_told
    def test_one_that_runs_again_counts_again(self, make_port, serve):
        port = make_port(1)
        event, end = threading.Event(), threading.Event()
        began = threading.Semaphore(0)

        def target(done):
            if done.transferred == "wait":
                began.release()
                event.wait(LONG)
            began.release()
            while not end.is_set():
                sum(range(200))

        serve(port, target, 3)
        port.post("wait")
        assert began.acquire(timeout=LONG)
        port.post("compute")
        assert began.acquire(timeout=LONG)
        wait_for_stats(port, running=1, blocked=1)
        event.set()
        assert began.acquire(timeout=LONG)
        wait_for_stats(port, running=2, blocked=0)  # over the concurrency
        port.post("one too many")
        assert not began.acquire(timeout=0.1)
        assert port.stats()["queued"] == 1
        end.set()
        assert began.acquire(timeout=LONG)

    def test_a_thread_that_nobody_can_replace_is_no_worry(self, make_port):
        port = make_port(1)
        port.post(1)
        port.post(2)
        take_one(port)
        time.sleep(0.05)  # it is what the test is about
        assert some(port, "queued", "replaced") == (1, 0)
        assert port.get(0).transferred == 2

    def test_a_thread_that_comes_later_is_let_in(self, make_port):
        port, event = make_port(1), threading.Event()
        port.post("wait")
        port.post("serve")

        def wait_for_it():
            port.get()
            event.wait(LONG)

        waiter = Background(wait_for_it)
        wait_for_stats(port, queued=1)
        assert Background(port.get, LONG).outcome().transferred == "serve"
        event.set()
        waiter.outcome()

    def test_one_that_blocks_keeps_its_strand(self, make_port, serve):
        """Only its place is given away."""

        port, inside = make_port(1), Counter()
        strand = Strand(port)

        def target(done):
            with inside:
                time.sleep(0.02)  # it is what the test is about

        serve(port, target, 4)
        for number in range(10):
            port.post(number, strand=strand)
        wait_until(lambda: inside.ended == 10)
        assert inside.most == 1

    def test_a_closed_port_ends_them_all(self, make_port, tells_who_blocks):
        port, event = make_port(1), threading.Event()

        def work():
            with contextlib.suppress(PortClosed):
                while True:
                    port.get()
                    event.wait(LONG)

        threads = [Background(work) for _ in range(4)]
        for _ in range(4):
            port.post()
        wait_for_stats(port, queued=0, **({"blocked": 4} if tells_who_blocks else {"running": 4}))
        port.close()
        event.set()
        for thread in threads:
            thread.outcome()


class Echo(Handler):
    def __init__(self, callback=None):
        self.callback = callback

    def received(self, connection, data):
        if data == b"!" and self.callback is not None:
            self.callback()
        connection.send(data)


def round_trips(sock, count):
    """How long each of some short echoes takes, in seconds."""
    times = []
    for _ in range(count):
        begun = time.monotonic()
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        times.append(time.monotonic() - begun)
        time.sleep(0.005)  # a client that asks now and then
    return times


def all_round_trips(socks):
    for sock in socks:
        sock.sendall(b"x")
    for sock in socks:
        assert read_exactly(sock, 1) == b"x"


class TestOthersGoOn:
    """One thread that is long at work does not hold up the connections of the others."""

    def test_while_one_computes_packets_of_other_connections_are_served(self, make_port, make_pair):
        port = make_port(2)
        (one, far_one), (two, far_two) = make_pair(), make_pair()
        computes = threading.Event()

        def work():
            while True:
                done = port.get()
                if done.transferred is STOP:
                    return
                (handle,), operation = done.key, done.overlapped
                if operation.operation is not Operation.RECV:
                    continue
                data = operation.result()
                if data == b"!":
                    computes.set()
                    compute(1)
                handle.send(data)
                handle.recv(10, overlapped=operation)

        keys = [], []  # each gets its handle
        first, second = port.associate(one, keys[0]), port.associate(two, keys[1])
        with first, second:
            keys[0].append(first)
            keys[1].append(second)
            workers = [Background(work) for _ in range(3)]
            first.recv(10)
            second.recv(10)
            far_one.sendall(b"!")
            assert computes.wait(LONG)
            times = round_trips(far_two, 40)
            assert read_exactly(far_one, 1) == b"!"
            for _ in workers:
                port.post(STOP)
            for worker in workers:
                worker.outcome()
        for key in keys:
            key.clear()
        take(port, 2)  # the receives, cancelled by the ends of the handles
        assert statistics.median(times) < NOTICEABLE

    def test_while_one_computes_other_connections_of_a_server_are_served(self, engine):
        computes = threading.Event()

        def callback():
            computes.set()
            compute(1)

        with (
            Server(Echo(callback), port=0, workers=3, concurrency=2, engine=engine) as server,
            socket.create_connection(server.address, timeout=LONG) as busy,
            socket.create_connection(server.address, timeout=LONG) as other,
        ):
            round_trips(other, 1)
            busy.sendall(b"!")
            assert computes.wait(LONG)
            times = round_trips(other, 40)
            assert read_exactly(busy, 1) == b"!"
        assert statistics.median(times) < NOTICEABLE

    @pytest.mark.usefixtures("sees_who_blocks")
    def test_while_one_blocks_other_connections_of_a_server_are_served(
        self, engine, tells_who_blocks
    ):
        blocks, event = threading.Event(), threading.Event()

        def callback():
            blocks.set()
            event.wait(LONG)

        with (
            Server(Echo(callback), port=0, workers=3, concurrency=1, engine=engine) as server,
            socket.create_connection(server.address, timeout=LONG) as busy,
            socket.create_connection(server.address, timeout=LONG) as other,
        ):
            busy.sendall(b"!")
            assert blocks.wait(LONG)
            times = round_trips(other, 40)
            if tells_who_blocks:
                wait_for_stats(server.completion_port, blocked=1)
            event.set()
            assert read_exactly(busy, 1) == b"!"
        assert statistics.median(times) < NOTICEABLE

    @needs_to_be_told
    @pytest.mark.usefixtures("sees_who_blocks")
    def test_a_worker_that_blocks_is_not_taken_for_one_that_runs_while_others_have_much_to_do(
        self, engine
    ):
        """io_uring finishes the requests of a thread in that thread, also while it sleeps."""
        blocks, event, count = threading.Event(), threading.Event(), 24

        def callback():
            blocks.set()
            event.wait(LONG)

        with (
            Server(Echo(callback), port=0, workers=4, concurrency=1, engine=engine) as server,
            contextlib.ExitStack() as stack,
        ):
            connect = functools.partial(socket.create_connection, server.address, timeout=LONG)
            busy, *others = [stack.enter_context(connect()) for _ in range(count)]
            # One thread serves all of them: the one that will block.
            for _ in range(20):
                all_round_trips([busy, *others])
            busy.sendall(b"!")
            assert blocks.wait(LONG)
            wait_until(
                lambda: all_round_trips(others) or server.completion_port.stats()["blocked"] == 1
            )
            seen = []
            for _ in range(400):
                all_round_trips(others)
                seen.append(server.completion_port.stats()["blocked"])
            event.set()
            assert read_exactly(busy, 1) == b"!"
        assert seen.count(0) <= 4

    def test_a_servers_callback_may_say_that_it_blocks(self, engine):
        blocks, event = threading.Event(), threading.Event()
        servers = []

        def callback():
            with servers[0].completion_port.blocking():
                blocks.set()
                event.wait(LONG)

        with (
            Server(Echo(callback), port=0, workers=3, concurrency=1, engine=engine) as server,
            socket.create_connection(server.address, timeout=LONG) as busy,
            socket.create_connection(server.address, timeout=LONG) as other,
        ):
            servers.append(server)
            busy.sendall(b"!")
            assert blocks.wait(LONG)
            times = round_trips(other, 20)
            event.set()
            assert read_exactly(busy, 1) == b"!"
        assert statistics.median(times) < NOTICEABLE


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
        assert processor_time(0.5) < 0.02
        port.post("wait")  # and with a thread that blocks, and nothing to do for another one
        wait_for_stats(port, waiting=3)
        assert processor_time(0.5) < 0.05
        event.set()

    @needs_concurrency
    def test_a_returning_thread_wakes_nobody(self, make_port):
        port = make_port(1)
        port.post("first")
        take_one(port)
        sleeper = Background(port.get)
        compute_for_stats(port, waiting=1, running=1)
        before = port.stats()["wakeups"]
        for number in range(200):
            port.post(number)
            assert take_one(port).transferred == number
        assert port.stats()["wakeups"] == before
        port.post("for the one that waits")
        assert port.get(0).transferred == "for the one that waits"
        assert port.get(0) is None  # and now there is a place for it
        port.post("last")
        assert sleeper.outcome().transferred == "last"

    def test_a_returning_thread_takes_the_next_packet_without_a_context_switch(self, make_port):
        resource = pytest.importorskip("resource")
        port = make_port(1)
        port.post("first")
        take_one(port)
        sleeper = Background(port.get)
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
        port, bursts = make_port(2), 200

        def target(done):
            if done.transferred == "burst":
                for _ in range(20):
                    port.post("short")

        serve(port, target, 2)
        before = port.stats()["wakeups"]
        for _ in range(bursts):
            port.post("burst")
            wait_for_stats(port, waiting=2, queued=0)
        assert bursts <= port.stats()["wakeups"] - before <= 1.25 * bursts

    @pytest.mark.usefixtures("weighs_wake_ups")
    def test_a_packet_does_not_wait_for_a_long_one(self, make_port, serve):
        """What takes longer than waking another thread has that thread woken, and at once."""
        port, data = make_port(2), bytes(1_000_000)
        woken, over = [], threading.Semaphore(0)

        def target(done):
            if done.transferred == "first":
                port.post("second")
                # A thread for each of the two, whatever the monitor may do later.
                woken.append(port.stats()["wakeups"] - before)
            hashlib.sha256(data).digest()
            over.release()

        serve(port, target, 2)
        for _ in range(120):
            before = port.stats()["wakeups"]
            port.post("first")
            for _ in range(2):
                assert over.acquire(timeout=LONG)
            wait_for_stats(port, waiting=2, queued=0)
        # In the first turns the port learns how long they take.
        assert sum(count >= 2 for count in woken[20:]) >= 80

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
        assert port.stats()["wakeups"] - before <= 3
        assert all(other.is_alive() for other in others)
        port.post(STOP)
        worker.outcome()
        for _ in others:
            port.post("end")
        for other in others:
            other.outcome()


def processor_time(seconds):
    before = time.process_time()
    time.sleep(seconds)  # what is measured
    return time.process_time() - before


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
        port = make_port(2)
        watcher = Background(port._wait_until_stuck, 0.2)
        taker = Background(lambda: [port.get(LONG) for _ in range(200)])
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
        watcher = Background(port._wait_until_stuck, 0.7)
        assert processor_time(0.5) < 0.02
        assert watcher.outcome() is False

    def test_it_holds_no_place(self, make_port):
        port = make_port(1)
        watcher = Background(port._wait_until_stuck, 0.1)
        for _ in range(3):
            port.post()
            take_one(port)
        assert port.stats()["running"] == 1
        assert watcher.outcome() is False


def test_blocking_is_on_every_port(engine):
    with CompletionPort(engine=engine) as port, port.blocking() as inside:
        assert inside is None
