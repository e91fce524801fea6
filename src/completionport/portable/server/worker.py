"""What the cores of servers have in common: their workers, and waiting for the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from ...interface.errors import PortClosed, PortForked
from ...interface.port import Completion
from ...shared.reports import SHORTAGE, tell

if TYPE_CHECKING:
    from ...interface.port import CompletionPort


class WorkingCore:
    """Packets to callbacks for one server."""

    def __init__(self, port: CompletionPort) -> None:
        self.port = port
        self._process = os.getpid()
        self._stop = object()  # the packet that ends a worker
        # Its lock guards `_due`, and what a core adds that says so.
        self._changed = threading.Condition(threading.RLock())
        # When `_tick` has something to do. Also read without the lock: `_tick` looks again.
        self._due: float | None = None

    def _serve(self, completion: Completion) -> None:
        """One worker's turn with a packet."""
        raise NotImplementedError

    def _tick(self) -> None:
        """What is done by the clock."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        """Whether all has ended; who makes it so notifies `_changed`. Lock held."""
        raise NotImplementedError

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, where the locks may be another thread's for good."""
        return os.getpid() != self._process

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""
        if self.forked:
            raise PortForked

    def work(self) -> None:
        """The body of a worker thread; returns when it takes a stop packet."""
        get = self.port.get
        while True:
            due = self._due
            try:
                completion = get(None if due is None else max(due - time.monotonic(), 0.0))
            except (PortClosed, PortForked):
                return
            except MemoryError:
                # The packet stays. This thread ends only when it is told to.
                time.sleep(SHORTAGE)
                continue
            try:
                if due is not None and time.monotonic() >= due:
                    self._tick()
                if completion is None:
                    continue
                if completion.transferred is self._stop:
                    return
                self._serve(completion)
            except PortForked:
                return  # a callback has forked, and this is the child
            except BaseException:
                tell(logging.ERROR, "completionport: error in a worker, which goes on", error=True)
            # Not to be kept alive while this thread waits.
            completion = None

    def post_stop(self) -> None:
        """End one worker."""
        self.port.post(self._stop, self, None)

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until all has ended; False when the time is over before."""
        with self._changed:
            return self._changed.wait_for(self._is_over, timeout)
