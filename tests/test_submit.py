"""submit() and getaddrinfo(): functions on the port's pool, their results as packets."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref

import pytest

from completionport import (
    CompletionPort,
    Operation,
    OperationAborted,
    OperationPending,
    Overlapped,
    PortClosed,
    Strand,
)
from support import (
    LONG,
    Background,
    assert_quiet,
    native_threads,
    run_python,
    shown,
    take,
    take_one,
    wait_until,
)


class Gate:
    """A function that runs until it is let go, and says when it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, value: object = None) -> object:
        self.begun.set()
        assert self.open.wait(LONG)
        return value


@pytest.fixture
def gate(nothing_left):
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def busy(make_port, gate):
    """A port whose pool of one thread is at work."""
    port = make_port(pool_threads=1)
    running = port.submit(gate, "gate")
    assert gate.begun.wait(LONG)
    yield port, running
    gate.open.set()


def offload_threads():
    return [number for number, name in native_threads().items() if name == "cp-offload"]


class TestResults:
    def test_the_packet_has_what_the_function_returned(self, port):
        operation = port.submit(divmod, 17, 5, key="key")
        assert operation.operation is Operation.CALL
        assert tuple(take_one(port)) == (0, "key", operation, None)
        assert operation.result() == (3, 2)
        assert operation.handle is None
        assert not operation.pending

    def test_the_packet_has_the_exception_that_the_function_raised(self, port):
        class Mine(Exception):
            pass

        error = Mine("no")

        def fail() -> None:
            raise error

        operation = port.submit(fail, key="key")
        done = take_one(port)
        assert done.error is error
        assert done.key == "key"
        assert operation.error is error
        with pytest.raises(Mine, match="no") as raised:
            operation.result()
        assert raised.value is error

    def test_exits_are_results_too(self, port):
        port.submit(sys.exit, 3)
        error = take_one(port).error
        assert isinstance(error, SystemExit)
        assert error.code == 3
        port.submit(divmod, 7, 2)
        assert take_one(port).overlapped.result() == (3, 1)

    def test_an_exception_may_be_the_value(self, port):
        operation = port.submit(ValueError, "made, not raised")
        assert take_one(port).error is None
        assert isinstance(operation.result(), ValueError)

    def test_one_packet_for_each(self, port):
        count = 500
        operations = [port.submit(pow, number, 2, key=number) for number in range(count)]
        packets = take(port, count)
        assert sorted(done.key for done in packets) == list(range(count))
        assert {id(done.overlapped) for done in packets} == set(map(id, operations))
        assert all(done.overlapped.result() == done.key**2 for done in packets)
        assert_quiet(port)

    def test_many_threads_submit_and_take(self, make_port):
        port = make_port(4)

        def work(first: int) -> None:
            for number in range(first, first + 100):
                port.submit(str, number, key=number)

        posters = [Background(work, first) for first in range(0, 400, 100)]
        packets = take(port, 400)
        for poster in posters:
            poster.outcome()
        assert sorted(done.key for done in packets) == list(range(400))
        assert all(done.overlapped.result() == str(done.key) for done in packets)
        assert_quiet(port)

    def test_what_a_thread_that_has_ended_submitted_is_run(self, port):
        Background(
            lambda: [port.submit(abs, -number, key=number) for number in range(50)]
        ).outcome()
        assert sorted(done.overlapped.result() for done in take(port, 50)) == list(range(50))

    def test_the_function_and_its_arguments_are_let_go(self, port):
        class Argument:
            pass

        argument = Argument()
        gone = threading.Event()
        weakref.finalize(argument, gone.set)
        port.submit(id, argument)
        del argument
        take_one(port)
        gc.collect()
        assert gone.wait(LONG)

    def test_what_failed_is_let_go_without_the_collector(self, port, no_collections):
        class Mine(Overlapped):
            pass

        def fail(argument):
            raise ValueError(argument)

        mine = Mine()
        alive = weakref.ref(mine)
        port.submit(fail, 1, overlapped=mine)
        del mine
        done = take_one(port)
        names = [frame.name for frame in traceback.extract_tb(done.error.__traceback__)]
        assert names[-1] == "fail"
        del done
        # The thread of the pool has its last look at it behind the packet.
        wait_until(lambda: alive() is None, "it is let go")


