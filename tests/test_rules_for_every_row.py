"""The seventeen rules of a port, for everything that a port takes, on every engine.

`rows` describes what there is; each test here is one rule for all of it. What a rule says of one
kind of operation alone (partial sends, the end of a stream) has tests of its own, which
docs/rules.md names.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from completionport import (
    CompletionPort,
    HandleClosed,
    OperationAborted,
    OperationPending,
    Overlapped,
    PortClosed,
)
from rows import ROWS, Row
from rows.base import KEY
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_idle,
    descriptors,
    raise_signal,
    run_python,
    wait_for_stats,
    wait_until,
)

SEED = int(os.environ.get("COMPLETIONPORT_SEED", random.randrange(2**32)))
OTHER_SIGNAL: int = signal.SIGINT if sys.platform == "win32" else signal.SIGUSR2
ROUNDS = int(os.environ.get("COMPLETIONPORT_ROUNDS", "8"))
"""How often a race is run."""

RULES: list[tuple[int, Callable[..., Any]]] = []
"""The number of the rule, and its test: for docs/rules.md."""


def rule(number: int) -> Callable[[Callable[..., Any]], Any]:
    """A test of one rule, for every row that it applies to."""

    def decorate(function: Callable[..., Any]) -> Any:
        RULES.append((number, function))
        name = function.__name__
        rows = [
            pytest.param(kind, id=kind.id, marks=marks(kind, name))
            for kind in ROWS.values()
            if name not in kind.without
        ]
        return pytest.mark.parametrize("kind", rows)(function)

    return decorate


def marks(kind: type[Row], name: str) -> list[pytest.MarkDecorator]:
    """Why the row does not have this rule on the system that this is."""
    reason = kind.why_not_on_windows(name) if WINDOWS else kind.not_on_unix
    return [pytest.mark.skip(reason=reason)] if reason else []


class Mine(Overlapped):
    """Per-I/O data of the program's."""


@pytest.fixture
def port(make_port):
    return make_port(8, pool_threads=1)


@pytest.fixture
def row(port, kind):
    with kind(port) as row:
        yield row


def assert_aborted(row, done, operation):
    assert done.key == KEY
    assert isinstance(done.error, OperationAborted)
    if row.has_overlapped:
        assert done.overlapped is operation
        assert not operation.pending
        with pytest.raises(OperationAborted):
            operation.result()


def assert_over(row, done, number=0):
    """It was aborted, or has its own result; what it brought is let go."""
    if done.error is None:
        assert row.value(done) == row.expected(number)
    else:
        assert isinstance(done.error, OperationAborted), done


def collected(reference):
    gc.collect()
    return reference() is None


# -- 1, 2: packets --------------------------------------------------------------------------------


@rule(1)
def test_each_gives_exactly_one_packet(row):
    """One packet for each operation"""
    operations = [row.start() for _ in range(row.several)]
    packets = row.carry_out(len(operations))
    assert all((done.key, done.error) == (KEY, None) for done in packets)
    if row.has_overlapped:
        assert {id(done.overlapped) for done in packets} == {id(one) for one in operations}
    values = [row.value(done) for done in packets]
    assert sorted(map(repr, values)) == sorted(
        repr(row.expected(number)) for number in range(len(operations))
    )
    row.check_end(len(operations))
    row.assert_quiet()


@rule(1)
def test_a_cancel_may_meet_the_end(port, kind):
    """A cancel that meets the completion gives one packet"""
    race(port, kind, lambda row, operation: row.cancel(operation))


@rule(1)
def test_a_close_may_meet_the_end(port, kind):
    """A `close()` of the handle that meets the completion gives one packet"""

    def close(row, operation):
        row.close()

    race(port, kind, close)


