"""The port's pool of threads, for what would block the caller; ``native/offload.pyx`` is its twin.

The threads are not the program's: they never wait for packets, so they count for nobody's
concurrency.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

IDLE = 5.0
"""Seconds after which a thread without work ends."""


class Offload:
    """Threads that are started when there is work, and end when there is none for a while."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Guards everything below. Reentrant, because finalizers may come here at any allocation;
        # never held over work.
        self._changed = threading.Condition(threading.RLock())
        self._line: deque[Callable[[], bool]] = deque()
        self._threads = 0
        self._idle = 0  # threads that wait, and those that were called and are not back
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return self._threads

    def start(self, work: Callable[[], bool]) -> None:
        """Have a thread do the work, or `RuntimeError` if none can be had.

        The work does not raise, and says whether its thread was left behind meanwhile.
        """
        with self._changed:
            self._line.append(work)
            # Those that were called and are not back yet have something in line each.
            if len(self._line) <= self._idle or self._threads >= self.limit:
                self._changed.notify()
                return
            self._threads += 1
            try:
                threading.Thread(target=self._run, name="cp-offload", daemon=True).start()
            except BaseException:
                self._threads -= 1
                if not self._threads and work in self._line:
                    self._line.remove(work)
                    raise

    def cancel(self, work: Callable[[], bool]) -> bool:
        """Take work out of the line; False when a thread has it already."""
        with self._changed:
            try:
                self._line.remove(work)
            except ValueError:
                return False
            return True

    def leave_behind(self) -> None:
        """A thread counts no more, whose work will say so when it is done."""
        with self._changed:
            self._threads -= 1
            if len(self._line) > self._idle and self._threads < self.limit:
                self._threads += 1
                try:
                    threading.Thread(target=self._run, name="cp-offload", daemon=True).start()
                except RuntimeError:
                    self._threads -= 1

    def close(self) -> None:
        """Dismiss the threads, which end in their own time. Nothing is in line any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                timed_out = False
                while not self._line:
                    if self._closed or timed_out:
                        self._threads -= 1
                        return
                    self._idle += 1
                    try:
                        timed_out = not self._changed.wait(IDLE)
                    finally:
                        self._idle -= 1
                work = self._line.popleft()
            if work():
                return  # it was left behind, and counts no more
            del work
