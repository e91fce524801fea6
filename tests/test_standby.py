"""Callbacks that block for a moment, often, and without saying so: the port goes on meanwhile."""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import threading
import time

import pytest

from blocking_support import GIL, STOP, Counter, compute
from completionport import (
    CompletionPort,
    DatagramHandler,
    DatagramServer,
    Handler,
    PortClosed,
    Server,
    Strand,
    WorkerPool,
)
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_idle,
    needs_concurrency,
    read_exactly,
    run_python,
    wait_for_stats,
    wait_until,
)

pytestmark = [
    pytest.mark.usefixtures("sees_who_blocks"),
    pytest.mark.skipif(WINDOWS, reason="there it is the kernel that sees who blocks"),
]

WORKERS = 8
SLEEP = 0.002
"""Seconds that a callback sleeps: shorter than what the monitor alone would notice."""


@contextlib.contextmanager
def threads_in(port, take, target):
    """Threads of the program that call `target` with what they take, until the end."""

    def work():
        while True:
            for done in take(port):
                if done.transferred is STOP:
                    return
                target(done)

    threads = [Background(work) for _ in range(WORKERS)]
    try:
        yield
    finally:
        for _ in threads:
            port.post(STOP)
        for thread in threads:
            thread.outcome()


@contextlib.contextmanager
def posted(engine, serving, callback):
    """A port on which each packet's callback is followed by another packet."""
    going, left = True, threading.Semaphore(0)
    with CompletionPort(1, engine=engine) as port:

        def target(done):
            callback(done.transferred)
            if going:
                port.post(done.transferred)
            else:
                left.release()

        with serving(port, target):
            for number in range(WORKERS * 2):
                port.post(number)
            try:
                yield port
            finally:
                going = False
                for _ in range(WORKERS * 2):
                    assert left.acquire(timeout=LONG)


def by_get(engine, callback):
    return posted(
        engine, lambda port, target: threads_in(port, lambda port: [port.get()], target), callback
    )


def by_get_in_time(engine, callback):
    def take(port):
        done = port.get(0.001)
        return [] if done is None else [done]

    return posted(engine, lambda port, target: threads_in(port, take, target), callback)


def by_get_many(engine, callback):
    return posted(
        engine,
        lambda port, target: threads_in(port, lambda port: port.get_many(1), target),
        callback,
    )


def by_pool(engine, callback):
    return posted(engine, lambda port, target: WorkerPool(port, target, WORKERS), callback)


@contextlib.contextmanager
def clients(make, count):
    """Threads that each send a byte and wait for its echo, again and again."""
    over = threading.Event()

    def ask(number):
        with make() as sock:
            while not over.is_set():
                sock.send(bytes([number]))
                assert sock.recv(1)

    asking = [Background(ask, number) for number in range(count)]
    try:
        yield
    finally:
        over.set()
        for client in asking:
            client.outcome()


@contextlib.contextmanager
def by_server(engine, callback):
    class Echo(Handler):
        def received(self, connection, data):
            callback(data[0])
            connection.send(data)

    def make():
        return socket.create_connection(server.address, timeout=LONG)

    with (
        Server(Echo(), port=0, workers=WORKERS, concurrency=1, engine=engine) as server,
        clients(make, WORKERS * 2),
    ):
        yield server.completion_port


@contextlib.contextmanager
def by_datagrams(engine, callback):
    class Echo(DatagramHandler):
        def received(self, endpoint, data, address):
            callback(data[0])
            endpoint.send(data, address)

    def make():
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.settimeout(LONG)
        sock.connect(server.address)
        return sock

    with (
        DatagramServer(Echo(), port=0, workers=WORKERS, concurrency=1, engine=engine) as server,
        clients(make, WORKERS * 2),
    ):
        yield server.completion_port


WAYS = {
    function.__name__: function
    for function in (by_get, by_get_in_time, by_get_many, by_pool, by_server, by_datagrams)
}


@pytest.fixture(params=WAYS)
def way(request, nothing_left):
    return WAYS[request.param]


