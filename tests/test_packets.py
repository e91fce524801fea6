"""The queue: what is posted comes out unchanged, in order, to whoever waits."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocking_support import taker_in_time
from completionport import CompletionPort, HandleClosed, Overlapped, PortClosed
from support import (
    LONG,
    USER_SIGNAL,
    Background,
    assert_quiet,
    compute_until,
    needs_concurrency,
    needs_posix_signals,
    readable,
    send_signal,
    signal_main_thread,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)


class Thing:
    """Something that can be weakly referenced."""


def test_posted_values_come_out_unchanged(port):
    values = (object(), [1, 2], Thing())
    port.post(*values)
    done = take_one(port)
    assert done.transferred is values[0]
    assert done.key is values[1]
    assert done.overlapped is values[2]
    assert done.error is None


@pytest.mark.parametrize("number", [0, -1, 0xFFFFFFFF, 2**31, 2**64, 2**200, 1.5, None, "text"])
def test_any_value_can_be_posted(port, number):
    port.post(number, number, number)
    transferred, key, overlapped, error = take_one(port)
    assert (transferred, key, overlapped, error) == (number, number, number, None)
    assert type(transferred) is type(number)


def test_an_overlapped_can_be_posted(port):
    class PerIo(Overlapped):
        pass

    mine = PerIo()
    port.post(7, "key", mine)
    assert take_one(port).overlapped is mine
    assert not mine.pending


def test_post_has_defaults(port):
    port.post()
    assert tuple(take_one(port)) == (0, None, None, None)


def test_post_takes_its_arguments_by_name(port):
    port.post(overlapped="overlapped", key="key", transferred="transferred")
    assert tuple(take_one(port)) == ("transferred", "key", "overlapped", None)


def test_a_completion_unpacks_and_has_names(port):
    port.post(1, 2, 3)
    done = take_one(port)
    transferred, key, overlapped, error = done
    assert (transferred, key, overlapped, error) == (1, 2, 3, None)
    assert (done.transferred, done.key, done.overlapped, done.error) == (1, 2, 3, None)
    assert "transferred=1" in repr(done)
    assert "key=2" in repr(done)


def test_packets_are_taken_first_come_first_served(port):
    for number in range(1000):
        port.post(number)
    assert [done.transferred for done in take(port, 1000)] == list(range(1000))
    assert_quiet(port)


def test_packets_of_operations_and_posts_share_one_queue(port, tcp):
    near, far = tcp
    with port.associate(near, "socket") as handle:
        port.post(key="first")
        far.sendall(b"data")
        wait_until(lambda: readable(near), "the data is there")
        handle.recv(10)
        port.post(key="last")
        assert [done.key for done in take(port, 3)] == ["first", "socket", "last"]


def test_a_timeout_of_zero_polls(port):
    began = time.monotonic()
    assert port.get(0) is None
    assert port.get(timeout=0) is None
    assert port.get_many(5, 0) == []
    assert time.monotonic() - began < LONG / 2
    port.post(5)
    assert port.get(0).transferred == 5


def test_polling_alone_completes_operations(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.recv(10)
        assert port.get(0) is None
        far.sendall(b"data")
        done = wait_until(lambda: port.get(0), "the packet")
        assert done.overlapped.result() == b"data"


@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_get_gives_none_when_the_time_is_over(port, seconds):
    began = time.monotonic()
    assert port.get(seconds) is None
    assert seconds - 0.001 <= time.monotonic() - began < LONG / 2


def test_get_many_gives_an_empty_list_when_the_time_is_over(port):
    began = time.monotonic()
    assert port.get_many(3, timeout=0.05) == []
    assert 0.049 <= time.monotonic() - began < LONG / 2


@pytest.mark.parametrize("timeout", [20, 30.5, 1e9, threading.TIMEOUT_MAX, None])
def test_long_timeouts_wait(make_port, timeout):
    port = make_port(2)
    waiter = Background(port.get, timeout)
    wait_for_stats(port, waiting=1)
    port.post("here")
    assert waiter.outcome().transferred == "here"


def test_a_waiting_get_takes_what_is_posted_later(make_port):
    port = make_port(2)
    waiter = Background(port.get)
    wait_for_stats(port, waiting=1)
    port.post(1, 2, 3)
    assert tuple(waiter.outcome()) == (1, 2, 3, None)


def test_a_waiting_get_takes_an_operation_that_another_thread_starts(make_port, pair):
    port = make_port(2)
    near, far = pair
    with port.associate(near, "key") as handle:
        waiter = Background(port.get)
        wait_for_stats(port, waiting=1)
        operation = handle.recv(10)
        far.sendall(b"data")
        assert waiter.outcome().overlapped is operation
        assert operation.result() == b"data"


def test_get_many_takes_what_is_there_in_order(port):
    for number in range(10):
        port.post(number)
    assert [done.transferred for done in port.get_many(4)] == [0, 1, 2, 3]
    assert [done.transferred for done in port.get_many(100, 0)] == [4, 5, 6, 7, 8, 9]
    assert port.get_many(100, 0) == []


def test_get_many_waits_for_the_first_packet_only(make_port):
    port = make_port(2)
    waiter = Background(port.get_many, 10)
    wait_for_stats(port, waiting=1)
    port.post("only")
    assert [done.transferred for done in waiter.outcome()] == ["only"]


def test_get_many_gives_a_list_of_completions(port, tcp):
    near, far = tcp
    with port.associate(near, "key") as handle:
        operation = handle.recv(10)
        far.sendall(b"data")
        packets = port.get_many(8)
        assert isinstance(packets, list)
        [(transferred, key, overlapped, error)] = packets
        assert (transferred, key, error) == (4, "key", None)
        assert overlapped is operation


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("post"), st.integers()),
            st.tuples(st.just("get"), st.just(1)),
            st.tuples(st.just("get_many"), st.integers(1, 5)),
        ),
        max_size=60,
    )
)
def test_the_queue_behaves_like_a_deque(engine, steps):
    model = deque()
    with CompletionPort(engine=engine) as port:
        for step, value in steps:
            if step == "post":
                model.append(value)
                port.post(value)
            elif step == "get":
                done = port.get(0)
                assert (done and done.transferred) == (model.popleft() if model else None)
                assert (done is None) or done.error is None
            else:
                expected = [model.popleft() for _ in range(min(value, len(model)))]
                assert [done.transferred for done in port.get_many(value, 0)] == expected
            assert port.stats()["queued"] == len(model)


def test_posts_of_many_threads_each_come_once_and_in_their_threads_order(port):
    def post(name):
        for number in range(1000):
            port.post(number, name)

    threads = [Background(post, name) for name in range(4)]
    seen = {name: [] for name in range(4)}
    for done in take(port, 4000):
        seen[done.key].append(done.transferred)
    for thread in threads:
        thread.outcome()
    assert seen == {name: list(range(1000)) for name in range(4)}
    assert_quiet(port)


def test_a_posted_object_is_let_go_once_it_was_taken(port):
    thing = Thing()
    alive = weakref.ref(thing)
    port.post(thing, thing, thing)
    del thing
    gc.collect()
    done = take_one(port)
    assert done.key is alive()
    del done
    gc.collect()
    assert alive() is None


def test_stats_count_what_goes_through(port, tcp):
    near, far = tcp
    before = port.stats()
    assert before["engine"] == port.engine
    assert before["concurrency"] == port.concurrency
    with port.associate(near, "key") as handle:
        assert port.stats()["handles"] == 1
        handle.recv(10)
        assert port.stats()["pending"] == 1
        far.sendall(b"data")
        take_one(port)
        port.post()
        port.post()
        assert port.stats()["queued"] == 2
        take_one(port)
        now = port.stats()
        assert (now["pending"], now["queued"], now["running"]) == (0, 1, 1)
        assert now["posted"] == 2
        assert now["completed"] == 1
        assert now["taken"] == 2
        assert now["waiting"] == 0
    assert port.stats()["handles"] == 0


class TestSignals:
    """get() in the main thread answers signals, whoever else waits."""

    @pytest.fixture
    def interrupt_when(self):
        """Sends a signal to this process once the condition holds."""
        threads = []

        def interrupt(condition, number=signal.SIGINT):
            def send():
                wait_until(condition)
                send_signal(number)

            threads.append(Background(send))

        yield interrupt
        for thread in threads:
            thread.outcome()

    @pytest.mark.parametrize("others", [0, 2])
    @pytest.mark.parametrize("call", ["get", "get_many"])
    def test_get_in_the_main_thread_answers_ctrl_c(self, make_port, interrupt_when, others, call):
        port = make_port(4)
        threads = []
        for count in range(others):
            threads.append(Background(port.get))
            wait_for_stats(port, waiting=count + 1)
        interrupt_when(lambda: port.stats()["waiting"] == others + 1)
        with pytest.raises(KeyboardInterrupt):
            port.get_many(3, LONG) if call == "get_many" else port.get(LONG)
        assert port.stats()["waiting"] == others
        for _ in threads:
            port.post("after")
        for thread in threads:
            assert thread.outcome().transferred == "after"
        port.post("to the main thread")
        assert take_one(port).transferred == "to the main thread"

    @needs_concurrency
    def test_ctrl_c_reaches_a_main_thread_that_waits_behind_its_concurrency(
        self, make_port, interrupt_when
    ):
        port = make_port(1)
        release = threading.Event()

        def hold():
            port.get()
            compute_until(release.is_set)

        holder = Background(hold)
        port.post()
        wait_for_stats(port, running=1)
        port.post("kept for later")
        interrupt_when(lambda: port.stats()["waiting"] == 1)
        with pytest.raises(KeyboardInterrupt):
            port.get(LONG)
        release.set()
        holder.outcome()
        assert take_one(port).transferred == "kept for later"

    def test_a_signal_handler_that_returns_leaves_get_waiting(self, port, interrupt_when):
        old = signal.signal(USER_SIGNAL, lambda *_: port.post("from the handler"))
        try:
            interrupt_when(lambda: port.stats()["waiting"] == 1, USER_SIGNAL)
            assert port.get(LONG).transferred == "from the handler"
        finally:
            signal.signal(USER_SIGNAL, old)

    @needs_posix_signals
    @pytest.mark.parametrize("timeout", [LONG, None])
    def test_a_signal_that_another_thread_got_is_handled_soon(self, port, timeout):
        """Python handles it in the main thread, whose wait it does not end."""
        old = signal.signal(USER_SIGNAL, lambda *_: port.post("from the handler"))
        try:
            got = threading.Event()
            other = Background(got.wait, LONG)

            def send():
                wait_for_stats(port, waiting=1)
                signal.pthread_kill(other.ident, USER_SIGNAL)

            sender = Background(send)
            port.post_after(LONG, "too late")
            begun = time.monotonic()
            assert port.get(timeout).transferred == "from the handler"
            assert time.monotonic() - begun < LONG / 4
            got.set()
            other.outcome()
            sender.outcome()
        finally:
            signal.signal(USER_SIGNAL, old)

    def test_signals_do_not_lengthen_a_timeout(self, port):
        stop = threading.Event()
        handled = []
        old = signal.signal(USER_SIGNAL, lambda *_: handled.append(1))

        def disturb():
            while not stop.wait(0.01):
                signal_main_thread(USER_SIGNAL)

        thread = Background(disturb)
        try:
            wait_until(lambda: handled, "signals come")
            began = time.monotonic()
            assert port.get(0.3) is None
            assert 0.299 <= time.monotonic() - began < LONG / 2
        finally:
            stop.set()
            thread.outcome()
            signal.signal(USER_SIGNAL, old)

    @needs_posix_signals
    def test_a_signal_to_a_worker_thread_does_not_show(self, make_port):
        port = make_port(2)
        handled = []
        old = signal.signal(USER_SIGNAL, lambda *_: handled.append(1))
        try:
            worker = Background(port.get)
            wait_for_stats(port, waiting=1)
            for _ in range(20):
                signal.pthread_kill(worker.ident, USER_SIGNAL)
            wait_until(lambda: handled, "the handler ran")
            assert worker.is_alive()
            wait_for_stats(port, waiting=1)
            port.post("for the worker")
            assert worker.outcome().transferred == "for the worker"
        finally:
            signal.signal(USER_SIGNAL, old)


class TestClosedPort:
    @pytest.mark.parametrize("threads", [1, 5])
    @pytest.mark.parametrize("concurrency", [1, 8])
    @pytest.mark.parametrize("timeout", [None, 60])
    def test_close_wakes_every_thread_in_get(self, make_port, threads, concurrency, timeout):
        port = make_port(concurrency)
        waiting = [Background(port.get, timeout) for _ in range(threads)]
        wait_for_stats(port, waiting=threads)
        port.close()
        for thread in waiting:
            with pytest.raises(PortClosed):
                thread.outcome()

    def test_close_wakes_a_thread_in_get_many(self, port):
        waiting = Background(port.get_many, 10)
        wait_for_stats(port, waiting=1)
        port.close()
        with pytest.raises(PortClosed):
            waiting.outcome()

    @needs_concurrency
    def test_close_wakes_threads_that_wait_for_a_place(self, make_port):
        port = make_port(1)
        waiting = [taker_in_time(port) for _ in range(2)]
        port.post("held here")
        port.post("for nobody")
        take_one(port)
        for _, began in waiting:
            began.append(True)
        compute_until(lambda: port.stats()["waiting"] == 2)
        port.close()
        for thread, _ in waiting:
            with pytest.raises(PortClosed):
                thread.outcome()

    def test_a_closed_port_refuses_everything(self, port, tcp):
        near, _ = tcp
        handle = port.associate(near, "key")
        assert port.closed is False
        port.close()
        assert port.closed is True
        for call in (
            port.get,
            lambda: port.get(0),
            lambda: port.get_many(2),
            port.post,
            lambda: port.associate(near, "key"),
        ):
            with pytest.raises(PortClosed):
                call()
        for call in (lambda: handle.recv(1), lambda: handle.send(b"x")):
            with pytest.raises((PortClosed, HandleClosed)):
                call()
        assert handle.closed

    def test_closing_again_does_nothing(self, port):
        port.close()
        port.close()
        with port:
            pass
        assert port.closed

    def test_a_port_is_a_context_manager(self, engine):
        with CompletionPort(engine=engine) as port:
            assert not port.closed
            port.post(1)
            assert take_one(port).transferred == 1
        assert port.closed

    def test_packets_that_were_not_taken_are_let_go(self, port):
        thing = Thing()
        alive = weakref.ref(thing)
        port.post(thing, thing, thing)
        del thing
        port.close()
        gc.collect()
        assert alive() is None

    def test_two_threads_may_close_at_once(self, make_port, make_pair):
        for _ in range(10):
            port = make_port()
            near, _far = make_pair()
            port.associate(near, "key").recv(10)
            for thread in [Background(port.close) for _ in range(3)]:
                thread.outcome()
            assert port.stats()["pending"] == 0
