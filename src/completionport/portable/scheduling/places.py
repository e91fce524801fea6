"""What each thread has taken: its place at a port, and the strands of its packets.

What a `Place` has belongs to its thread alone. What others have to know is in tables of the
scheduler, whose steps wait for nothing, on Windows for the scheduler's lock: the end of a thread is
a finalizer (see ``scheduler``).
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any, ClassVar, Protocol

from ...interface.port import Completion, CompletionPort, Strand
from .recorder import NOT_MEASURED

PROGRAMS = 1
SERVED = 2
"""What a thread takes, as bits: the program's packets, those of consumers."""
ALL = PROGRAMS | SERVED


class Consumer(Protocol):
    """Who a packet is for, where that is not the program."""

    def serve(self, taken: list[Completion]) -> None:
        """By the thread that has taken the packet, the list's only one, whichever thread that is.

        It takes it out of the list: what is raised before comes from a signal handler, and then the
        packet comes again. A consumer that has a thread of its own hands it over here.
        """

    def port_closed(self) -> None:
        """Nothing of the port is under way any more. By the thread that has closed it.

        It may be called again: when a signal handler has raised in the midst of it.
        """


class Packet(Protocol):
    """What threads take: a complete operation, or what was posted."""

    is_operation: ClassVar[bool]
    """A complete operation; else what was posted."""
    since: int
    """When it came into the packet queue."""
    delivered: bool
    """It is in the packet queue, or was."""
    consumer: Consumer | None
    """Who it is for; None: the program."""
    number: int
    """Of two that are ready the lower one has come first."""

    @property
    def strand(self) -> PortableStrand | None:
        """What it is bound to."""

    def take(self) -> Completion:
        """The packet is taken."""

    def drop(self) -> None:
        """The packet will not be taken: the port is closed."""


class CrewMembers:
    """What stands for the threads of a crew at their port."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        # The scheduler's lock: how many are to leave, where they take the program's packets once so
        # many of those were taken.
        self.leaving = 0
        self.until = 0
        # Tokens of its threads that are at consumers' packets; each step is atomic.
        self.serving: dict[object, None] = {}

    def count_serving(self, token: object) -> None:
        """One more is."""
        try:
            self.serving[token] = None
        except MemoryError:
            return  # it counts as one that waits


class Counter(Protocol):
    """A scheduler, as its threads and strands see it.

    Nothing here waits, on Windows but for its lock.
    """

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that the scheduler belongs to."""

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""

    def end_turn(self, place: Place) -> None:
        """The thread is done with what it took, and counts no more. It may be done twice."""

    def let_strand_go(self, place: Place, strand: PortableStrand) -> None:
        """And is done with one strand, whose next packet may go."""

    def lend(self, place: Place) -> None:
        """The thread counts no more until `regain`, though it is at work; if it counts at all."""

    def regain(self, place: Place) -> None:
        """The thread counts again."""

    def settle(self) -> None:
        """Do what was noted, unless somebody else is at it."""


class PortableStrand(Strand):
    """At most one of its packets is in the scheduler's queue or at work; the others stay back."""

    __slots__ = ("__weakref__", "_busy", "_line", "_port", "_scheduler")

    _port: weakref.ref[CompletionPort]
    _scheduler: Counter
    _busy: bool
    """A packet is in the queue or at work; guarded by the scheduler's lock."""
    _line: deque[Packet]
    """Those that stay back; appended to under the scheduler's lock."""

    @property
    def port(self) -> CompletionPort | None:
        return self._port()

    @property
    def queued(self) -> int:
        return len(self._line)

    def release(self) -> None:
        self._scheduler.check_fork()
        if not this_place().release(self):
            raise RuntimeError(
                "this thread is not at work on a packet of the strand: it has released it already, "
                "or has called get since"
            )

    def __repr__(self) -> str:
        return f"<Strand, {self.queued} queued>"


def new_strand(port: weakref.ref[CompletionPort], scheduler: Counter) -> PortableStrand:
    """A strand of this port: the class itself asks the port for one."""
    strand: PortableStrand = object.__new__(PortableStrand)
    strand._port = port
    strand._scheduler = scheduler
    strand._busy = False
    strand._line = deque()
    return strand


