"""The packet queue, the threads that wait for packets, and their places.

Nothing here knows how operations are carried out: a `Reaper` waits in the kernel.

Finalizers call in here as well (a dropped port or handle, the end of a thread, a program's
own ``__del__`` that posts). They may run at any allocation, so also inside a critical section
of the same thread. Whatever they need therefore never blocks: it notes what is wanted in an
atomic container, and whoever holds the lock sees to it on the way out.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from ..errors import PortClosed, PortForked
from .overlapped import Completion
from .requests import Request

Packet: TypeAlias = Request | Completion
"""A complete operation, or what was posted."""

LONGEST_WAIT = 86400.0
"""Seconds; longer waits are cut in pieces, as the system calls have limits of their own."""

_generation = 0  # counts the forks behind this process; written in the child's only thread


def _after_fork() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Reaper(Protocol):
    """What waits in the kernel for the scheduler."""

    def wait(self, timeout: float | None) -> Any:
        """Wait for events, at most ``timeout`` seconds. One thread at a time does that."""

    def reap(self, events: Any) -> None:
        """Turn what `wait` gave into packets; by the same thread."""

    def wake(self) -> None:
        """Make `wait` return, also when it begins only after this call. Never blocks."""

    def dispose(self) -> None:
        """Let everything go; nobody waits any more."""


class Chores:
    """Work to be done under a lock by whoever can have it: now, or when its holder lets go.

    Every holder of the lock calls `run` once it has released it.
    """

    __slots__ = ("_lock", "_work")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._work: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._work)

    def add(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        self.run()

    def run(self) -> None:
        while self._work and self._lock.acquire(False):
            try:
                while self._work:
                    self._work.popleft()()
            finally:
                self._lock.release()


class _Waiter:
    """One thread in `Scheduler.take`."""

    __slots__ = ("called", "gate")

    def __init__(self) -> None:
        self.called = False  # it was asked to look at the queue; guarded by the scheduler's lock
        self.gate = threading.Lock()  # held while the thread is to stay parked
        self.gate.acquire()


class _Place:
    """The place that one thread holds; belongs to that thread alone."""

    __slots__ = ("holder",)

    def __init__(self) -> None:
        self.holder: weakref.ref[Scheduler] | None = None

    def let_go(self, asking: Scheduler | None = None) -> bool:
        """Give the place back. True, and nothing done, when it is the asking scheduler's own."""
        if self.holder is None:
            return False
        scheduler = self.holder()
        self.holder = None
        if scheduler is not None and scheduler is asking:
            return True
        if scheduler is not None and not scheduler.forked:
            scheduler.place_returned()
        return False

    def __del__(self) -> None:
        # The thread ends.
        self.let_go()


class _Places(threading.local):
    def __init__(self) -> None:
        self.mine = _Place()


_places = _Places()


