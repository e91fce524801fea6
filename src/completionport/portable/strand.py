"""Strands of the engines in Python."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..interface.port import Strand
from .places import this_place

if TYPE_CHECKING:
    from ..interface.port import CompletionPort
    from .port import Core
    from .requests import Packet
    from .scheduler import Scheduler


class PortableStrand(Strand):
    """At most one of its packets is in the scheduler's queue or at work; the others stay back."""

    __slots__ = ("__weakref__", "_core", "busy", "line", "scheduler")

    _core: Core
    scheduler: Scheduler
    busy: bool
    """A packet is in the queue or at work; guarded by the scheduler's lock."""
    line: deque[Packet]
    """Those that stay back; appended to under the scheduler's lock."""

    @classmethod
    def make(cls, core: Core) -> PortableStrand:
        strand: PortableStrand = object.__new__(cls)
        strand._core = core
        strand.scheduler = core.scheduler
        strand.busy = False
        strand.line = deque()
        return strand

    @property
    def port(self) -> CompletionPort | None:
        return self._core.port()

    @property
    def queued(self) -> int:
        return len(self.line)

    def release(self) -> None:
        self.scheduler.check_fork()
        if not this_place().release(self):
            raise RuntimeError(
                "this thread is not at work on a packet of the strand: it has released it already, "
                "or has called get since"
            )

    def __repr__(self) -> str:
        return f"<Strand of {self.port!r}, {self.queued} packets stay back>"
