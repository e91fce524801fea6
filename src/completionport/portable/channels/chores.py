"""Work that waits for a lock without a thread that waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Chores:
    """Work to be done under a lock by whoever can have it: now, or when its holder lets go.

    Every holder of the lock calls `run` once it has released it. A signal handler may raise in the
    midst of it (see ``scheduling.scheduler``): so work may be done twice.
    """

    __slots__ = ("_lock", "_work")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._work: deque[Callable[[], object]] = deque()

    def __bool__(self) -> bool:
        return bool(self._work)

    def add(self, work: Callable[[], object]) -> None:
        self._work += (work,)
        self.run()

    def run(self) -> None:
        try:
            self._run()
        except BaseException:
            try:
                self._run()
            except BaseException:
                # It is no handler's: the work can't be done.
                self._give_up()
                raise
            raise

    def _run(self) -> None:
        while self._work:
            [locked] = map(self._lock.acquire, (False,))
            if not locked:
                return
            try:
                while self._work:
                    self._work[0]()
                    del self._work[0]
            finally:
                self._lock.release()

    def _give_up(self) -> None:
        if self._work:
            del self._work[0]