def race(port, kind, stop):
    """Two threads at the same time: one ends the operation its own way, the other stops it."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    for _ in range(ROUNDS):
        with kind(port) as row:
            operation = row.start()
            together = threading.Barrier(2)
            spins = [rng.randrange(400), rng.randrange(400)]

            def other(row=row, together=together, spin=spins[0]):
                together.wait(LONG)
                for _ in range(spin):
                    pass
                row.complete()

            thread = Background(other)
            together.wait(LONG)
            for _ in range(spins[1]):
                pass
            stopped = stop(row, operation)
            row.giving_up.set()
            thread.outcome()
            if row.cancel_gives_a_packet:
                [done] = row.take(1)
                assert_over(row, done)
                if row.has_overlapped:
                    assert done.overlapped is operation
            elif kind.id == "post_after" and not stopped:
                row.take(1)
            elif kind.id == "signal":
                done = port.get(0)
                assert done is None or done.key == KEY
            row.assert_quiet()


@rule(2)
def test_they_are_carried_out_in_order(row):
    """Carried out in the order in which they were posted"""
    operations = [row.start() for _ in range(10)]
    packets = row.carry_out(len(operations))
    if row.has_overlapped:
        place = {id(one): number for number, one in enumerate(operations)}
        packets.sort(key=lambda done: place[id(done.overlapped)])
    expected = [row.expected(number) for number in range(10)]
    assert [row.value(done) for done in packets] == expected
    row.check_end(10)
    row.assert_quiet()


# -- 6: cancel and close --------------------------------------------------------------------------


@rule(6)
def test_cancel_ends_it_with_one_packet(row):
    """`cancel()` gives one packet with `OperationAborted`, and others go on"""
    operation = row.start_for_good()
    if not (row.waits or row.stays):
        row.complete()
        row.cancel(operation)
        assert_over(row, *row.take(1))
    else:
        assert row.cancel(operation)
        if row.cancel_gives_a_packet:
            [done] = row.take(1)
            assert_aborted(row, done, operation)
            row.absorb(done)
        if row.id != "signal":  # whose close() tells nothing
            assert not row.cancel(operation)
        following = row.start()
        [done] = row.carry_out(1)
        assert done.error is None
        if row.has_overlapped:
            assert done.overlapped is following
        row.value(done)
    row.assert_quiet()


@rule(6)
def test_a_cancel_may_come_too_late(row):
    """`cancel()` of what has come to its end changes nothing"""
    operation = row.start()
    [done] = row.carry_out(1)
    assert not row.cancel(operation)
    assert row.value(done) == row.expected(0)
    row.assert_quiet()


@rule(6)
def test_a_handle_that_is_closed_ends_them(row):
    """The handle's `close()` gives each pending operation one packet with `OperationAborted`"""
    operations = [row.start() for _ in range(row.several)]
    row.close()
    packets = row.take(len(operations))
    for done in packets:
        assert done.key == KEY
        if row.waits:
            assert isinstance(done.error, OperationAborted)
        else:
            assert_over(row, done, operations.index(done.overlapped))
    if row.has_overlapped:
        assert {id(done.overlapped) for done in packets} == {id(one) for one in operations}
    assert all(handle.closed for handle in row.handles)
    row.assert_quiet()


@rule(6)
def test_a_file_may_be_closed_behind_the_ports_back(row):
    """The program closes the file itself, and its number is another file's by then"""
    operation = row.start()
    number = row.number()
    row.close_file()
    with row.another_under(number) as works:
        row.close()
        [done] = row.take(1)
        assert done.overlapped is operation
        if row.waits:
            assert_aborted(row, done, operation)
        else:
            assert_over(row, done)
        works()  # neither the operation nor the close() has touched it
    row.assert_quiet()


