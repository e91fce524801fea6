"""The packets of a port: on their way in, ready to be taken, or staying back behind their strand.

A packet comes in through `put`, which needs no lock. Everything else is called under the
scheduler's lock, but for `drop`: it is for a port that is closed, and finalizers call it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import repeat
from typing import Any

from .places import Packet, PortableStrand
from .recorder import Recorder


class PacketQueue:
    """First in, first out; of each strand at most one packet is ready or at work."""

    def __init__(self) -> None:
        self.ready: deque[Packet] = deque()
        # Older than those. A thread that was called passed them over, as threads that were called
        # before it are still on their way.
        self._passed_over: deque[Packet] = deque()
        self._incoming: deque[Packet] = deque()
        self._back: dict[PortableStrand, None] = {}  # strands with packets that stay back
        self._operations = 0  # packets of operations taken so far
        self._posts = 0  # other packets taken so far
        self._time = Recorder()

    @property
    def taken(self) -> int:
        """Packets taken so far."""
        return self._operations + self._posts

    def put(self, packet: Packet) -> None:
        """Append a packet; no lock. Never blocks."""
        self._incoming.append(packet)

    def sort(self) -> None:
        """See which new packets are ready, and which ones stay back."""
        while self._incoming:
            try:
                packet = self._incoming.popleft()
            except IndexError:
                return  # `drop` was quicker
            strand = packet.strand
            if strand is None:
                self.ready.append(packet)
            elif not strand.busy:
                strand.busy = True
                self.ready.append(packet)
            else:
                strand.line.append(packet)
                self._back[strand] = None

    def advance(self, strand: PortableStrand) -> None:
        """The strand's packet at work is done with: its next one is ready."""
        try:
            # At the end, so that a strand with a long line leaves the others their turn.
            self.ready.append(strand.line.popleft())
        except IndexError:
            strand.busy = False
        if not strand.line:
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
                passed_over.rotate(-ahead)
                _move(passed_over, packets, 1)
                passed_over.rotate(ahead)
        _move(self.ready, packets, max_count - len(packets))
        self._count(packets, 1)

    def leave_to(self, called: int) -> None:
        """So many threads are on their way: what was passed over beyond that is there for all."""
        excess = len(self._passed_over) - called
        with contextlib.suppress(IndexError):
            self.ready.extendleft(map(deque.pop, repeat(self._passed_over, max(excess, 0))))

    def measure(self, packets: list[Packet], now: int) -> None:
        """Count how long they waited."""
        for packet in packets:
            self._time.add(now - packet.since)

    def put_back(self, packets: list[Packet]) -> None:
        """Undo `take`."""
        self.ready.extendleft(reversed(packets))
        self._count(packets, -1)

    def drop(self) -> None:
        """Let go of everything: the port is closed, and nobody takes it. Never blocks."""
        _drop_all(self._incoming)
        _drop_all(self._passed_over)
        _drop_all(self.ready)
        while self._back:
            with contextlib.suppress(KeyError):
                _drop_all(self._back.popitem()[0].line)

    def numbers(self) -> dict[str, Any]:
        """A look inside."""
        packets = [*look(self._passed_over), *look(self.ready), *look(self._incoming)]
        for strand in list(self._back):
            packets += look(strand.line)
        operations = sum(packet.is_operation for packet in packets)
        return {
            "queued": len(packets),
            "posted": self._posts + len(packets) - operations,
            "completed": self._operations + operations,
            "taken": self.taken,
            "queue_time": self._time.snapshot(),
        }

    def _count(self, packets: list[Packet], sign: int) -> None:
        operations = sum(packet.is_operation for packet in packets)
        self._operations += sign * operations
        self._posts += sign * (len(packets) - operations)


def look(queue: deque[Any]) -> list[Any]:
    """What is in it; it may change while it is copied (free-threaded, and through finalizers)."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(queue)


def _move(source: deque[Packet], target: deque[Packet] | list[Packet], count: int) -> None:
    """Take so many, or fewer, from the head of the one to the end of the other.

    In one step: before or after it, a signal handler may raise, and nothing is lost.
    """
    with contextlib.suppress(IndexError):
        target.extend(map(deque.popleft, repeat(source, max(count, 0))))


def _drop_all(queue: deque[Packet]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            queue.popleft().drop()
