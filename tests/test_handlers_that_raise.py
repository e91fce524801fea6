"""A signal handler that raises, or uses the port itself, wherever it interrupts the port.

CPython runs a handler at the begin of a function, behind a call of one, and where a loop begins
anew. Here a profile function raises at the first such place of a call, then at the second one, and
so on to its end; and real signals come at random.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import signal
import socket
import sys

import pytest

from completionport import DatagramServer, Overlapped, PortClosed, Server, Strand
from completionport.engines import COMPILED
from one_port_support import Echo, EchoDatagrams
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    needs_posix_signals,
    read_exactly,
    take,
    take_one,
    tcp_pair,
    wait_for_stats,
    wait_until,
)

SEED = int(os.environ.get("COMPLETIONPORT_SEED", random.randrange(2**32)))
ROUNDS = int(os.environ.get("COMPLETIONPORT_ROUNDS", "300"))


not_on_windows = pytest.mark.skipif(
    WINDOWS, reason="iocp is not held to it yet: CONTRIBUTING.md has it among the known flaws"
)


class Stop(Exception):
    """What the handler raises."""


class At:
    """Do something at one of the places where a handler may run, within the block."""

    def __init__(self, place, act=None):
        self.left = place
        self.act = act
        self.came = False

    def __enter__(self):
        gc.disable()  # what is raised in a finalizer nobody hears of
        sys.setprofile(self.look)
        return self

    def __exit__(self, *exc_info):
        sys.setprofile(None)
        gc.enable()

    def look(self, frame, event, argument):
        if event not in ("call", "c_return") or frame.f_code.co_filename == __file__:
            return
        if self.left:
            self.left -= 1
            return
        if in_finalizer(frame):
            return  # without a GIL one may come at any place
        sys.setprofile(None)
        self.came = True
        if self.act is None:
            raise Stop
        self.act()


def in_finalizer(frame):
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def each_place(act=None, kind=At):
    """One block after another, until all places were had."""
    for place in itertools.count():
        at = kind(place, act)
        yield at
        if not at.came:
            assert place > 0
            return


@pytest.fixture(autouse=True)
def only_python(engine):
    if engine in COMPILED:
        pytest.skip("a call of a compiled engine is one step")


def assert_goes_on(port):
    """All threads are served, and no place is lost."""
    port.post("still here")
    waiter = Background(port.get, LONG)
    assert waiter.outcome().transferred == "still here"
    assert port.get(0) is None
    port.post("and here")
    assert take_one(port).transferred == "and here"
    # Of the main thread, which has its packet.
    wait_until(lambda: port.stats()["running"] == 1, "no place is lost", 5)
    assert port.get(0) is None
    assert port.stats()["running"] == 0


def take_all(port, timeout=0.0):
    packets = []
    while (done := port.get(timeout)) is not None:
        packets.append(done)
    return packets


def test_get_loses_no_packet(make_port):
    for at in each_place():
        port = make_port(1)
        port.post("first")
        port.post("second")
        packets = []
        with contextlib.suppress(Stop), at:
            packets.append(port.get(0))
        packets += take_all(port)
        assert [done.transferred for done in packets] == ["first", "second"]
        assert_goes_on(port)
        port.close()


def test_get_many_loses_no_packet(make_port, make_pair):
    for at in each_place():
        port = make_port(1)
        strand = Strand(port)
        near, far = tcp_pair()
        with near, far, port.associate(near, "socket", strand=strand) as handle:
            far.sendall(b"hello")
            operation = handle.recv(10)
            for number in range(3):
                port.post(number, strand=strand if number else None)
            packets = []
            with contextlib.suppress(Stop), at:
                packets += port.get_many(10, 0)
            while more := port.get_many(10, 0):
                packets += more
            assert len(packets) == 4
            assert operation.result() == b"hello"
            assert [done.transferred for done in packets if done.key is None] == [0, 1, 2]
            assert_goes_on(port)
        port.close()


def test_post_posts_once_or_not(make_port):
    for at in each_place():
        port = make_port(1)
        waiter = Background(port.get, LONG)
        wait_for_stats(port, waiting=1)
        raised = True
        with contextlib.suppress(Stop), at:
            port.post("it")
            raised = False
        if raised:
            port.post("last")
        assert waiter.outcome().transferred in ("it", "last")
        rest = take_all(port)
        assert len(rest) <= raised
        assert_goes_on(port)
        port.close()


def test_a_timer_fires_once(make_port):
    for at in each_place():
        port = make_port(1)
        timers = [port.post_after(0, number) for number in range(3)]
        packets = []
        with contextlib.suppress(Stop), at:
            packets.append(port.get(0))
        packets += take_all(port, 0.01)
        assert [done.transferred for done in packets if done] == [0, 1, 2]
        assert not any(timer.pending for timer in timers)
        assert_goes_on(port)
        assert port.stats()["timers"] == 0
        port.close()


@not_on_windows
@pytest.mark.parametrize("ready", [True, False], ids=["ready", "later"])
def test_a_receive_loses_no_byte(make_port, ready):
    """Whether it is begun or not: the bytes come in order, and each operation gives one packet."""
    for at in each_place():
        port = make_port(1)
        near, far = tcp_pair()
        with near, far, port.associate(near, "socket") as handle:
            if ready:
                far.sendall(b"abcd")
            mine = Overlapped()
            with contextlib.suppress(Stop), at:
                handle.recv(4, overlapped=mine)
            if not mine.pending:
                handle.recv(4, overlapped=mine)
            if not ready:
                far.sendall(b"abcd")
            done = take_one(port)
            assert (done.overlapped, mine.result()) == (mine, b"abcd")
            far.sendall(b"efgh")
            handle.recv(4, overlapped=mine)
            assert take_one(port).overlapped is mine
            assert mine.result() == b"efgh"
            assert_quiet(port)
            assert_goes_on(port)
        port.close()


def test_what_a_look_into_the_kernel_brings_is_not_lost(make_port):
    for at in each_place():
        port = make_port(1)
        pairs = [tcp_pair() for _ in range(3)]
        listener = socket.create_server(("127.0.0.1", 0))
        with contextlib.ExitStack() as stack:
            for sock in itertools.chain(*pairs, [listener]):
                stack.enter_context(sock)
            handles = [port.associate(near, number) for number, (near, _) in enumerate(pairs)]
            accepting = port.associate(listener, 3)
            operations = [handles[0].recv(10), handles[1].recv([bytearray(2), bytearray(8)])]
            operations += [handles[2].recvmsg(10), accepting.accept()]
            for _, far in pairs:
                far.sendall(b"hello")
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            packets = []
            with contextlib.suppress(Stop), at:
                packets.append(port.get(LONG))
            packets += take(port, 4 - len(packets))
            assert {id(done.overlapped) for done in packets} == {id(one) for one in operations}
            assert [one.result() for one in operations[:2]] == [b"hello", 5]
            assert operations[2].result()[0] == b"hello"
            with operations[3].result() as accepted:
                assert accepted.getpeername() == client.getsockname()
            assert_quiet(port)
            assert_goes_on(port)
        port.close()


@not_on_windows
def test_a_send_sends_each_byte_once(make_port):
    data = bytes(range(256)) * 4096
    for at in each_place():
        port = make_port(1)
        near, far = tcp_pair()
        with near, far, port.associate(near, "socket") as handle:
            reader = Background(read_exactly, far, len(data))
            mine = Overlapped()
            with contextlib.suppress(Stop), at:
                handle.send([data[:10], data[10:]], overlapped=mine)
            if not mine.pending:
                handle.send(data, overlapped=mine)
            assert take_one(port).overlapped is mine
            assert mine.result() == len(data)
            assert reader.outcome() == data
            assert_quiet(port)
            assert_goes_on(port)
        port.close()


def test_a_cancel_ends_it_once(make_port):
    for at in each_place():
        port = make_port(1)
        near, far = tcp_pair()
        with near, far, port.associate(near, "socket") as handle:
            operations = [handle.recv(4) for _ in range(3)]
            with contextlib.suppress(Stop), at:
                handle.cancel()
            handle.cancel()
            packets = take(port, 3)
            assert {id(done.overlapped) for done in packets} == {id(one) for one in operations}
            handle.recv(4)
            far.sendall(b"abcd")
            assert take_one(port).overlapped.result() == b"abcd"
            assert_quiet(port)
            assert_goes_on(port)
        port.close()


@not_on_windows
def test_a_close_ends_all(make_port):
    for at in each_place():
        port = make_port(1)
        near, far = tcp_pair()
        with near, far:
            handle = port.associate(near, "socket")
            operations = [handle.recv(4) for _ in range(3)]
            with contextlib.suppress(Stop), at:
                handle.close()
            handle.close()
            packets = take(port, 3)
            assert {id(done.overlapped) for done in packets} == {id(one) for one in operations}
            assert far.recv(1) == b""
            assert_quiet(port)
            assert_goes_on(port)
        port.close()


@not_on_windows
def test_a_port_that_is_closed_ends_all(make_port, tmp_path, nothing_left):
    path = tmp_path / "file"
    path.write_bytes(b"data")
    for at in each_place():
        port = make_port(1, pool_threads=1)
        near, far = tcp_pair()
        with near, far, path.open("rb", 0) as file:
            operations = [port.associate(near, "socket").recv(4) for _ in range(1)]
            operations += [port.associate(file, "file").read(4, 0), port.submit(int)]
            port.post("it")
            waiter = Background(port.get, LONG)
            with contextlib.suppress(Stop), at:
                port.close()
            port.close()
            with contextlib.suppress(PortClosed):
                waiter.outcome()
            wait_until(lambda: not any(one.pending for one in operations))  # noqa: B023


@not_on_windows
def test_what_the_pool_does_comes_once(make_port, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"data")
    for at in each_place():
        port = make_port(1, pool_threads=1)
        with path.open("rb", 0) as file, port.associate(file, "file") as handle:
            mine, called = Overlapped(), Overlapped()
            with contextlib.suppress(Stop), at:
                handle.read(4, 0, overlapped=mine)
                port.submit(int, overlapped=called)
            if not mine.pending:
                with contextlib.suppress(Exception):
                    mine.result()
            expected = []
            packets = []
            while mine.pending or called.pending:
                packets.append(take_one(port))
            packets += take_all(port)
            for one in (mine, called):
                if any(done.overlapped is one for done in packets):
                    expected.append(one)
            assert len(packets) == len(expected)
            handle.read(4, 0, overlapped=mine)
            assert take_one(port).overlapped is mine
            assert mine.result() == b"data"
            assert_quiet(port)
            assert_goes_on(port)
        port.close()


@not_on_windows
@pytest.mark.parametrize("which", ["get", "recv", "post", "cancel", "look", "pool", "handle"])
def test_a_handler_may_use_the_port_that_it_has_interrupted(make_port, which):
    """It posts, takes, receives, cancels, asks for numbers: nothing waits for itself."""
    for place in itertools.count():
        port = make_port(2, pool_threads=1)
        pairs = [tcp_pair() for _ in range(2)]
        with contextlib.ExitStack() as stack:
            for sock in itertools.chain(*pairs):
                stack.enter_context(sock)
            handles = [port.associate(near, "socket") for near, _ in pairs]
            taken = []
            begun = []

            def use():
                port.post("by the handler")  # noqa: B023
                port.stats()  # noqa: B023
                for handle in handles:  # noqa: B023
                    if not handle.closed:
                        operation = handle.recv(4)
                        begun.append(operation)  # noqa: B023
                        operation.cancel()
                begun.append(port.submit(int))  # noqa: B023
                taken.append(port.get(0.001))  # noqa: B023

            with At(place, use) as at:
                if which == "get":
                    port.post("it")
                    taken.append(port.get(0.01))
                elif which == "recv":
                    begun.append(handles[0].recv(4))
                elif which == "post":
                    port.post("it")
                elif which == "cancel":
                    begun.append(handles[0].recv(4))
                    handles[0].cancel()
                elif which == "pool":
                    begun.append(port.submit(int))
                elif which == "look":
                    begun.append(handles[0].recv(4))
                    pairs[0][1].sendall(b"abcd")
                    taken.append(port.get(0.01))
                else:
                    handles[0].close()
            for handle in handles:
                handle.cancel()
            while any(one.pending for one in begun):
                taken.append(take_one(port, 5))
            taken = [done for done in taken + take_all(port) if done is not None]
            ended = [done.overlapped for done in taken if done.overlapped is not None]
            assert {id(one) for one in ended} == {id(one) for one in begun}
            assert len(ended) == len(begun)
            assert not any(one.pending for one in begun)
            assert_quiet(port)
            assert_goes_on(port)
        port.close()
        if not at.came:
            return


class Serving:
    """A server on a port where the test's thread is the only one that takes packets."""

    def __init__(self, port, kind=Server):
        self.port = port
        self.connected = []
        self.closed = []
        handler = EchoDatagrams() if kind is DatagramServer else self.handler()
        self.server = kind(handler, port=0, completion_port=port, workers=1)
        self.server.start()
        self.server._crew.dismiss(1)
        self.server._threads[0].join()
        self.dial = self.dial_datagrams if kind is DatagramServer else self.dial_stream

    def handler(self):
        class Noting(Echo):
            connected = staticmethod(self.connected.append)

            @staticmethod
            def closed(connection, error):
                self.closed.append(connection)

        return Noting()

    def dial_stream(self):
        return socket.create_connection(self.server.address, LONG)

    def dial_datagrams(self):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(LONG)
        client.connect(self.server.address)
        return client

    def goes_on(self, client, *answers):
        """Its client gets one of the answers. It serves who comes now, and ends when it is told to.

        In other threads.
        """

        def take_packets():
            with contextlib.suppress(PortClosed):
                while True:
                    self.port.get()

        takers = [Background(take_packets) for _ in range(2)]
        with self.port.blocking():
            with contextlib.suppress(ConnectionError):
                assert not answers or client.recv(10) in answers
            client.close()
            for _ in range(2):
                with self.dial() as client:
                    client.sendall(b"again")
                    assert client.recv(10) == b"again"
            self.is_over()
        self.port.close()
        for taker in takers:
            taker.outcome()

    def is_over(self):
        # With a grace: nothing that was interrupted counts as at work for ever.
        Background(self.server.stop, 10 * LONG).outcome()
        assert len(self.closed) == len(set(self.closed))
        assert set(self.closed) >= set(self.connected)


