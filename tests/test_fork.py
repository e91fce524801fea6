"""A child made by fork() can't use its parent's port, and does it no harm (rule 13)."""

from __future__ import annotations

import sys

import pytest

from support import needs_fork, run_python

pytestmark = needs_fork

PRELUDE = """
import os, socket, sys, threading, time, warnings
warnings.simplefilter("ignore")  # fork() with threads running is what is tested here
from completionport import CompletionPort, OperationAborted, Overlapped, PortForked
from support import (
    Background, assert_quiet, take, take_one, local_pair, wait_for_stats, wait_until
)

def in_child(work, leave=os._exit):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        leave(0)
    return child

def wait(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"

def refused(call):
    try:
        result = call()
    except PortForked as error:
        assert "fork" in str(error) and "new CompletionPort" in str(error)
    else:
        raise AssertionError(f"{call} gave {result!r}")

near, far = local_pair()
port = CompletionPort(8)
handle = port.associate(near, "key")
"""


def run(engine, script):
    done = run_python(PRELUDE + script, engine=engine, timeout=60)
    assert done.stderr == ""


def test_every_use_of_the_port_in_the_child_raises(engine):
    run(
        engine,
        """
other, _peer = local_pair()

def child():
    refused(port.get)
    refused(lambda: port.get(0))
    refused(lambda: port.get(1))
    refused(lambda: port.get_many(5))
    refused(lambda: port.post(1))
    refused(lambda: port.associate(other, "key"))

wait(in_child(child))
""",
    )


def test_every_operation_in_the_child_raises(engine):
    run(
        engine,
        """
operation = handle.recv(10)
listener = port.associate(socket.create_server(("127.0.0.1", 0)), "listener")
unconnected = port.associate(socket.socket(), "unconnected")

def child():
    refused(lambda: handle.recv(10))
    refused(lambda: handle.send(b"x"))
    refused(lambda: handle.read(10))
    refused(lambda: handle.write(b"x"))
    refused(lambda: handle.disconnect())
    refused(lambda: listener.accept())
    refused(lambda: unconnected.connect(("127.0.0.1", 1)))
    refused(lambda: handle.cancel(operation))
    refused(lambda: handle.cancel())
    refused(lambda: operation.cancel())

wait(in_child(child))
assert operation.pending
far.sendall(b"hello")
assert take_one(port).overlapped is operation
assert operation.result() == b"hello"
assert_quiet(port)
""",
    )


def test_the_parent_goes_on(engine):
    run(
        engine,
        """
operation = handle.recv(10)
big = handle.send(b"x" * 4_000_000)
port.post("queued")
children = [in_child(lambda: refused(port.get)) for _ in range(5)]
for child in children:
    wait(child)
assert take_one(port).transferred == "queued"
assert operation.pending and big.pending
far.sendall(b"hello")
received = Background(lambda: sum(len(far.recv(100000)) for _ in iter(lambda: big.pending, False)))
packets = {done.overlapped: done for done in take(port, 2)}
assert packets[operation].error is None and operation.result() == b"hello"
assert packets[big].transferred == 4_000_000
far.close()
""".replace(
            "received = Background(lambda: sum(len(far.recv(100000)) "
            "for _ in iter(lambda: big.pending, False)))",
            "from support import read_exactly\nreceived = Background(read_exactly, far, 4_000_000)",
        ),
    )


def test_threads_that_wait_in_the_parent_go_on(engine):
    run(
        engine,
        """
handle.recv(10)
threads = [Background(port.get) for _ in range(4)]
wait_for_stats(port, waiting=4)
for _ in range(3):
    wait(in_child(lambda: refused(port.get)))
assert port.stats()["waiting"] == 4
far.sendall(b"hello")
for _ in range(3):
    port.post("packet")
assert sorted(str(thread.outcome().key) for thread in threads) == ["None"] * 3 + ["key"]
""",
    )


