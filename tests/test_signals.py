"""Signals on a port: a packet for each one that arrives, and the handler before is put back."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import warnings
import weakref

import pytest

from completionport import CompletionPort, PortClosed, SignalWatch, Strand
from support import (
    LONG,
    STOP_SIGNALS,
    USER_SIGNAL,
    WINDOWS,
    Background,
    assert_quiet,
    needs_fork,
    python_process,
    raise_signal,
    run_python,
    signal_main_thread,
    stop_process,
    take,
    take_one,
    wait_until,
)

SIGNAL = USER_SIGNAL
OTHER = signal.SIGINT if WINDOWS else signal.SIGUSR2


class Thing:
    """Something that can be weakly referenced."""


@pytest.fixture(autouse=True)
def handlers():
    """Each test begins and ends with the handlers that it found."""
    numbers = (SIGNAL, OTHER, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    after = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number=SIGNAL):
    if WINDOWS:
        signal_main_thread(number)
    else:
        os.kill(os.getpid(), number)


def test_a_signal_gives_a_packet(port):
    with port.associate_signal(SIGNAL, "key") as watch:
        assert isinstance(watch, SignalWatch)
        send()
        done = take_one(port)
        assert tuple(done) == (SIGNAL, "key", None, None)
        assert (watch.key, watch.signum, watch.port) == ("key", SIGNAL, port)
        assert not watch.closed
        assert_quiet(port)
    assert watch.closed


def test_each_signal_gives_a_packet_and_they_keep_their_order(port):
    with port.associate_signal(SIGNAL, 1), port.associate_signal(OTHER, 2):
        for number in [SIGNAL, OTHER, OTHER, SIGNAL] * 10:
            send(number)
        seen = [done.key for done in take(port, 40)]
    assert seen == [1, 2, 2, 1] * 10


def test_the_main_thread_may_wait_in_get(port):
    with port.associate_signal(SIGNAL, "key"):
        pause = threading.Timer(0.05, send)
        pause.start()
        assert take_one(port).key == "key"
        pause.join()


def test_the_main_thread_may_wait_for_something_else(port):
    with port.associate_signal(SIGNAL, "key"):
        taker = Background(port.get, LONG)
        # One for the process may be taken by the thread in `get`, whose wait io_uring interrupts.
        sender = Background(raise_signal, SIGNAL)
        assert taker.outcome().key == "key"
        sender.outcome()


def test_sigint_raises_no_keyboard_interrupt_meanwhile(port):
    with port.associate_signal(signal.SIGINT, "key"):
        send(signal.SIGINT)
        assert take_one(port).transferred == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_after_close_the_handler_before_is_there_again(port):
    seen = []
    before = signal.signal(SIGNAL, lambda *_: seen.append("before"))
    try:
        watch = port.associate_signal(SIGNAL, "key")
        send()
        take_one(port)
        assert seen == []
        watch.close()
        watch.close()
        send()
        assert seen == ["before"]
        assert_quiet(port)
    finally:
        signal.signal(SIGNAL, before)


def test_a_watch_that_another_thread_has_closed_gives_way_to_the_handler_before(port):
    seen = []
    before = signal.signal(SIGNAL, lambda *_: seen.append("before"))
    try:
        watch = port.associate_signal(SIGNAL, "key")
        Background(watch.close).outcome()
        assert watch.closed
        send()
        assert seen == ["before"]
        send()
        assert seen == ["before", "before"]
        assert_quiet(port)
    finally:
        signal.signal(SIGNAL, before)


def test_a_handler_that_the_program_sets_meanwhile_stays(port):
    seen = []
    before = signal.getsignal(SIGNAL)
    try:
        watch = port.associate_signal(SIGNAL, "key")
        own = lambda *_: seen.append("own")  # noqa: E731
        signal.signal(SIGNAL, own)
        send()
        assert seen == ["own"]
        watch.close()
        assert signal.getsignal(SIGNAL) is own
        with port.associate_signal(SIGNAL, "again"):
            send()
            assert take_one(port).key == "again"
        assert signal.getsignal(SIGNAL) is own
    finally:
        signal.signal(SIGNAL, before)


def test_several_watches_get_a_packet_each(make_port):
    one, other = make_port(), make_port()
    with one.associate_signal(SIGNAL, 1), one.associate_signal(SIGNAL, 2):
        with other.associate_signal(SIGNAL, 3):
            send()
            assert [done.key for done in take(one, 2)] == [1, 2]
            assert take_one(other).key == 3
        send()
        assert [done.key for done in take(one, 2)] == [1, 2]
        assert_quiet(other)


def test_a_closed_port_gets_nothing_and_the_others_still_do(make_port):
    one, other = make_port(), make_port()
    first = one.associate_signal(SIGNAL, 1)
    with other.associate_signal(SIGNAL, 2):
        one.close()
        assert first.closed
        send()
        assert take_one(other).key == 2
    with pytest.raises(PortClosed):
        one.associate_signal(SIGNAL, 1)


def test_with_its_port_closed_a_signal_is_left_to_the_handler_before(make_port):
    seen = []
    before = signal.signal(SIGNAL, lambda *_: seen.append("before"))
    try:
        port = make_port()
        port.associate_signal(SIGNAL, 1)
        port.close()
        send()
        assert seen == ["before"]
    finally:
        signal.signal(SIGNAL, before)


def test_a_watch_keeps_no_port_alive(engine):
    port = CompletionPort(engine=engine)
    watch = port.associate_signal(SIGNAL, "key")
    seen = weakref.ref(port)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del port
        gc.collect()
    assert seen() is None
    assert watch.port is None
    assert watch.closed
    watch.close()


def test_a_watch_that_is_dropped_stays_in_force(port):
    thing = Thing()
    seen = weakref.ref(thing)
    port.associate_signal(SIGNAL, thing)
    del thing
    gc.collect()
    send()
    done = take_one(port)
    assert done.key is seen()
    port.close()
    del done
    with CompletionPort() as other:
        # Whoever comes next clears up what closed ports have left.
        other.associate_signal(SIGNAL, None).close()
    gc.collect()
    assert seen() is None


def test_the_packets_are_bound_to_the_strand(make_port):
    port = make_port(4)
    strand = Strand(port)
    with port.associate_signal(SIGNAL, "key", strand=strand):
        send()
        send()
        take_one(port)
        wait_until(lambda: strand.queued == 1)
        strand.release()
        take_one(port)


def test_only_the_main_thread_may_begin(port):
    with pytest.raises(RuntimeError, match="main thread"):
        Background(port.associate_signal, SIGNAL, "key").outcome()


@pytest.mark.parametrize("value", ["SIGUSR1", None, 1.5, True])
def test_what_is_no_number_is_refused(port, value):
    with pytest.raises(TypeError, match="signum"):
        port.associate_signal(value, "key")


@pytest.mark.parametrize("value", [-1, 0, 1000])
def test_what_is_no_signal_is_refused(port, value):
    with pytest.raises(ValueError, match="signum"):
        port.associate_signal(value, "key")


@pytest.mark.skipif(WINDOWS, reason="Windows has no signal that can't be caught")
def test_a_signal_that_can_not_be_caught_is_refused(port):
    for number in (signal.SIGKILL, signal.SIGSTOP):
        with pytest.raises(OSError, match=f"{number.name} can't be caught") as raised:
            port.associate_signal(number, "key")
        assert raised.value.errno == errno.EINVAL


@pytest.mark.skipif(not WINDOWS, reason="each signal can come here")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV"])
def test_a_signal_that_windows_never_sends_is_refused(port, name):
    with pytest.raises(ValueError, match=f"no {name} ever comes from outside"):
        port.associate_signal(getattr(signal, name), "key")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_another_process_sends_comes_as_a_packet(engine, number):
    script = f"""
        from completionport import CompletionPort
        with CompletionPort() as port, port.associate_signal({int(number)}, "key"):
            print("ready", flush=True)
            done = port.get(20)
            print(done.transferred, done.key, flush=True)
    """
    with python_process(script, engine=engine) as process:
        assert process.stdout.readline() == "ready\n"
        stop_process(process, number)
        assert process.communicate(timeout=LONG) == (f"{int(number)} key\n", "")
    assert process.returncode == 0


def test_closing_while_signals_arrive_loses_no_handler(port):
    for _ in range(50):
        watch = port.associate_signal(SIGNAL, "key")
        send()
        closing = Background(watch.close)
        take_one(port)
        closing.outcome()
        watch.close()
        # From another thread it may have been closed without the handler put back.
        port.associate_signal(SIGNAL, "key").close()


def test_without_a_handler_before_the_signal_does_what_it_does_by_default(engine):
    done = run_python(
        """