@not_on_windows
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_server_on_the_port_serves_on(make_port, step, caplog):
    """Interrupted at an accept, at a first callback, at what is received, at an end."""
    caplog.set_level(logging.CRITICAL, "completionport")
    for at in each_place():
        serving = Serving(make_port(1))
        with serving.dial() as client:
            client.sendall(b"hello")
            for _ in range(step):
                serving.port.get(0)
            if step > 3:
                client.close()
            with contextlib.suppress(Stop), at:
                serving.port.get(0)
            serving.goes_on(client, *() if step > 3 else (b"hello", b""))


@not_on_windows
@pytest.mark.parametrize("step", range(2))
def test_a_datagram_server_on_the_port_serves_on(make_port, step, caplog):
    caplog.set_level(logging.CRITICAL, "completionport")
    for at in each_place():
        serving = Serving(make_port(1), DatagramServer)
        with serving.dial() as client:
            client.sendall(b"hello")
            for _ in range(step):
                serving.port.get(0)
            with contextlib.suppress(Stop), at:
                serving.port.get(0)
            serving.goes_on(client)


@not_on_windows
@pytest.mark.parametrize("kind", [Server, DatagramServer])
def test_servers_end_with_a_port_whose_close_was_interrupted(make_port, kind, caplog):
    caplog.set_level(logging.CRITICAL, "completionport")
    for at in each_place():
        serving = Serving(make_port(1), kind)
        with serving.dial() as client, serving.dial():
            client.sendall(b"hello")
            for _ in range(3):
                serving.port.get(0)
            with contextlib.suppress(Stop), at:
                serving.port.close()
            serving.port.close()
            serving.is_over()