def test_a_child_that_drops_and_closes_everything_harms_nobody(engine):
    run(
        engine,
        """
import gc
operation = handle.recv(10)

def drop():
    global port, handle, operation
    del port, handle, operation
    gc.collect()

def close():
    for call in (handle.close, port.close):
        try:
            call()
        except PortForked:
            pass

def leave_context():
    try:
        with port:
            pass
    except PortForked:
        pass

for work in (drop, close, leave_context):
    wait(in_child(work))
assert not port.closed and not handle.closed and operation.pending
far.sendall(b"hello")
assert take_one(port).overlapped is operation
assert operation.result() == b"hello"
handle.recv(10)
far.sendall(b"again")
assert take_one(port).overlapped.result() == b"again"
""",
    )


def test_a_child_that_exits_in_the_usual_way_harms_nobody(engine):
    run(
        engine,
        """
operation = handle.recv(10)
for _ in range(3):
    child = os.fork()
    if child == 0:
        sys.exit(0)
    wait(child)
assert operation.pending
far.sendall(b"hello")
assert take_one(port).overlapped is operation
handle.close()
port.close()
""",
    )


def test_the_child_can_make_a_port_of_its_own(engine):
    run(
        engine,
        """
handle.recv(10)

def child():
    one, two = local_pair()
    with CompletionPort(2) as mine, mine.associate(one, "child") as connection:
        connection.recv(10)
        two.sendall(b"hello")
        assert take_one(mine).overlapped.result() == b"hello"
        waiter = Background(mine.get)
        wait_for_stats(mine, waiting=1)
        mine.post("posted")
        assert waiter.outcome().transferred == "posted"
    two.close()

wait(in_child(child))
""",
    )


def test_the_child_can_use_the_socket_in_a_port_of_its_own(engine):
    run(
        engine,
        """
def child():
    with CompletionPort() as mine:
        connection = mine.associate(near, "child")
        connection.recv(10)
        far.sendall(b"hello")
        assert take_one(mine).overlapped.result() == b"hello"

wait(in_child(child))
handle.recv(10)
far.sendall(b"parent")
assert take_one(port).overlapped.result() == b"parent"
""",
    )


def test_a_closed_handle_really_closes_although_a_child_was_forked(engine):
    run(
        engine,
        """
reading, writing = os.pipe()
operation = handle.recv(10)

def child():
    os.close(writing)
    os.read(reading, 1)

pid = in_child(child)
handle.close()
assert isinstance(take_one(port).error, OperationAborted)
assert_quiet(port)
os.close(writing)
wait(pid)
assert far.recv(10) == b""
""",
    )


def test_forks_while_threads_are_busy(engine):
    run(
        engine,
        """
stop = threading.Event()
taken = 0

def churn():
    global taken
    while not stop.is_set():
        port.post("churn")
        handle.send(b"x")
        handle.recv(1)
        far.send(far.recv(1))
        for _ in range(3):
            port.get()
        taken += 3

thread = Background(churn)
wait_until(lambda: taken > 30)
for _ in range(15):
    wait(in_child(lambda: (refused(lambda: port.post(1)), refused(lambda: port.get(0)))))
before = taken
wait_until(lambda: taken > before + 30)
stop.set()
thread.outcome()
assert_quiet(port)
""",
    )


def test_multiprocessing_with_fork_works(engine):
    run(
        engine,
        """
import multiprocessing
context = multiprocessing.get_context("fork")
operation = handle.recv(10)
with context.Pool(2) as pool:
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
far.sendall(b"hello")
assert take_one(port).overlapped is operation
""",
    )


def test_the_thread_that_forked_hears_of_signals_as_the_childs_main_thread(engine):
    """It waits a second at a time: a signal that another thread gets does not end its wait."""
    if engine == "selectors" and sys.version_info >= (3, 13):
        pytest.skip("in such a child CPython 3.13 runs no handler but where C code asks for it")
    run(
        engine,
        """
import signal

class Told(Exception):
    pass

def handle(signum, frame):
    raise Told

def child():
    assert threading.current_thread() is threading.main_thread()
    own = CompletionPort()
    signal.signal(signal.SIGUSR1, handle)

    def tell():
        wait_for_stats(own, waiting=1)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    teller = Background(tell)
    began = time.monotonic()
    try:
        own.get(20)
    except Told:
        pass
    # At the end of the wait it would be told in any case.
    assert time.monotonic() - began < 15, "the signal did not end the wait"
    teller.outcome()
    own.close()

Background(lambda: wait(in_child(child))).outcome(30)
""",
    )
