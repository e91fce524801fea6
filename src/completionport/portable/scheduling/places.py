"""What each thread has taken: its place at a port, and the strands of its packets.

What a `Place` has belongs to its thread alone. What others have to know goes to the scheduler as a
note, which waits for nothing, on Windows for the scheduler's lock: the end of a thread is a
finalizer (see ``scheduler``).
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple, Protocol

from ...interface.port import Completion, CompletionPort, Strand
from .recorder import NOT_MEASURED


class Packet(Protocol):
    """What threads take: a complete operation, or what was posted."""

    is_operation: ClassVar[bool]
    """A complete operation; else what was posted."""
    since: int
    """When it came into the packet queue."""

    @property
    def strand(self) -> PortableStrand | None:
        """What it is bound to."""

    def take(self) -> Completion:
        """The packet is taken."""

    def drop(self) -> None:
        """The packet will not be taken: the port is closed."""


class Counter(Protocol):
    """A scheduler, as its threads and strands see it."""

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that the scheduler belongs to."""

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""

    def note(self, note: Note) -> None:
        """What a thread did is to be counted. Never blocks; the caller settles."""

    def settle(self) -> None:
        """Do what was noted, unless somebody else is at it."""


class Note(NamedTuple):
    """What changed in a thread, for its scheduler to count."""

    running: int = 0
    """Threads more that count."""
    blocked: int = 0
    """Threads more that are at work and do not count."""
    spent: int = NOT_MEASURED
    """Nanoseconds that the thread was at work on what it had taken."""
    released: tuple[PortableStrand, ...] = ()
    """Strands whose next packet may go."""


class PortableStrand(Strand):
    """At most one of its packets is in the scheduler's queue or at work; the others stay back."""

    __slots__ = ("__weakref__", "_port", "busy", "line", "scheduler")

    _port: weakref.ref[CompletionPort]
    scheduler: Counter
    busy: bool
    """A packet is in the queue or at work; guarded by the scheduler's lock."""
    line: deque[Packet]
    """Those that stay back; appended to under the scheduler's lock."""

    @classmethod
    def make(cls, port: weakref.ref[CompletionPort], scheduler: Counter) -> PortableStrand:
        strand: PortableStrand = object.__new__(cls)
        strand._port = port
        strand.scheduler = scheduler
        strand.busy = False
        strand.line = deque()
        return strand

    @property
    def port(self) -> CompletionPort | None:
        return self._port()

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


class Place:
    """The place that one thread holds, and what it took with it."""

    __slots__ = ("_holder", "_lent", "_since", "_strands")

    def __init__(self) -> None:
        self._holder: Callable[[], Counter | None] | None = None  # weak; of what was taken last
        self._lent: object = None  # the `Blocking` inside of which the place does not count
        self._since = NOT_MEASURED
        self._strands: tuple[PortableStrand, ...] = ()  # all of that scheduler

    def claim(self, holder: Callable[[], Counter | None]) -> None:
        """The scheduler has counted this thread."""
        self._holder = holder
        self._since = NOT_MEASURED

    def take(self, packets: list[Packet], now: int) -> None:
        """These packets go out to the program; ``now`` is the time, where that is measured."""
        self._since = now
        self._strands = tuple([one.strand for one in packets if one.strand is not None])

    def undo(self) -> None:
        """They went back into the queue, where their strands' turn goes on."""
        self._since = NOT_MEASURED
        self._strands = ()
        self.let_go()

    def let_go(self, asking: Counter | None = None) -> bool:
        """The thread is done with what it took.

        True when it goes on counting at the asking scheduler, which sees to that itself.
        """
        if self._holder is None:
            return False
        scheduler = self._holder()
        strands, since, lent = self._strands, self._since, self._lent is not None
        self._holder = self._lent = None
        self._strands = ()
        if scheduler is None or scheduler.forked:
            return False
        spent = NOT_MEASURED if since == NOT_MEASURED else time.monotonic_ns() - since
        own = scheduler is asking
        if strands or lent or not own or spent != NOT_MEASURED:
            scheduler.note(Note(0 if lent or own else -1, -1 if lent else 0, spent, strands))
        if not own:
            scheduler.settle()
        return own and not lent

    def release(self, strand: PortableStrand) -> bool:
        """Be done with one strand; False when the thread has no packet of it."""
        if strand not in self._strands:
            return False
        self._strands = tuple([one for one in self._strands if one is not strand])
        strand.scheduler.note(Note(released=(strand,)))
        strand.scheduler.settle()
        return True

    def lend(self, scheduler: Counter, borrower: object) -> None:
        """The place of this scheduler, if it is one, is free until `regain`."""
        if self._lent is None and self._holder is not None and self._holder() is scheduler:
            self._lent = borrower
            scheduler.note(Note(running=-1, blocked=1))
            scheduler.settle()

    def regain(self, scheduler: Counter, borrower: object) -> None:
        """Count again, unless the thread has been in `get` since."""
        if self._lent is borrower:
            self._lent = None
            if not scheduler.forked:
                scheduler.note(Note(running=1, blocked=-1))

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The thread ends. Or the interpreter does, and has stopped it for good, and perhaps another
        # one with the scheduler's lock: nobody counts any more then.
        if not is_finalizing():
            self.let_go()


class Blocking(AbstractContextManager[None]):
    """`CompletionPort.blocking`. A second one inside the first finds no place to lend."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Counter) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> None:
        this_place().lend(self._scheduler, self)

    def __exit__(self, *exc_info: object) -> None:
        this_place().regain(self._scheduler, self)


class _Places(threading.local):
    def __init__(self) -> None:
        self.mine = Place()


_places = _Places()


def this_place() -> Place:
    """The place of the calling thread."""
    return _places.mine
