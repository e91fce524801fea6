"""Packets that are posted, and the threads that take them."""

from __future__ import annotations

import threading
import time

import pytest

from completionport import win32
from win32_support import (
    LONG,
    SHORT,
    Packet,
    Taker,
    assert_quiet,
    differs_on_wine,
    take,
    wait_until,
    waiting,
)


def test_what_is_posted_comes_out_unchanged(port):
    key, overlapped = object(), win32.OVERLAPPED()
    assert win32.PostQueuedCompletionStatus(port, 0xFFFFFFFF, key, overlapped)
    ok, count, taken_key, taken = win32.GetQueuedCompletionStatus(port, 0)
    assert (ok, count) == (True, 0xFFFFFFFF)
    assert taken_key is key
    assert taken is overlapped


@pytest.mark.parametrize("value", [None, 0, 5, "text", (1, 2)])
def test_any_object_can_be_key_and_overlapped(port, value):
    assert win32.PostQueuedCompletionStatus(port, 0, value, value)
    assert win32.GetQueuedCompletionStatus(port, 0) == (True, 0, value, value)


def test_a_subclass_of_overlapped_comes_back_as_itself(port):
    class PerIoData(win32.OVERLAPPED):
        def __init__(self, number):
            self.number = number

    data = PerIoData(7)
    win32.PostQueuedCompletionStatus(port, 1, None, data)
    taken = win32.CONTAINING_RECORD(take(port).overlapped, PerIoData, "overlapped")
    assert taken is data
    assert taken.number == 7


@pytest.mark.parametrize("milliseconds", [0, 30])
def test_at_the_timeout_there_are_four_nothings_and_an_error(port, milliseconds):
    before = time.monotonic()
    assert win32.GetQueuedCompletionStatus(port, milliseconds) == (False, None, None, None)
    assert win32.GetLastError() == win32.WAIT_TIMEOUT
    # Windows counts in ticks of up to 16 ms, and may end a wait by one tick early.
    assert time.monotonic() - before >= (milliseconds - 17) / 1000


def test_at_the_timeout_there_are_no_entries(port):
    assert win32.GetQueuedCompletionStatusEx(port, 5, 0) == (False, [])
    assert win32.GetLastError() == win32.WAIT_TIMEOUT


def test_packets_come_first_in_first_out(port):
    for number in range(100):
        assert win32.PostQueuedCompletionStatus(port, number, None, None)
    assert [take(port).bytes for _ in range(100)] == list(range(100))
    assert_quiet(port)


def test_several_packets_at_once(port):
    for number in range(5):
        win32.PostQueuedCompletionStatus(port, number, f"key {number}", None)
    ok, entries = win32.GetQueuedCompletionStatusEx(port, 3, LONG)
    assert ok
    assert [entry.dwNumberOfBytesTransferred for entry in entries] == [0, 1, 2]
    assert [entry.lpCompletionKey for entry in entries] == ["key 0", "key 1", "key 2"]
    ok, entries = win32.GetQueuedCompletionStatusEx(port, 100, LONG)
    assert [entry.dwNumberOfBytesTransferred for entry in entries] == [3, 4]
    assert entries[0].Internal == 0


def test_a_packet_wakes_a_thread_that_waits(port):
    taker = Taker(port)
    assert win32.PostQueuedCompletionStatus(port, 3, "key", None)
    assert taker.outcome() == Packet(True, 3, "key", None, 0)


@differs_on_wine("serves the thread first that came first")
def test_the_thread_that_came_last_is_served_first(make_port):
    port = make_port(2)
    first = Taker(port)
    waiting(port, 1)
    second = Taker(port)
    waiting(port, 2)
    win32.PostQueuedCompletionStatus(port, 1, None, None)
    wait_until(lambda: first.packet or second.packet)
    win32.PostQueuedCompletionStatus(port, 2, None, None)
    assert (second.outcome().bytes, first.outcome().bytes) == (1, 2)


@differs_on_wine("serves the thread first that came first, if it comes to run first", always=False)
def test_of_three_packets_two_go_to_those_who_wait_and_one_stays(make_port):
    port = make_port(2)
    first = Taker(port)
    waiting(port, 1)
    second = Taker(port)
    waiting(port, 2)
    for number in (1, 2, 3):
        win32.PostQueuedCompletionStatus(port, number, None, None)
    assert (second.outcome().bytes, first.outcome().bytes) == (1, 2)
    assert take(port).bytes == 3


