"""The requests of a file of the engine ``iocp``, on their way to the kernel and back.

The kernel keeps the order of receives among themselves and of sends among themselves, so it is
given all of them at once. Some requests it must have alone: see `calls.goes_alone`. They wait in
the queue of their direction until those before them are done, and all behind them wait as well.
"""

from __future__ import annotations

import contextlib
from collections import deque
from functools import partial

from ..interface.errors import CANCELLED, HandleClosed
from ..interface.handle import Overlapped
from ..interface.operation import Operation
from ..portable.channels.requests import READING, Request, after, behind_connect
from ..shared import association
from . import api, calls
from .channel_state import ChannelState
from .flights import Flight
from .pool_calls import PoolCall


class IocpChannel(ChannelState):
    """Requests on their way to the kernel and back."""

    __slots__ = ()

    def start(self, request: Request) -> bool:
        request.alone = calls.goes_alone(self, request)
        queue = self._queue(request)
        try:
            with self.lock:
                if self.closed:
                    raise HandleClosed
                last = queue[-1] if queue else None
                behind = last is not None and (request.alone or last.alone or last.flight is None)
                queue.append(request)
                if not behind:
                    try:
                        self._launch(request)
                    except BaseException:
                        queue.remove(request)
                        raise
            return True
        finally:
            self.chores.run()

    def cancel(self, overlapped: Overlapped | None) -> int:
        count = 0
        try:
            with self.lock:
                for queue in (self.reads, self.writes, self.asides):
                    for request in list(queue):
                        if overlapped is None or request.overlapped is overlapped:
                            count += self._cancel(queue, request)
                    self._launch_next(queue)
        finally:
            self.chores.run()
        return count

    def detach(self, reason: str) -> None:
        self.chores.add(partial(self._detach, reason))

    def land(self, flight: Flight) -> bool:
        """The kernel is done with a flight. Returned: whether its request is complete with that.

        It may be called again when a signal handler has raised in the middle of it.
        """
        request = flight.request
        try:
            with self.lock:
                if not flight.landed:
                    calls.finish(self, flight, api.code_of(flight.status, self.is_socket))
                    flight.landed = True
                if request.flight is flight:
                    request.flight = None
                queue = self._queue(request)
                if not request.complete and not self.closed and request.reason is None:
                    # The rest of it; or all of it, where the kernel has cancelled what nobody asked
                    # it to (the thread that had started it ended).
                    try:
                        self._launch(request)
                        return False
                    except OSError as error:
                        request.fail(error)
                if not request.complete:
                    calls.stop(request)
                self._fail_unconnected(request, after(request, queue))
                with contextlib.suppress(ValueError):
                    queue.remove(request)
                self._launch_next(queue)
                return True
        finally:
            self.chores.run()

    def _queue(self, request: Request) -> deque[Request]:
        if request.operation is Operation.STAT:
            return self.asides
        if self.is_regular and request.operation is Operation.READ and request.offset is None:
            return self.writes  # they move the same position
        return self.reads if request.operation in READING else self.writes

    def _launch(self, request: Request) -> None:
        """Give the request to the kernel. An error means that no packet comes. Lock held."""
        flight = Flight(self, request)
        request.flight = flight
        try:
            call = calls.prepare(self, flight)
            flight.hold()
            self.scheduler.flights[flight.address] = flight
            code = call()
            if code not in (0, api.ERROR_IO_PENDING):
                code = calls.at_once(self, flight, code)
        except BaseException:
            self._never_flew(flight)
            raise
        if code == 0 and self.skips:
            # The file skips the port on success: it is the library that makes the packet.
            self.scheduler.repost(flight)
        elif code == api.ERROR_HANDLE_EOF:
            # The end of a file is no failure here, but the kernel has given no packet for it.
            self.scheduler.repost(flight)
        elif code not in (0, api.ERROR_IO_PENDING):
            self._never_flew(flight)
            raise api.error(code)

    def _never_flew(self, flight: Flight) -> None:
        flight.request.flight = None
        self.scheduler.flights.pop(flight.address, None)
        flight.let_go()
        if flight.sock is not None:
            flight.sock.close()

    def _launch_next(self, queue: deque[Request]) -> None:
        """Give the kernel what may go now. Lock held."""
        while True:
            before: Request | None = None
            for request in queue:
                if request.flight is None:
                    break
                before = request
            else:
                return
            if before is not None and (before.alone or request.alone):
                return
            try:
                self._launch(request)
            except Exception as error:
                queue.remove(request)
                request.fail(error)
                self.scheduler.put(request)

    def _cancel(self, queue: deque[Request], request: Request) -> int:
        """Ask one request to stop. Returned: 1 when it was asked. Lock held."""
        if request.flight is None:
            following = after(request, queue)
            queue.remove(request)
            request.reason = CANCELLED
            calls.stop(request)
            self.scheduler.put(request)
            self._fail_unconnected(request, following)
            return 1
        if isinstance(request.flight.extra, PoolCall):
            request.flight.extra.take_back()
            asked, request.reason = request.reason is None, CANCELLED
            return int(asked)
        asked = bool(api.CancelIoEx(self.handle, request.flight.address))
        if asked or calls.has_steps(self, request):
            request.reason = CANCELLED
            return 1
        return 0

    def _fail_unconnected(self, connect: Request, following: list[Request]) -> None:
        """What is for the connection of a connect that has failed must not reach another.

        Receives are refused at the call while there is none. Lock held.
        """
        if connect.operation is not Operation.CONNECT or connect.error is None or self.closed:
            return
        for request in behind_connect(following, self.family()[1]):
            self.writes.remove(request)
            request.fail(api.error(api.WSAENOTCONN))
            self.scheduler.put(request)

    def release_token(self) -> None:
        """The program's file may be associated anew."""
        with contextlib.suppress(IndexError):
            association.release(self.tokens.pop())

    def _detach(self, reason: str) -> None:
        """Lock held."""
        if self.closed:
            return
        # Its handle may be closed later than its port, and then have to close the number.
        if self.was_number:
            self.identity = self.source.identity()
        self.closed = True
        waiting = []
        for queue in (self.reads, self.writes, self.asides):
            for request in queue:
                request.reason = reason
                if request.flight is None:
                    waiting.append(request)
                elif isinstance(request.flight.extra, PoolCall):
                    request.flight.extra.take_back()
            queue.clear()
        api.CancelIoEx(self.handle, None)
        self.source.part(self.handle)
        # The kernel cancels what is under way, if it has not heard of that yet, and its packets
        # come. Only their flights' memory is concerned by them.
        self.close_descriptor()
        self.release_token()
        self.gone(self)
        for request in waiting:
            calls.stop(request)
            self.scheduler.put(request)