class TestOverlapped:
    def test_an_object_of_ones_own_is_used_again(self, port):
        class Mine(Overlapped):
            pass

        mine = Mine()
        for number in range(10):
            assert port.submit(abs, -number, overlapped=mine) is mine
            assert take_one(port).overlapped is mine
            assert mine.result() == number

    def test_one_that_is_pending_can_not_be_used(self, busy, gate):
        port, running = busy
        with pytest.raises(OperationPending):
            port.submit(abs, 1, overlapped=running)
        with pytest.raises(OperationPending):
            running.result()
        gate.open.set()
        take_one(port)
        assert running.result() == "gate"

    def test_it_goes_on_to_an_operation_of_a_handle(self, port, tcp):
        near, far = tcp
        mine = port.submit(abs, -1)
        take_one(port)
        with port.associate(near, "handle") as handle:
            handle.recv(10, overlapped=mine)
            far.sendall(b"x")
            done = take_one(port)
            assert (done.key, done.overlapped, mine.handle) == ("handle", mine, handle)
            assert mine.result() == b"x"

    def test_packets_of_a_strand_are_taken_one_at_a_time(self, make_port):
        port = make_port(2)
        strand = Strand(port)
        for number in range(3):
            port.submit(abs, number, strand=strand)
        first = take_one(port)
        assert first.error is None
        assert Background(port.get, 0.05).outcome() is None
        assert len(take(port, 2)) == 2


class TestThePool:
    def test_no_more_threads_than_it_was_given(self, make_port):
        port = make_port(pool_threads=3)
        lock, running, most = threading.Lock(), 0, 0
        all_there = threading.Barrier(3)

        def work() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            all_there.wait(LONG)
            with lock:
                running -= 1

        for _ in range(30):
            port.submit(work)
        assert [done.error for done in take(port, 30)] == [None] * 30
        assert most == 3

    def test_it_is_another_thread_that_runs_the_function(self, port):
        operation = port.submit(threading.get_native_id)
        take_one(port)
        assert operation.result() != threading.get_native_id()

    def test_there_is_none_before_the_first_function(self, port):
        before = set(native_threads())
        port.post()
        take_one(port)
        assert set(native_threads()) <= before

    def test_its_threads_hold_no_place(self, make_port):
        port = make_port(1)
        port.submit(lambda: port.stats()["running"])
        assert take_one(port).overlapped.result() == 0

    def test_what_a_thread_keeps_for_itself_stays(self, make_port):
        port = make_port(pool_threads=1)
        own = threading.local()

        def count() -> int:
            own.count = getattr(own, "count", 0) + 1
            return own.count

        for _ in range(3):
            port.submit(count)
        assert [done.overlapped.result() for done in take(port, 3)] == [1, 2, 3]

    def test_a_function_submits_another_and_waits_for_it(self, make_port):
        port, other = make_port(pool_threads=2), make_port()

        def inner() -> str:
            return "inner"

        def outer() -> object:
            other.submit(inner)
            return take_one(other).overlapped.result()

        operation = port.submit(outer)
        take_one(port)
        assert operation.result() == "inner"

    def test_threads_without_work_end(self, port):
        before = set(native_threads())
        port.submit(abs, 1)
        take_one(port)
        wait_until(lambda: not set(native_threads()) - before, "the idle thread ends")
        port.submit(abs, -2)
        assert take_one(port).overlapped.result() == 2


class TestCancel:
    def test_what_waits_in_line_is_aborted(self, busy, gate):
        port, _ = busy
        called: list[int] = []
        waiting = [port.submit(called.append, number, key=number) for number in range(3)]
        assert waiting[1].cancel()
        done = take_one(port)
        assert (done.key, done.overlapped) == (1, waiting[1])
        assert isinstance(done.error, OperationAborted)
        gate.open.set()
        assert [done.error for done in take(port, 3)] == [None] * 3
        assert called == [0, 2]
        assert_quiet(port)

    def test_what_runs_gives_its_own_result(self, busy, gate):
        port, running = busy
        assert running.cancel()
        assert port.get(0.02) is None
        gate.open.set()
        assert take_one(port).error is None
        assert running.result() == "gate"
        assert not running.cancel()


