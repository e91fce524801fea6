"""File operations that wait: several are carried out at a time, and how many threads that takes."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import textwrap
import threading
from pathlib import Path

import pytest

if sys.platform.startswith("linux"):
    import fcntl

from completionport import Operation, OperationAborted
from completionport.portable.pool.file_calls import CALLS
from support import (
    LONG,
    Background,
    assert_quiet,
    native_threads,
    run_python,
    take,
    take_one,
    wait_until,
    windows_has_no,
)

needs_waiting_opens = windows_has_no("open that waits: a named pipe is opened at once, or never")


def threads_of_pools() -> int:
    """Compiled ones name themselves for the kernel, those in Python for `threading`."""
    native = list(native_threads().values()).count("cp-offload")
    return max(native, [thread.name for thread in threading.enumerate()].count("cp-offload"))


def somebody_waits_for_a_partner() -> bool:
    """As the kernel calls what open() of a named pipe does."""
    for number in native_threads():
        with contextlib.suppress(OSError):
            if "partner" in Path(f"/proc/self/task/{number}/wchan").read_text():
                return True
    return False


@pytest.fixture
def fifos(tmp_path):
    paths = [tmp_path / f"fifo {number}" for number in range(40)]
    for path in paths:
        os.mkfifo(path)
    return paths


def close_results(packets):
    for done in packets:
        os.close(done.overlapped.result())


class TestOverlap:
    """A named pipe is open when both sides are: one `open` that waits is ended by another one."""

    @needs_waiting_opens
    def test_two_opens_wait_for_each_other(self, port, fifos):
        reading = port.open(fifos[0], os.O_RDONLY)
        writing = port.open(fifos[0], os.O_WRONLY)
        packets = take(port, 2)
        assert {done.overlapped for done in packets} == {reading, writing}
        assert all(stat.S_ISFIFO(os.fstat(done.overlapped.result()).st_mode) for done in packets)
        close_results(packets)

    @needs_waiting_opens
    def test_two_opens_of_different_pipes_are_ended_in_the_other_order(self, port, fifos):
        port.open(fifos[0], os.O_RDONLY, key="first")
        port.open(fifos[1], os.O_RDONLY, key="second")
        port.open(fifos[1], os.O_WRONLY, key="second")
        second = take(port, 2)
        assert [done.key for done in second] == ["second"] * 2
        port.open(fifos[0], os.O_WRONLY, key="first")
        close_results(second + take(port, 2))

    @needs_waiting_opens
    def test_more_of_them_than_the_pool_begins_with(self, port, fifos):
        """Each of the first forty waits for one of the second forty, behind them in line."""
        for path in fifos:
            port.open(path, os.O_RDONLY)
        for path in fifos:
            port.open(path, os.O_WRONLY)
        close_results(take(port, 2 * len(fifos)))
        assert_quiet(port)

    @needs_waiting_opens
    def test_a_file_is_read_while_opens_wait(self, port, fifos, tmp_path):
        waiting = [port.open(path, os.O_RDONLY, key="fifo") for path in fifos[:6]]
        (tmp_path / "file").write_bytes(b"content")
        with (tmp_path / "file").open("rb") as file, port.associate(file, "file") as handle:
            handle.read(100, 0)
            done = take_one(port)
            assert (done.key, done.overlapped.result()) == ("file", b"content")
        for path in fifos[:6]:
            port.open(path, os.O_WRONLY, key="fifo")
        packets = take(port, 12)
        assert {done.overlapped for done in packets} > set(waiting)
        close_results(packets)

    def test_functions_that_wait_for_each_other(self, port):
        """More than the pool begins with: the last one lets all of them go."""
        barrier = threading.Barrier(12)
        for _ in range(12):
            port.submit(barrier.wait, LONG)
        assert [done.error for done in take(port, 12)] == [None] * 12

    def test_a_file_is_asked_and_written_through_while_functions_wait(self, port, tmp_path):
        go = threading.Event()
        for _ in range(6):
            port.submit(go.wait, LONG, key="function")
        (tmp_path / "file").write_bytes(b"content")
        with (tmp_path / "file").open("r+b") as file, port.associate(file, "file") as handle:
            handle.stat()
            handle.fsync()
            packets = take(port, 2)
            assert [(done.key, done.error) for done in packets] == [("file", None)] * 2
        go.set()
        assert [done.key for done in take(port, 6)] == ["function"] * 6


@pytest.fixture
def leases(tmp_path, nothing_left):
    """Files that nobody else can open before their lease is given back: path and descriptor.

    An open waits for that in the kernel (fcntl(2), F_SETLEASE), which tells us by SIGIO.
    """
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGIO, before)
        files = []
        for number in range(4):
            path = tmp_path / f"leased {number}"
            file = stack.enter_context(path.open("w+b", 0))
            try:
                fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except OSError as error:
                pytest.skip(f"this file system has no leases: {error}")
            files.append((path, file))
        yield files


@windows_has_no("leases; opportunistic locks, which are the like of them, Wine has not")
class TestOverlapOnEveryEngine:
    """That of one kernel or pool thread for each, no matter which: several are under way at once.

    As many as io_uring has threads for with a single processor.
    """

    def test_opens_that_wait_in_the_kernel_are_ended_in_the_other_order(self, port, leases):
        for path, _ in leases:
            port.open(path, os.O_RDONLY, key=path)
        assert port.get(0.05) is None
        for path, file in reversed(leases):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            done = take_one(port)
            assert (done.key, done.error) == (path, None)
            close_results([done])
        assert_quiet(port)

    def test_what_needs_no_wait_passes_them(self, port, leases, tmp_path):
        for path, _ in leases:
            port.open(path, os.O_RDONLY, key=path)
        with (tmp_path / "other").open("w+b", 0) as file, port.associate(file, "other") as handle:
            handle.write(b"content", 0)
            assert take_one(port).transferred == 7
            handle.fsync()
            assert take_one(port).key == "other"
            read = handle.read(100, 0)
            take_one(port)
            assert read.result() == b"content"
        for _, file in leases:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        close_results(take(port, len(leases)))

    def test_an_open_that_waits_in_the_kernel_is_cancelled(self, port, leases):
        path, file = leases[0]
        operation = port.open(path, os.O_RDONLY, key=path)
        assert port.get(0.05) is None
        assert operation.cancel()
        done = take_one(port)
        assert (done.key, done.overlapped) == (path, operation)
        assert isinstance(done.error, OperationAborted)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert_quiet(port)

    def test_a_port_that_is_closed_waits_for_none_of_them(self, port, leases):
        operations = [port.open(path, os.O_RDONLY) for path, _ in leases]
        assert port.get(0.05) is None
        Background(port.close).outcome()
        assert all(isinstance(operation.error, OperationAborted) for operation in operations)
        for _, file in leases:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


class TestTheEndOfAPort:
    def test_it_waits_for_what_the_pool_is_at_for_a_handle_that_was_closed_before(
        self, port, engine, tmp_path, monkeypatch
    ):
        if engine not in ("selectors", "iocp"):
            pytest.skip("there the slow file systems of test_slow_files.py show it")
        began, over = threading.Event(), threading.Event()

        def sync_slowly(descriptor, request):
            began.set()
            assert over.wait(LONG)

        monkeypatch.setitem(CALLS, Operation.FSYNC, sync_slowly)
        handle = port.associate(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT), "key")
        operation = handle.fsync()
        assert began.wait(LONG)
        handle.close()
        closer = Background(port.close)
        closer.join(1.3)  # longer than the kernel of Windows is given for what it has
        assert closer.is_alive()
        over.set()
        closer.outcome()
        assert isinstance(operation.error, OperationAborted)


class TestHowManyThreads:
    def test_one_operation_after_another_lets_nobody_be_added(self, make_port, tmp_path):
        """A thread may not be back when the next one comes: hence four, or some more."""
        port = make_port(pool_threads=64)
        (tmp_path / "file").write_bytes(bytes(4096))
        before = threads_of_pools()
        with (tmp_path / "file").open("rb") as file, port.associate(file, None) as handle:
            for number in range(200):
                handle.stat() if number % 2 else handle.read(100, 0)
                take_one(port)
            assert threads_of_pools() - before <= 8

    def test_what_is_in_the_page_cache_does_not_need_a_thread_for_each_read(
        self, make_port, tmp_path
    ):
        """Four, and one that watches whether the line stands still, as it may on a busy machine."""
        port = make_port(pool_threads=64)
        path = tmp_path / "file"
        path.write_bytes(bytes(1 << 20))
        before, most = threads_of_pools(), 0
        with path.open("rb") as file, port.associate(file, None) as handle:
            for index in range(64):
                handle.read(4096, index * 4096)
            for index in range(5000):
                done = take_one(port)
                handle.read(4096, index % 256 * 4096, done.overlapped)
                if index % 100 == 0:
                    most = max(most, threads_of_pools() - before)
            take(port, 64)
        assert most < 32

    def test_no_more_than_it_was_given(self, make_port):
        port = make_port(pool_threads=6)
        before = threads_of_pools()
        go, at_work = threading.Event(), threading.Semaphore(0)

        def wait():
            at_work.release()
            assert go.wait(LONG)

        for _ in range(10):
            port.submit(wait)
        for _ in range(6):
            assert at_work.acquire(timeout=LONG)
        assert not at_work.acquire(timeout=0.05)
        assert threads_of_pools() - before == 6
        go.set()
        assert [done.error for done in take(port, 10)] == [None] * 10
        assert threads_of_pools() - before <= 6

    @needs_waiting_opens
    def test_no_more_than_it_was_given_for_opens(self, make_port, fifos):
        port = make_port(pool_threads=6)
        before = threads_of_pools()
        for path in fifos[:10]:
            port.open(path, os.O_RDONLY)
        wait_until(lambda: threads_of_pools() - before == 6, "six threads wait in open()")
        writers = [Background(os.open, path, os.O_WRONLY) for path in fifos[:10]]
        close_results(take(port, 10))
        assert threads_of_pools() - before <= 6
        for writer in writers:
            os.close(writer.outcome())


@pytest.fixture
def stuck(make_port, fifos):
    """A port that is opening a named pipe whose other side comes at the end of the test."""
    port = make_port(pool_threads=2)
    operation = port.open(fifos[0], os.O_RDONLY, key="pipe")
    wait_until(somebody_waits_for_a_partner, "a thread of the pool waits in open()")
    yield port, operation
    # Open for both, which waits for nobody, lets the thread that was left behind go.
    os.close(os.open(fifos[0], os.O_RDWR))


@needs_waiting_opens
class TestNamedPipesWithoutAnOtherSide:
    def test_an_open_is_cancelled(self, stuck):
        port, operation = stuck
        assert operation.cancel()
        done = take_one(port)
        assert (done.key, done.overlapped) == ("pipe", operation)
        assert isinstance(done.error, OperationAborted)
        port.open(os.devnull, os.O_RDONLY, overlapped=operation)
        close_results(take(port, 1))
        assert_quiet(port)

    def test_the_port_closes_at_once(self, stuck):
        port, operation = stuck
        Background(port.close).outcome()
        assert not operation.pending

    def test_what_is_opened_too_late_is_closed(self, stuck, fifos):
        port, operation = stuck
        operation.cancel()
        take_one(port)
        # The thread that was left behind is the other side, until it closes what it has opened.
        writer = os.open(fifos[0], os.O_WRONLY)
        try:
            wait_until(lambda: reader_is_gone(writer), "the late descriptor is closed")
        finally:
            os.close(writer)

    def test_the_interpreter_ends(self, engine, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        script = f"""
            import os
            from completionport import CompletionPort
            port = CompletionPort(pool_threads=3)
            for _ in range(3):
                port.open({str(tmp_path / "fifo")!r}, os.O_RDONLY)
            print("end")
        """
        for way in ("", "port.close()", "del port", "os._exit(0)"):
            done = run_python(textwrap.dedent(script) + way, engine=engine, timeout=30)
            assert "Fatal" not in done.stderr

    def test_a_child_of_fork_ends(self, engine, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        script = f"""
            import os
            from completionport import CompletionPort
            with CompletionPort() as port:
                port.open({str(tmp_path / "fifo")!r}, os.O_RDONLY)
                child = os.fork()
                if child == 0:
                    os._exit(3)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        """
        run_python(textwrap.dedent(script), engine=engine, timeout=30)


def reader_is_gone(writer: int) -> bool:
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        return True
    return False
