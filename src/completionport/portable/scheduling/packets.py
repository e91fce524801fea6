"""The packets of a port: on their way in, ready to be taken, or staying back behind their strand.

There are two lines of those that are ready, the program's and those of consumers, since not every
thread takes both.

A packet comes in through `put`, which needs no lock. Everything else is called under the
scheduler's lock, but for `drop`: it is for a port that is closed, and finalizers
call it.

A signal handler may raise behind each call of a function (see ``scheduler``), so packets go from
one place to another in one step: the iterator that moves them is made before, and the last look at
the state and the step have no call between them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import count, repeat
from operator import attrgetter
from typing import Any

from .places import PROGRAMS, SERVED, Packet, PortableStrand
from .recorder import NOT_MEASURED, Recorder

LINE_OF = attrgetter("_line")
IS_OPERATION = attrgetter("is_operation")


class Hand(list[Packet]):
    """Packets on their way from the queue to the program."""

    operations = 0
    posts = 0
    programs = 0
    """As which they were counted."""
    taken_at = NOT_MEASURED
    """When, where that is measured."""
    dismissed = False
    """There are none, and the thread is to leave its crew."""


class Line:
    """Packets that are ready for the threads that take of this line: first in, first out."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.ready: deque[Packet] = deque()
        # Older than those. A thread that was called passed them over, as threads that were called
        # before it are still on their way.
        self.passed_over: deque[Packet] = deque()
        self.taken = 0  # so far

    @property
    def waiting(self) -> int:
        """How many packets threads can be called for."""
        return len(self.passed_over) + len(self.ready)

    @property
    def age(self) -> int:
        """The number of its first packet: the lower one has come first. It has one."""
        first = self.passed_over or self.ready
        return first[0].number

    def leave_to(self, called: int) -> None:
        """So many threads are on their way: what was passed over beyond that is there for all."""
        excess = len(self.passed_over) - called
        if excess > 0:
            with contextlib.suppress(IndexError):
                self.ready.extendleft(map(deque.pop, repeat(self.passed_over, excess)))


class PacketQueue:
    """First in, first out; of each strand at most one packet is ready or at work."""

    def __init__(self) -> None:
        self.programs = Line(PROGRAMS)
        self.served = Line(SERVED)
        self.lines = self.programs, self.served
        self.incoming: deque[Packet] = deque()  # appended to by anybody; no lock
        self.released: deque[PortableStrand] = deque()  # the packet at work is over; the same
        self._numbers = count(1)
        self._back: dict[PortableStrand, None] = {}  # strands with packets that stay back
        self.operations = 0  # packets of operations taken so far
        self.posts = 0  # other packets taken so far
        self._time = Recorder()

    @property
    def taken(self) -> int:
        """Packets taken so far."""
        return self.operations + self.posts

    def sort(self) -> None:
        """See which new packets are ready, and which ones stay back."""
        incoming = self.incoming
        while incoming:
            step = map(deque.popleft, (incoming,))
            try:
                ready = self.line_of(incoming[0]).ready
                incoming[0].number = next(self._numbers)
                strand = incoming[0].strand
                if strand is None:
                    ready += step
                elif not strand._busy:
                    strand._busy = True
                    ready += step
                else:
                    self._back[strand] = None
                    strand._line += step
            except IndexError:
                return  # `drop` was quicker

    def advance(self) -> None:
        """The packets at work of some strands are done with: their next ones are ready."""
        released = self.released
        while released:
            # At the end, so that a strand with a long line leaves the others their turn.
            step = map(deque.popleft, map(LINE_OF, map(deque.popleft, (released,))))
            try:
                strand = released[0]
                if strand._line:
                    ready = self.line_of(strand._line[0]).ready
                    ready += step
                else:
                    strand._busy = False
                    del released[0]
            except IndexError:
                return  # `drop` was quicker
            if not strand._line:
                self._back.pop(strand, None)

    def line_of(self, packet: Packet) -> Line:
        """The line that it comes to."""
        return self.programs if packet.consumer is None else self.served

    def by_age(self) -> list[Line]:
        """The lines with packets; that of the oldest one first."""
        programs, served = self.lines
        if not served.waiting:
            return [programs] if programs.waiting else []
        if not programs.waiting:
            return [served]
        return [programs, served] if programs.age < served.age else [served, programs]

    @property
    def held_back(self) -> int:
        """How many stay back behind their strands."""
        return sum(len(strand._line) for strand in list(self._back))

    def take(self, line: Line, packets: list[Packet], max_count: int, ahead: int | None) -> None:
        """Move so many packets, or fewer, to the caller's empty list. Of consumers' one at a time.

        A thread that was called says how many that were called before it are still ``ahead``: that
        many packets are left to them. For any other thread there is what is ready.
        """
        max_count = 1 if line is self.served else max_count
        if ahead is not None:
            passed_over = line.passed_over
            _move(line.ready, passed_over, ahead - len(passed_over))
            if ahead < len(passed_over):
                try:
                    passed_over.rotate(-ahead)
                    _move(passed_over, packets, 1)
                finally:
                    passed_over.rotate(ahead)
        _move(line.ready, packets, max_count - len(packets))

    def measure(self, packets: list[Packet], now: int) -> None:
        """Count how long they waited."""
        for packet in packets:
            self._time.add(now - packet.since)

    def count(self, hand: Hand) -> None:
        """They were taken."""
        operations = sum(map(IS_OPERATION, hand))
        posts = len(hand) - operations
        hand.operations = operations
        hand.posts = posts
        self.operations += operations
        self.posts += posts
        if hand:
            self.line_of(hand[0]).taken += len(hand)

    def put_back(self, hand: Hand) -> None:
        """Undo `take` and `count`."""
        if not hand:
            return
        line = self.line_of(hand[0])
        step = map(hand.pop, repeat(-1, len(hand)))
        self.operations -= hand.operations
        self.posts -= hand.posts
        line.taken -= hand.operations + hand.posts
        hand.operations = hand.posts = 0
        line.ready.extendleft(step)

    def drop(self) -> None:
        """Let go of everything: the port is closed, and nobody takes it. Never blocks."""
        _drop_all(self.incoming)
        for line in self.lines:
            _drop_all(line.passed_over)
            _drop_all(line.ready)
        while self._back:
            with contextlib.suppress(StopIteration, RuntimeError):
                strand = next(iter(self._back))
                _drop_all(strand._line)
                self._back.pop(strand, None)

    def numbers(self) -> dict[str, Any]:
        """A look inside."""
        packets = look(self.incoming)
        for line in self.lines:
            packets += look(line.passed_over) + look(line.ready)
        for strand in list(self._back):
            packets += look(strand._line)
        operations = sum(map(IS_OPERATION, packets))
        return {
            "queued": len(packets),
            "posted": self.posts + len(packets) - operations,
            "completed": self.operations + operations,
            "taken": self.taken,
            "queue_time": self._time.snapshot(),
        }


def look(queue: deque[Any]) -> list[Any]:
    """What is in it; it may change while it is copied (free-threaded, and through finalizers)."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(queue)


def _move(source: deque[Packet], target: Any, count: int) -> None:
    """Take so many, or fewer, from the head of the one to the end of the other, in one step."""
    step = map(deque.popleft, repeat(source, max(count, 0)))
    try:
        target += step
    except IndexError:
        return


def _drop_all(queue: deque[Packet]) -> None:
    mine: list[Packet] = []  # each packet is dropped by one thread
    try:
        _move(queue, mine, len(queue))
        while mine:
            mine[0].drop()
            del mine[0]
    except BaseException:
        queue.extend(mine)
        raise
