"""The threads that wait for packets, and their places.

Nothing here knows how operations are carried out: a `Reaper` waits in the kernel.

Finalizers call in here as well (a dropped port or handle, the end of a thread, a program's
own ``__del__`` that posts). They may run at any allocation, so also inside a critical section
of the same thread. Whatever they need therefore never blocks: it notes what is wanted in an
atomic container, and whoever holds the lock sees to it on the way out.

A handler of a signal may run, use this very port, and raise, wherever the main thread is: CPython
calls it behind a call of a function, at the begin of one, and where a loop begins anew, but not
between two plain steps (an assignment, an operator, a subscript, ``+=`` of a list and an iterator
that was made before). So the state is whole at each call: what belongs together changes in plain
steps, what is done twice does no harm, and who is interrupted does it once more before it lets the
exception go. The lock is reentrant for such handlers; `_owner` keeps out finalizers.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Protocol

from ...interface.errors import WHILE_WAITING, PortClosed, PortForked
from .packets import Hand, Line, PacketQueue
from .places import (
    ALL,
    PROGRAMS,
    CrewMembers,
    Packet,
    Place,
    PortableStrand,
    keep_this_place,
    this_place,
)
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
    keep_this_place().serving = 0


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

    __slots__ = ("below", "called", "crew", "gate", "line", "takes", "thread")

    def __init__(self, takes: int = 0, crew: CrewMembers | None = None) -> None:
        self.takes = takes
        self.crew = crew
        self.line: Line | None = None  # for which it was called; guarded by the scheduler's lock
        self.thread = threading.get_ident()
        self.below: _Waiter | None = None  # what led when a handler interrupted it, to lead itself
        self.called = False  # it was asked to look at the queue; guarded by the scheduler's lock
        self.gate = threading.Lock()  # held while the thread is to stay parked
        self.gate.acquire()


END = object()
"""What no iterator gives: to look for it is to iterate through, in one step without memory."""


def _nothing() -> None:
    """Nobody needs to be rescued."""


class Scheduler:
    """First in, first out for packets; last in, first out for threads."""

    def __init__(self, concurrency: int, reaper: Reaper) -> None:
        self.concurrency = concurrency
        self._reaper = reaper
        self._birth = _generation
        self._lock = threading.RLock()
        # The thread that is in the midst of something under the lock, for `settle`; _lock
        self._owner: int | None = None
        self._packets = PacketQueue()  # _lock, but for what says otherwise
        self.timers = TimerQueue()  # _lock, but for what says otherwise
        self._until_ns: int | None = None  # until when the leader waits for a timer; _lock
        self._watch_ns: int | None = None  # and those in `wait_until_stuck`; _lock
        # When a thread that takes packets has to call `rescue`; no lock, one step writes it.
        self._rescue_ns: int | None = None
        self.rescue: Callable[[], None] = _nothing  # constant once threads come
        # Tokens of threads that count, and of threads at work that do not; each step is atomic.
        self._at_work: dict[object, None] = {}
        self._blocked: dict[object, None] = {}
        self._spent: deque[int] = deque()  # how long threads were at work, in nanoseconds; no lock
        self._unsettled = False  # something was noted since `_dispatch` last looked; no lock
        self._replaced = 0  # places given because another thread blocks; _lock
        self._wakeups = 0  # _lock
        self._work_time = Recorder()  # _lock
        self._put = 0  # packets put so far, about; no lock, since it only tells which to measure
        self._slow = False  # the work measured last was not short; set under _lock
        self._waiters: list[_Waiter] = []  # the last one came last; _lock
        self._called: list[_Waiter] = []  # and on their way, in the order of the calls; _lock
        self._dismissed = 0  # threads of all crews that are to leave; _lock
        self._watchers: list[_Waiter] = []  # threads in `wait_until_stuck`; _lock
        self._leader: _Waiter | None = None  # the one that waits in the kernel; _lock
        # The leader while a thread only looks; it is never called, and no thread's.
        self._onlooker = _Waiter()
        self._onlooker.thread = 0
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
        if self._put % MEASURED_EVERY == 0 or self._slow or not self._at_work:
            packet.since = time.monotonic_ns()
        self._packets.incoming += (packet,)
        packet.delivered = True
        self._unsettled = True
        try:
            self.settle()
        except BaseException:
            self.settle()
            raise

    def set_timer(self, timer: PortableTimer) -> None:
        """Put the timer's packet at its time. Never blocks."""
        try:
            if self.timers.add(timer) or self._closed:
                self._unsettled = True
                self.settle()
        except BaseException:
            self._unsettled = True
            self.settle()
            raise

    def rescue_in(self, seconds: float) -> None:
        """Have a thread that takes packets call `rescue` in so many seconds. Never blocks."""
        self._rescue_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._unsettled = True
        self.settle()

    def _next_ns(self) -> int | None:
        """When a thread that waits has to look again at the latest. Lock held."""
        timer, rescue = self.timers.next_ns(), self._rescue_ns
        return timer if rescue is None else rescue if timer is None else min(timer, rescue)

    def end_turn(self, place: Place) -> None:
        """The thread is done with what it took. A second time it does nothing. Never blocks."""
        if place.since != NOT_MEASURED:
            self._spent.append(time.monotonic_ns() - place.since)
            place.since = NOT_MEASURED
        self._release(place)
        self._at_work.pop(place.token, None)
        self._blocked.pop(place.token, None)
        self._unsettled = True
        place.holder = place.lent = None

    def _release(self, place: Place) -> None:
        step = map(place.strands.pop, repeat(0, len(place.strands)))
        try:
            self._packets.released += step
        except IndexError:
            return  # a handler was here meanwhile

    def let_strand_go(self, place: Place, strand: PortableStrand) -> None:
        """The thread is done with one strand."""
        step = map(place.strands.pop, map(place.strands.index, (strand,)))
        self._packets.released += step
        self._unsettled = True

    def lend(self, place: Place) -> None:
        """The thread counts no more until `regain`, though it is at work; if it counts at all."""
        if place.token in self._at_work:
            self._blocked[place.token] = None
            self._unsettled = True
            self._at_work.pop(place.token, None)

    def regain(self, place: Place) -> None:
        """The thread counts again."""
        if place.token in self._blocked:
            self._at_work[place.token] = None
            self._blocked.pop(place.token, None)

    def settle(self) -> None:
        """Do what was noted, unless somebody else is at it."""
        try:
            self._settle()
        except BaseException:
            self._settle()
            raise

    def _settle(self) -> None:
        while self._unsettled:
            if self._owner == threading.get_ident():
                break  # a finalizer, or a handler, in the midst of something: that sees to it
            [locked] = map(self._lock.acquire, (False,))
            if not locked:
                break
            try:
                self._dispatch()
            finally:
                self._lock.release()
        if self._closed:
            self._packets.drop()

    def add_crew(self, crew: CrewMembers) -> None:
        """Threads are to wait as its members."""

    def dismiss(self, crew: CrewMembers, count: int) -> None:
        """Have so many threads of the crew leave it: with their next `take`, waiting ones at once.

        Where they take the program's packets, those that are queued now are taken before.
        """
        with self._lock:
            self._sort()
            programs = self._packets.programs
            crew.until = programs.taken + programs.waiting + self._packets.held_back
            crew.leaving += count
            self._dismissed += count
            self._unsettled = True
        self.settle()

    def _may_leave(self, crew: CrewMembers | None) -> bool:
        """Whether a thread of it is dismissed, and has seen to what it was to. Lock held."""
        if crew is None or crew.leaving <= 0:
            return False
        programs = self._packets.programs
        return not (crew.takes & PROGRAMS and programs.waiting and programs.taken < crew.until)

    def take(
        self,
        max_count: int,
        timeout: float | None,
        takes: int = ALL,
        crew: CrewMembers | None = None,
    ) -> Hand:
        """Take packets, waiting for the first one; none when the time is over.

        ``takes``: of which lines; a thread that serves takes the program's in any case. ``crew``:
        that the thread waits as a member of.

        They are the thread's once it calls `hand_out`; `put_back` gives them back.
        """
        self.check()
        me = threading.get_ident()
        place = this_place()
        place.leave(self)
        if place.serving:
            takes = PROGRAMS
        came_back = place.holder is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        longest = LONGEST_WAIT
        waiter: _Waiter | None = None
        looked = False  # in the kernel, at least once
        hand = Hand()
        try:
            while True:
                if self._rescue_ns is not None and time.monotonic_ns() >= self._rescue_ns:
                    self._rescue_ns = None
                    self.rescue()
                remaining = None
                if deadline is not None:
                    remaining = max(deadline - time.monotonic(), 0.0)
                if waiter is None and self._packets.taken - self._looked_at >= LOOK_EVERY:
                    self._look()
                with self._lock:
                    before = self._owner
                    try:
                        self._owner = me
                        # Where it is this port's place, it is not free before the thread has had
                        # its turn: so it takes the next packet, and nobody is woken for it.
                        if place.holder is not None:
                            self.end_turn(place)
                        self._count_notes()
                        if self._closed:
                            raise PortClosed(WHILE_WAITING)
                        if self._may_leave(crew):
                            assert crew is not None
                            crew.leaving -= 1
                            self._dismissed -= 1
                            hand.dismissed = True
                            self._remove(waiter)
                            return hand
                        polls = remaining == 0.0
                        if self._take_ready(
                            hand, max_count, takes, waiter, place, came_back, polls
                        ):
                            return hand
                        self._leave_to_those_called()
                        lead = self._may_lead(waiter, me)
                        if polls and (looked or not lead):
                            self._remove(waiter)
                            return hand
                        if waiter is None:
                            waiter = _Waiter(takes, crew)
                            self._waiters += (waiter,)
                            if me == threading.main_thread().ident:
                                longest = SIGNAL_SLICE
                        elif waiter.called:
                            waiter.called = False
                            waiter.gate.acquire(False)
                        until_ns: int | None = None
                        if lead:
                            until_ns = self._until_ns = self._next_ns()
                            if self._leader is not waiter:
                                waiter.below = self._leader
                            self._leader = waiter
                            self._asleep = True
                            self._roused = False
                            self._looked_at = self._packets.taken
                        else:
                            self._resign(waiter)
                    finally:
                        self._owner = before
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
            # A signal handler may raise at any step, also with packets in hand.
            try:
                self._leave(hand, waiter)
            except BaseException:
                self._leave(hand, waiter)
                raise
            raise
        finally:
            if self._unsettled:
                self.settle()

    def _take_ready(
        self,
        hand: Hand,
        max_count: int,
        takes: int,
        waiter: _Waiter | None,
        place: Place,
        came_back: bool,
        polls: bool,
    ) -> bool:
        """Take what is there for this thread, and the place for it; False without. Lock held."""
        fired = self._sort()
        if fired and waiter is not None:
            # The packets may be for a thread that came later.
            self._dispatch()
        ahead = self._answer(waiter)
        if waiter is not None and ahead is None:
            return False
        line = called_for = None if waiter is None else waiter.line
        if line is None or ahead is None or line.waiting <= ahead:
            # Nobody called it. Or others have taken what it was called for: it may count as called
            # for what is in the other line.
            ahead = None
            lines = [one for one in self._packets.by_age() if one.takes & takes and one.ready]
            lines = [one for one in lines if one is not called_for]
            line = lines[0] if lines else None
        if line is None or len(self._at_work) >= self.concurrency:
            return False
        if takes != ALL and not polls and self._gives_way(line):
            self._unsettled = True
            return False
        stands_in = len(self._at_work) + len(self._blocked) >= self.concurrency
        self._at_work[place.token] = None
        place.holder = self._self
        self._packets.take(line, hand, max_count, ahead)
        if not hand:
            self.end_turn(place)
            return False  # `drop` was quicker: the port is closed
        self._packets.count(hand)
        # One that comes back goes on in the place that it was let go into.
        self._replaced += stands_in and not came_back
        measured = [one for one in hand if one.since != NOT_MEASURED]
        if measured or self._slow:
            hand.taken_at = time.monotonic_ns()
            self._packets.measure(measured, hand.taken_at)
        self._remove(waiter)
        return True

    def _gives_way(self, line: Line) -> bool:
        """Whether a thread leaves the last place to one that takes the other line. Lock held.

        Else threads that always find packets of their own would keep out those for whom older ones
        wait.
        """
        other = self._packets.by_age()[0]
        return (
            other is not line
            and len(self._at_work) + 1 >= self.concurrency
            and any(waiter.takes & other.takes for waiter in self._waiters)
        )

    def hand_out(self, hand: Hand, last: Iterable[Any]) -> None:
        """The packets are the program's now, and nothing can stop it any more.

        ``last``: iterated through, to None each, behind everything that a handler could interrupt
        and that takes memory.
        """
        place = this_place()
        strands = [one.strand for one in hand if one.strand is not None]
        place.holder = self._self
        place.strands = strands
        place.since = hand.taken_at
        self._at_work[place.token] = None
        del hand[:]
        _ = END in last

    def put_back(self, hand: Hand) -> None:
        """Undo `take`: the packets go back to the head of the queue. It may be done twice."""
        try:
            self._leave(hand, None)
        except BaseException:
            self._leave(hand, None)
            raise

    def _leave(self, hand: Hand, waiter: _Waiter | None) -> None:
        """Without a packet; it may be done twice."""
        with self._lock:
            self._packets.put_back(hand)
            self._unsettled = True
            self._at_work.pop(this_place().token, None)
            self._remove(waiter)
        self.settle()

    def _look(self) -> None:
        """Look into the kernel without waiting, unless somebody waits there."""
        mine = False
        try:
            with self._lock:
                if self._leader is not None or self._closed:
                    return
                self._looked_at = self._packets.taken
                self._leader = self._onlooker
                mine = True
            self._reaper.reap(self._reaper.wait(0))
        finally:
            if mine:
                self._leader = None
                self._unsettled = True  # others may have found a leader, and nobody leads now

    def _may_lead(self, waiter: _Waiter | None, me: int) -> bool:
        """Whether the thread may wait in the kernel. Lock held.

        A handler may though the call that it has interrupted is the leader.
        """
        leader = self._leader
        return len(self._at_work) < self.concurrency and (
            leader is None or leader is waiter or leader.thread == me
        )

    def _resign(self, waiter: _Waiter) -> None:
        """If it led it does so no more. Lock held."""
        if self._leader is waiter:
            self._leader = waiter.below
            if waiter.below is not None:
                # That goes on with its wait, once the handler has returned.
                self._asleep = True
                self._roused = False

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
        [locked] = map(self._lock.acquire, (True,), (PATIENCE,))
        try:
            if locked and self._fire():
                self._unsettled = True
            return {
                "timers": len(self.timers),
                "concurrency": self.concurrency,
                "waiting": len(self._waiters),
                "running": len(self._at_work),
                "blocked": len(self._blocked),
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

    def _remove(self, waiter: _Waiter | None) -> None:
        """The thread leaves; somebody else may have to be called in its stead. Lock held."""
        if waiter is not None:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._answer(waiter)
            self._resign(waiter)
        self._leave_to_those_called()
        self._dispatch()

    def _leave_to_those_called(self) -> None:
        """What was passed over for threads not on their way is there for all. Lock held."""
        for line in self._packets.lines:
            if line.passed_over:
                line.leave_to(sum(waiter.line is line for waiter in self._called))

    def _answer(self, waiter: _Waiter | None) -> int | None:
        """A thread looks at the queue: how many called before it for its line are on their way.

        None when it comes of its own accord. Lock held.
        """
        if waiter is None or waiter not in self._called:
            return None
        at = self._called.index(waiter)
        ahead = sum(other.line is waiter.line for other in self._called[:at])
        del self._called[at]
        return ahead

    def _count_notes(self) -> None:
        """Lock held."""
        while self._spent:
            spent = self._spent.popleft()
            self._work_time.add(spent)
            self._slow = spent > SHORT_WORK
        if self._packets.released:
            self._packets.advance()

    def _fire(self) -> bool:
        """Make packets of timers that are due; True when there were some. Lock held."""
        return bool(self.timers) and self.timers.fire(time.monotonic_ns(), self._packets.incoming)

    def _sort(self) -> bool:
        """True when timers have come to their packets. Lock held."""
        fired = self._fire()
        self._packets.sort()
        if self._closed:
            self._unsettled = True  # a packet that moved may have been missed by `drop`
        return fired

    def _is_stuck(self) -> bool:
        """Lock held."""
        if len(self._at_work) >= self.concurrency:
            return False
        return any(
            line.waiting and not any(waiter.takes & line.takes for waiter in self._waiters)
            for line in self._packets.lines
        )

    def _dispatch(self) -> None:
        """Call threads for packets and places, and one to lead. Lock held."""
        me, before = threading.get_ident(), self._owner
        try:
            self._owner = me
            self._unsettled = False
            self._call_all_that_are_needed()
        except BaseException:
            self._unsettled = True
            raise
        finally:
            self._owner = before

    def _call_all_that_are_needed(self) -> None:
        """Lock held."""
        self._count_notes()
        if self._closed:
            self.timers.drop()
            for waiter in (*self._waiters, *self._watchers):
                if not waiter.called:
                    self._call(waiter)
            if self._ending and self._leader is None and not self._disposed:
                self._reaper.dispose()
                self._disposed = True
            return
        self._sort()
        if self._watchers and self._is_stuck():
            for watcher in self._watchers:
                if not watcher.called:
                    self._call(watcher)
        if self._dismissed:
            for waiter in self._waiters:
                if not waiter.called and self._may_leave(waiter.crew):
                    self._call(waiter, self._line_to_lead_for(waiter))
        self._call_for_packets()
        if self.timers or self._rescue_ns is not None:
            self._see_to_timers()

    def _call_for_packets(self) -> None:
        """Lock held."""
        free = self.concurrency - len(self._at_work)
        counted: list[_Waiter] = []
        for line in self._packets.by_age():
            wanted = line.waiting
            for waiter in reversed(self._waiters):
                if wanted <= 0 or len(counted) >= free:
                    break
                if waiter.takes & line.takes and waiter not in counted:
                    wanted -= 1
                    counted += (waiter,)
                    if not waiter.called:
                        self._call(waiter, line)
        if not counted and self._leader is None and free > 0 and self._waiters:
            waiter = self._waiters[-1]
            if not waiter.called:
                self._call(waiter, self._line_to_lead_for(waiter))

    def _line_to_lead_for(self, waiter: _Waiter) -> Line:
        """For whose packets a thread that is to lead, or to leave, counts as called."""
        programs, served = self._packets.lines
        return (
            programs
            if waiter.takes & PROGRAMS and not served.taken
            else (served if waiter.takes & served.takes else programs)
        )

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
                self._reaper.wake()
                self._roused = True
            return
        for watcher in self._watchers:
            if not watcher.called:
                self._call(watcher)

    def _call(self, waiter: _Waiter, line: Line | None = None) -> None:
        """Ask a waiting thread to look at the queue, and note for which line. Lock held."""
        leads = waiter is self._leader
        if leads and self._asleep and not self._roused:
            self._reaper.wake()
            self._roused = True
            self._wakeups += 1
        if line is not None:
            waiter.line = line
            self._called += (waiter,)
        waiter.called = True
        if not leads:
            self._wakeups += 1
            waiter.gate.release()