def some_sleep_at_the_same_time(inside):
    """Whether several callbacks slept at a time on average, for a while."""
    before, began = inside.ended, time.monotonic()
    time.sleep(0.25)  # it is what is measured
    return (inside.ended - before) * SLEEP / (time.monotonic() - began) > 2


def test_callbacks_that_sleep_a_moment_do_so_at_the_same_time(engine, way):
    """Found out one by one, each would cost the port some milliseconds."""
    inside = Counter()

    def callback(number):
        with inside:
            time.sleep(SLEEP)  # it is what the test is about

    with way(engine, callback):
        wait_until(lambda: some_sleep_at_the_same_time(inside))


@pytest.mark.alone
def test_those_that_do_not_sleep_are_served_beside_many_that_do(engine, nothing_left):
    class Echo(Handler):
        def received(self, connection, data):
            if data == b"!":
                time.sleep(0.02)  # it is what the test is about
            connection.send(data)

    def ask():
        times = []
        for _ in range(100):
            began = time.monotonic()
            fast.sendall(b"x")
            assert read_exactly(fast, 1) == b"x"
            times.append(time.monotonic() - began)
        return statistics.median(times) < 0.003

    def sleep_on():
        with socket.create_connection(server.address, timeout=LONG) as slow:
            while not over.is_set():
                slow.sendall(b"!")
                assert read_exactly(slow, 1) == b"!"

    over = threading.Event()
    with (
        Server(Echo(), port=0, workers=24, concurrency=1, engine=engine) as server,
        socket.create_connection(server.address, timeout=LONG) as fast,
    ):
        slow = [Background(sleep_on) for _ in range(16)]
        try:
            wait_until(ask)
        finally:
            over.set()
        for client in slow:
            client.outcome()


@needs_concurrency
def test_beside_those_that_sleep_one_at_a_time_computes(engine, way):
    """Who computes is never taken for one that blocks, though it waits for the GIL."""
    computing, sleeping = Counter(), Counter()

    def callback(number):
        if number % 4 == 0:
            with computing:
                compute(0.012)  # longer than the switch interval
        else:
            with sleeping:
                time.sleep(SLEEP)  # it is what the test is about

    with way(engine, callback):
        wait_until(lambda: computing.ended > 25 and sleeping.ended > 50)
    assert computing.most == 1


def test_each_thread_takes_its_packets_in_order(engine, make_port):
    port, taken = make_port(1), []

    def work():
        mine = []
        taken.append(mine)
        while (done := port.get()).transferred is not STOP:
            mine.append(done.transferred)
            if done.transferred % 3:
                time.sleep(0.0005)  # it is what the test is about

    threads = [Background(work) for _ in range(WORKERS)]
    for number in range(3000):
        port.post(number)
    for _ in threads:
        port.post(STOP)
    for thread in threads:
        thread.outcome()
    assert all(mine == sorted(mine) for mine in taken)
    assert sorted(number for mine in taken for number in mine) == list(range(3000))
    wait_for_stats(port, running=0, blocked=0, waiting=0)


def test_a_strand_stays_with_one_thread_at_a_time(engine, make_port):
    port, inside, order = make_port(1), Counter(), []
    strand = Strand(port)

    def target(done):
        if done.key == "strand":
            with inside:
                order.append(done.transferred)
                time.sleep(0.0005)  # it is what the test is about
        else:
            time.sleep(0.0005)

    with WorkerPool(port, target, WORKERS):
        for number in range(600):
            port.post(number, "strand", strand=strand)
            port.post(number, "free")
    assert inside.most == 1
    assert order == list(range(600))


def test_a_port_is_closed_while_a_thread_stands_by(engine, nothing_left):
    for _ in range(20):
        port = CompletionPort(1, engine=engine)

        def work(port=port):
            with contextlib.suppress(PortClosed):
                while True:
                    port.get()
                    time.sleep(0.001)  # it is what the test is about
                    port.post()

        threads = [Background(work) for _ in range(WORKERS)]
        for _ in range(WORKERS):
            port.post()
        wait_until(lambda port=port: port.stats()["taken"] > 100)
        port.close()
        for thread in threads:
            thread.outcome()


