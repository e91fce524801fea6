"""What the engine ``iocp`` waits for without reading from it: the end of a process.

The system's own thread pool waits (``RegisterWaitForSingleObject``), and posts to the port. Its
packet has a number in the place of an OVERLAPPED's address, odd and never used again. So two
packets of one wait do no harm: the second one stands for nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..interface.errors import CANCELLED, HandleClosed
from ..interface.handle import Overlapped
from ..portable.channels.chores import Chores
from ..portable.channels.requests import Request
from . import api
from .flights import Flight
from .scheduler import KernelScheduler

if TYPE_CHECKING:
    import subprocess

_numbers = itertools.count(1, 2)  # one step; an OVERLAPPED lies at an even address


class ProcessEnd:
    """What is associated with a port in a process's place."""

    __slots__ = ("_process",)

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process

    def fileno(self) -> int:
        return int(self._process._handle)  # type: ignore[attr-defined]  # as asyncio does


class Wait(Flight):
    """One wait as long as the thread pool has it."""

    __slots__ = ("registered",)

    def __init__(self, channel: WaitChannel, request: Request) -> None:
        super().__init__(channel, request)
        self.address = next(_numbers)
        self.registered = 0  # what ends the wait; 0 once it was ended


class WaitChannel:
    """The duplicate of a handle that is waited for, and the requests that do."""

    __slots__ = ("__weakref__", "_chores", "_closed", "_gone", "_handle", "_lock", "_scheduler",
                 "_waits")  # fmt: skip

    is_socket = False
    is_regular = False
    readable = True
    writable = False

    def __init__(
        self, scheduler: KernelScheduler, handle: int, gone: Callable[[WaitChannel], None]
    ) -> None:
        self._scheduler = scheduler
        self._gone = gone
        self._lock = threading.Lock()  # guards everything below; held over no wait
        self._chores = Chores(self._lock)
        self._handle = api.duplicate(handle)
        self._waits: list[Wait] = []  # that have not landed
        self._closed = False

    def family(self) -> tuple[int, int]:
        raise AssertionError("it is no socket")

    def close_number(self, number: int) -> None:
        """It was given no number."""

    def pending(self) -> int:
        """The scheduler counts them."""
        return 0

    def wait_for_pool(self) -> None:
        """It uses the system's pool, and that has none of its waits any more."""

    def close_descriptor(self) -> None:
        """Let the duplicate go."""
        api.CloseHandle(self._handle)

    def start(self, request: Request) -> bool:
        try:
            with self._lock:
                if self._closed:
                    raise HandleClosed("this handle is closed: associate the process again")
                wait = Wait(self, request)
                request.flight = wait
                self._scheduler.flights[wait.address] = wait
                try:
                    wait.registered = self._scheduler.register_wait(self._handle, wait.address)
                except BaseException:
                    request.flight = None
                    self._scheduler.flights.pop(wait.address, None)
                    raise
                self._waits.append(wait)
            return True
        finally:
            self._chores.run()

    def cancel(self, overlapped: Overlapped | None) -> int:
        count = 0
        try:
            with self._lock:
                for wait in self._waits:
                    request = wait.request
                    if overlapped is not None and request.overlapped is not overlapped:
                        continue
                    # Once the process has ended, the packet that says so is on its way.
                    if request.reason is None and not api.is_signaled(self._handle):
                        request.reason = CANCELLED
                        self._end(wait)
                        count += 1
        finally:
            self._chores.run()
        return count

    def release_token(self) -> None:
        """Several handles may watch a process: none has it alone."""

    def detach(self, reason: str) -> None:
        self._chores.add(partial(self._detach, reason))

    def land(self, flight: Flight) -> bool:
        """Its packet was taken. It may be called again when a signal handler has raised in it."""
        assert isinstance(flight, Wait)
        request = flight.request
        try:
            with self._lock:
                if flight.registered:
                    registered, flight.registered = flight.registered, 0
                    api.unregister_wait(registered, and_see_it_out=False)
                if flight in self._waits:
                    self._waits.remove(flight)
                if not request.complete:
                    if request.reason is not None:
                        request.abort(request.reason)
                    request.complete = True
        finally:
            self._chores.run()
        return True

    def _end(self, wait: Wait) -> None:
        """Have a wait land now, with its reason or with the end of the process. Lock held."""
        if wait.registered:
            registered, wait.registered = wait.registered, 0
            api.unregister_wait(registered, and_see_it_out=True)
            # The pool may have posted just before: then the other packet stands for nothing.
            self._scheduler.repost(wait)

    def _detach(self, reason: str) -> None:
        """Lock held."""
        if self._closed:
            return
        self._closed = True
        for wait in self._waits:
            if wait.request.reason is None and not api.is_signaled(self._handle):
                wait.request.reason = reason
            self._end(wait)
        self.close_descriptor()
        self._gone(self)
