"""Signals that come while the main thread waits: their handlers run, and Ctrl-C ends the wait."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from completionport import win32
from support import LONG as SECONDS
from support import USER_SIGNAL, python_process, reset, send_signal, signal_main_thread
from win32_support import (
    LONG,
    Taker,
    differs_on_wine,
    is_in,
    pending,
    take,
    wait_until,
    waiting,
)

FUNCTIONS = {
    "GetQueuedCompletionStatus": win32.GetQueuedCompletionStatus,
    "GetQueuedCompletionStatusEx": win32.GetQueuedCompletionStatusEx,
    "WaitForSingleObject": win32.WaitForSingleObject,
    "WaitForMultipleObjects": win32.WaitForMultipleObjects,
    "GetOverlappedResult": win32.GetOverlappedResult,
    "WSAGetOverlappedResult": win32.WSAGetOverlappedResult,
}

SOON = 5.0
"""Seconds in which a signal is noticed, on a machine that has much else to do."""


class Wait:
    """A wait of the main thread without end, which the test can end in another way."""

    def __init__(self, name: str, port: win32.HANDLE, pair: Any, closing: Any) -> None:
        self.function = FUNCTIONS[name]
        self.name = name
        self.port = port
        self.near, self.far = pair
        self.event = closing(win32.CreateEvent(None, True, False, None))
        self.overlapped = win32.OVERLAPPED()
        if name.endswith("Result"):
            assert pending(win32.WSARecv(self.near, bytearray(10), 0, self.overlapped))

    def __call__(self) -> Any:
        if self.name == "GetQueuedCompletionStatus":
            return self.function(self.port, win32.INFINITE)
        if self.name == "GetQueuedCompletionStatusEx":
            return self.function(self.port, 5, win32.INFINITE)
        if self.name == "WaitForSingleObject":
            return self.function(self.event, win32.INFINITE)
        if self.name == "WaitForMultipleObjects":
            return self.function([self.event], False, win32.INFINITE)
        return self.function(self.near, self.overlapped, True)

    def end(self) -> None:
        """What the wait is for happens."""
        if "Queued" in self.name:
            win32.PostQueuedCompletionStatus(self.port, 7, "key", None)
        elif self.name.startswith("WaitFor"):
            win32.SetEvent(self.event)
        else:
            self.far.sendall(b"x" * 7)

    def expected(self) -> Any:
        return {
            "GetQueuedCompletionStatus": (True, 7, "key", None),
            "GetQueuedCompletionStatusEx": (True, [(("key"), None, 0, 7)]),
            "WaitForSingleObject": win32.WAIT_OBJECT_0,
            "WaitForMultipleObjects": win32.WAIT_OBJECT_0,
            "GetOverlappedResult": (True, 7),
            "WSAGetOverlappedResult": (True, 7),
        }[self.name]

    def is_under_way(self) -> bool:
        return is_in(threading.main_thread(), self.function)


@pytest.fixture(params=FUNCTIONS)
def wait(request, port, pair, closing):
    wait = Wait(request.param, port, pair, closing)
    # What was not noticed fails the test, and does not hang it.
    guard = threading.Timer(SECONDS, wait.end)
    guard.start()
    yield wait
    guard.cancel()
    guard.join()


@pytest.fixture
def while_waiting():
    """Does something in another thread once the main thread is in the call."""
    threads = []

    def start(wait, act):
        def run():
            wait_until(wait.is_under_way)
            act()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


@pytest.fixture
def handler():
    """Sets the handler of a signal until the end of the test."""
    before = []

    def set_handler(number, function):
        before.append((number, signal.signal(number, function)))

    yield set_handler
    for number, function in before:
        signal.signal(number, function)


INTERRUPTS = {
    "another thread got it": lambda: signal.raise_signal(signal.SIGINT),
    "sent": lambda: send_signal(signal.SIGINT),
}
if sys.platform == "win32":
    # Elsewhere this is the same as that another thread got one.
    INTERRUPTS["interrupt_main"] = _thread.interrupt_main


@pytest.mark.parametrize("how", INTERRUPTS)
def test_ctrl_c_ends_the_wait(wait, while_waiting, how):
    while_waiting(wait, INTERRUPTS[how])
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait()
    assert time.monotonic() - before < SOON


def test_the_wait_goes_on_when_a_handler_returns(wait, while_waiting, handler):
    seen = []

    def handle(*_):
        seen.append(len(seen))
        if len(seen) == 3:
            wait.end()
        else:
            threading.Thread(target=signal_main_thread, args=(USER_SIGNAL,)).start()

    handler(USER_SIGNAL, handle)
    while_waiting(wait, lambda: signal_main_thread(USER_SIGNAL))
    assert wait() == wait.expected()
    assert seen == [0, 1, 2]


def test_a_handler_may_wait_itself(wait, port, while_waiting, handler):
    inner = win32.CreateIoCompletionPort(win32.INVALID_HANDLE_VALUE, None, 0, 0)
    seen = []

    def handle(number, frame):
        if not seen:
            seen.append("outer")
            threading.Thread(target=signal_main_thread, args=(USER_SIGNAL,)).start()
            # The second signal ends this wait, and its handler gives what it waits for.
            seen.append(win32.GetQueuedCompletionStatus(inner, LONG)[1])
            threading.Thread(target=signal_main_thread, args=(USER_SIGNAL,)).start()
        elif len(seen) == 1:
            win32.PostQueuedCompletionStatus(inner, 5, None, None)
        else:
            wait.end()

    handler(USER_SIGNAL, handle)
    while_waiting(wait, lambda: signal_main_thread(USER_SIGNAL))
    try:
        assert wait() == wait.expected()
    finally:
        win32.CloseHandle(inner)
    assert seen == ["outer", 5]


@pytest.mark.parametrize("call", ["GetQueuedCompletionStatus", "WaitForSingleObject"])
def test_the_time_of_a_wait_is_not_begun_anew(port, closing, while_waiting, handler, call):
    event = closing(win32.CreateEvent(None, True, False, None))
    times = []

    def handle(*_):
        times.append(time.monotonic())

    def signals():
        for _ in range(4):
            over.wait(0.1)
            signal.raise_signal(USER_SIGNAL)

    handler(USER_SIGNAL, handle)
    over = threading.Event()
    thread = threading.Thread(target=signals)
    before = time.monotonic()
    thread.start()
    if call == "WaitForSingleObject":
        assert win32.WaitForSingleObject(event, 600) == win32.WAIT_TIMEOUT
    else:
        assert win32.GetQueuedCompletionStatus(port, 600) == (False, None, None, None)
        assert win32.GetLastError() == win32.WAIT_TIMEOUT
    after = time.monotonic()
    over.set()
    thread.join()
    assert after - before >= 0.6 - 0.017  # Windows may end a wait by one tick early
    # Windows' answer to the last one is at once; elsewhere the main thread may come to it late.
    assert times
    assert after - times[0] < SOON


@differs_on_wine("serves the thread first that came first")
def test_a_main_thread_that_waits_long_is_served_behind_one_that_came_later(make_port):
    """It waits in no slices, or goes back to its place behind each."""
    port = make_port(2)
    later, came = [], threading.Event()

    def come_later():
        wait_until(lambda: is_in(threading.main_thread(), win32.GetQueuedCompletionStatus))
        waiting(port, 1)
        later.append(Taker(port))
        waiting(port, 2)
        came.wait(1.2)  # longer than a slice of the main thread, which is a second on Linux
        win32.PostQueuedCompletionStatus(port, 1, None, None)
        wait_until(lambda: came.is_set() or later[0].packet)
        win32.PostQueuedCompletionStatus(port, 2, None, None)

    thread = threading.Thread(target=come_later)
    thread.start()
    packet = take(port)
    came.set()
    thread.join()
    assert (later[0].outcome().bytes, packet.bytes) == (1, 2)


@contextlib.contextmanager
def wakeup_descriptor(kind: str) -> Iterator[tuple[int, Callable[[], bytes], Callable[[], None]]]:
    """One for `signal.set_wakeup_fd`, what reads at its other end, and what closes that."""
    with contextlib.ExitStack() as stack:
        if kind == "none":
            yield -1, bytes, lambda: None
        elif kind == "socket":
            near, far = socket.socketpair()
            stack.enter_context(near)
            stack.enter_context(far)
            near.setblocking(False)
            yield near.fileno(), lambda: far.recv(65536), lambda: reset(far)
        else:
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
            left = [reading]
            stack.callback(lambda: left and os.close(left.pop()))
            yield writing, lambda: os.read(reading, 65536), lambda: os.close(left.pop())


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere the engines wait, in slices")
class TestWithoutSlices:
    """On Windows the main thread is in the kernel until a packet comes, or a signal."""

    @pytest.fixture
    def calls(self, monkeypatch):
        from completionport.windows import alerts

        seen = []
        wait = alerts.wait

        def count(function, *arguments):
            seen.append(function.__name__)
            return wait(function, *arguments)

        monkeypatch.setattr(alerts, "wait", count)
        return seen

    def test_a_wait_is_one_call_of_windows(self, port, calls):
        assert win32.GetQueuedCompletionStatus(port, 300) == (False, None, None, None)
        assert calls == ["GetQueuedCompletionStatusEx"]

    def test_what_is_there_is_taken_without_preparation(self, port, calls):
        win32.PostQueuedCompletionStatus(port, 1, None, None)
        assert take(port).bytes == 1
        assert win32.GetQueuedCompletionStatus(port, 0) == (False, None, None, None)
        assert calls == []

    def test_other_threads_need_no_preparation(self, port, calls):
        taker = Taker(port)
        win32.PostQueuedCompletionStatus(port, 1, None, None)
        assert taker.outcome().bytes == 1
        assert calls == []

    def test_an_alertable_wait_tells_of_the_signal(self, port, handler):
        seen = []
        handler(USER_SIGNAL, lambda *_: seen.append("handled"))
        timer = threading.Timer(0.05, signal.raise_signal, (USER_SIGNAL,))
        timer.start()
        assert win32.GetQueuedCompletionStatusEx(port, 5, LONG, True) == (False, [])
        assert win32.GetLastError() == 192  # WAIT_IO_COMPLETION
        timer.join()
        assert seen == ["handled"]

    @pytest.mark.parametrize("kind", ["socket", "file"])
    def test_a_descriptor_of_the_programs_own_hears_of_the_signal_too(self, port, handler, kind):
        handler(USER_SIGNAL, lambda *_: win32.PostQueuedCompletionStatus(port, 1, None, None))
        if kind == "socket":
            near, far = socket.socketpair()
            near.setblocking(False)
            number, read = near.fileno(), lambda: far.recv(10)
        else:
            reading, number = os.pipe()
            read = lambda: os.read(reading, 10)  # noqa: E731
        before = signal.set_wakeup_fd(number)
        try:
            timer = threading.Timer(0.05, signal.raise_signal, (USER_SIGNAL,))
            timer.start()
            assert take(port).bytes == 1
            timer.join()
            assert read() == bytes([USER_SIGNAL])
        finally:
            assert signal.set_wakeup_fd(before) == number
            if kind == "socket":
                near.close()
                far.close()
            else:
                os.close(reading)
                os.close(number)

    @pytest.mark.parametrize("kind", ["socket", "file"])
    def test_a_descriptor_of_the_programs_own_whose_reader_has_gone_is_only_told(
        self, port, handler, kind, monkeypatch
    ):
        handler(USER_SIGNAL, lambda *_: win32.PostQueuedCompletionStatus(port, 1, None, None))
        told = []
        monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(str(args.exc_value)))
        with wakeup_descriptor(kind) as (number, _, leave):
            leave()
            before = signal.set_wakeup_fd(number)
            try:
                timer = threading.Timer(0.05, signal.raise_signal, (USER_SIGNAL,))
                timer.start()
                assert take(port).bytes == 1
                timer.join()
            finally:
                assert signal.set_wakeup_fd(before) == number
        [text] = told
        assert f"descriptor {number} " in text
        assert "set_wakeup_fd" in text

    @pytest.mark.parametrize("old", ["none", "socket", "file"])
    @pytest.mark.parametrize("new", ["none", "socket", "file"])
    def test_a_descriptor_that_a_handler_sets_stays(self, port, handler, old, new):
        with wakeup_descriptor(old) as (first, *_), wakeup_descriptor(new) as (second, read, _):

            def change(*_):
                if not win32.PostQueuedCompletionStatus(port, 1, None, None):
                    raise AssertionError("the port takes no packets")
                before.append(signal.set_wakeup_fd(second))

            handler(USER_SIGNAL, change)
            before = []
            signal.set_wakeup_fd(first)
            try:
                timer = threading.Timer(0.05, signal.raise_signal, (USER_SIGNAL,))
                timer.start()
                assert take(port).bytes == 1
                timer.join()
                assert len(before) == 1
                # It hears of the next one, in a wait and outside of one.
                handler(USER_SIGNAL, lambda *_: None)
                timer = threading.Timer(0.05, signal.raise_signal, (USER_SIGNAL,))
                timer.start()
                assert win32.GetQueuedCompletionStatus(port, 300) == (False, None, None, None)
                timer.join()
            finally:
                assert signal.set_wakeup_fd(-1) == second
            if second != -1:
                assert set(read()) == {USER_SIGNAL}

    @pytest.mark.parametrize("kind", ["none", "socket", "file"])
    def test_a_wait_changes_the_descriptor_within_its_kind(self, port, kind, monkeypatch):
        """Python looks at its number and at its kind one after the other, and without the GIL."""
        from completionport.windows import alerts, api

        with wakeup_descriptor(kind) as (number, *_):
            signal.set_wakeup_fd(number)
            try:
                # The first wait learns of what kind the program's own is.
                assert win32.GetQueuedCompletionStatus(port, 1) == (False, None, None, None)
                seen = []

                def change(number, **options):
                    seen.append(number)
                    return change_really(number, **options)

                change_really = signal.set_wakeup_fd
                monkeypatch.setattr(signal, "set_wakeup_fd", change)
                monkeypatch.setattr(alerts, "_put_back", change)
                assert win32.GetQueuedCompletionStatus(port, 1) == (False, None, None, None)
                monkeypatch.undo()
            finally:
                assert signal.set_wakeup_fd(-1) == number
            ours, last = seen
            assert last == number
            assert api.is_socket(ours) == (kind == "socket")

    @pytest.mark.parametrize("kind", ["none", "socket", "file"])
    def test_a_wait_ends_in_time_however_many_signals_come(self, port, handler, kind, monkeypatch):
        told: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", told.append)
        handler(USER_SIGNAL, lambda *_: None)
        over = threading.Event()

        def raise_signals():
            while not over.is_set():
                signal.raise_signal(USER_SIGNAL)

        def read_all():
            while b"\xff" not in read():
                pass

        with wakeup_descriptor(kind) as (number, read, _):
            signal.set_wakeup_fd(number, warn_on_full_buffer=False)
            threads = [threading.Thread(target=raise_signals)]
            if kind == "file":
                threads.append(threading.Thread(target=read_all))  # Python waits for a full one
            for thread in threads:
                thread.start()
            try:
                for _ in range(100):
                    assert win32.GetQueuedCompletionStatus(port, 1) == (False, None, None, None)
            finally:
                over.set()
                threads[0].join()
                assert signal.set_wakeup_fd(-1) == number
                if kind == "file":
                    os.write(number, b"\xff")
                    threads[1].join()
        assert [str(args.exc_value) for args in told] == []

    def test_no_packet_is_lost_to_a_handler_that_raises(self, port, handler):
        """The kernel has given it to the thread, and nobody has looked at it yet."""
        from completionport.win32.windows import waits
        from completionport.windows import alerts

        class Interrupted(Exception):
            pass

        codes = [alerts.Alerts.wait.__code__, alerts.wait.__code__, waits._wait.__code__]

        def handle(number, frame):
            if frame is not None and frame.f_code in codes:
                raise Interrupted

        def post():
            for number in range(100):
                wait_until(lambda: is_in(threading.main_thread(), alerts.Alerts.wait))
                win32.PostQueuedCompletionStatus(port, number, None, None)
                signal.raise_signal(USER_SIGNAL)

        handler(USER_SIGNAL, handle)
        poster = threading.Thread(target=post)
        poster.start()
        seen, interruptions = set(), 0
        while len(seen) < 100:
            try:
                seen.add(take(port).bytes)
            except Interrupted:
                interruptions += 1
        poster.join()
        assert seen == set(range(100))
        assert interruptions

    def test_the_programs_descriptor_is_put_back_when_a_handler_raises(self, port):
        assert signal.set_wakeup_fd(-1) == -1
        timer = threading.Timer(0.05, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            win32.GetQueuedCompletionStatus(port, LONG)
        timer.join()
        assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ctrl_c_from_the_console_ends_a_program_that_waits(system, name):
    script = f"""
        import threading
        from completionport.win32 import *
        from win32.win32_support import connected_pair

        port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 0)
        event = CreateEvent(NULL, TRUE, FALSE, NULL)
        near, far = connected_pair()
        overlapped = OVERLAPPED()
        WSARecv(near, bytearray(10), 0, overlapped)
        wait = {{
            "GetQueuedCompletionStatus": lambda: GetQueuedCompletionStatus(port, INFINITE),
            "GetQueuedCompletionStatusEx": lambda: GetQueuedCompletionStatusEx(port, 5, INFINITE),
            "WaitForSingleObject": lambda: WaitForSingleObject(event, INFINITE),
            "WaitForMultipleObjects": lambda: WaitForMultipleObjects([event], TRUE, INFINITE),
            "GetOverlappedResult": lambda: GetOverlappedResult(near, overlapped, TRUE),
            "WSAGetOverlappedResult": lambda: WSAGetOverlappedResult(near, overlapped, TRUE),
        }}["{name}"]
        print("ready", flush=True)
        try:
            wait()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    engine = None if system == "windows" else system
    with python_process(script, engine=engine) as process:
        assert process.stdout.readline() == "ready\n"
        send_signal(signal.SIGINT, process.pid)
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output, errors) == (0, "interrupted\n", "")
