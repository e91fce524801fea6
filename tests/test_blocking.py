"""Threads that block do not keep the others from running, and count again afterwards."""

from __future__ import annotations

import contextlib
import functools
import queue
import select
import socket
import statistics
import threading
import time

import pytest

from blocking_support import (
    STOP,
    Counter,
    compute,
    compute_for_stats,
    serving,
    some,
    taker_in_time,
)
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
    windows_has_no,
)

NOTICEABLE = 0.2
"""Seconds of a round trip that show that it was held up: by the GIL alone it takes some switches,
and Windows counts its waits in steps of up to 16 ms."""


@pytest.fixture
def tells_who_blocks(engine):
    """Whether `stats` counts who was found to block, and who was let go in its place."""
    return engine != "iocp"  # there it is the kernel that sees it, and it tells nobody


needs_to_be_told = pytest.mark.skipif(
    WINDOWS, reason="the kernel of Windows tells nobody who blocks and who was let go instead"
)


@pytest.fixture
def serve(nothing_left):
    """Threads that call a function with each packet: ``serve(port, function, threads)``."""
    with serving() as make:
        yield make


def time_of_eight(port, inside):
    """Seconds that eight packets take, the quickest of three times: the machine may be busy."""
    times = []
    for _ in range(3):
        begun = time.monotonic()
        for number in range(8):
            port.post(number)
        wait_until(lambda: inside.ended == 8)
        times.append(time.monotonic() - begun)
        inside.ended = 0
    return min(times)


class TestSayingSo:
    """`CompletionPort.blocking`."""

    @needs_concurrency
    def test_another_thread_takes_the_place_at_once(self, make_port):
        port = make_port(1)
        waiter, began = taker_in_time(port)
        port.post(1)
        port.post(2)
        take_one(port)
        began.append(True)
        compute_for_stats(port, waiting=1, running=1)
        with port.blocking():
            assert waiter.outcome().transferred == 2

    @needs_concurrency
    def test_the_thread_counts_again_at_its_end(self, make_port):
        port = make_port(1)
        waiter, began = taker_in_time(port, 0.02)
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
        began.append(True)
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
        waiter, began = taker_in_time(port)
        port.post(1)
        port.post(2)
        take_one(port)
        began.append(True)
        compute_for_stats(port, waiting=1)
        assert port.stats()["replaced"] == 0
        with port.blocking():
            waiter.outcome()
        assert port.stats()["replaced"] == 1

    @pytest.mark.alone
    def test_eight_that_sleep_take_as_long_as_one(self, make_port, serve):
        port, inside = make_port(1), Counter()

        def target(done):
            with port.blocking(), inside:
                time.sleep(0.3)  # it is what the test is about

        serve(port, target, 8)
        assert time_of_eight(port, inside) < 1
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

    @pytest.mark.alone
    def test_eight_that_sleep_take_little_longer_than_one(self, make_port, serve, tells_who_blocks):
        port, inside = make_port(1), Counter()

        def target(done):
            with inside:
                time.sleep(0.5)  # it is what the test is about

        serve(port, target, 8)
        assert time_of_eight(port, inside) < 1
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

    @pytest.mark.alone
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
        computes, served = threading.Event(), threading.Event()

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
                    compute_until(served.is_set)
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
            round_trips(far_two, 40)
            served.set()
            assert read_exactly(far_one, 1) == b"!"
            for _ in workers:
                port.post(STOP)
            for worker in workers:
                worker.outcome()
        for key in keys:
            key.clear()
        take(port, 2)  # the receives, cancelled by the ends of the handles

    def test_while_one_computes_other_connections_of_a_server_are_served(self, engine):
        computes, served = threading.Event(), threading.Event()

        def callback():
            computes.set()
            compute_until(served.is_set)

        with (
            Server(Echo(callback), port=0, workers=3, concurrency=2, engine=engine) as server,
            socket.create_connection(server.address, timeout=LONG) as busy,
            socket.create_connection(server.address, timeout=LONG) as other,
        ):
            round_trips(other, 1)
            busy.sendall(b"!")
            assert computes.wait(LONG)
            round_trips(other, 40)
            served.set()
            assert read_exactly(busy, 1) == b"!"

    @pytest.mark.alone
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

    @pytest.mark.alone
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