@differs_on_wine("does not enforce the number of concurrent threads")
def test_no_more_threads_run_than_the_port_allows(make_port):
    port = make_port(1)
    other_ran = threading.Event()
    seen = []

    def compute():
        take(port)
        end = time.monotonic() + 0.3
        while time.monotonic() < end and not other_ran.is_set():
            pass  # in the processor: a thread that blocked would be replaced
        seen.append(other_ran.is_set())
        win32.GetQueuedCompletionStatus(port, 0)

    def other():
        take(port)
        other_ran.set()

    threads = [threading.Thread(target=other), threading.Thread(target=compute)]
    threads[0].start()
    waiting(port, 1)
    threads[1].start()
    waiting(port, 2)
    win32.PostQueuedCompletionStatus(port, 1, None, None)
    win32.PostQueuedCompletionStatus(port, 2, None, None)
    threads[1].join(LONG / 1000)
    win32.PostQueuedCompletionStatus(port, 3, None, None)
    threads[0].join(LONG / 1000)
    assert seen == [False]


@differs_on_wine("such a thread waits on until its timeout")
@pytest.mark.parametrize("several", [False, True])
def test_a_thread_that_waits_gets_error_abandoned_when_the_port_is_closed(port, several):
    answers = []

    def wait():
        if several:
            answer = win32.GetQueuedCompletionStatusEx(port, 5, 3000)
        else:
            answer = win32.GetQueuedCompletionStatus(port, 3000)
        answers.append((answer, win32.GetLastError()))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting(port, 2)
    assert win32.CloseHandle(port)
    for thread in threads:
        thread.join(LONG / 1000)
    nothing = (False, []) if several else (False, None, None, None)
    assert answers == [(nothing, win32.ERROR_ABANDONED_WAIT_0)] * 2


def test_a_closed_port_is_an_invalid_handle(port, pair):
    assert win32.CloseHandle(port)
    for call in (
        lambda: win32.GetQueuedCompletionStatus(port, 0)[0],
        lambda: win32.GetQueuedCompletionStatusEx(port, 1, 0)[0],
        lambda: win32.PostQueuedCompletionStatus(port, 0, None, None),
        lambda: win32.CreateIoCompletionPort(pair[0], port, None, 0),
        lambda: win32.CloseHandle(port),
    ):
        win32.SetLastError(0)
        assert not call()
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE


def test_the_last_error_is_the_threads_own(port):
    win32.SetLastError(1234)
    seen = []

    def elsewhere():
        seen.append(win32.GetLastError())
        win32.GetQueuedCompletionStatus(port, 0)
        seen.append(win32.GetLastError())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [0, win32.WAIT_TIMEOUT]
    assert win32.GetLastError() == win32.WSAGetLastError() == 1234


def test_a_success_leaves_the_last_error_alone(port):
    win32.SetLastError(1234)
    win32.PostQueuedCompletionStatus(port, 0, None, None)
    win32.GetQueuedCompletionStatus(port, 0)
    assert win32.GetLastError() == 1234


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1, None, None), ValueError),
        ((2**32, None, None), ValueError),
        (("3", None, None), TypeError),
    ],
)
def test_a_number_of_bytes_is_a_dword(port, arguments, error):
    with pytest.raises(error, match="dwNumberOfBytesTransferred"):
        win32.PostQueuedCompletionStatus(port, *arguments)
    assert_quiet(port)


def test_what_is_no_handle_is_refused(port):
    for call in (
        lambda: win32.GetQueuedCompletionStatus(5, 0),
        lambda: win32.PostQueuedCompletionStatus(None, 0, None, None),
        lambda: win32.CreateIoCompletionPort(5, port, None, 0),
        lambda: win32.CloseHandle(5),
    ):
        with pytest.raises(TypeError, match="HANDLE"):
            call()
    with pytest.raises(ValueError, match="dwMilliseconds"):
        win32.GetQueuedCompletionStatus(port, -1)


def test_many_threads_take_each_packet_once(make_port):
    port = make_port()
    count, taken = 2000, []

    def work():
        while (packet := take(port)).key != "end":
            taken.append(packet.bytes)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(count):
        win32.PostQueuedCompletionStatus(port, number, None, None)
    for _ in threads:
        win32.PostQueuedCompletionStatus(port, 0, "end", None)
    for thread in threads:
        thread.join(LONG / 1000)
    assert sorted(taken) == list(range(count))
    assert win32.GetQueuedCompletionStatus(port, SHORT)[0] is False
