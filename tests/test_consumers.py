"""Who a packet is for: a consumer may name the one thread that serves it. Who takes its packet
hands it over and goes on."""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
import time

import pytest

import consumer_support
from one_port_support import Echo
from support import LONG, Background, needs_posix_signals, wait_until


@pytest.fixture(scope="module")
def compiled(engine, tmp_path_factory):
    if not consumer_support.is_compiled(engine):
        return None
    return consumer_support.compile_consumer(tmp_path_factory.mktemp("consumer"))


@pytest.fixture
def post_for(compiled):
    return consumer_support.post_in_python if compiled is None else compiled.post_for


class OwnThread:
    """A consumer with a thread of its own."""

    def __init__(self, work):
        self.takers = []
        self.dropped_values = []
        self._work = work
        self._line = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve_all)
        self.thread.start()

    def serve(self, value):
        self.takers.append(threading.current_thread())
        self._line.put(value)

    def dropped(self, value):
        self.dropped_values.append(value)

    def _serve_all(self):
        while (value := self._line.get()) is not None:
            self._work(value)

    def end(self):
        self._line.put(None)
        self.thread.join(LONG)
        assert not self.thread.is_alive()


def test_who_takes_it_hands_it_over_and_goes_on(make_port, post_for):
    """The named thread stays at the first one. The only taker has the rest, and the program's."""
    port = make_port(1)
    end, served = threading.Event(), []

    def work(value):
        assert end.wait(LONG)
        served.append((value, threading.current_thread()))

    consumer = OwnThread(work)
    try:
        for number in range(100):
            post_for(port, consumer, number)
        port.post("the program's")
        taking = Background(lambda: port.get(LONG))
        assert taking.outcome().transferred == "the program's"
        assert consumer.takers == [taking] * 100
        assert not served
    finally:
        end.set()
        consumer.end()
    assert served == [(number, consumer.thread) for number in range(100)]


def test_any_thread_takes_it(make_port, post_for, serve_on, dial):
    """A server's worker, while nobody is in get: and the thread that serves is the named one."""
    port = make_port(1)
    serve_on(port, Echo(), workers=2)
    served = []
    consumer = OwnThread(lambda value: served.append((value, threading.current_thread())))
    try:
        for number in range(50):
            post_for(port, consumer, number)
        wait_until(lambda: len(served) == 50, "all are served")
        port.post("the program's")
        assert port.get(LONG).transferred == "the program's"
    finally:
        consumer.end()
    # Two that take at once may hand over in either order.
    assert sorted(value for value, _ in served) == list(range(50))
    assert {thread for _, thread in served} == {consumer.thread}
    assert all(taker.name.startswith("completionport-worker") for taker in consumer.takers)


def test_the_named_thread_may_take_packets_itself(make_port, post_for):
    """Then it may come to its own ones."""
    port = make_port(1)
    got = []

    def work(value):
        if value == "wait":
            got.append(port.get(LONG).transferred)
        else:
            got.append(value)

    consumer = OwnThread(work)
    try:
        post_for(port, consumer, "wait")
        assert port.get(0) is None
        wait_until(lambda: port.stats()["waiting"] == 1)
        post_for(port, consumer, "behind it")
        port.post("the program's")
        wait_until(lambda: len(got) == 2)
    finally:
        consumer.end()
    assert got == ["the program's", "behind it"]
    assert consumer.takers[1] is consumer.thread


def test_an_event_loop_is_such_a_thread(make_port, post_for, serve_on):
    port = make_port(1)
    serve_on(port, Echo(), workers=1)

    class Loop:
        def __init__(self):
            self.loop = asyncio.get_running_loop()

        def serve(self, value):
            self.loop.call_soon_threadsafe(value.set_result, threading.current_thread().name)

        def dropped(self, value):
            pass

    async def main():
        consumer = Loop()
        for _ in range(10):
            future = consumer.loop.create_future()
            post_for(port, consumer, future)
            taker = await asyncio.wait_for(future, LONG)
            assert taker.startswith("completionport-worker")

    asyncio.run(main())


def test_what_nobody_has_taken_is_dropped_with_the_port(make_port, compiled, post_for):
    if compiled is None:
        pytest.skip("there a consumer hears of the port's end, not of each packet")
    port = make_port(1)
    consumer = OwnThread(lambda value: None)
    try:
        for number in range(10):
            post_for(port, consumer, number)
        port.close()
    finally:
        consumer.end()
    assert consumer.dropped_values == list(range(10))
    assert not consumer.takers


class Stop(Exception):
    pass


@needs_posix_signals
@pytest.mark.parametrize("timeout", [None, LONG])
def test_a_signal_ends_a_get_that_serves_without_end(make_port, compiled, timeout):
    """No code of Python's runs in between, in which its handler could."""
    if compiled is None:
        pytest.skip("each packet runs Python code there")
    port = make_port(1)

    def handle(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, handle)
    try:
        compiled.begin_endless(port)
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Stop):
            port.get(timeout)
        assert time.monotonic() - began < LONG / 2
        assert compiled.turns > 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