@rule(6)
def test_what_was_cancelled_leaves_its_object_and_its_followers_as_they_were(row):
    """What was cancelled gives its object back as new, and what stood behind it goes on"""
    mine = Mine()
    row.start(mine)
    following = [row.start() for _ in range(min(row.several, 2) - 1)] if row.waits else []
    if not row.waits:
        row.complete()
    assert row.cancel(mine) or not row.waits
    [done] = row.take(1)
    if row.waits:
        assert_aborted(row, done, mine)
        row.absorb(done)
    else:
        assert_over(row, done)
    for one in following:
        assert one.pending
        [done] = row.carry_out(1)
        assert (done.overlapped, done.error) == (one, None)
        row.value(done)
    # The same object once more.
    row.start(mine)
    assert mine.pending
    assert mine.error is None
    [done] = row.carry_out(1)
    assert (done.overlapped, done.error) == (mine, None)
    assert not mine.pending
    row.value(done)
    row.assert_quiet()


@rule(6)
def test_what_was_refused_leaves_its_object_as_it_was(port, row):
    """What a closed handle refuses, or what fails at once, gives its object back as new"""
    mine = Mine()
    row.start()
    row.close()
    assert_over(row, *row.take(1))
    handle = row.handles[0]
    kinds = [lambda: handle.read(4, overlapped=mine), lambda: handle.recv(4, overlapped=mine)]
    for call in kinds:
        with pytest.raises(HandleClosed):
            call()
        assert not mine.pending
        assert mine.error is None
        assert mine.transferred == 0
    assert not mine.cancel()
    row.release()  # the pool may be kept busy
    assert port.submit(len, b"abc", overlapped=mine) is mine
    [done] = row.take(1)
    assert (done.overlapped, mine.result()) == (mine, 3)
    row.assert_quiet()


# -- 7, 8: lifetime -------------------------------------------------------------------------------


@rule(7)
def test_what_is_dropped_lives_until_its_packet(row):
    """Dropped by the program, Overlapped and buffers live until the packet was taken"""
    mine = Mine()
    alive = weakref.ref(mine)
    row.start(mine)
    del mine
    row.handles.clear()
    row.handle = None
    gc.collect()
    assert alive() is not None
    [done] = row.carry_out(1)
    assert isinstance(done.overlapped, Mine)
    assert done.overlapped is alive()
    assert row.value(done) == row.expected(0)
    del done
    wait_until(lambda: collected(alive), "nothing has it any more", 5)


@rule(7)
def test_a_port_is_closed_with_it_under_way(engine, kind, nothing_left):
    """`port.close()` ends it, and nothing has its objects any more"""
    before = descriptors()
    port = CompletionPort(8, engine=engine, pool_threads=1)
    with kind(port) as row:
        mine, alive = begin(row)
        operation = mine if row.has_overlapped else None
        closer = Background(port.close)
        wait_until(lambda: port.closed)
        row.release()  # what the pool is at is waited for
        closer.outcome()
        if operation is not None:
            assert not operation.pending
            assert isinstance(operation.error, OperationAborted) or not row.waits
        del mine, operation
        row.forget()
        assert alive is None or collected(alive)
    gc.collect()
    assert descriptors() == before


@rule(7)
def test_a_port_is_dropped_with_it_under_way(engine, kind, nothing_left):
    """A port that is dropped without `close()` warns, and leaks nothing"""
    before = descriptors()
    held = [CompletionPort(8, engine=engine, pool_threads=1)]
    port_alive = weakref.ref(held[0])
    dropping = threading.Event()
    row = kind(held[0])
    with row.stack:
        mine, alive = begin(row)
        row.port = None
        asides, row.asides = row.asides, []

        def release():
            # What the pool is at is waited for.
            assert dropping.wait(LONG)
            if hasattr(row, "go"):
                row.go.set()

        helper = Background(release)
        dropping.set()
        with pytest.warns(ResourceWarning, match="CompletionPort"):
            drop(held)
        helper.outcome()
        assert port_alive() is None
        # On the engine in Python the end is not waited for, since finalizers bring it about.
        under_way = [*asides, mine] if row.has_overlapped else [*asides]
        wait_until(lambda: not any(one.pending for one in under_way), "all are over")
        under_way.clear()
        del mine, asides
        row.forget()
        wait_until(lambda: alive is None or collected(alive), "nothing has it any more", 5)
    gc.collect()
    assert descriptors() == before