class TestClose:
    def test_it_waits_for_what_runs_and_drops_what_waits(self, make_port, gate):
        port = make_port(pool_threads=1)
        running, called = port.submit(gate), []
        assert gate.begun.wait(LONG)
        waiting = port.submit(called.append, 1)
        closing = Background(port.close)
        wait_until(lambda: port.closed)
        closing.join(0.05)
        assert closing.is_alive()
        gate.open.set()
        closing.outcome()
        assert called == []
        for operation in (running, waiting):
            assert not operation.pending
            assert isinstance(operation.error, OperationAborted)

    def test_a_closed_port_refuses(self, port):
        port.close()
        for start in (lambda: port.submit(abs, 1), lambda: port.getaddrinfo("localhost", 1)):
            with pytest.raises(PortClosed):
                start()

    def test_a_function_may_close_its_own_port(self, make_port):
        port = make_port()
        closed = threading.Event()

        def close() -> None:
            port.close()
            closed.set()

        operation = port.submit(close)
        assert closed.wait(LONG)
        wait_until(lambda: not operation.pending)
        assert isinstance(operation.error, OperationAborted)
        port.close()

    def test_a_function_may_have_the_last_reference(self, engine):
        port = CompletionPort(engine=engine)
        gate = Gate()

        def work(port: CompletionPort) -> None:
            gate()
            port.close()
            gate.begun.set()

        port.submit(work, port)
        assert gate.begun.wait(LONG)
        gate.begun.clear()
        del port
        gate.open.set()
        assert gate.begun.wait(LONG)

    def test_a_function_that_takes_packets_is_woken(self, make_port):
        port = make_port()
        begun, outcome = threading.Event(), []

        def work() -> None:
            begun.set()
            try:
                port.get()
            except PortClosed:
                outcome.append("closed")

        port.submit(work)
        assert begun.wait(LONG)
        wait_until(lambda: port.stats()["waiting"] == 1)
        port.close()
        assert outcome == ["closed"]

    def test_functions_submit_while_the_port_closes(self, make_port):
        for _ in range(20):
            port = make_port(pool_threads=4)

            def again(port: CompletionPort) -> None:
                try:
                    port.submit(again, port)
                    port.submit(again, port)
                except PortClosed:
                    pass

            port.submit(again, port)
            take(port, 10)
            port.close()

    def test_the_interpreter_ends_with_a_function_running(self, engine):
        script = """
            import threading, time, warnings
            from completionport import CompletionPort

            warnings.simplefilter("ignore")
            begun = threading.Event()
            def work():
                begun.set()
                time.sleep(600)
            port = CompletionPort()
            port.submit(work)
            port.submit(time.sleep, 600)
            assert begun.wait(20)
            print("ends")
        """
        start = time.monotonic()
        assert run_python(script, engine=engine).stdout == "ends\n"
        assert time.monotonic() - start < 30

    def test_the_interpreter_ends_with_functions_that_compute(self, engine):
        script = """
            import threading, warnings
            from completionport import CompletionPort

            warnings.simplefilter("ignore")
            begun = threading.Barrier(5)
            def work():
                begun.wait(20)
                while True:
                    sum(range(1000))
            port = CompletionPort()
            for _ in range(4):
                port.submit(work)
            begun.wait(20)
            print("ends")
        """
        assert run_python(script, engine=engine).stdout == "ends\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_has_no_pool_and_the_parent_keeps_its_own(engine):
    script = """
        import os, threading, warnings
        from completionport import CompletionPort, PortForked

        warnings.simplefilter("ignore")
        begun, go = threading.Event(), threading.Event()
        def work():
            begun.set()
            assert go.wait(20)
            return "parent"
        port = CompletionPort(pool_threads=1)
        running, waiting = port.submit(work), port.submit(str, "next")
        assert begun.wait(20)
        child = os.fork()
        if child == 0:
            try:
                port.submit(abs, 1)
            except PortForked:
                with CompletionPort() as mine:
                    mine.submit(abs, -5)
                    os._exit(mine.get(20).overlapped.result())
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        go.set()
        assert {port.get(20).overlapped.result() for _ in range(2)} == {"parent", "next"}
        port.close()
    """
    run_python(script, engine=engine)


class TestArguments:
    def test_only_what_can_be_called(self, port):
        with pytest.raises(TypeError, match="callable"):
            port.submit("abs", 1)
        with pytest.raises(TypeError):
            port.submit()
        with pytest.raises(TypeError, match="Overlapped"):
            port.submit(abs, 1, overlapped="x")
        with pytest.raises((TypeError, ValueError)):
            port.submit(abs, 1, strand="x")
        assert_quiet(port)

    def test_a_strand_of_another_port(self, make_port):
        port, other = make_port(), make_port()
        with pytest.raises(ValueError, match="port"):
            port.submit(abs, 1, strand=Strand(other))

    @pytest.mark.parametrize("number", [0, -1, 1025])
    def test_a_number_of_threads_out_of_range(self, engine, number):
        with pytest.raises(ValueError, match="pool_threads"):
            CompletionPort(engine=engine, pool_threads=number)

    def test_a_number_of_threads_that_is_none(self, engine):
        with pytest.raises(TypeError, match="pool_threads"):
            CompletionPort(engine=engine, pool_threads="4")


