"""Timers of the engines in Python: a heap by time, and packets for those that are due.

Setting and cancelling one takes no lock, since finalizers may do it too: each is one step of an
atomic container, and whoever has the scheduler's lock carries it over into the heap.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from ...interface.timer import Timer
from .places import Packet

LEAST_SWEPT = 64
"""So many cancelled timers may stay in the heap; beyond that, as many as there are others."""


class Clock(Protocol):
    """A scheduler, as its timers see it."""

    timers: TimerQueue

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""


class PortableTimer(Timer):
    """It fires or is cancelled: whoever pops its packet does it."""

    __slots__ = ("_packet", "_scheduler", "_when_ns")

    def __init__(self, scheduler: Clock, when_ns: int, packet: Packet) -> None:
        self._scheduler = scheduler
        self._packet = [packet]
        self._when_ns = when_ns

    @property
    def when(self) -> float:
        return self._when_ns / 1e9

    @property
    def pending(self) -> bool:
        return bool(self._packet)

    def cancel(self) -> bool:
        self._scheduler.check_fork()
        stopped = self._end() is not None
        if stopped:
            self._scheduler.timers.note_cancelled()
        return stopped

    def _end(self) -> Packet | None:
        """Its packet, for the first one who asks."""
        try:
            return self._packet.pop()
        except IndexError:
            return None

    def _ending(self) -> Iterator[Packet]:
        """What takes its packet in one step, or raises `IndexError`."""
        return map(self._packet.pop, (-1,))

    def __repr__(self) -> str:
        state = "pending" if self.pending else "over"
        return f"<Timer at {self.when:.6f}, {state}>"


class TimerQueue:
    """The timers of one scheduler. Under the scheduler's lock, but for what says otherwise."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, PortableTimer]] = []
        self._new: deque[PortableTimer] = deque()  # not in the heap yet; no lock
        self._cancelled: deque[None] = deque()  # one for each that is still in the heap; no lock
        # Of the heap: written under the lock before a look at `_new`, read by `add` after it has
        # put a timer there. So either `add` sees it, or the timer is seen.
        self._first_ns: int | None = None
        self._sequence = 0  # those of equal time go in the order in which they were set

    def __bool__(self) -> bool:
        """Whether there may be a timer; no lock."""
        return bool(self._heap or self._new)

    def __len__(self) -> int:
        """How many are pending; no lock, so about."""
        return max(len(self._heap) + len(self._new) - len(self._cancelled), 0)

    def add(self, timer: PortableTimer) -> bool:
        """Take a new one in; no lock. Never blocks. True when threads may have to know of it."""
        self._new.append(timer)
        first_ns = self._first_ns
        return first_ns is None or timer._when_ns < first_ns

    def note_cancelled(self) -> None:
        """One more of those in the heap is cancelled; no lock. Never blocks."""
        self._cancelled.append(None)

    def next_ns(self) -> int | None:
        """When the next one is due, None without one."""
        while True:
            self._carry_over()
            while self._heap and not self._heap[0][2].pending:
                if self._heap and not self._heap[0][2]._packet:
                    heapq.heappop(self._heap)
                self._forget_cancelled()
            self._first_ns = self._heap[0][0] if self._heap else None
            if not self._new:
                return self._first_ns

    def fire(self, now_ns: int, packets: deque[Packet]) -> bool:
        """Append the packets of those that are due; False without one."""
        self._carry_over()
        fired = False
        while self._heap and self._heap[0][0] <= now_ns:
            timer = self._heap[0][2]
            step = timer._ending()
            try:
                packets += step
                fired = True
            except IndexError:
                self._forget_cancelled()
            if self._heap and self._heap[0][2] is timer:
                heapq.heappop(self._heap)
        self.next_ns()
        return fired

    def drop(self) -> None:
        """Let go of all: the port is closed."""
        self._carry_over()
        heap, self._heap = self._heap, []
        self._cancelled.clear()
        self._first_ns = None
        for _, _, timer in heap:
            timer._end()

    def _forget_cancelled(self) -> None:
        with contextlib.suppress(IndexError):
            self._cancelled.pop()

    def _carry_over(self) -> None:
        while self._new:
            timer = self._new[0]
            entry = (timer._when_ns, self._sequence, timer)
            self._sequence += 1
            # In the heap a second time it would be over by then.
            heapq.heappush(self._heap, entry)
            if self._new and self._new[0] is timer:
                self._new.popleft()
        if len(self._cancelled) > max(len(self._heap) // 2, LEAST_SWEPT):
            # Counted before: what is cancelled meanwhile may be seen in the heap and counted again,
            # which is made up for when the heap is empty.
            self._cancelled.clear()
            self._heap = [entry for entry in self._heap if entry[2].pending]
            heapq.heapify(self._heap)
        if not self._heap:
            self._cancelled.clear()