def drop(held):
    held.clear()
    gc.collect()


def begin(row):
    """Start one that stays; the object that its packet would have, and a reference to it."""
    if not row.has_overlapped:
        return row.start_for_good(), None
    mine = Mine()
    row.start(mine)
    return mine, weakref.ref(mine)


@rule(8)
def test_a_thread_in_get_leaves_a_port_that_is_closed(port, row):
    """`port.close()` wakes each thread in `get()` with `PortClosed`"""
    row.start_for_good()
    if not (row.waits or row.stays):
        row.value(*row.carry_out(1))
    waiters = [Background(port.get) for _ in range(3)]
    wait_for_stats(port, waiting=3)
    closer = Background(port.close)
    for waiter in waiters:
        with pytest.raises(PortClosed):
            waiter.outcome()
    row.release()
    closer.outcome()


# -- 9, 10, 12: threads and signals ---------------------------------------------------------------


@rule(9)
def test_several_threads_take_each_packet_once(port, row):
    """Several threads in `get()` take each packet once"""
    taken: list[Any] = []  # append is one step

    def work():
        while (done := port.get(LONG)).key != "end":
            taken.append(done)

    workers = [Background(work) for _ in range(4)]
    wait_for_stats(port, waiting=4)
    operations = [row.start() for _ in range(row.several)]
    for _ in operations:
        row.complete()
    mine = {id(one) for one in row.asides}
    wait_until(lambda: len(taken) >= len(operations) + len(mine), "all have come")
    for _ in workers:
        port.post(key="end")
    for worker in workers:
        worker.outcome()
    packets = [done for done in taken if id(done.overlapped) not in mine]
    assert len(packets) == len(operations)
    values = sorted(repr(row.value(done)) for done in packets)
    assert values == sorted(repr(row.expected(number)) for number in range(len(packets)))
    row.assert_quiet()


@rule(9)
def test_polling_alone_completes_it(port, row):
    """`get(0)` looks without waiting, and is enough to complete it"""
    row.start()
    if row.waits:
        row.assert_nothing_comes()
    other = Background(row.complete)
    aside = {id(one) for one in row.asides}

    def poll():
        done = port.get(0)
        return None if done is None or id(done.overlapped) in aside else done

    done = wait_until(poll, "the packet")
    other.outcome()
    assert row.value(done) == row.expected(0)
    row.assert_quiet()


@rule(10)
def test_the_thread_that_began_it_may_end(row):
    """It completes although the thread that posted it has ended"""
    Background(row.start).outcome()
    [done] = row.carry_out(1)
    assert (done.key, done.error) == (KEY, None)
    assert row.value(done) == row.expected(0)
    row.assert_quiet()


@rule(11)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_files_in_any_mode_work_alike(row, blocking):
    """Files in blocking and non-blocking mode work alike, and keep their mode"""
    row.set_mode(blocking)
    for _ in range(2):
        row.start()
    packets = row.carry_out(2)
    values = sorted(repr(row.value(done)) for done in packets)
    assert values == sorted(repr(row.expected(number)) for number in range(2))
    assert row.mode() == blocking
    row.assert_quiet()


@rule(12)
def test_signals_interrupt_nothing(port, row):
    """Signals that interrupt system calls (EINTR) do not show"""
    handled: list[int] = []
    before = signal.signal(OTHER_SIGNAL, lambda *_: handled.append(1))
    try:
        row.start()
        done = (take_in_main_thread if WINDOWS else take_in_a_thread)(port, row, handled)
        assert row.value(done) == row.expected(0)
        row.assert_quiet()
    finally:
        signal.signal(OTHER_SIGNAL, before)


