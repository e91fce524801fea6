"""`WorkerPool`: threads that call a function with each packet, their number, and their end."""

from __future__ import annotations

import faulthandler
import logging
import tempfile
import threading
import weakref

import pytest

from completionport import CompletionPort, Operation, PortClosed, Strand, WorkerPool
from support import (
    LONG,
    Background,
    assert_idle,
    needs_concurrency,
    read_exactly,
    refuse_threads,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    wine_serves_the_first,
)


class Target:
    """Notes what it is called with, and holds each call until it is told to go on."""

    def __init__(self, hold=False):
        self.values = []
        self.threads = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.hold = hold

    def __call__(self, completion):
        self.values.append(completion.transferred)
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        if self.hold:
            assert self.gate.acquire(timeout=LONG)

    def wait_for(self, count):
        for _ in range(count):
            assert self.begun.acquire(timeout=LONG), f"{self.values} and no more"

    def go_on(self, count=1):
        self.gate.release(count)


@pytest.fixture
def logged(caplog, monkeypatch):
    """The log, with the hook for exceptions in threads as it is without pytest."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    caplog.set_level(logging.DEBUG, "completionport")
    return caplog


class TestWork:
    def test_each_packet_is_given_to_the_target_once(self, make_port):
        port, target = make_port(4), Target()
        with WorkerPool(port, target, 4):
            for number in range(1000):
                port.post(number)
        assert sorted(target.values) == list(range(1000))

    def test_the_target_gets_the_packet_as_get_gives_it(self, make_port, tcp):
        near, far = tcp
        port = make_port(2)
        results = []
        came = threading.Event()

        def target(completion):
            results.append((completion.key, completion.transferred, completion.overlapped.result()))
            came.set()

        with port.associate(near, "key") as handle, WorkerPool(port, target, 2):
            handle.recv(10)
            far.sendall(b"hello")
            assert came.wait(LONG)
        assert results == [("key", 5, b"hello")]

    def test_an_echo_by_a_pool_comes_back_whole(self, make_port, tcp):
        near, far = tcp
        port = make_port(2)
        data = bytes(range(256)) * 1000

        def target(completion):
            operation = completion.overlapped
            if operation.operation is Operation.RECV and completion.transferred:
                completion.key[0].send(operation.result())
                completion.key[0].recv(4096, overlapped=operation)

        key = []
        with port.associate(near, key) as handle:
            key.append(handle)
            with WorkerPool(port, target, 1):
                handle.recv(4096)
                sender = Background(far.sendall, data)
                assert read_exactly(far, len(data)) == data
                sender.outcome()
        take(port, 1)  # the last receive, cancelled by the end of the handle
        key.clear()

    def test_the_threads_have_names(self, make_port):
        port, target = make_port(3), Target(hold=True)
        pool = WorkerPool(port, target, 3, name="importer")
        with pool:
            for number in range(3):
                port.post(number)
            target.wait_for(3)
            names = {thread.name for thread in threading.enumerate()}
            target.go_on(3)
        assert {"importer-1", "importer-2", "importer-3"} <= names
        assert sorted(target.threads) == ["importer-1", "importer-2", "importer-3"]

    @pytest.mark.parametrize("daemon", [False, True])
    def test_the_threads_are_daemons_if_so_wished(self, make_port, daemon):
        port, seen = make_port(1), []
        with WorkerPool(port, lambda _: seen.append(threading.current_thread().daemon), 1,
                        daemon=daemon):  # fmt: skip
            port.post()
        assert seen == [daemon]

    @needs_concurrency
    def test_no_more_targets_run_at_a_time_than_the_concurrency_lets(self, make_port):
        port = make_port(1)
        lock = threading.Lock()
        counts = []
        running = 0

        def target(completion):
            nonlocal running
            with lock:
                running += 1
                counts.append(running)
            sum(range(2000))
            with lock:
                running -= 1

        with WorkerPool(port, target, 4):
            for number in range(300):
                port.post(number)
        assert len(counts) == 300
        assert max(counts) == 1

    def test_packets_of_a_strand_are_worked_on_in_order(self, make_port):
        port = make_port(4)
        strands = [Strand(port) for _ in range(3)]
        seen = [[] for _ in strands]

        def target(completion):
            seen[completion.key].append(completion.transferred)

        with WorkerPool(port, target, 4):
            for number in range(300):
                port.post(number, number % 3, strand=strands[number % 3])
        assert seen == [list(range(start, 300, 3)) for start in range(3)]

    def test_nothing_of_a_packet_is_kept_while_the_pool_waits(self, make_port):
        class Thing:
            pass

        port, thing = make_port(1), Thing()
        gone = weakref.ref(thing)
        with WorkerPool(port, lambda completion: None, 1):
            port.post(0, thing, None)
            del thing
            wait_until(lambda: gone() is None)

    def test_a_stack_dump_shows_the_worker_and_its_target(self, make_port):
        port = make_port(1)
        begun, end = threading.Event(), threading.Event()

        def import_one_file(completion):
            begun.set()
            end.wait(LONG)

        with WorkerPool(port, import_one_file, 1), tempfile.TemporaryFile("w+") as dump:
            port.post()
            assert begun.wait(LONG)
            faulthandler.dump_traceback(dump, all_threads=True)
            end.set()
            dump.seek(0)
            text = dump.read()
        assert "in import_one_file" in text
        assert any(
            "worker_pool.py" in line and line.endswith("in work") for line in text.splitlines()
        )


class TestExceptions:
    def test_one_is_logged_with_its_traceback_and_the_worker_goes_on(self, make_port, logged):
        port, served = make_port(1), []

        def target(completion):
            if completion.transferred == "bad":
                raise KeyError("as expected")
            served.append(threading.current_thread().name)

        with WorkerPool(port, target, 1, name="w") as pool:
            for what in ("good", "bad", "good"):
                port.post(what)
            wait_until(lambda: len(served) == 2)
            assert pool.stats()["failures"] == 1
        assert served == ["w-1", "w-1"]
        (record,) = logged.records
        assert record.name == "completionport"
        assert record.levelno == logging.ERROR
        assert "w-1" in record.getMessage()
        assert record.exc_info[0] is KeyError
        assert "in target" in logged.text

    def test_one_goes_to_the_programs_own_hook_in_place_of_the_log(
        self, make_port, logged, monkeypatch
    ):
        told = []
        monkeypatch.setattr(threading, "excepthook", lambda args: told.append(
            (args.exc_type, str(args.exc_value), args.exc_traceback is not None, args.thread.name)
        ))  # fmt: skip
        port = make_port(1)

        def target(completion):
            raise ValueError(completion.transferred)

        with WorkerPool(port, target, 1, name="w") as pool:
            port.post("first")
            port.post("second")
        assert told == [(ValueError, "first", True, "w-1"), (ValueError, "second", True, "w-1")]
        assert pool.stats()["failures"] == 2
        assert logged.records == []

    def test_one_in_the_hook_is_logged(self, make_port, logged, monkeypatch):
        def hook(args):
            raise OSError("the hook's own")

        monkeypatch.setattr(threading, "excepthook", hook)
        port, target = make_port(1), Target()

        def failing(completion):
            target(completion)
            raise ValueError("the target's")

        with WorkerPool(port, failing, 1):
            port.post(1)
            port.post(2)
        assert target.values == [1, 2]
        assert [record.exc_info[0] for record in logged.records] == [OSError, OSError]

    def test_one_that_would_end_a_thread_does_not_end_the_worker(self, make_port, logged):
        port, target = make_port(1), Target()

        def leaving(completion):
            target(completion)
            raise SystemExit

        with WorkerPool(port, leaving, 1) as pool:
            port.post(1)
            port.post(2)
        assert target.values == [1, 2]
        assert pool.stats()["failures"] == 2

    def test_one_is_not_kept_while_the_pool_waits(self, make_port, monkeypatch):
        class Thing:
            pass

        things = [Thing()]
        gone = weakref.ref(things[0])

        def target(completion):
            raise ValueError(things.pop())

        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        port = make_port(1)
        with WorkerPool(port, target, 1) as pool:
            port.post()
            wait_until(lambda: gone() is None, "the exception is let go")
            assert pool.stats()["failures"] == 1


class TestTheEnd:
    def test_what_was_queued_before_is_still_served(self, make_port):
        port, target = make_port(2), Target()
        for number in range(500):
            port.post(number)
        pool = WorkerPool(port, target, 3)
        pool.start()
        assert pool.stop() is True
        assert sorted(target.values) == list(range(500))
        assert pool.stats()["threads"] == 0
        assert port.stats()["queued"] == 0

    def test_what_stays_back_behind_a_strand_is_still_served(self, make_port):
        port, target = make_port(2), Target(hold=True)
        strand = Strand(port)
        for number in range(5):
            port.post(number, strand=strand)
        pool = WorkerPool(port, target, 2)
        pool.start()
        target.wait_for(1)
        ending = Background(pool.stop)
        wait_until(lambda: pool.stats()["threads"] == 1)  # the other one has its stop packet
        target.go_on(5)
        assert ending.outcome() is True
        assert target.values == [0, 1, 2, 3, 4]

    def test_a_target_that_posts_without_end_does_not_keep_it_from_ending(self, make_port):
        port = make_port(2)

        def target(completion):
            port.post()

        pool = WorkerPool(port, target, 2)
        pool.start()
        port.post()
        port.post()
        assert pool.stop(LONG) is True

    def test_packets_that_come_later_stay_in_the_queue(self, make_port):
        port, target = make_port(2), Target()
        with WorkerPool(port, target, 2):
            port.post("before")
        port.post("after")
        assert take_one(port).transferred == "after"
        assert target.values == ["before"]

    def test_the_port_goes_on(self, make_port):
        port, first, second = make_port(2), Target(), Target()
        with WorkerPool(port, first, 2):
            port.post(1)
        with WorkerPool(port, second, 2):
            port.post(2)
        assert (first.values, second.values) == ([1], [2])

    def test_a_time_limit_is_kept_and_the_threads_end_later(self, make_port):
        port, target = make_port(1), Target(hold=True)
        pool = WorkerPool(port, target, 1)
        pool.start()
        port.post()
        target.wait_for(1)
        assert pool.stop(0) is False
        assert pool.stop(0.01) is False
        assert pool.stats()["threads"] == 1
        target.go_on()
        assert pool.stop() is True
        assert pool.stats()["threads"] == 0

    def test_it_can_be_asked_for_in_the_target(self, make_port):
        port, answers = make_port(2), []
        pool = WorkerPool(port, lambda _: answers.append(pool.stop()), 3)
        pool.start()
        port.post()
        wait_until(lambda: pool.stats()["threads"] == 0)
        assert answers == [False]
        assert pool.stop() is True

    def test_it_can_be_asked_for_by_a_thread_that_holds_the_only_place(self, make_port):
        port, target = make_port(1), Target()
        port.post("mine")
        assert take_one(port).transferred == "mine"
        with WorkerPool(port, target, 2):
            port.post("theirs")
        assert target.values == ["theirs"]

    def test_many_threads_may_ask_for_it(self, make_port):
        port, target = make_port(2), Target()
        pool = WorkerPool(port, target, 3)
        pool.start()
        assert [one.outcome() for one in [Background(pool.stop) for _ in range(5)]] == [True] * 5
        assert port.stats()["queued"] == 0

    def test_a_closed_port_ends_the_threads_quietly(self, make_port, logged):
        port, target = make_port(2), Target()
        pool = WorkerPool(port, target, 3, maximum=5)
        pool.start()
        port.post(1)
        target.wait_for(1)
        port.close()
        assert pool.stop() is True
        assert pool.stats()["threads"] == 0
        assert logged.records == []

    def test_a_target_that_meets_the_closed_port_is_no_failure(self, make_port, logged):
        port, target = make_port(1), Target(hold=True)

        def posting(completion):
            target(completion)
            port.post("more")

        pool = WorkerPool(port, posting, 1)
        pool.start()
        port.post(1)
        target.wait_for(1)
        port.close()
        target.go_on()
        assert pool.stop() is True
        assert pool.stats()["failures"] == 0
        assert logged.records == []

    def test_a_pool_that_was_never_started_ends_at_once(self, make_port):
        pool = WorkerPool(make_port(), Target(), 2)
        assert pool.stop() is True
        with pytest.raises(RuntimeError, match="once"):
            pool.start()

    def test_a_pool_is_started_once(self, make_port):
        with (
            WorkerPool(make_port(), Target(), 1) as pool,
            pytest.raises(RuntimeError, match="once"),
        ):
            pool.start()
        with pytest.raises(RuntimeError, match="once"):
            pool.start()

    def test_a_pool_on_a_closed_port_is_not_started(self, make_port):
        port = make_port()
        port.close()
        with pytest.raises(PortClosed):
            WorkerPool(port, Target(), 1).start()

    def test_threads_that_the_system_refuses_undo_the_start(self, make_port, monkeypatch):
        port = make_port(2)
        pool = WorkerPool(port, Target(), 3)
        started = refuse_threads(monkeypatch, after=2)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.start()
        assert not any(thread.is_alive() for thread in started)
        assert pool.stats()["threads"] == 0


class TestSharedPorts:
    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_pools_on_one_port_end_one_by_one(self, make_port, concurrency):
        port, target = make_port(concurrency), Target()
        pools = [WorkerPool(port, target, 2, name=f"pool{number}") for number in range(4)]
        for pool in pools:
            pool.start()
        wait_for_stats(port, waiting=8)
        # The first one's threads have waited longest: all the others are served before them.
        for number, pool in enumerate(pools):
            assert pool.stop(LONG) is True
            assert sum(one.stats()["threads"] for one in pools) == 2 * (3 - number)
            if number < 3:
                port.post(number)
                target.wait_for(1)
        assert target.values == [0, 1, 2]
        assert port.stats()["queued"] == 0

    def test_pools_on_one_port_end_at_the_same_time(self, make_port):
        port, target = make_port(2), Target()
        pools = [WorkerPool(port, target, 2) for _ in range(4)]
        for pool in pools:
            pool.start()
        for number in range(200):
            port.post(number)
        enders = [Background(pool.stop) for pool in pools]
        assert [ender.outcome() for ender in enders] == [True] * 4
        assert sorted(target.values) == list(range(200))

    @wine_serves_the_first
    def test_one_pools_target_may_stop_another_pool(self, make_port):
        port, answers = make_port(1), []
        other = WorkerPool(port, Target(), 2)
        other.start()
        wait_for_stats(port, waiting=2)
        with WorkerPool(port, lambda _: answers.append(other.stop(LONG)), 2):
            wait_for_stats(port, waiting=4)
            port.post()
            wait_until(lambda: answers)
        assert answers == [True]

    def test_a_thread_of_another_kind_sees_nothing_of_it(self, make_port):
        port, target = make_port(4), Target()
        pool = WorkerPool(port, target, 3)
        pool.start()
        wait_for_stats(port, waiting=3)
        stranger = Background(port.get)
        wait_for_stats(port, waiting=4)
        assert pool.stop(LONG) is True
        assert stranger.is_alive()
        port.post("its own")
        assert stranger.outcome().transferred == "its own"


class TestGrowing:
    def test_threads_are_added_while_all_are_blocked_and_packets_wait(self, make_port):
        port, target = make_port(8), Target(hold=True)
        with WorkerPool(port, target, 1, maximum=4, name="w") as pool:
            for number in range(6):
                port.post(number)
            target.wait_for(4)
            numbers = pool.stats()
            assert (numbers["threads"], numbers["working"], numbers["grown"]) == (4, 4, 3)
            assert sorted(target.threads) == ["w-1", "w-2", "w-3", "w-4"]
            assert port.stats()["queued"] == 2
            target.go_on(6)
            target.wait_for(2)
        assert sorted(target.values) == list(range(6))

    def test_threads_are_added_for_those_that_say_that_they_block(self, make_port):
        port, target = make_port(1), Target(hold=True)

        def saying_so(completion):
            with port.blocking():
                target(completion)

        with WorkerPool(port, saying_so, 1, maximum=3) as pool:
            for number in range(3):
                port.post(number)
            target.wait_for(3)
            assert pool.stats()["threads"] == 3
            target.go_on(3)

    def test_they_end_again_when_they_have_nothing_to_do(self, make_port):
        port, target = make_port(8), Target(hold=True)
        with WorkerPool(port, target, 2, maximum=4, idle_timeout=0.05) as pool:
            for number in range(4):
                port.post(number)
            target.wait_for(4)
            target.go_on(4)
            wait_until(lambda: pool.stats()["threads"] == 2)
            numbers = pool.stats()
            assert (numbers["grown"], numbers["shrunk"]) == (2, 2)
            wait_for_stats(port, waiting=2)

    def test_it_grows_again_after_it_has_shrunk(self, make_port):
        port, target = make_port(8), Target(hold=True)
        with WorkerPool(port, target, 1, maximum=2, idle_timeout=0.02) as pool:
            for turn in range(3):
                port.post()
                port.post()
                target.wait_for(2)
                target.go_on(2)
                wait_until(lambda: pool.stats()["threads"] == 1)
                assert pool.stats()["grown"] == turn + 1

    def test_a_pool_that_keeps_up_does_not_grow(self, make_port):
        def grown():
            port, target = make_port(2), Target()
            with WorkerPool(port, target, 2, maximum=8) as pool:
                for number in range(300):
                    port.post(number)
                    target.wait_for(1)
                return pool.stats()["grown"]

        # Where both threads are stopped for long, it does not keep up.
        assert any(grown() == 0 for _ in range(4))

    def test_without_a_maximum_it_does_not_grow(self, make_port):
        port, target = make_port(8), Target(hold=True)
        with WorkerPool(port, target, 2) as pool:
            for number in range(4):
                port.post(number)
            target.wait_for(2)
            assert not any("keeper" in thread.name for thread in threading.enumerate())
            assert port.get(0).transferred == 2
            assert pool.stats()["threads"] == 2
            target.go_on(4)

    def test_a_grown_pool_ends_as_any_other(self, make_port):
        port, target = make_port(8), Target(hold=True)
        pool = WorkerPool(port, target, 1, maximum=3)
        pool.start()
        for number in range(5):
            port.post(number)
        target.wait_for(3)
        target.go_on(5)
        assert pool.stop() is True
        assert sorted(target.values) == list(range(5))
        assert pool.stats()["threads"] == 0

    def test_an_idle_pool_that_may_grow_uses_no_cpu(self, make_port):
        port = make_port(2)
        with WorkerPool(port, Target(), 2, maximum=8):
            wait_for_stats(port, waiting=2)
            assert_idle(0.5)


def test_the_numbers_tell_who_is_at_work(make_port):
    port, target = make_port(3), Target(hold=True)
    pool = WorkerPool(port, target, 3)
    assert pool.stats() == {
        "threads": 0, "idle": 0, "working": 0, "grown": 0, "shrunk": 0, "failures": 0
    }  # fmt: skip
    with pool:
        assert pool.stats()["threads"] == 3
        port.post()
        target.wait_for(1)
        assert (pool.stats()["working"], pool.stats()["idle"]) == (1, 2)
        target.go_on()
        wait_until(lambda: pool.stats()["idle"] == 3)
        assert repr(pool) == "<WorkerPool completionport-pool: 3 threads>"
    assert repr(pool) == "<WorkerPool completionport-pool: stopped>"


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"port": "no port"}, TypeError, "port must be a CompletionPort, not str"),
            ({"target": 3}, TypeError, "target must be callable with a Completion"),
            ({"threads": "two"}, TypeError, "threads must be an integer, not str"),
            ({"threads": 1.5}, TypeError, "threads must be an integer, not float"),
            ({"threads": True}, TypeError, "threads must be an integer, not bool"),
            ({"threads": 0}, ValueError, "threads must be from 1"),
            ({"threads": 10**9}, ValueError, "threads must be from 1 to 32768"),
            ({"maximum": 1}, ValueError, "maximum must be from 2"),
            ({"maximum": "many"}, TypeError, "maximum must be an integer, not str"),
            ({"idle_timeout": 0}, ValueError, "idle_timeout must be more than 0 seconds"),
            ({"idle_timeout": float("nan")}, ValueError, "idle_timeout must be more than 0"),
            ({"idle_timeout": None}, TypeError, "idle_timeout must be a number of seconds"),
            ({"name": 3}, TypeError, "name must be a string, not int"),
            ({"daemon": "yes"}, TypeError, "daemon must be True or False, not str"),
        ],
    )
    def test_wrong_ones_are_refused_with_what_was_expected(self, port, change, error, message):
        arguments = {"port": port, "target": print, "threads": 2, **change}
        with pytest.raises(error, match=message):
            WorkerPool(**arguments)

    @pytest.mark.parametrize(
        ("timeout", "error"),
        [("soon", TypeError), (-1, ValueError), (float("nan"), ValueError), (True, TypeError)],
    )
    def test_a_wrong_time_limit_does_not_end_anything(self, port, timeout, error):
        with WorkerPool(port, print, 1) as pool:
            with pytest.raises(error, match="timeout must be"):
                pool.stop(timeout)
            assert pool.stats()["threads"] == 1

    def test_a_time_limit_without_end_is_one(self, port):
        pool = WorkerPool(port, print, 1, idle_timeout=float("inf"))
        pool.start()
        assert pool.stop(float("inf")) is True


def test_pools_come_and_go_under_load(engine):
    """Several pools on one port that start and stop while packets come: none is lost."""
    with CompletionPort(2, engine=engine) as port:
        target = Target()
        stop = threading.Event()

        def come_and_go():
            while not stop.is_set():
                with WorkerPool(port, target, 2, maximum=3, idle_timeout=0.01):
                    came.release()

        came = threading.Semaphore(0)
        comers = [Background(come_and_go) for _ in range(2)]
        with WorkerPool(port, target, 1):
            for number in range(3000):
                port.post(number)
            target.wait_for(3000)
            for _ in comers:
                assert came.acquire(timeout=LONG)
            stop.set()
            for comer in comers:
                comer.outcome()
        assert sorted(target.values) == list(range(3000))
        assert port.stats()["queued"] == 0
