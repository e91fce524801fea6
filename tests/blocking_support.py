"""What tests of threads that block, and of waking threads, need besides `support`."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from support import Background, compute_until, wait_for_stats, wait_until

GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
STOP = object()


@contextlib.contextmanager
def serving():
    """Threads that call a function with each packet, until the end."""
    with contextlib.ExitStack() as stack:

        def make(port, target, count):
            def work():
                while (done := port.get()).transferred is not STOP:
                    target(done)

            threads = [Background(work) for _ in range(count)]

            def end():
                for _ in threads:
                    port.post(STOP)
                for thread in threads:
                    thread.outcome()

            stack.callback(end)
            wait_for_stats(port, waiting=count)

        yield make


class Counter:
    """How many threads are in a piece of code, now and at most."""

    def __init__(self):
        self.lock = threading.Lock()  # guards the numbers
        self.now = self.most = self.ended = 0

    def __enter__(self):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc_info):
        with self.lock:
            self.now -= 1
            self.ended += 1


def some(port, *names):
    numbers = port.stats()
    return tuple(numbers[name] for name in names)


def taker_in_time(port, *timeout):
    """A thread that takes a packet, and a list: it begins once there is something in that.

    For a thread that holds a packet: it would be replaced while it waits for a thread to start.
    """
    began = []
    return Background(lambda: wait_until(lambda: began) and port.get(*timeout)), began


def compute_for_stats(port, **expected):
    """As `wait_for_stats`, for a thread that holds a place and must not seem to block."""
    compute_until(lambda: some(port, *expected) == tuple(expected.values()))


def compute(seconds):
    """Use the processor for so long, and look at nothing else."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))