import os, signal, threading
from completionport import CompletionPort

number = int(os.environ["NUMBER"])
port = CompletionPort()
watch = port.associate_signal(number, "key")
signal.raise_signal(number)
assert port.get(20).key == "key"
thread = threading.Thread(target=watch.close)
thread.start()
thread.join()
port.close()
print("now", flush=True)
signal.raise_signal(number)
while True:
    pass
""",
        engine=engine,
        timeout=60,
        status=3 if WINDOWS else -SIGNAL,  # what the C library of Windows ends with
        NUMBER=str(int(SIGNAL)),
    )
    assert done.stdout == "now\n"


@needs_fork
def test_the_child_of_a_fork_is_refused(engine):
    run_python(
        """
        import os, signal, warnings
        from completionport import CompletionPort, PortForked
        warnings.simplefilter("ignore")
        port = CompletionPort()
        child = os.fork()
        if child == 0:
            try:
                port.associate_signal(signal.SIGUSR1, "key")
            except PortForked:
                os._exit(0 if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        port.close()
        """,
        engine=engine,
    )


@needs_fork
def test_the_child_of_a_fork_treats_the_signal_as_before(engine):
    done = run_python(
        """
import os, signal, warnings
warnings.simplefilter("ignore")
from completionport import CompletionPort

seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append("before"))
port = CompletionPort()
watch = port.associate_signal(signal.SIGUSR1, "key")
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGUSR1)
    ok = seen == ["before"]
    with CompletionPort() as own, own.associate_signal(signal.SIGUSR1, "own"):
        os.kill(os.getpid(), signal.SIGUSR1)
        ok = ok and own.get(20).key == "own"
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert port.get(0) is None
os.kill(os.getpid(), signal.SIGUSR1)
assert port.get(20).key == "key"
watch.close()
port.close()
""",
        engine=engine,
        timeout=60,
    )
    assert done.stderr == ""
