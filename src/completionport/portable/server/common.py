"""What the cores of servers have in common: they are consumers, with a clock."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ...interface.errors import PortClosed, PortForked
from ...interface.port import Completion
from ...shared.reports import persist, tell

if TYPE_CHECKING:
    from ..port.port import PortablePort


class Clock:
    """The key of the packet that comes when the time of a core has come."""


CLOCK = Clock()


class CommonCore:
    """Packets to callbacks for one server. Any thread that takes one of them serves it."""

    def __init__(self, port: Any) -> None:
        self.port: PortablePort = port
        self._process = os.getpid()
        # Guards what follows, and what a core adds that says so. Entered itself, not through the
        # condition: that is written in Python, and a signal handler might raise with it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._due: float | None = None  # when `_tick` has something to do
        self._clocks: set[float] = set()  # the times for which a packet is on its way
        self._ended = False

    def _serve(self, completion: Completion) -> None:
        """One thread's turn with a packet."""
        raise NotImplementedError

    def _tick(self, now: float) -> None:
        """What is done by the clock; `_set_due` has it called again."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        """Whether all has ended; who makes it so notifies `_changed`. Lock held."""
        raise NotImplementedError

    def port_closed(self) -> None:
        """Nothing of the port is under way any more."""
        raise NotImplementedError

    def serve(self, taken: list[Completion]) -> None:
        """A packet of the core's was taken."""
        completion = taken[0]
        try:
            del taken[0]  # no call, behind which a handler could raise
            if completion.key is CLOCK:
                self._clock_came(completion.transferred)
            else:
                self._serve(completion)
        except PortForked:
            raise  # a callback has forked, and this is the child
        except BaseException as error:
            persist(self._recover, completion, error)
            if not isinstance(error, MemoryError):
                raise
            tell(logging.ERROR, "completionport: error in %s, which goes on", self, error=error)

    def _recover(self, completion: Completion, error: BaseException) -> None:
        """`serve` was interrupted anywhere, by a signal handler or for want of memory.

        Nothing may stay as if this thread were still at it. It may be done twice.
        """
        with self._lock:
            due, self._due = self._due, None
            self._clocks.clear()
            self._changed.notify_all()
        if completion.key is CLOCK:
            due = 0.0
        if due is not None:
            self._set_due(max(due - time.monotonic(), 0.0))

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, where the locks may be another thread's for good."""
        return os.getpid() != self._process

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""
        if self.forked:
            raise PortForked

    def _set_due(self, seconds: float) -> None:
        """Have `_tick` called in so many seconds at the latest."""
        due = time.monotonic() + seconds
        with self._lock:
            if self._ended or (self._due is not None and self._due <= due):
                return
            self._due = due
            if self._clocks and min(self._clocks) <= due:
                return  # that one asks again
            self._clocks.add(due)
        persist(self._set_clock, due)

    def _set_clock(self, due: float) -> None:
        with contextlib.suppress(PortClosed):
            self.port._call_for(self, max(due - time.monotonic(), 0.0), due, CLOCK)

    def _clock_came(self, set_for: float) -> None:
        now = time.monotonic()
        with self._lock:
            self._clocks.discard(set_for)
            due = self._due
            if due is None or self._ended:
                return
            self._due = None
        if due <= now:
            self._tick(now)
        else:
            self._set_due(due - now)

    def end(self) -> None:
        """All has ended. A packet of the clock that is on its way does nothing any more."""
        with self._lock:
            self._ended = True

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until all has ended; False when the time is over before."""
        with self._lock:
            return self._changed.wait_for(self._is_over, timeout)