@needs_posix_signals
def test_the_port_goes_on_whatever_real_signals_raise(make_port, tmp_path, no_collections):
    """At random: receives, sends, posts, timers, cancels, files, and their packets."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    port = make_port(2, pool_threads=2)
    path = tmp_path / "file"
    path.write_bytes(b"data")
    armed = False
    raised = 0

    def handle_signal(*_):
        nonlocal armed
        if armed:
            armed = False
            raise Stop

    before = signal.signal(signal.SIGALRM, handle_signal)
    near, far = tcp_pair()
    pending: dict[int, Overlapped] = {}
    try:
        with near, far, path.open("rb", 0) as file:
            handle = port.associate(near, "socket")
            files = port.associate(file, "file")
            sent = received = 0
            posts = [0, 0]  # so many at least, at most
            taken = 0

            def tried(call, *arguments):
                """Whether it came to its end; the signal comes at some time within it."""
                nonlocal armed, raised
                armed = True
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 2e-4))
                    call(*arguments)
                    return True
                except Stop:
                    raised += 1
                    return False
                finally:
                    armed = False

            def take_what_is_there():
                nonlocal taken, received
                while True:
                    packets = []
                    tried(lambda packets=packets: packets.extend(port.get_many(3, 0)))
                    for done in packets:
                        if done.overlapped is None:
                            taken += 1
                        else:
                            assert pending.pop(id(done.overlapped)) is done.overlapped
                            assert not done.overlapped.pending
                            if done.overlapped.operation.name == "RECV" and done.error is None:
                                received += done.transferred
                    if not packets:
                        return

            for _ in range(ROUNDS):
                mine = Overlapped()
                what = rng.randrange(6)
                if what == 0:
                    posts[1] += 1
                    posts[0] += tried(port.post)
                elif what == 1:
                    posts[1] += 1
                    posts[0] += tried(port.post_after, 0)
                elif what == 2:
                    size = rng.randrange(1, 9)
                    far.sendall(b"x" * size)
                    sent += size
                    tried(handle.recv, 4, 0, mine)
                elif what == 3:
                    tried(files.read, 4, 0, mine)
                elif what == 4 and pending:
                    tried(rng.choice(list(pending.values())).cancel)
                else:
                    tried(handle.send, [b"a", b"b"], 0, mine)
                if mine.pending:
                    pending[id(mine)] = mine
                if rng.random() < 0.5:
                    take_what_is_there()
            for _ in range(1000):
                take_what_is_there()
                if not [one for one in pending.values() if one.operation.name != "RECV"]:
                    break
                with contextlib.suppress(Stop):
                    port.post_after(0.01)
                    posts[0] += 1
                    posts[1] += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            handle.close()
            files.close()
            while pending or port.stats()["queued"]:
                take_what_is_there()
            signal.setitimer(signal.ITIMER_REAL, 0)
            wait_until(lambda: port.stats()["timers"] == 0)
            taken += len(take_all(port, 0.02))
            assert posts[0] <= taken <= posts[1]
            assert received <= sent
            assert raised
            assert_quiet(port)
            assert_goes_on(port)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
