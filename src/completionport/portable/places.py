"""What each thread has taken: its place at a port, and the strands of its packets.

All of it belongs to the thread alone. What others have to know goes to the scheduler as a note,
which never blocks: the end of a thread is a finalizer (see ``scheduler``).
"""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from .recorder import NOT_MEASURED

if TYPE_CHECKING:
    from .requests import Packet
    from .scheduler import Scheduler
    from .strand import PortableStrand


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


class Place:
    """The place that one thread holds, and what it took with it."""

    __slots__ = ("_holder", "_lent", "_since", "_strands")

    def __init__(self) -> None:
        self._holder: weakref.ref[Scheduler] | None = None  # of what was taken last
        self._lent: object = None  # the `Blocking` inside of which the place does not count
        self._since = NOT_MEASURED
        self._strands: tuple[PortableStrand, ...] = ()  # all of that scheduler

    def claim(self, holder: weakref.ref[Scheduler]) -> None:
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

    def let_go(self, asking: Scheduler | None = None) -> bool:
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

    def lend(self, scheduler: Scheduler, borrower: object) -> None:
        """The place of this scheduler, if it is one, is free until `regain`."""
        if self._lent is None and self._holder is not None and self._holder() is scheduler:
            self._lent = borrower
            scheduler.note(Note(running=-1, blocked=1))
            scheduler.settle()

    def regain(self, scheduler: Scheduler, borrower: object) -> None:
        """Count again, unless the thread has been in `get` since."""
        if self._lent is borrower:
            self._lent = None
            if not scheduler.forked:
                scheduler.note(Note(running=1, blocked=-1))

    def __del__(self) -> None:
        # The thread ends.
        self.let_go()


class Blocking(AbstractContextManager[None]):
    """`CompletionPort.blocking`. A second one inside the first finds no place to lend."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler) -> None:
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
