"""The packets of a port: on their way in, ready to be taken, or staying back behind their strand.

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
from itertools import repeat
from operator import attrgetter
from typing import Any

from .places import Packet, PortableStrand
from .recorder import NOT_MEASURED, Recorder

LINE_OF = attrgetter("_line")
IS_OPERATION = attrgetter("is_operation")


class Hand(list[Packet]):
    """Packets on their way from the queue to the program."""

    operations = 0
    posts = 0
    """As which they were counted."""
    taken_at = NOT_MEASURED
    """When, where that is measured."""


class PacketQueue:
    """First in, first out; of each strand at most one packet is ready or at work."""

    def __init__(self) -> None:
        self.ready: deque[Packet] = deque()
        self.incoming: deque[Packet] = deque()  # appended to by anybody; no lock
        self.released: deque[PortableStrand] = deque()  # the packet at work is over; the same
        # Older than those. A thread that was called passed them over, as threads that were called
        # before it are still on their way.
        self._passed_over: deque[Packet] = deque()
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
        incoming, ready = self.incoming, self.ready
        while incoming:
            step = map(deque.popleft, (incoming,))
            try:
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
        released, ready = self.released, self.ready
        while released:
            # At the end, so that a strand with a long line leaves the others their turn.
            step = map(deque.popleft, map(LINE_OF, map(deque.popleft, (released,))))
            try:
                strand = released[0]
                if strand._line:
                    ready += step
                else:
                    strand._busy = False
                    del released[0]
            except IndexError:
                return  # `drop` was quicker
            if not strand._line:
                self._back.pop(strand, None)

    @property
    def waiting(self) -> int:
        """How many packets threads can be called for."""
        return len(self._passed_over) + len(self.ready)

    def take(self, packets: list[Packet], max_count: int, ahead: int | None = None) -> None:
        """Move so many packets, or fewer, to the caller's empty list.

        A thread that was called says how many that were called before it are still ``ahead``: that
        many packets are left to them. For any other thread there is what is ready.
        """
        if ahead is not None:
            passed_over = self._passed_over
            _move(self.ready, passed_over, ahead - len(passed_over))
            if ahead < len(passed_over):
                try:
                    passed_over.rotate(-ahead)
                    _move(passed_over, packets, 1)
                finally:
                    passed_over.rotate(ahead)
        _move(self.ready, packets, max_count - len(packets))

    def leave_to(self, called: int) -> None:
        """So many threads are on their way: what was passed over beyond that is there for all."""
        excess = len(self._passed_over) - called
        if excess > 0:
            with contextlib.suppress(IndexError):
                self.ready.extendleft(map(deque.pop, repeat(self._passed_over, excess)))

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

    def put_back(self, hand: Hand) -> None:
        """Undo `take` and `count`."""
        step = map(hand.pop, repeat(-1, len(hand)))
        self.operations -= hand.operations
        self.posts -= hand.posts
        hand.operations = hand.posts = 0
        self.ready.extendleft(step)

    def drop(self) -> None:
        """Let go of everything: the port is closed, and nobody takes it. Never blocks."""
        _drop_all(self.incoming)
        _drop_all(self._passed_over)
        _drop_all(self.ready)
        while self._back:
            with contextlib.suppress(StopIteration, RuntimeError):
                strand = next(iter(self._back))
                _drop_all(strand._line)
                self._back.pop(strand, None)

    def numbers(self) -> dict[str, Any]:
        """A look inside."""
        packets = [*look(self._passed_over), *look(self.ready), *look(self.incoming)]
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