def take_in_a_thread(port, row, handled):
    waiter = Background(row.take, 1)
    wait_for_stats(port, waiting=1) if row.waits else None
    for count in itertools.count(1):
        if waiter.is_alive():
            signal.pthread_kill(waiter.ident, OTHER_SIGNAL)
        os.kill(os.getpid(), OTHER_SIGNAL)
        if count >= 10 and handled:
            break
    row.complete()
    [done] = waiter.outcome()
    return done


def take_in_main_thread(port, row, handled):
    """Windows interrupts no system call, and has no other thread notice a signal."""

    def interrupt():
        wait_for_stats(port, waiting=1) if row.waits else None
        for count in range(1, 4):
            raise_signal(OTHER_SIGNAL)
            wait_until(lambda: len(handled) >= count)  # noqa: B023
        row.complete()

    other = Background(interrupt)
    [done] = row.take(1)
    # Signals are handled meanwhile; in join() they are not.
    wait_until(lambda: not other.is_alive())
    other.outcome()
    return done


# -- 13, 14, 15: fork, idle, exit -----------------------------------------------------------------


@rule(13)
def test_a_child_of_fork_is_refused_and_the_parent_goes_on(engine, kind):
    """The child of a fork is refused, and the parent goes on"""
    done = run_python(
        f"""
        import os, signal, warnings
        warnings.simplefilter("ignore")
        from completionport import CompletionPort, PortForked
        from rows import ROWS

        def refused(call):
            try:
                call()
            except PortForked as error:
                assert "fork" in str(error), error
            else:
                raise AssertionError("it was not refused")

        port = CompletionPort(8, pool_threads=1)
        with ROWS["{kind.id}"](port) as row:
            operation = row.start()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    refused(row.start)
                    refused(lambda: port.get(0))
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            [done] = row.carry_out(1)
            assert row.value(done) == row.expected(0)
            row.assert_quiet()
        port.close()
        """,
        engine=engine,
    )
    assert done.stderr == ""


@rule(14)
def test_an_idle_port_uses_no_processor_time(port, row):
    """With it under way an idle port uses no processor time"""
    row.start_for_good()
    if not (row.waits or row.stays):
        row.value(*row.carry_out(1))
    assert_idle(0.2, most=0.05, wait=row.assert_nothing_comes)


