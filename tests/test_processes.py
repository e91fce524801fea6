"""Processes on a port: one packet when one ends, with its status, and nothing is left of it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from completionport import (
    CompletionPort,
    HandleClosed,
    Operation,
    OperationAborted,
    PortClosed,
    Strand,
)
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    make_output,
    needs_fork,
    run_python,
    take,
    take_one,
    wait_until,
)

pytestmark = pytest.mark.skipif(
    not (WINDOWS or hasattr(os, "pidfd_open")), reason="this system has no pidfd_open(2)"
)
if WINDOWS:
    import windows_support
    from completionport.windows import api

needs_pidfd = pytest.mark.skipif(WINDOWS, reason="Windows waits for a process by its handle")

SHELL = ["cmd", "/c"] if WINDOWS else ["/bin/sh", "-c"]
KILLED = 1 if WINDOWS else -signal.SIGKILL
"""The status of a process that `Popen.kill` has ended; `TerminateProcess` is given it."""


def start(status=0):
    return subprocess.Popen([*SHELL, f"exit {status}"])


@pytest.fixture
def endless(nothing_left):
    """A process that ends when it is killed."""
    # Both read until the end of what comes.
    command = ["cmd", "/c", "set /p line="] if WINDOWS else ["/bin/cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def is_gone(pid):
    """Whether nothing is left of a process. Windows keeps what a handle is open of."""
    if WINDOWS:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_packet_carries_the_status(port, status):
    process = start(status)
    handle = port.associate(process, "key")
    done = take_one(port)
    assert (done.transferred, done.key, done.error) == (status, "key", None)
    assert done.overlapped.result() == status
    assert done.overlapped.operation is Operation.PROCESS
    assert done.overlapped.handle is handle
    assert process.returncode == status
    assert is_gone(process.pid)
    assert_quiet(port)


def test_a_process_that_is_killed_has_the_status_of_that(port, endless):
    handle = port.associate(endless, "key")
    assert handle.file is endless
    assert port.get(0) is None
    endless.kill()
    assert take_one(port).transferred == KILLED
    assert endless.returncode == KILLED


def test_a_process_that_has_ended_before_gives_its_packet_at_once(port):
    process = start(3)
    if WINDOWS:
        assert api.WaitForSingleObject(int(process._handle), 20_000) == 0
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    port.associate(process, "zombie")
    assert take_one(port).transferred == 3
    assert is_gone(process.pid)


def test_a_process_that_was_waited_for_gives_its_packet_at_once(port):
    process = start(4)
    assert process.wait() == 4
    port.associate(process, "over")
    done = take_one(port)
    assert (done.transferred, done.key) == (4, "over")
    assert_quiet(port)


@needs_pidfd
def test_a_status_that_something_else_took_is_popens_zero(port):
    process = start(5)
    os.waitpid(process.pid, 0)
    port.associate(process, "lost")
    assert take_one(port).transferred == 0
    assert process.returncode == 0


def test_the_program_may_wait_for_it_as_well(port):
    for _ in range(20):
        process = start(6)
        waiting = Background(process.wait, LONG)
        port.associate(process, "key")
        assert take_one(port).transferred == 6
        assert waiting.outcome() == 6


def test_many_processes_end_with_a_packet_each(port):
    processes = {number: start(number) for number in range(20)}
    for number, process in processes.items():
        port.associate(process, number)
    packets = take(port, 20)
    assert {done.key: done.transferred for done in packets} == {n: n for n in range(20)}
    assert_quiet(port)


def test_several_ports_and_handles_may_watch_one_process(make_port, endless):
    one, other = make_port(), make_port()
    one.associate(endless, 1)
    one.associate(endless, 2)
    other.associate(endless, 3)
    endless.kill()
    assert sorted(done.key for done in take(one, 2)) == [1, 2]
    assert take_one(other).transferred == KILLED


def test_close_ends_the_watch_and_not_the_process(port, endless):
    handle = port.associate(endless, "key")
    handle.close()
    done = take_one(port)
    assert (done.key, done.overlapped.handle) == ("key", handle)
    assert isinstance(done.error, OperationAborted)
    assert endless.poll() is None
    assert handle.closed
    assert handle.fileno() == -1
    handle.close()
    assert_quiet(port)


def test_cancel_ends_the_watch(port, endless):
    handle = port.associate(endless, "key")
    assert handle.cancel() == 1
    done = take_one(port)
    assert isinstance(done.error, OperationAborted)
    assert not done.overlapped.cancel()
    assert handle.cancel() == 0
    with pytest.raises(OperationAborted):
        done.overlapped.result()


def test_its_overlapped_cancels_it_too(port, endless):
    handle = port.associate(endless, "key")
    handle.close()
    overlapped = take_one(port).overlapped
    again = port.associate(endless, "again")
    assert not overlapped.cancel()
    assert again.cancel(overlapped) == 0
    assert again.cancel() == 1
    assert take_one(port).key == "again"


def test_a_close_and_an_end_at_the_same_time_give_one_packet(port):
    for _ in range(30):
        process = start(0)
        handle = port.associate(process, "key")
        closing = Background(handle.close)
        done = take_one(port)
        closing.outcome()
        assert done.error is None or isinstance(done.error, OperationAborted)
        assert process.wait() == 0
        assert_quiet(port)


def test_what_the_program_drops_is_kept_until_the_packet(port):
    process = start(9)
    seen = weakref.ref(process)
    handle = weakref.ref(port.associate(process, "key"))
    del process
    gc.collect()
    assert seen() is not None
    assert handle() is not None
    done = take_one(port)
    assert done.transferred == 9
    del done
    gc.collect()
    assert seen() is None
    assert handle() is None


@pytest.mark.skipif(not WINDOWS, reason="elsewhere each test looks after what is left")
def test_a_watch_leaves_no_handle_behind(port, endless):
    def watch_often():
        for _ in range(50):
            port.associate(endless, "cancelled").cancel()
            port.associate(endless, "closed").close()
            process = start(0)
            port.associate(process, "ended")
            take(port, 3)
            process.wait()
        del process
        gc.collect()

    watch_often()  # what the system has once for all it has by then
    before = windows_support.handle_count()
    watch_often()
    assert windows_support.handle_count() < before + 25


def test_the_thread_that_associated_it_may_end(port, endless):
    Background(port.associate, endless, "key").outcome()
    endless.kill()
    assert take_one(port).transferred == KILLED


def test_the_packet_is_bound_to_its_strand(make_port):
    port = make_port(4)
    strand = Strand(port)
    for number in range(2):
        port.associate(start(number), number, strand=strand)
    first = take_one(port)
    waiting = Background(port.get, LONG)
    wait_until(lambda: strand.queued == 1)
    strand.release()
    assert {first.key, waiting.outcome().key} == {0, 1}


def test_a_closed_port_takes_no_process(make_port, endless):
    port = make_port()
    handle = port.associate(endless, "key")
    port.close()
    assert handle.closed
    assert endless.poll() is None
    with pytest.raises(PortClosed):
        port.associate(endless, "key")


def test_a_process_has_no_data(port, endless):
    handle = port.associate(endless, "key")
    for call in (
        lambda: handle.read(10),
        lambda: handle.write(b"x"),
        lambda: handle.recv(10),
        lambda: handle.allocate(0, 1),
        handle.fsync,
        handle.stat,
        handle.accept,
        handle.fsync,
        handle.stat,
        lambda: handle.allocate(0, 1),
        handle.read_changes,
    ):
        with pytest.raises(OSError, match="only be waited for") as raised:
            call()
        assert raised.value.errno == errno.EOPNOTSUPP
    handle.close()
    take_one(port)


@needs_pidfd
def test_without_pidfds_the_call_says_so(port, endless, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(OSError, match=r"pidfd_open\(2\)") as raised:
        port.associate(endless, "key")
    assert raised.value.errno == errno.ENOSYS


def test_its_output_and_its_end_come_through_one_port(port):
    command = [sys.executable, "-c", "print('out', flush=True); raise SystemExit(2)"]
    with make_output() as (reader, writer), subprocess.Popen(command, stdout=writer) as process:
        output = port.associate(reader, "output")
        port.associate(process, "end")
        output.read(100)
        seen = {done.key: done for done in take(port, 2)}
        assert seen["output"].overlapped.result().split() == [b"out"]
        assert seen["end"].transferred == 2
        output.close()
    with pytest.raises(HandleClosed):
        output.read(1)


def test_threads_that_take_see_each_process_once(make_port):
    port = make_port(3)
    over = threading.Event()

    def collect():
        seen = []
        while (done := port.get(LONG)).key != "stop":
            assert done.error is None
            seen.append((done.key, done.transferred))
        return seen

    takers = [Background(collect) for _ in range(3)]
    processes = [start(number % 4) for number in range(40)]
    for number, process in enumerate(processes):
        port.associate(process, number)
    wait_until(lambda: all(process.returncode is not None for process in processes))
    over.set()
    for _ in takers:
        port.post(key="stop")
    seen = [entry for taker in takers for entry in taker.outcome()]
    assert sorted(seen) == [(number, number % 4) for number in range(40)]


@needs_fork
def test_a_child_of_fork_can_not_use_the_handle(engine):
    done = run_python(
        """
import os, subprocess, warnings
warnings.simplefilter("ignore")
from completionport import CompletionPort, PortForked

port = CompletionPort()
process = subprocess.Popen(["/bin/sh", "-c", "read x; exit 3"], stdin=subprocess.PIPE)
handle = port.associate(process, "key")
child = os.fork()
if child == 0:
    status = 0
    for call in (handle.cancel, lambda: port.associate(process, "key")):
        try:
            call()
            status = 1
        except PortForked:
            pass
    os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
process.stdin.close()
done = port.get(20)
assert (done.key, done.transferred) == ("key", 3), done
port.close()
""",
        engine=engine,
        timeout=60,
    )
    assert done.stderr == ""


def test_a_port_that_is_dropped_leaves_the_process_alone(engine, endless):
    import warnings

    port = CompletionPort(engine=engine)
    port.associate(endless, "key")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del port
        gc.collect()
    assert endless.poll() is None
