"""The port's pool of threads, for what would block the caller; ``native.pool.offload``: its twin.

The threads are not the program's: they never wait for packets, so they count for nobody's
concurrency. How many of them work at a time is the width: ``BASE`` at once, more only where those
at work wait for a disk, or nothing has left the line for a while. The twin says more.
"""

from __future__ import annotations

import sys
import threading
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import call
from typing import Protocol

from ...interface.errors import no_thread
from ...shared.workers import default_concurrency

if sys.platform == "linux":
    from resource import RUSAGE_THREAD, getrusage

    def disk_reads() -> int:
        """How much the calling thread has had read from disks so far.

        Here it is not how often the thread slept: it sleeps for the GIL as well.
        """
        return getrusage(RUSAGE_THREAD).ru_inblock
else:

    def disk_reads() -> int:
        """It can't be told: only a line that stands still lets more threads work."""
        return 0


IDLE = 5.0
"""Seconds after which a thread without work ends."""
WATCH = 0.005
"""Seconds without a step of the line after which one more thread works."""
BASE = 4
"""So many threads work as soon as there is work for them."""
CROWD = 16
"""Up to this width everything in line is worth another thread."""
NARROWER = 64
"""Pieces of work without a disk after which one thread less works."""
SHORT = 0.5
"""Seconds that the line may stand still where no more threads can be had."""
REFUSALS = (RuntimeError, MemoryError)
"""What starting a thread raises where the system refuses it."""


class Work(Protocol):
    """What can stand in line."""

    function: bool
    """It runs a function of the program's."""

    def __call__(self) -> bool:
        """Do it. It does not raise, and says whether its thread was left behind meanwhile."""

    def refuse(self) -> None:
        """No thread can be had: take it out of the line, and do it here if it can't take long."""