def test_blocking_is_on_every_port(engine):
    with CompletionPort(engine=engine) as port, port.blocking() as inside:
        assert inside is None


@windows_has_no("terminal of this kind")
def test_two_handles_of_one_terminal_make_no_thread_wait(engine):
    """As standard input and output are: O_NONBLOCK, which a call has to set, belongs to both."""
    run_python(
        f"""
        import os, pty, threading, time, tty
        from completionport import CompletionPort

        port = CompletionPort(engine={engine!r})
        master, slave = pty.openpty()
        tty.setraw(slave)
        reader = port.associate(slave, "reader")
        writer = port.associate(os.dup(slave), "writer")

        def drain():
            while True:
                os.read(master, 65536)

        def lead():
            writer.write(bytes(1 << 20))
            while True:
                if port.get().key == "writer":
                    writer.write(bytes(1 << 20))

        for function in (drain, lead):
            threading.Thread(target=function, daemon=True).start()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            reader.read(1).cancel()
        os._exit(0)
        """,
        timeout=30,
    )


@windows_has_no("terminal of this kind")
def test_another_reader_of_a_terminal_makes_no_thread_wait(engine):
    """What there was to read may be gone when it is read."""
    run_python(
        f"""
        import os, pty, threading, time, tty
        from completionport import CompletionPort

        port = CompletionPort(engine={engine!r})
        master, slave = pty.openpty()
        tty.setraw(slave)
        handle = port.associate(slave, "key")

        def steal():
            while True:
                try:
                    os.read(slave, 1)
                except BlockingIOError:
                    pass  # in the very moment in which the port reads

        def write():
            while True:
                os.write(master, b"x")

        for function in (steal, write):
            threading.Thread(target=function, daemon=True).start()
        end, count = time.monotonic() + 2, 0
        while time.monotonic() < end:
            handle.read(1)
            while port.get(0.01) is None and time.monotonic() < end:
                pass
            count += 1
        os._exit(count == 0)
        """,
        timeout=30,
    )


def times_given_up(number):
    """How often a thread has given its processor up of its own accord, to wait."""
    with open(f"/proc/self/task/{number}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("voluntary"))


@pytest.mark.skipif(WINDOWS, reason="who is woken stands in /proc")
def test_who_blocks_is_not_woken_for_what_others_serve(engine):
    """The ring finishes a receive in the thread that has armed it, and wakes that one for it."""
    served_by, blocking, go_on = set(), threading.Event(), threading.Event()

    class Echo(Handler):
        def received(self, connection, data):
            served_by.add(threading.get_native_id())
            if data == b"block":
                blocking.set()
                with server.completion_port.blocking():
                    go_on.wait(LONG)
            connection.send(data)

    rounds = 300
    with (
        Server(Echo(), port=0, workers=4, concurrency=1, engine=engine) as server,
        socket.create_connection(server.address, LONG) as quick,
        socket.create_connection(server.address, LONG) as slow,
    ):
        try:
            for client in (quick, slow):
                client.sendall(b"x")
                assert read_exactly(client, 1) == b"x"
            slow.sendall(b"block")
            assert blocking.wait(LONG)
            workers = {thread.native_id for thread in server._threads}

            def nobody_else_is_woken():
                served_by.clear()
                before = {number: times_given_up(number) for number in workers}
                for _ in range(rounds):
                    quick.sendall(b"x")
                    assert read_exactly(quick, 1) == b"x"
                others = workers - served_by
                woken = sum(times_given_up(number) - before[number] for number in others)
                return len(others) > 0 and woken < rounds / 4

            # It may take some rounds until those that wait keep to their places.
            wait_until(nobody_else_is_woken, "who blocks sleeps on")
        finally:
            go_on.set()
