"""The compiled ports under their public types, one for each engine."""

from __future__ import annotations

from typing import Any

from ...interface.handle import Handle as PublicHandle
from ...interface.handle import Overlapped
from ...interface.port import CompletionPort, SignalWatch
from ...interface.port import Strand as PublicStrand
from ...interface.timer import Timer
from ...interface.unique import Unique
from ...watches.changes import read_changes
from ...watches.signals import watch_signal
from .handles import Handle as CompiledHandle
from .port import Port
from .strand import Strand as CompiledStrand
from .timers import Timer as CompiledTimer


class Handle(CompiledHandle, PublicHandle):
    """A handle of a compiled engine."""

    __slots__ = ()
    # In the place of what Cython makes.
    __reduce__ = Unique.__reduce__

    def read_changes(
        self, recursive: bool = False, overlapped: Overlapped | None = None, *, size: int = 65536
    ) -> Overlapped:
        return read_changes(self, recursive, size, overlapped)


class Strand(CompiledStrand, PublicStrand):
    """A strand of a compiled engine."""

    __slots__ = ("__weakref__",)
    __reduce__ = Unique.__reduce__


Timer.register(CompiledTimer)


class CompiledPort(Port, CompletionPort):
    """A completion port of a compiled engine."""

    __reduce__ = Unique.__reduce__
    _HANDLE = Handle
    _STRAND = Strand

    def associate_signal(
        self, signum: int, key: Any, *, strand: PublicStrand | None = None
    ) -> SignalWatch:
        return watch_signal(self, signum, key, strand)


class IoUringPort(CompiledPort):
    """A completion port on io_uring."""

    _ENGINE = "io_uring"


class EpollPort(CompiledPort):
    """A completion port on epoll."""

    _ENGINE = "epoll"


PORTS: dict[str, type[CompletionPort]] = {"io_uring": IoUringPort, "epoll": EpollPort}
