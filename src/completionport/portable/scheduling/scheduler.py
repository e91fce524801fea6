"""The threads that wait for packets, and their places.

Nothing here knows how operations are carried out: a `Reaper` waits in the kernel.

Finalizers call in here as well (a dropped port or handle, the end of a thread, a program's
own ``__del__`` that posts). They may run at any allocation, so also inside a critical section
of the same thread. Whatever they need therefore never blocks: it notes what is wanted in an
atomic container, and whoever holds the lock sees to it on the way out.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ...interface.errors import WHILE_WAITING, PortClosed, PortForked
from .packets import PacketQueue, look
from .places import Note, Packet, this_place
from .recorder import NOT_MEASURED, Recorder
from .timers import PortableTimer, TimerQueue

LONGEST_WAIT = 86400.0
"""Seconds; longer waits are cut in pieces, as the system calls have limits of their own."""
SIGNAL_SLICE = 1.0
"""Seconds that the main thread waits at a time: a signal that comes just before its wait, or that
the system hands to another thread, does not end the wait."""
STUCK_AFTER = 0.01
"""Seconds without a packet taken after which the threads at work count as blocked."""
MEASURED_EVERY = 16
LOOK_EVERY = 61
"""Packets after which a thread that finds another one looks into the kernel first: else a program
whose packets never end would not hear of its sockets. The compiled engines have the same."""
SHORT_WORK = 5_000
"""Nanoseconds. While work is as short as that, one packet in so many is measured."""
PATIENCE = 0.05
"""Seconds that a look inside waits for the lock, which its own thread may hold."""

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


class _Waiter:
    """One thread in `Scheduler.take`."""

    __slots__ = ("called", "gate")

    def __init__(self) -> None:
        self.called = False  # it was asked to look at the queue; guarded by the scheduler's lock
        self.gate = threading.Lock()  # held while the thread is to stay parked
        self.gate.acquire()


def _nothing() -> None:
    """Nobody needs to be rescued."""


class Scheduler:
    """First in, first out for packets; last in, first out for threads."""

    def __init__(self, concurrency: int, reaper: Reaper) -> None:
        self.concurrency = concurrency
        self._reaper = reaper
        self._birth = _generation
        self._lock = threading.Lock()
        self._packets = PacketQueue()  # _lock, but for what says otherwise
        self.timers = TimerQueue()  # _lock, but for what says otherwise
        self._until_ns: int | None = None  # until when the leader waits for a timer; _lock
        self._watch_ns: int | None = None  # and those in `wait_until_stuck`; _lock
        # When a thread that takes packets has to call `rescue`; no lock, one step writes it.
        self._rescue_ns: int | None = None
        self.rescue: Callable[[], None] = _nothing  # constant once threads come
        self._notes: deque[Note] = deque()  # what threads did and nobody counted yet; no lock
        self._unsettled = False  # something was noted since `_dispatch` last looked; no lock
        self._running = 0  # threads that count; _lock
        self._blocked = 0  # threads at work that do not count; _lock
        self._replaced = 0  # places given because another thread blocks; _lock
        self._wakeups = 0  # _lock
        self._work_time = Recorder()  # _lock
        self._put = 0  # packets put so far, about; no lock, since it only tells which to measure
        self._slow = False  # the work measured last was not short; set under _lock
        self._waiters: list[_Waiter] = []  # the last one came last; _lock
        self._called: list[_Waiter] = []  # and on their way, in the order of the calls; _lock
        self._watchers: list[_Waiter] = []  # threads in `wait_until_stuck`; _lock
        self._leader: _Waiter | None = None  # the one that waits in the kernel; _lock
        self._onlooker = _Waiter()  # the leader while a thread only looks; it is never called
        self._looked_at = 0  # packets taken when a thread last began to look; _lock
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

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""
        if self._birth != _generation:
            raise PortForked

    def check(self) -> None:
        """Raise `PortForked` or `PortClosed` where one of them is due."""
        self.check_fork()
        if self._closed:
            raise PortClosed

    def put(self, packet: Packet) -> None:
        """Append a packet, and wake a thread for it if need be. Never blocks."""
        self._put += 1
        if self._put % MEASURED_EVERY == 0 or self._slow or not self._running:
            packet.since = time.monotonic_ns()
        self._packets.put(packet)
        self._unsettled = True
        self.settle()

    def set_timer(self, timer: PortableTimer) -> None:
        """Put the timer's packet at its time. Never blocks."""
        if self.timers.add(timer) or self._closed:
            self._unsettled = True
            self.settle()

    def rescue_in(self, seconds: float) -> None:
        """Have a thread that takes packets call `rescue` in so many seconds. Never blocks."""
        self._rescue_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._unsettled = True
        self.settle()

    def _next_ns(self) -> int | None:
        """When a thread that waits has to look again at the latest. Lock held."""
        timer, rescue = self.timers.next_ns(), self._rescue_ns
        return timer if rescue is None else rescue if timer is None else min(timer, rescue)

    def note(self, note: Note) -> None:
        """What a thread did is to be counted. Never blocks; the caller settles."""
        self._notes.append(note)
        self._unsettled = True

    def settle(self) -> None:
        """Do what was noted, unless somebody else is at it."""
        while self._unsettled and self._lock.acquire(False):
            try:
                self._dispatch()
            finally:
                self._lock.release()
        if self._closed:
            self._packets.drop()

    def take(self, max_count: int, timeout: float | None) -> list[Packet]:
        """Take packets, waiting for the first one; an empty list when the time is over."""
        self.check()
        place = this_place()
        # Where it is this port's place, it is not free before the thread has had its turn: so it
        # takes the next packet itself, and nobody is woken for it.
        returning = came_back = place.let_go(self)
        deadline = None if timeout is None else time.monotonic() + timeout
        longest = LONGEST_WAIT
        waiter: _Waiter | None = None
        looked = False  # in the kernel, at least once
        packets: list[Packet] = []
        try:
            while True:
                if self._rescue_ns is not None and time.monotonic_ns() >= self._rescue_ns:
                    self._rescue_ns = None
                    self.rescue()
                remaining = None
                if deadline is not None:
                    remaining = max(deadline - time.monotonic(), 0.0)
                with self._lock:
                    if returning:
                        returning = False
                        self._running -= 1
                    self._count_notes()
                    if self._closed:
                        raise PortClosed(WHILE_WAITING)
                    if (
                        self._packets.taken - self._looked_at >= LOOK_EVERY
                        and self._leader is None
                        and waiter is None
                    ):
                        self._look()
                        continue
                    fired = self._sort()
                    if fired and waiter is not None:
                        # The packets may be for a thread that came later.
                        self._dispatch()
                    ahead = self._answer(waiter)
                    if waiter is None:
                        available = bool(self._packets.ready)
                    else:
                        available = ahead is not None and self._packets.waiting > ahead
                    free = self._running < self.concurrency
                    if free and available:
                        stands_in = self._running + self._blocked >= self.concurrency
                        self._running += 1
                        place.claim(self._self)
                        self._packets.take(packets, max_count, ahead)
                        if not packets:
                            continue  # `drop` was quicker: the port is closed
                        # One that comes back goes on in the place that it was let go into.
                        self._replaced += stands_in and not came_back
                        now = NOT_MEASURED
                        measured = [one for one in packets if one.since != NOT_MEASURED]
                        if measured or self._slow:
                            now = time.monotonic_ns()
                            self._packets.measure(measured, now)
                        place.take(packets, now)
                        self._remove(waiter)
                        return packets
                    self._packets.leave_to(len(self._called))
                    lead = free and (self._leader is None or self._leader is waiter)
                    if remaining == 0.0 and (looked or not lead):
                        self._remove(waiter)
                        return packets
                    if waiter is None:
                        waiter = _Waiter()
                        self._waiters.append(waiter)
                        if threading.get_ident() == threading.main_thread().ident:
                            longest = SIGNAL_SLICE
                    elif waiter.called:
                        waiter.called = False
                        waiter.gate.acquire(False)
                    until_ns: int | None = None
                    if lead:
                        self._leader = waiter
                        self._asleep = True
                        self._roused = False
                        self._looked_at = self._packets.taken
                        until_ns = self._until_ns = self._next_ns()
                    elif self._leader is waiter:
                        self._leader = None
                if self._unsettled:
                    self.settle()
                if until_ns is not None:
                    due_in = max(until_ns - time.monotonic_ns(), 0) / 1e9
                    remaining = due_in if remaining is None else min(remaining, due_in)
                if remaining is None or remaining > longest:
                    remaining = longest
                if lead:
                    looked = True
                    events = self._reaper.wait(remaining)
                    self._asleep = False  # under no lock: at worst a wake-up for nothing
                    self._reaper.reap(events)
                else:
                    waiter.gate.acquire(timeout=remaining)
        except BaseException:
            with self._lock:
                # A signal handler may raise at any step, also with packets in hand.
                if packets:
                    self._packets.put_back(packets)
                    self._unsettled = True
                if returning:
                    self._running -= 1
                self._remove(waiter)
            place.undo()
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

    def dismiss_watchers(self) -> None:
        """Make every `wait_until_stuck` return."""
        with self._lock:
            for watcher in self._watchers:
                if not watcher.called:
                    self._call(watcher)
            self._watchers.clear()

    def wait_until_stuck(self, timeout: float | None) -> bool:
        """Wait until packets wait that only another thread could take.

        Which thread blocks can't be known here. So: a place is free, nobody waits for packets,
        and for a while nobody came to take one.
        """
        self.check()
        deadline = None if timeout is None else time.monotonic() + timeout
        watcher = _Waiter()
        stuck_since: float | None = None
        taken = -1
        try:
            with self._lock:
                self._watchers.append(watcher)
            while True:
                now = time.monotonic()
                pause = LONGEST_WAIT if deadline is None else max(deadline - now, 0.0)
                with self._lock:
                    self._count_notes()
                    if self._closed:
                        raise PortClosed(WHILE_WAITING)
                    if watcher not in self._watchers:
                        return False  # dismissed
                    self._sort()
                    until_ns = self._watch_ns = (
                        self.timers.next_ns() if self._leader is None else None
                    )
                    watcher.gate.acquire(False)
                    watcher.called = self._is_stuck()  # once it is seen, time tells the rest
                    if not watcher.called:
                        stuck_since = None
                    elif stuck_since is None or taken != self._packets.taken:
                        taken, stuck_since = self._packets.taken, now
                    elif now - stuck_since >= STUCK_AFTER:
                        return True
                if self._unsettled:
                    self.settle()
                if pause == 0.0:
                    return False
                if until_ns is not None:
                    # Nobody else may be there for it.
                    pause = min(pause, max(until_ns / 1e9 - now, 0.0))
                if stuck_since is not None:
                    pause = min(pause, STUCK_AFTER)
                watcher.gate.acquire(timeout=min(pause, LONGEST_WAIT))
        finally:
            with self._lock:
                if watcher in self._watchers:
                    self._watchers.remove(watcher)
            if self._unsettled:
                self.settle()

    def numbers(self) -> dict[str, Any]:
        """A look inside, all of one moment."""
        # In a finalizer, the lock may be this thread's own: then it is a look at what is there.
        locked = self._lock.acquire(timeout=PATIENCE)
        try:
            if locked and self._fire():
                self._unsettled = True
            notes = look(self._notes)
            return {
                "timers": len(self.timers),
                "concurrency": self.concurrency,
                "waiting": len(self._waiters),
                "running": self._running + sum(note.running for note in notes),
                "blocked": self._blocked + sum(note.blocked for note in notes),
                "replaced": self._replaced,
                "woken": sum(waiter.called for waiter in self._waiters),
                "wakeups": self._wakeups,
                "work_time": self._work_time.snapshot(),
                **self._packets.numbers(),
            }
        finally:
            if locked:
                self._lock.release()
            if self._unsettled:
                self.settle()

    def _look(self) -> None:
        """Look into the kernel without waiting. Lock held, but for the look itself."""
        self._leader = self._onlooker
        self._looked_at = self._packets.taken
        self._lock.release()
        try:
            self._reaper.reap(self._reaper.wait(0))
        finally:
            self._lock.acquire()
            self._leader = None
            self._unsettled = True  # others may have found a leader, and nobody leads now

    def _remove(self, waiter: _Waiter | None) -> None:
        """The thread leaves; somebody else may have to be called in its stead. Lock held."""
        if waiter is not None:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._answer(waiter)
            if self._leader is waiter:
                self._leader = None
        self._packets.leave_to(len(self._called))
        self._dispatch()

    def _answer(self, waiter: _Waiter | None) -> int | None:
        """A thread looks at the queue: how many that were called before it are still on their way.

        None when it comes of its own accord. Lock held.
        """
        if waiter is None or waiter not in self._called:
            return None
        ahead = self._called.index(waiter)
        del self._called[ahead]
        return ahead

    def _count_notes(self) -> None:
        """Lock held."""
        while self._notes:
            note = self._notes.popleft()
            self._running += note.running
            self._blocked += note.blocked
            if note.spent != NOT_MEASURED:
                self._work_time.add(note.spent)
                self._slow = note.spent > SHORT_WORK
            for strand in note.released:
                self._packets.advance(strand)
                # With the port closed, `drop` may have missed the packet that moved.
                self._unsettled = True

    def _fire(self) -> bool:
        """Make packets of timers that are due; True when there were some. Lock held."""
        if not self.timers:
            return False
        packets = self.timers.due(time.monotonic_ns())
        for packet in packets:
            self._packets.put(packet)
        return bool(packets)

    def _sort(self) -> bool:
        """True when timers have come to their packets. Lock held."""
        fired = self._fire()
        self._packets.sort()
        if self._closed:
            self._unsettled = True  # a packet that moved may have been missed by `drop`
        return fired

    def _is_stuck(self) -> bool:
        """Lock held."""
        if self._waiters or self._running >= self.concurrency:
            return False
        return self._packets.waiting > 0

    def _dispatch(self) -> None:
        """Call threads for packets and places, and one to lead. Lock held."""
        self._unsettled = False
        self._count_notes()
        if self._closed:
            self.timers.drop()
            for waiter in (*self._waiters, *self._watchers):
                if not waiter.called:
                    self._call(waiter)
            if self._ending and self._leader is None and not self._disposed:
                self._disposed = True
                self._reaper.dispose()
            return
        self._sort()
        if self._watchers and self._is_stuck():
            for watcher in self._watchers:
                if not watcher.called:
                    self._call(watcher)
        wanted = min(self.concurrency - self._running, self._packets.waiting)
        if wanted == 0 and self._leader is None and self._running < self.concurrency:
            wanted = 1
        for waiter in reversed(self._waiters):
            if wanted <= 0:
                break
            wanted -= 1
            if not waiter.called:
                self._called.append(waiter)
                self._call(waiter)
        if self.timers or self._rescue_ns is not None:
            self._see_to_timers()

    def _see_to_timers(self) -> None:
        """Have a thread that waits for long look again, where a timer is due before. Lock held."""
        next_ns = self._next_ns()
        if next_ns is None:
            return
        until_ns = self._watch_ns if self._leader is None else self._until_ns
        if until_ns is not None and until_ns <= next_ns:
            return
        if self._leader is not None:
            if self._asleep and not self._roused:
                self._roused = True
                self._reaper.wake()
            return
        for watcher in self._watchers:
            if not watcher.called:
                self._call(watcher)

    def _call(self, waiter: _Waiter) -> None:
        """Ask a waiting thread to look at the queue. Lock held."""
        waiter.called = True
        if waiter is not self._leader:
            self._wakeups += 1
            waiter.gate.release()
        elif self._asleep and not self._roused:
            self._roused = True
            self._wakeups += 1
            self._reaper.wake()
