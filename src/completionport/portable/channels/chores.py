"""Work that waits for a lock without a thread that waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


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
