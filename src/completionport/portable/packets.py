"""The packets of a port: on their way in, ready to be taken, or staying back behind their strand.

A packet comes in through `put`, which needs no lock. Everything else is called under the
scheduler's lock, but for `drop`: it is for a port that is closed, and finalizers call it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from .recorder import Recorder
from .requests import Packet, Request
from .strand import PortableStrand


class PacketQueue:
    """First in, first out; of each strand at most one packet is ready or at work."""

    def __init__(self) -> None:
        self.ready: deque[Packet] = deque()
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

    def take(self, packets: list[Packet], max_count: int) -> None:
        """Move so many of the packets that are ready, or fewer, to the caller's empty list."""
        # The caller has them in hand from the first one on: a signal handler may raise at any step.
        with contextlib.suppress(IndexError):
            while len(packets) < max_count:
                packets.append(self.ready.popleft())
        self._count(packets, 1)

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
        _drop_all(self.ready)
        while self._back:
            with contextlib.suppress(KeyError):
                _drop_all(self._back.popitem()[0].line)

    def numbers(self) -> dict[str, Any]:
        """A look inside."""
        packets = [*look(self.ready), *look(self._incoming)]
        for strand in list(self._back):
            packets += look(strand.line)
        operations = sum(isinstance(packet, Request) for packet in packets)
        return {
            "queued": len(packets),
            "posted": self._posts + len(packets) - operations,
            "completed": self._operations + operations,
            "taken": self.taken,
            "queue_time": self._time.snapshot(),
        }

    def _count(self, packets: list[Packet], sign: int) -> None:
        operations = sum(isinstance(packet, Request) for packet in packets)
        self._operations += sign * operations
        self._posts += sign * (len(packets) - operations)


def look(queue: deque[Any]) -> list[Any]:
    """What is in it; it may change while it is copied (free-threaded, and through finalizers)."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(queue)


def _drop_all(queue: deque[Packet]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            queue.popleft().drop()