class Scheduler:
    """First in, first out for packets; last in, first out for threads."""

    def __init__(self, concurrency: int, reaper: Reaper) -> None:
        self.concurrency = concurrency
        self.taken_operations = 0  # packets of operations so far; _lock
        self.taken_posts = 0  # other packets so far; _lock
        self._reaper = reaper
        self._birth = _generation
        self._lock = threading.Lock()
        self._packets: deque[Packet] = deque()  # appended to without a lock, taken from under _lock
        self._returned: deque[None] = deque()  # places given back and not yet counted; no lock
        self._unsettled = False  # something was noted since `_dispatch` last looked; no lock
        self._running = 0  # threads that hold a place; _lock
        self._waiters: list[_Waiter] = []  # the last one came last; _lock
        self._leader: _Waiter | None = None  # the one that waits in the kernel; _lock
        self._asleep = False  # the leader is (or is about to be) in `Reaper.wait`; set under _lock
        self._roused = False  # and was woken already; set under _lock
        self._disposed = False  # _lock
        self._closed = False  # never goes back; no lock
        self._ending = False  # nothing is under way any more; never goes back; no lock
        self._self = weakref.ref(self)

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that the scheduler belongs to."""
        return self._birth != _generation

    @property
    def closed(self) -> bool:
        return self._closed

    def check(self) -> None:
        """Raise `PortForked` or `PortClosed` where one of them is due."""
        if self._birth != _generation:
            raise PortForked
        if self._closed:
            raise PortClosed("the completion port is closed")

    def put(self, packet: Packet) -> None:
        """Append a packet, and wake a thread for it if need be. Never blocks."""
        self._packets.append(packet)
        self._unsettled = True
        self.settle()

    def place_returned(self) -> None:
        """A thread gave its place back. Never blocks."""
        self._returned.append(None)
        self._unsettled = True
        self.settle()

    def settle(self) -> None:
        """Do what was noted, unless somebody else is at it."""
        while self._unsettled and self._lock.acquire(False):
            try:
                self._dispatch()
            finally:
                self._lock.release()

    def take(self, max_count: int, timeout: float | None) -> list[Packet]:
        """Take packets, waiting for the first one; an empty list when the time is over."""
        self.check()
        place = _places.mine
        # Where it is this port's place, it is not free before the thread has had its turn: so it
        # takes the next packet itself, and nobody is woken for it.
        returning = place.let_go(self)
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter: _Waiter | None = None
        looked = False  # in the kernel, at least once
        packets: list[Packet] = []
        try:
            while True:
                remaining = None
                if deadline is not None:
                    remaining = max(deadline - time.monotonic(), 0.0)
                with self._lock:
                    if returning:
                        returning = False
                        self._running -= 1
                    self._count_returned()
                    if self._closed:
                        raise PortClosed("the completion port was closed")
                    free = self._running < self.concurrency
                    if free and self._packets and (waiter is None or waiter.called):
                        self._running += 1
                        place.holder = self._self
                        with contextlib.suppress(IndexError):
                            while len(packets) < max_count:
                                packets.append(self._packets.popleft())
                        if not packets:
                            continue  # `drain` was quicker: the port is closed
                        self._count(packets, 1)
                        self._remove(waiter)
                        return packets
                    lead = free and (self._leader is None or self._leader is waiter)
                    if remaining == 0.0 and (looked or not lead):
                        self._remove(waiter)
                        return packets
                    if waiter is None:
                        waiter = _Waiter()
                        self._waiters.append(waiter)
                    elif waiter.called:
                        waiter.called = False
                        waiter.gate.acquire(False)
                    if lead:
                        self._leader = waiter
                        self._asleep = True
                        self._roused = False
                    elif self._leader is waiter:
                        self._leader = None
                if self._unsettled:
                    self.settle()
                if remaining is not None and remaining > LONGEST_WAIT:
                    remaining = LONGEST_WAIT
                if lead:
                    looked = True
                    events = self._reaper.wait(remaining)
                    self._asleep = False  # under no lock: at worst a wake-up for nothing
                    self._reaper.reap(events)
                elif remaining is None:
                    waiter.gate.acquire()
                else:
                    waiter.gate.acquire(timeout=remaining)
        except BaseException:
            with self._lock:
                # A signal handler may raise at any step, also with packets in hand.
                if packets:
                    self._packets.extendleft(reversed(packets))
                    self._count(packets, -1)
                if returning:
                    self._running -= 1
                self._remove(waiter)
            place.let_go()
            raise
        finally:
            if self._unsettled:
                self.settle()

    def shut(self) -> None:
        """Refuse everything from now on. Never blocks."""
        self._closed = True

    def close(self) -> None:
        """After `shut`: wake every waiting thread, and dispose of the reaper. Never blocks."""
        self._ending = True
        self._unsettled = True
        self.settle()

    def drain(self) -> list[Packet]:
        """Take out whatever is queued: the port is closed and nobody will."""
        packets: list[Packet] = []
        while True:
            try:
                packets.append(self._packets.popleft())
            except IndexError:
                return packets

    def queued(self) -> list[Packet]:
        """A look at the queue."""
        while True:
            # Free-threaded, a deque may change while it is copied.
            with contextlib.suppress(RuntimeError):
                return list(self._packets)

    def counts(self) -> tuple[int, int]:
        """How many threads wait, and how many hold a place."""
        return len(self._waiters), self._running - len(self._returned)

    def _count(self, packets: list[Packet], sign: int) -> None:
        """Lock held."""
        operations = sum(isinstance(packet, Request) for packet in packets)
        self.taken_operations += sign * operations
        self.taken_posts += sign * (len(packets) - operations)

    def _remove(self, waiter: _Waiter | None) -> None:
        """The thread leaves; somebody else may have to be called in its stead. Lock held."""
        if waiter is not None:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if self._leader is waiter:
                self._leader = None
        self._dispatch()

    def _count_returned(self) -> None:
        """Lock held."""
        while self._returned:
            self._returned.popleft()
            self._running -= 1

    def _dispatch(self) -> None:
        """Call threads for packets and places, and one to lead. Lock held."""
        self._unsettled = False
        self._count_returned()
        if self._closed:
            for waiter in self._waiters:
                if not waiter.called:
                    self._call(waiter)
            if self._ending and self._leader is None and not self._disposed:
                self._disposed = True
                self._reaper.dispose()
            return
        wanted = min(self.concurrency - self._running, len(self._packets))
        if wanted == 0 and self._leader is None and self._running < self.concurrency:
            wanted = 1
        for waiter in reversed(self._waiters):
            if wanted <= 0:
                return
            wanted -= 1
            if not waiter.called:
                self._call(waiter)

    def _call(self, waiter: _Waiter) -> None:
        """Ask a waiting thread to look at the queue. Lock held."""
        waiter.called = True
        if waiter is not self._leader:
            waiter.gate.release()
        elif self._asleep and not self._roused:
            self._roused = True
            self._reaper.wake()
