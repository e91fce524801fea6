"""The server's core: its listener, and the connections that there are."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...interface.errors import HandleClosed, OperationAborted, PortClosed
from ...interface.handle import Overlapped
from ...interface.port import Completion
from ...servers.stream_server import Handler
from ...shared.reports import persist, tell
from .common import CommonCore
from .connections import PortableConnection

if TYPE_CHECKING:
    from ...interface.handle import Handle
    from ...interface.port import CompletionPort
    from ...servers.stream_server import Server

RETRY_ACCEPT = 0.1
"""Seconds until accepting is tried again after it failed."""
SHORTAGE_OVER = 10.0
"""Seconds with enough descriptors after which the next shortage is told in the log again."""
NO_ROOM = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, getattr(errno, "WSAEMFILE", 0)}
)
LOOK_AGAIN = 0.1
"""Seconds between two looks at connections that linger or don't receive."""


class _Look:
    """The key of a timer's packet: somebody is to look at those."""


LOOK = _Look()


class ServerCore(CommonCore):
    """Packets to callbacks for one `completionport.Server`."""

    def __init__(
        self,
        port: CompletionPort,
        handler: Handler,
        server: Server,
        *,
        buffer_size: int,
        max_connections: int | None,
        idle_timeout: float | None,
        send_limit: int,
        inherits_nodelay: bool,
    ) -> None:
        super().__init__(port)
        self.asks = type(handler).stopping is not Handler.stopping or "stopping" in vars(handler)
        self._sets_nodelay = not inherits_nodelay
        self.handler = handler
        self.server = server
        self.buffer_size = buffer_size
        self.idle_timeout = idle_timeout
        self.send_limit = send_limit
        self._max_connections = max_connections
        # `_lock` guards what follows.
        self._listener: Handle | None = None
        self._accepting: Overlapped | None = None  # the accept that is under way, or its packet is
        self._starved = False  # accepting waits for descriptors, or for a moment
        self._no_room_at = float("-inf")  # when there was no descriptor for the last time
        self._stopping = False
        # Those that linger, or that don't receive, and what the timer brings that was set to look
        # at them: an earlier one's packet does nothing.
        self._deaf: dict[PortableConnection, None] = {}
        self._looking: object = None
        # Accepted, and on their way to their first callback; where descriptors are short they wait.
        self._waiting: deque[socket.socket] = deque()
        # From birth to the end of `closed`.
        self._connections: dict[PortableConnection, None] = {}
        self._accepted = 0
        # Of connections that have ended.
        self._received_packets = 0
        self._received_bytes = 0
        self._sent_bytes = 0

    def listen(self, sock: socket.socket) -> None:
        """Begin to accept."""
        self.port._join(self)
        self._listener = self.port._associate_for(self, sock, self)
        self._accept_more()
        if self.idle_timeout is not None:
            self._set_due(self._tick_length())

    def end(self) -> None:
        super().end()
        self.port._part(self)
        with self._lock:
            # Of a port that was closed nobody may have come with its packet; a thread that has that
            # in hand, and has not given it out yet, comes.
            if self._accepting is not None and not self._accepting.pending:
                with contextlib.suppress(OSError):
                    self._accepting.result().close()
                self._accepting = None

    def port_closed(self) -> None:
        """End every connection; one that a callback is at work for does it behind that."""
        self.stop_listening()
        for connection in self._all():
            connection._port_closed()
        with self._lock:
            self._changed.notify_all()

    def _serve(self, completion: Completion) -> None:
        key = completion.key
        if type(key) is PortableConnection:
            key._take(completion)
        elif key is LOOK:
            self._look(completion.transferred)
        elif key is self:
            self._take_accepted(completion)

    def _recover(self, completion: Completion, error: BaseException) -> None:
        if type(completion.key) is PortableConnection:
            completion.key._recover(error)
        if self._deaf:
            self._look_later()
        super()._recover(completion, error)
        if completion.key is self:
            self._take_accepted(completion)
        self._accept_more()
        for connection in self._all():
            connection._begin()

    def stop_listening(self) -> None:
        """Close the listening socket."""
        with self._lock:
            self._stopping = True
            waiting = list(self._waiting)
            self._waiting.clear()
            if self._listener is not None:
                self._listener.close()
        for sock in waiting:
            sock.close()

    def close_connections(self) -> None:
        """Close each connection once its callback is over and what is queued has gone out."""
        for connection in self._all():
            connection._retire()

    def abort_connections(self) -> None:
        """Close each connection at once."""
        for connection in self._all():
            connection.abort()

    def look_at(self, connection: PortableConnection) -> None:
        """Have somebody look at it until it is over, or receives again."""
        with self._lock:
            self._deaf[connection] = None
            first = self._looking is None
        if first:
            self._look_later()

    def _look_later(self) -> None:
        token = self._looking = object()
        persist(self._set_look, token)

    def _set_look(self, token: object) -> None:
        with contextlib.suppress(PortClosed):
            self.port._call_for(self, LOOK_AGAIN, token, LOOK)

    def _look(self, token: object) -> None:
        now = time.monotonic()
        with self._lock:
            if token is not self._looking:
                return
            deaf = list(self._deaf)
        for connection in deaf:
            if not connection._look(now):
                with self._lock:
                    self._deaf.pop(connection, None)
                # Perhaps it has become so again meanwhile, and that was noted before.
                if connection._look(now):
                    self.look_at(connection)
        with self._lock:
            if not self._deaf:
                self._looking = None
                return
        self._look_later()

    def _is_over(self) -> bool:
        # Of a closed port the packet of the accept may come yet, or never.
        return not self._connections and (not self._accepting or self.port.closed)

    def stats(self) -> dict[str, int]:
        """Numbers for a look inside."""
        with self._lock:
            connections = list(self._connections)
            return {
                "connections": len(connections),
                "accepted": self._accepted,
                "received_packets": self._received_packets
                + sum(connection._received_packets for connection in connections),
                "received_bytes": self._received_bytes
                + sum(connection._received_bytes for connection in connections),
                "sent_bytes": self._sent_bytes
                + sum(connection._sent_bytes for connection in connections),
            }

    def forget(self, connection: PortableConnection) -> None:
        """A connection has ended."""
        with self._lock:
            # Plain steps, so it is once.
            if connection in self._connections:
                self._received_packets += connection._received_packets
                self._received_bytes += connection._received_bytes
                self._sent_bytes += connection._sent_bytes
                self._starved = False
                del self._connections[connection]
            if not self._connections:
                self._changed.notify_all()
        self._accept_more()

    def _all(self) -> list[PortableConnection]:
        with self._lock:
            return list(self._connections)

    def _accept_more(self) -> None:
        """Welcome who waits, and have the next one accepted if there is room."""
        while True:
            with self._lock:
                if (
                    self._listener is None
                    or self._accepting
                    or self._starved
                    or self._stopping
                    or self._is_full()
                ):
                    return
                if not self._waiting:
                    self._accept()
                    return
                connection = self._welcome()
            if connection is not None:
                connection._begin()

    def _accept(self) -> None:
        """Lock held."""
        assert self._listener is not None
        operation = Overlapped()
        self._accepting = operation
        try:
            self._listener.accept(overlapped=operation)
        except BaseException as error:
            if not operation.pending:
                self._accepting = None
            if isinstance(error, (OSError, MemoryError)):
                self._accept_failed(error)
            elif not isinstance(error, (HandleClosed, PortClosed)):
                raise

    def _take_accepted(self, completion: Completion) -> None:
        """Done again it does no harm."""
        with self._lock:
            if self._accepting is None or completion.overlapped is not self._accepting:
                return
            error = completion.error
            if error is None:
                sock = completion.overlapped.result()
                if self._stopping:
                    sock.close()
                else:
                    self._waiting += (sock,)
            self._accepting = None
            if error is not None and not isinstance(error, OperationAborted):
                assert isinstance(error, OSError)
                self._accept_failed(error)
            persist(self._changed.notify_all)
        self._accept_more()

    def _welcome(self) -> PortableConnection | None:
        """Make a connection of a socket that waits; None when there is no room now. Lock held."""
        connection: PortableConnection | None = None
        sock = self._waiting[0]
        del self._waiting[0]  # no call, behind which a handler could raise
        try:
            with contextlib.suppress(OSError):  # it is gone already: the first receive will say so
                sock.setblocking(False)
                if self._sets_nodelay and sock.family in (socket.AF_INET, socket.AF_INET6):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = PortableConnection(self, sock)
            connection._handle = self.port._associate_for(self, sock, connection)
            self._connections[connection] = None
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                self._waiting.appendleft(sock)
            elif connection is not None and hasattr(connection, "_handle"):
                persist(connection._handle.close)
            else:
                sock.close()
            if isinstance(error, (OSError, MemoryError)):
                self._accept_failed(error)
            elif not isinstance(error, PortClosed):
                raise
            return None
        self._accepted += 1
        return connection

    def _is_full(self) -> bool:
        """Lock held."""
        limit = self._max_connections
        return limit is not None and len(self._connections) >= limit

    def _accept_failed(self, error: OSError | MemoryError) -> None:
        """Lock held."""
        now = time.monotonic()
        number = (error.errno or 0) if isinstance(error, OSError) else errno.ENOMEM
        if number not in NO_ROOM:
            # A connection that went before it was taken: the next one is not concerned.
            tell(logging.DEBUG, "accept: %s", error)
        else:
            # Each connection that ends makes room for one more: that is no new shortage.
            if now - self._no_room_at > SHORTAGE_OVER:
                tell(
                    logging.WARNING,
                    "accepting pauses: %s; it goes on when there is room again",
                    os.strerror(number),
                )
            self._no_room_at = now
        self._starved = True
        self._set_due(RETRY_ACCEPT)

    def _tick_length(self) -> float:
        return min(max((self.idle_timeout or 0.0) / 4, 0.01), 1.0)

    def _tick(self, now: float) -> None:
        """Another try to accept, and idle connections."""
        with self._lock:
            self._starved = False
            idle: Sequence[PortableConnection] = ()
            if self.idle_timeout is not None:
                self._set_due(self._tick_length())
                before = now - self.idle_timeout
                idle = [one for one in self._connections if one._used <= before]
        for connection in idle:
            connection._expire()
        self._accept_more()