class Place:
    """The place that one thread holds, and what it took with it.

    Its scheduler changes it, in the thread itself. See ``scheduler`` on what signal handlers do.
    """

    __slots__ = ("executes_for", "holder", "lent", "local", "serving", "since", "strands", "token")

    def __init__(self) -> None:
        self.holder: Callable[[], Counter | None] | None = None  # weak; of what was taken last
        self.token = object()  # stands for the thread in its scheduler's tables
        self.lent: object = None  # the `Blocking` inside of which the place does not count
        self.serving = 0  # so many packets of consumers it is at, one inside the other
        self.since = NOT_MEASURED  # when the packets were taken
        self.strands: list[PortableStrand] = []  # of these packets, all of that scheduler
        # Whose request it carries out as a thread of a pool: a function may close its own port.
        self.executes_for: object = None
        self.local: threading.local  # it tells of the thread's end

    def leave(self, asking: Counter | None = None) -> None:
        """Be done with what the thread took, unless it took it of the asking scheduler.

        That one sees to it itself, under its lock: so the thread takes the next packet before
        anybody is woken for it.
        """
        if self.holder is None:
            return
        scheduler = self.holder()
        if scheduler is not None and scheduler is asking:
            return
        if scheduler is not None and not scheduler.forked:
            scheduler.end_turn(self)
            scheduler.settle()
        self.holder = self.lent = None
        self.strands = []

    def release(self, strand: PortableStrand) -> bool:
        """Be done with one strand; False when the thread has no packet of it."""
        if strand not in self.strands:
            return False
        strand._scheduler.let_strand_go(self, strand)
        strand._scheduler.settle()
        return True

    def lend(self, scheduler: Counter, borrower: object) -> None:
        """The place of this scheduler, if it is one, is free until `regain`."""
        if self.lent is None and self.holder is not None and self.holder() is scheduler:
            self.lent = borrower
            scheduler.lend(self)
            scheduler.settle()

    def regain(self, scheduler: Counter, borrower: object) -> None:
        """Count again, unless the thread has been in `get` since."""
        if self.lent is borrower:
            if not scheduler.forked:
                scheduler.regain(self)
            self.lent = None


class Blocking:
    """`CompletionPort.blocking`. A second one inside the first finds no place to lend."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Counter) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> None:
        place = this_place()
        try:
            place.lend(self._scheduler, self)
        except BaseException:
            place.regain(self._scheduler, self)  # a signal handler's: `__exit__` will not come
            raise

    def __exit__(self, *exc_info: object) -> None:
        place = this_place()
        try:
            place.regain(self._scheduler, self)
        except BaseException:
            place.regain(self._scheduler, self)
            raise


# By the numbers of their threads; each step is atomic.
_places: dict[int, Place] = {}
# Of threads that have ended, to be used again: one that goes looks into all threads. Each step is
# atomic.
_locals: deque[threading.local] = deque()


class _End:
    """What goes with its thread, and ends the thread's turn."""

    __slots__ = ("_number", "_place")

    def __init__(self, number: int, place: Place) -> None:
        self._number = number
        self._place = place

    def __del__(
        self,
        is_finalizing: Callable[[], bool] = sys.is_finalizing,
        places: dict[int, Place] = _places,
        unused: deque[threading.local] = _locals,
    ) -> None:
        # The thread ends. Or the interpreter does, and has stopped it for good, and perhaps another
        # one with the scheduler's lock: nobody counts any more then.
        if is_finalizing():
            return
        self._place.leave()
        if places.get(self._number) is self._place:
            del places[self._number]
        unused.append(self._place.local)


def _new_place(number: int) -> Place:
    """Of the calling thread.

    Its end is seen by a local of its own. One for all CPython locks while it lets go of what a
    thread has there. Free-threaded, the lock may be handed to a thread that the end of the
    interpreter has stopped, and then that end waits for ever.
    """
    place = Place()
    try:
        place.local = _locals.pop()
    except IndexError:
        place.local = threading.local()
    place.local.end = _End(number, place)
    _places[number] = place
    return place


def this_place() -> Place:
    """The place of the calling thread."""
    try:
        return _places[get_ident()]
    except KeyError:
        try:
            return _new_place(get_ident())
        except SystemError:  # of CPython, where it has no memory for a thread's first local
            raise MemoryError from None


def keep_this_place() -> Place:
    """In the child of a fork: the other threads are gone, and their numbers may come again."""
    place = this_place()
    _places.clear()
    _places[get_ident()] = place
    return place


def call_serving(crew: CrewMembers | None, function: Callable[..., None], *arguments: Any) -> None:
    """Call it while the thread, one of that crew, counts as in the midst of a consumer's packet.

    It takes no memory that is not there: the packet is this thread's.
    """
    place = this_place()
    before = place.serving
    place.serving = before + 1
    try:
        if crew is not None:
            crew.count_serving(place.token)
        function(*arguments)
    finally:
        # In the child of a fork in there it was set to 0.
        place.serving = before
        if crew is not None:
            crew.serving.pop(place.token, None)