class Offload:
    """Threads that are started when there is work, and end when there is none for a while."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Has `see_to_line` called by a thread that takes packets, in so many seconds. Set once, and
        # None where nothing can: then `start` raises. Never blocks.
        self.call_in: Callable[[float], None] | None = None
        self._base = min(limit, BASE)
        self._processors = default_concurrency()
        # Guards everything below. Reentrant, because finalizers may come here at any allocation;
        # never held over work.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._line: deque[Work] = deque()
        self._taken = 0  # out of the line, so far
        self._threads = 0
        self._asleep = 0  # threads that wait and were not called
        self._called = 0  # threads on their way to the line
        self._width = self._base  # how many may be at work
        self._quick = 0  # pieces of work since the width changed that met no disk
        self._watched = False  # a thread looks whether the line stands still, or is about to
        self._wanted = False  # and nobody has begun to
        self._short_since: float | None = None  # since when no thread could be started
        self._short_taken = 0  # `_taken` at that time
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return self._threads

    def start(self, work: Work) -> None:
        """Have a thread do the work. Where none can be had `see_to_line` does; or an `OSError`."""
        with self._lock:
            self._line += (work,)
            try:
                self._summon()
            except REFUSALS:
                if self.call_in is not None and not sys.is_finalizing():
                    self.call_in(self._patience())
                elif not self._threads and work in self._line:
                    self._line.remove(work)
                    raise no_thread() from None
            except BaseException:
                # A signal handler's: the caller takes it back, if no thread has it yet.
                self._try_to_summon()
                raise

    def see_to_line(self) -> None:
        """Try once more to start a thread; in vain, see to all that is in line."""
        with self._lock:
            if self._try_to_summon() or self._patience() > 0:
                return
            line = list(self._line)
        for work in line:
            work.refuse()

    def cancel(self, work: Work) -> bool:
        """Take work out of the line; False when a thread has it already."""
        if sys.is_finalizing():
            return False  # the threads stand still for good, perhaps with the lock
        with self._lock:
            try:
                self._line.remove(work)
            except ValueError:
                return False
            return True

    def leave_behind(self) -> None:
        """A thread counts no more, whose work will say so when it is done."""
        if sys.is_finalizing():
            return
        with self._lock:
            self._threads -= 1
            self._try_to_summon()

    def close(self) -> None:
        """Dismiss the threads, which end in their own time. Nothing is in line any more."""
        if sys.is_finalizing():
            return
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    # All below: lock held.

    def _at_work(self) -> int:
        return self._threads - self._asleep

    def _summon(self) -> None:
        """Call, or start, the thread that is needed for what is in line."""
        if len(self._line) <= self._called:
            return  # each of those on their way has something in line
        if self._at_work() < self._width:
            self._called += 1
            if self._asleep:
                self._asleep -= 1
                self._changed.notify()
                return
            try:
                self._start_thread()
            except BaseException:
                self._called -= 1
                raise
        elif not self._watched and self._width < self.limit:
            if self._asleep:
                self._watched = self._wanted = True
                self._changed.notify()
            elif self._threads < self.limit:
                self._watched = self._wanted = True
                self._asleep += 1
                try:
                    self._start_thread()
                except BaseException:
                    self._asleep -= 1
                    self._watched = self._wanted = False
                    raise

    def _try_to_summon(self) -> bool:
        """False where no more threads are to be had: those that there are go on."""
        try:
            self._summon()
        except REFUSALS:
            if self.call_in is not None:
                self.call_in(self._patience())
            return False
        return True

    def _patience(self) -> float:
        """No thread could be started: in how many seconds something else has to be done."""
        if not self._threads:
            return 0.0
        now = time.monotonic()
        # As long as something leaves the line, it is as if the pool were no larger.
        if self._short_since is None or self._taken != self._short_taken:
            self._short_since, self._short_taken = now, self._taken
        return max(self._short_since + SHORT - now, 0.0)

    def _start_thread(self) -> None:
        if sys.is_finalizing():
            # It would end before it begins, and start() would wait for it.
            raise RuntimeError("the interpreter ends: no thread can be started any more")
        thread = threading.Thread(target=self._run, name="cp-offload", daemon=True)
        start: Callable[[], object] = thread.start
        if threading.get_ident() == threading.main_thread().ident:
            # In `Thread.start` a signal handler's exception may leave locks locked.
            start = partial(start_new_thread, self._start_there, (thread,))
        step = map(call, (start,))
        try:
            self._threads += 1
            [_] = step
        except REFUSALS:
            self._threads -= 1
            raise
        self._short_since = None

    def _start_there(self, thread: threading.Thread) -> None:
        """Where signals are not handled."""
        try:
            thread.start()
        except REFUSALS:
            self._run()  # no second one is to be had: this is as good

    def _run(self) -> None:
        with self._lock:
            while self._arrive():
                while self._line and self._at_work() <= self._width:
                    work = self._line.popleft()
                    self._taken += 1
                    self._try_to_summon()
                    before = disk_reads() if self._line else None
                    self._changed.release()
                    try:
                        left_behind = work()
                    finally:
                        self._changed.acquire()
                    if left_behind:
                        return  # it counts no more
                    if before is not None and not work.function:
                        self._learn(disk_reads() != before)
                    del work
                self._asleep += 1

    def _learn(self, met_a_disk: bool) -> None:
        """What work that is over says about how many threads should be at it."""
        if met_a_disk:
            self._quick = 0
            if (
                self._width < self.limit
                and len(self._line) > max(self._called, self._width - CROWD)
                and not self._line[0].function
            ):
                self._width += 1
                self._try_to_summon()
        elif self._width > self._base:
            self._quick += 1
            if self._quick >= NARROWER:
                self._quick = 0
                self._width -= 1

    def _arrive(self) -> bool:
        """Wait to be called; False: the thread is to end, and counts no more."""
        timed_out = False
        while not self._called:
            watches = bool(self._line) and (
                self._wanted or (not self._watched and self._width < self.limit)
            )
            if self._wanted:
                self._watched = self._wanted = False
            if not self._line and (self._closed or timed_out):
                self._asleep -= 1
                self._threads -= 1
                self._width = max(self._base, min(self._width, self._threads))
                return False
            if not watches:
                timed_out = not self._changed.wait(IDLE)
                continue
            self._watched = True
            taken, used = self._taken, time.process_time()
            timed_out = not self._changed.wait(WATCH)
            self._watched = False
            if timed_out and not self._called and self._stands_still(taken, used):
                self._width += 1
                self._asleep -= 1
                self._called = 1
            timed_out = False
        self._called -= 1
        if self._wanted:
            # It may have been this one that was notified for it; who takes work next asks again.
            self._watched = self._wanted = False
        return True

    def _stands_still(self, taken: int, used: float) -> bool:
        """Whether another thread would help, after a time in which ``taken`` did not change."""
        if not self._line or self._taken != taken or self._width >= self.limit:
            return False
        # Functions that compute, or wait for the GIL, are no quicker on more threads.
        return (
            not self._line[0].function or time.process_time() - used < WATCH * self._processors / 2
        )
