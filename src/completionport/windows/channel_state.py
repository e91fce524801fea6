"""What there is of a file of the engine ``iocp``, for the calls that are made on it."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from ..portable.channels.chores import Chores
from ..portable.channels.requests import Request
from ..portable.pool.offload import Offload
from . import api
from .files import Resolved
from .scheduler import KernelScheduler


class ChannelState:
    """The duplicate of one file's handle, and the requests that it has."""

    __slots__ = (
        "__weakref__",
        "appends",
        "asides",
        "at_pool",
        "chores",
        "closed",
        "ended",
        "gone",
        "handle",
        "identity",
        "is_directory",
        "is_pipe_server",
        "is_regular",
        "is_socket",
        "is_stream",
        "lock",
        "offload",
        "original",
        "pool_is_done",
        "position",
        "readable",
        "reads",
        "recursive",
        "scheduler",
        "skips",
        "sock",
        "source",
        "tokens",
        "was_number",
        "writable",
        "writes",
    )

    def __init__(
        self,
        scheduler: KernelScheduler,
        offload: Offload,
        source: Resolved,
        token: tuple[str, int],
        gone: Callable[[Any], None],
    ) -> None:
        self.scheduler = scheduler
        self.offload = offload
        self.was_number = token[0] == "number"  # the program gave that, and no object
        self.tokens = [token]  # while the file is noted as this port's; a pop is one step
        self.source = source
        self.gone = gone
        self.is_socket = source.is_socket
        self.is_stream = source.sock is not None and source.sock.type == socket.SOCK_STREAM
        self.is_regular = source.is_regular
        self.is_directory = source.is_directory
        self.is_pipe_server = source.is_pipe_server
        self.readable = source.readable
        self.writable = source.writable
        self.appends = source.appends
        self.lock = threading.Lock()  # guards everything below; held over calls that do not wait
        self.chores = Chores(self.lock)
        self.reads: deque[Request] = deque()
        self.writes: deque[Request] = deque()
        self.asides: deque[Request] = deque()  # what waits for nothing, and nothing waits for
        self.at_pool = 0  # calls that the pool has
        self.pool_is_done = threading.Event()  # set while that is none
        self.pool_is_done.set()
        self.recursive: bool | None = None  # of a directory: as its first read of changes was
        self.closed = False
        self.identity: Hashable = None  # of a closed one that the program gave as a number
        self.ended = False  # disconnected: what is received is the end of the stream
        self.sock = source.sock  # of ours, a duplicate
        self.handle = source.handle  # the number of it, or of the duplicate of another file
        self.original = source.original  # of ours: another handle of the file that the program has
        self.position = 0  # of a file that the program opened as overlapped: Windows keeps none
        self.skips = source.skips  # no packet comes for what is done at once

    def family(self) -> tuple[int, int]:
        assert self.sock is not None
        return self.sock.family, self.sock.type

    def close_number(self, number: int) -> None:
        handle = self.handle if self.original is None else self.original
        self.source.close_number(number, None if self.closed else handle, self.identity)

    def pending(self) -> int:
        """How many requests wait for those before them; the scheduler counts the kernel's."""
        return sum(request.flight is None for request in (*self.reads, *self.writes))

    def begin_pool_call(self) -> None:
        """The pool has one more. Lock held."""
        self.at_pool += 1
        self.pool_is_done.clear()

    def end_pool_call(self) -> None:
        """And one less. Lock held."""
        self.at_pool -= 1
        if not self.at_pool:
            self.pool_is_done.set()

    def wait_for_pool(self) -> None:
        self.pool_is_done.wait()

    def close_descriptor(self) -> None:
        """Let the duplicates go."""
        if self.sock is not None:
            self.sock.close()
        else:
            api.CloseHandle(self.handle)
            if self.original is not None:
                api.CloseHandle(self.original)

    def end_reads(self) -> None:
        """The connection was disconnected: receives that wait are at their end. Lock held."""
        self.ended = True
        for request in self.reads:
            if request.flight is not None:
                api.CancelIoEx(self.handle, request.flight.address)
