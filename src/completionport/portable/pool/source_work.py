"""What the pool does for files that are sent: reads on in them, closes those of a file server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ...interface.errors import PORT_WAS_CLOSED, OperationAborted
from ..channels.sources import PIECE, Source, close_source
from .offload import Offload


def held_lock() -> threading.Lock:
    """Held until the work is over. No condition or event: in those a signal handler's exception may
    leave a lock locked.
    """
    lock = threading.Lock()
    lock.acquire()
    return lock


class SourceClose:
    """Closes a file. Its descriptor is its own."""

    function = False

    __slots__ = ("_descriptor", "_works", "unfinished")

    def __init__(self, works: SourceWorks, descriptor: int) -> None:
        self.unfinished = held_lock()
        self._works = works
        self._descriptor = descriptor

    def __call__(self) -> bool:
        self.discard()
        self._works.over(self)
        return False

    def refuse(self) -> None:
        self._works.refuse(self)

    def discard(self) -> None:
        close_source(self._descriptor)


class SourceRead:
    """Reads the next bytes of a file that is sent."""

    function = False

    __slots__ = ("_descriptor", "_offset", "_size", "_tell", "_works", "closes", "unfinished")

    def __init__(
        self, works: SourceWorks, source: Source, tell: Callable[[bytes, OSError | None], None]
    ) -> None:
        self.unfinished = held_lock()
        self._works = works
        self._descriptor = source.descriptor
        self._offset = source.offset
        self._size = min(source.left, PIECE)
        self._tell = tell
        # Nobody else needs the descriptor any more: the lock of the request's channel.
        self.closes = False

    def __call__(self) -> bool:
        data, failure = b"", None
        try:
            data = os.pread(self._descriptor, self._size, self._offset)
        except OSError as error:
            failure = error
        try:
            self._end(data, failure)
        finally:
            self._works.over(self)
        return False

    def refuse(self) -> None:
        self._works.refuse(self)

    def discard(self) -> None:
        self._end(b"", OperationAborted(PORT_WAS_CLOSED))

    def _end(self, data: bytes, failure: OSError | None) -> None:
        self._tell(data, failure)
        # It does not change any more.
        if self.closes:
            close_source(self._descriptor)


class SourceWorks:
    """All of a port."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._lock = threading.RLock()  # guards what follows; a leaf; finalizers come here too
        self._under_way: dict[SourceClose | SourceRead, None] = {}
        self._shut = False

    def start(self, work: SourceClose | SourceRead) -> bool:
        """Have the pool do it; False when no thread is to be had, or the port is closed."""
        with self._lock:
            if self._shut:
                return False
            self._under_way[work] = None
        try:
            self._offload.start(work)
        except OSError:
            self.over(work)
            return False
        return True

    def refuse(self, work: SourceClose | SourceRead) -> None:
        """No thread can be had: the calling one does it."""
        if self._offload.cancel(work):
            work()

    def over(self, work: SourceClose | SourceRead) -> None:
        with self._lock:
            if work in self._under_way:
                del self._under_way[work]
                work.unfinished.release()

    def finish(self) -> None:
        """At the end of the port, with all requests over: wait for what the pool is at."""
        with self._lock:
            self._shut = True
            works = list(self._under_way)
        for work in works:
            if self._offload.cancel(work):
                work.discard()
                self.over(work)
        for work in works:
            with work.unfinished:
                pass
