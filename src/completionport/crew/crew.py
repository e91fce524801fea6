"""A crew: threads of one kind at a port. Its loop is the only one that takes a port's packets.

Consumers' packets, those of a server's connections and the like, are served within the port's own
call, by any thread that takes them there. So the loop sees the program's packets only.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ..interface.errors import PortClosed, PortForked
from ..interface.port import Completion, CompletionPort
from ..shared.reports import SHORTAGE, tell


def _never() -> bool:
    return False


def join(thread: threading.Thread, timeout: float | None = None) -> None:
    """Wait for its end; not for one that is not there, or whose start a signal has interrupted."""
    with contextlib.suppress(RuntimeError):
        thread.join(timeout)


class Crew:
    """Threads at a port, which any number of threads join with `work`, until they are dismissed.

    ``function``: called with each of the program's packets; None leaves those to others.
    """

    def __init__(
        self, port: CompletionPort, function: Callable[[Completion], Any] | None = None
    ) -> None:
        self.port = port
        self._function = function
        self._members = port._new_crew(function is not None)

    def work(
        self,
        name: str,
        function: Callable[[Completion], Any] | None = None,
        idle_timeout: float | None = None,
        may_leave: Callable[[], bool] = _never,
    ) -> None:
        """The body of a thread; it returns when that is dismissed, or the port is closed.

        ``name``: for the log. ``function``: this thread's own, in place of the crew's.
        ``may_leave``: asked where nothing has come for ``idle_timeout`` seconds; True ends it too.
        """
        function = function or self._function
        while True:
            # Whatever fails in between, the thread goes on until it is told to end.
            try:
                completion = self.port._take(self._members, idle_timeout)
                if completion is False:
                    return
                if completion is not None:
                    assert function is not None
                    function(completion)
                elif may_leave():
                    return
            except PortClosed:
                if self.port.closed:
                    return
            except PortForked:
                return  # a callback has forked, and this is the child
            except BaseException as error:
                if not isinstance(error, MemoryError):
                    tell(logging.ERROR, "%s: an error, the thread goes on", name, error=error)
                time.sleep(SHORTAGE)
            # Not to be kept alive while this thread waits.
            completion = None

    def serving(self) -> int:
        """How many of its threads, where they have a function, are at consumers' packets now."""
        return self.port._serving(self._members)

    def dismiss(self, count: int) -> None:
        """Have so many of its threads leave: once they come back, and those that wait at once.

        Where they have a function, what is queued now is served before.
        """
        self.port._dismiss(self._members, count)