class TestNames:
    def test_it_gives_what_the_socket_module_gives(self, port):
        operation = port.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM, key="name")
        assert operation.operation is Operation.RESOLVE
        assert tuple(take_one(port)) == (0, "name", operation, None)
        assert operation.result() == socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    @pytest.mark.parametrize(
        "arguments",
        [
            (b"127.0.0.1", b"80"),
            ("127.0.0.1", "http"),
            (None, 80),
            ("::1", 80),
            ("127.0.0.1", 80, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
            ("127.0.0.1", 80, 0, 0, 0, socket.AI_NUMERICHOST | socket.AI_PASSIVE),
            (None, 80, 0, 0, 0, socket.AI_PASSIVE),
            ("127.0.0.1", None, 0, 0, 0, socket.AI_CANONNAME),
            ("127.0.0.1", -1),
            (None, None),
            ("127.0.0.1", "no-such-service"),
            ("127.0.0.1", 80, 9999),
        ],
        ids=shown,
    )
    def test_all_arguments_mean_what_they_do_there(self, port, arguments):
        """Those that it refuses too."""
        port.getaddrinfo(*arguments)
        done = take_one(port)
        assert done.error is None or isinstance(done.error, socket.gaierror)
        if done.error is None:
            assert done.overlapped.result() == socket.getaddrinfo(*arguments)
        else:
            with pytest.raises(socket.gaierror) as raised:
                socket.getaddrinfo(*arguments)
            assert done.error.errno == raised.value.errno

    @pytest.mark.parametrize(
        "host", ["a\ud800", "\udcff", "a..b", "x" * 64 + ".org", "\xe4" * 100], ids=ascii
    )
    def test_names_that_have_no_form_for_the_network_raise_at_the_call(self, port, host):
        with pytest.raises(UnicodeError):
            socket.getaddrinfo(host, 80)
        with pytest.raises(UnicodeError):
            port.getaddrinfo(host, 80)
        assert_quiet(port)

    def test_a_name_that_is_none(self, port):
        operation = port.getaddrinfo("127.0.0.1x", 80, flags=socket.AI_NUMERICHOST)
        assert isinstance(take_one(port).error, socket.gaierror)
        with pytest.raises(socket.gaierror):
            operation.result()

    def test_it_may_be_cancelled_as_it_begins(self, make_port):
        """Its thread must not look at an operation that is another one's by then."""
        port = make_port(pool_threads=2)
        for _ in range(3000):
            lookups = [port.getaddrinfo("127.0.0.1", 80) for _ in range(3)]
            for lookup in lookups:
                lookup.cancel()
            del lookup, lookups
            for done in take(port, 3):
                assert done.error is None or isinstance(done.error, OperationAborted)

    def test_nobody_waits_for_a_name_server(self, engine, tmp_path):
        """A resolver that never answers: cancelling, closing and ending take no time."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler for a resolver that keeps silent")
        source, library = tmp_path / "silent.c", tmp_path / "silent.so"
        source.write_text("#include <unistd.h>\nint getaddrinfo(void) { for (;;) pause(); }\n")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        run_python(
            """
            from completionport import CompletionPort, OperationAborted
            with CompletionPort(pool_threads=1) as port:
                running = port.getaddrinfo("a.name", 80)
                assert port.get(0.3) is None
                waiting = port.getaddrinfo("another.name", 80)
                for operation in (running, waiting):
                    assert operation.cancel()
                    done = port.get(20)
                    assert done.overlapped is operation
                    assert isinstance(done.error, OperationAborted)
                # The thread that was left behind stands in nobody's way.
                port.submit(int)
                assert port.get(20).error is None
                under_way = port.getaddrinfo("a.third.name", 80)
            assert isinstance(under_way.error, OperationAborted)
            CompletionPort().getaddrinfo("at.the.end", 80)
            """,
            engine=engine,
            LD_PRELOAD=str(library),
        )
