"""What a port of the engines in Python consists of, and its end."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ...interface.errors import PORT_WAS_CLOSED
from ...interface.handle import Handle, Overlapped
from ...interface.port import CompletionPort
from ..channels.requests import Request
from ..pool.file_channel import SideBySide, executes_for
from ..pool.offload import Offload
from ..scheduling.places import Consumer, PortableStrand
from ..scheduling.scheduler import Scheduler


class Channel(Protocol):
    """A descriptor of an engine, as its handle sees it."""

    is_socket: bool
    is_regular: bool
    readable: bool
    writable: bool

    def family(self) -> tuple[int, int]:
        """The family and the type of a socket."""

    def start(self, request: Request) -> bool:
        """Carry the request out, now or later; an `OSError` means that it failed at once.

        False: it is done, and gives no packet.
        """

    def cancel(self, overlapped: Overlapped | None) -> int:
        """Complete one request, or all, as cancelled. Returned: how many."""

    def release_token(self) -> None:
        """The file is no port's any more: before its number is closed and another one's. Once."""

    def detach(self, reason: str) -> None:
        """Complete all as cancelled and let the duplicate go. Never blocks."""

    def wait_for_pool(self) -> None:
        """Once it is detached: wait until the port's pool has none of its requests."""

    def close_descriptor(self) -> None:
        """Close the duplicate and nothing else: for the child of a fork."""

    def close_number(self, number: int) -> None:
        """Close what the program gave as a number, if that still stands for the file."""

    def pending(self) -> int:
        """How many requests wait."""


NO_ZERO_COPY = {"zero_copy_sends": 0, "zero_copy_copied": 0}
"""For `stats`: what only an engine counts that gives the kernel the program's pages."""


class Core:
    """What a port consists of. Handles refer to it and not to the port object.

    So a port object that the program drops is closed at once, whatever is under way.
    """

    engine_name: str
    scheduler: Scheduler

    def __init__(self, port: CompletionPort, pool_threads: int) -> None:
        self.port = weakref.ref(port)
        # Channels that are open, a set whose steps are atomic.
        self.channels: dict[Channel, None] = {}
        # Those that are told of the port's end; each step is atomic.
        self.consumers: set[Consumer] = set()
        self.offload = Offload(pool_threads)
        self.errands = SideBySide(-1, self.offload, self.deliver)

    @property
    def closed(self) -> bool:
        return self.scheduler.closed

    @property
    def forked(self) -> bool:
        return self.scheduler.forked

    def check(self) -> None:
        """Raise `PortForked` or `PortClosed` where one of them is due."""
        self.scheduler.check()

    def associate(
        self, file: Any, key: Any, strand: PortableStrand | None, skips_on_success: bool = False
    ) -> Handle:
        """A new handle."""
        raise NotImplementedError

    def forget(
        self,
        channel: Channel,
        reason: str,
        is_finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        """Let a channel go. Never blocks: finalizers call it."""
        if is_finalizing():
            return  # the names of modules may be gone; the end of the process closes the file
        if not self.forked:
            channel.detach(reason)
        elif self.channels.pop(channel, False) is None:
            channel.close_descriptor()

    def close(self) -> None:
        """Close everything; the second call does nothing. Never blocks: finalizers call it."""
        raise NotImplementedError

    def close_pool(self) -> None:
        """A part of `close`, before the scheduler's end. Never blocks."""
        self.errands.close(PORT_WAS_CLOSED, _nothing)
        self.offload.close()

    def deliver(self, request: Request) -> None:
        """Make a packet of a complete request."""
        self.scheduler.put(request)

    def wait_for_pool(self, channels: list[Channel]) -> None:
        """After `close`: wait for what the pool's threads are at."""
        for channel in channels:
            channel.wait_for_pool()
        # A function may close its own port, and can't wait for itself.
        if not executes_for(self.errands):
            self.errands.wait()

    def numbers(self) -> dict[str, Any]:
        """A look inside."""
        return {
            "engine": self.engine_name,
            "pending": (
                self.errands.pending() + sum(channel.pending() for channel in list(self.channels))
            ),
            "handles": len(self.channels),
            **self.scheduler.numbers(),
            **NO_ZERO_COPY,
        }


def _nothing() -> None:
    """There is no descriptor to be let go."""