def test_it_is_idle_behind_them(engine, way):
    inside = Counter()

    def callback(number):
        with inside:
            time.sleep(SLEEP if inside.ended < 500 else 0.05)

    with way(engine, callback) as port:
        wait_until(lambda: inside.ended >= 500)
        port_is_there = port.stats()
    assert port_is_there["taken"] >= 500
    assert_idle(most=0.05)


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the signals of Unix")
def test_a_signal_reaches_a_main_thread_that_stands_by(engine):
    run_python(
        f"""
        import signal, statistics, threading, time
        from completionport import CompletionPort, WorkerPool

        port = CompletionPort(1, engine={engine!r})
        sent, delays, over = [], [], threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: delays.append(time.monotonic() - sent[-1]))

        def target(done):
            time.sleep(0.001)  # it is what the test is about
            port.post(done.transferred)

        def send():
            for number in range(100):
                sent.append(time.monotonic())
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                while len(delays) <= number:
                    time.sleep(0.001)
            over.set()

        sender = threading.Thread(target=send)
        with WorkerPool(port, target, 3):
            for _ in range(8):
                port.post(1)
            sender.start()
            while not over.is_set():
                done = port.get(0.05)  # who waits longest is served last
                if done is not None:
                    target(done)
        sender.join()
        assert len(delays) == 100
        assert statistics.median(delays) < 0.1, delays
        port.close()
        """
    )


@pytest.mark.skipif(not GIL, reason="there is no GIL")
class TestTheGil:
    """Where threads sleep that wait for it."""

    def test_it_was_found(self, engine):
        run_python(
            "from completionport.native.primitives import gil; assert gil.told()", engine=engine
        )

    def test_it_was_found_where_others_want_the_processor_too(self):
        run_python(
            """
            import os, subprocess, sys

            BUSY = "print(flush=True)\\nwhile True: pass"
            ASKING = "from completionport.native.primitives import gil; print(gil.told())"
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
            busy = [
                subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
                for _ in range(12)
            ]
            try:
                for process in busy:
                    process.stdout.readline()
                told = subprocess.check_output([sys.executable, "-c", ASKING])
            finally:
                for process in busy:
                    process.kill()
                    process.communicate()
            assert told == b"True\\n", told
            """
        )

    def test_a_wait_for_it_that_goes_on_after_an_interruption_is_one(self, engine):
        """A stop of the process interrupts it, and io_uring to finish requests of the thread."""
        run_python(
            """
            import os, subprocess, sys, threading
            from completionport.native.primitives import gil

            STOPPING = '''
            import os, signal, sys, time
            for _ in range(40):
                os.kill(int(sys.argv[1]), signal.SIGSTOP)
                os.kill(int(sys.argv[1]), signal.SIGCONT)
                time.sleep(0.005)
            '''
            going = True

            def compute():
                while going:
                    pass

            computing = threading.Thread(target=compute)
            computing.start()
            seen = set()
            stopping = subprocess.Popen([sys.executable, "-c", STOPPING, str(os.getpid())])
            while stopping.poll() is None:
                # Each look at the process gives the GIL away.
                for _ in range(2000):
                    seen.add(gil.seen(computing.native_id))
            going = False
            computing.join()
            assert "waits" in seen, seen
            assert "sleeps" not in seen, seen
            """,
            engine=engine,
        )

    def test_where_it_can_not_be_told_those_that_block_are_found_all_the_same(self, engine):
        run_python(
            f"""
            import threading, time
            from completionport import CompletionPort, WorkerPool
            from completionport.native.primitives import gil
            gil.forget()
            assert not gil.told()
            inside, most, lock = 0, 0, threading.Lock()

            def target(done):
                global inside, most
                with lock:
                    inside += 1
                    most = max(most, inside)
                if done.transferred % 2:
                    time.sleep(0.2)
                else:
                    end = time.thread_time() + 0.02
                    while time.thread_time() < end:
                        sum(range(200))
                with lock:
                    inside -= 1

            with CompletionPort(1, engine={engine!r}) as port:
                with WorkerPool(port, target, 8):
                    for number in range(24):
                        port.post(number)
                assert port.stats()["replaced"] >= 7
            assert most > 3, most
            """
        )