@rule(15)
def test_the_interpreter_ends_with_it_under_way(engine, kind, tmp_path):
    """The interpreter ends with it under way and threads in `get()`"""
    done = run_python(
        f"""
        import tempfile
        import threading
        from completionport import CompletionPort
        from rows import ROWS, Row
        from support import wait_for_stats

        tempfile.tempdir = {str(tmp_path)!r}
        Row.open_at_exit = True
        port = CompletionPort(8, pool_threads=1)
        row = ROWS["{kind.id}"](port)
        operation = row.start_for_good()
        for _ in range(2):
            threading.Thread(target=port.get, daemon=True).start()
        if row.waits or row.stays:
            wait_for_stats(port, waiting=2)
        print("the end")
        """,
        engine=engine,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("the end\n", "")


# -- 16: what is refused --------------------------------------------------------------------------


@rule(16)
def test_wrong_arguments_raise_at_the_call(port, row):
    """Wrong arguments raise at the call, with a message that says what was expected"""
    row.start_for_good()
    assert row.wrong
    for call, error, text in row.wrong:
        with pytest.raises(error, match=text):
            call(row)
    if row.waits or row.stays:
        row.assert_nothing_comes()
        assert port.stats()["pending"] + port.stats()["timers"] <= 1 + len(row.asides) + 1
    else:
        row.value(*row.carry_out(1))


@rule(16)
def test_a_closed_handle_refuses(row):
    """A closed handle refuses"""
    row.start()
    row.close()
    assert_over(row, *row.take(1))
    with pytest.raises(HandleClosed, match="closed"):
        row.start_again()
    row.assert_quiet()


@rule(16)
def test_a_closed_port_refuses(engine, kind, nothing_left):
    """A closed port refuses"""
    port = CompletionPort(8, engine=engine, pool_threads=1)
    with kind(port) as row:
        row.release()
        port.close()
        with pytest.raises(PortClosed, match="closed"):
            row.start()


# -- Overlapped objects ---------------------------------------------------------------------------


@rule(16)
def test_an_object_that_is_pending_is_refused(row):
    """An Overlapped that is pending is refused"""
    mine = Mine()
    assert row.start(mine) is mine
    for _ in range(2):
        with pytest.raises(OperationPending, match="use"):
            row.start(mine)
    assert mine.pending
    [done] = row.carry_out(1)
    assert done.overlapped is mine
    row.value(done)
    row.assert_quiet()


@rule(7)
def test_one_object_can_be_used_again(row):
    """An Overlapped of a subclass is handed back, and can be used again"""
    mine = Mine()
    for number in range(3):
        row.start(mine)
        [done] = row.carry_out(1)
        assert done.overlapped is mine
        assert row.value(done) == row.expected(number)
    row.check_end(3)
    row.assert_quiet()


# -- 17: its turn comes ---------------------------------------------------------------------------


TURNS = 2000
"""Of other packets, so many may be taken at most once the kernel knows that it is over. An engine
looks after some sixty; the rest is for what ends a moment later, as a process does."""


class Storm:
    """Packets that never end: for each that is taken there is one more."""

    KEY = "the storm's key"

    def __init__(self, port: CompletionPort, kind: str) -> None:
        self.port = port
        self.another: Callable[[], Any] = getattr(self, kind)
        self.taken = 0
        self.near, self.far = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
        self.near.bind(("127.0.0.1", 0))
        self.near.setblocking(False)
        self.far.bind(("127.0.0.1", 0))
        self.far.sendto(b"it stays", self.near.getsockname())
        self.handle = port.associate(self.near, self.KEY)

    def post(self) -> None:
        self.port.post(0, self.KEY)

    def full_queue(self) -> None:
        """A hundred at the start; then always one for one."""
        for _ in range(1 if self.taken else 100):
            self.port.post(0, self.KEY)

    def timer(self) -> None:
        self.port.post_after(0, 0, self.KEY)

    def write(self) -> None:
        """Nobody reads it, and the system drops what is too much: there is always room."""
        self.handle.sendto(b"data", self.far.getsockname())

    def read(self) -> None:
        """A size of 0 takes nothing: there is always something to receive."""
        self.handle.recv(0)

    def __enter__(self) -> Storm:
        self.another()
        return self

    def is_mine(self, done: Any) -> bool:
        if done.key != self.KEY:
            return False
        self.taken += 1
        return True

    def end(self) -> None:
        """Take what is left of it."""
        self.handle.close()
        wait_until(lambda: self.port.get(0.02) is None, "the storm is over")

    def __exit__(self, *exc_info: object) -> None:
        self.handle.close()
        self.far.close()


@rule(17)
@pytest.mark.parametrize("storm", ["post", "full_queue", "timer", "write", "read"])
def test_its_turn_comes(port, row, storm):
    """While other packets keep coming it is heard of within a bounded number of them"""
    with Storm(port, storm) as others:
        row.start()
        other = Background(row.complete)
        aside = {id(one) for one in row.asides}
        end = time.monotonic() + LONG
        turns = 0
        while True:
            done = port.get(LONG)
            if others.is_mine(done):
                others.another()
                if other.is_alive():
                    assert time.monotonic() < end, "it does not go on"
                else:
                    turns += 1
                    assert turns < TURNS, "it is not heard of"
                    time.sleep(0.0002)
            elif id(done.overlapped) not in aside:
                break
        other.outcome()
        assert (done.key, done.error) == (KEY, None)
        assert row.value(done) == row.expected(0)
        others.end()
    row.assert_quiet()
