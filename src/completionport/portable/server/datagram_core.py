"""A datagram server's core on the port's handles, for every engine."""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING, Any

from ...interface.errors import ConnectionClosed, HandleClosed, OperationAborted, PortClosed
from ...interface.handle import Overlapped
from ...interface.port import Completion
from ...servers.datagram_server import DatagramHandler, Endpoint
from ...shared.buffers import joined_bytes
from ...shared.reports import persist, tell
from .common import CommonCore

if TYPE_CHECKING:
    from ...interface.handle import Handle
    from ...interface.port import CompletionPort
    from ...servers.datagram_server import DatagramServer

OUTSTANDING = 16
"""Receives under way: so many workers can be at a datagram each while the next one is received."""

NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class PortableEndpoint(Endpoint):
    """The socket of a server, and what waits to be sent."""

    __slots__ = ("__weakref__", "_core", "_sockname", "state")

    def __init__(self, core: DatagramCore, sockname: Any) -> None:
        self.state: Any = None
        self._core = core
        self._sockname = sockname

    def __repr__(self) -> str:
        return f"<Endpoint {self._sockname!r}{', closed' if self.closing else ''}>"

    @property
    def server(self) -> DatagramServer:
        return self._core.server

    @property
    def sockname(self) -> Any:
        return self._sockname

    @property
    def closing(self) -> bool:
        return self._core.closing

    @property
    def send_queue_size(self) -> int:
        return self._core.queued_bytes

    def send(self, data: Any, address: Any) -> bool:
        return self._core.send(joined_bytes(data), address)


class DatagramCore(CommonCore):
    """Packets to callbacks for one `completionport.DatagramServer`."""

    def __init__(
        self,
        port: CompletionPort,
        handler: DatagramHandler,
        server: DatagramServer,
        *,
        buffer_size: int,
        send_limit: int,
    ) -> None:
        super().__init__(port)
        self.handler = handler
        self.server = server
        self._buffer_size = buffer_size
        self._send_limit = send_limit
        # `_lock` guards what follows.
        self._handle: Handle | None = None
        self._sock: socket.socket | None = None  # what the handle works on; non-blocking
        self._endpoint = PortableEndpoint(self, None)
        self._closing = False
        self._retiring = False  # it is closed once no callback is at work
        # Callbacks, and datagrams on their way to one: the operation, or the error, that led there.
        self._at_work: set[object] = set()
        self._receiving: set[Overlapped] = set()  # with a receive, or its packet, under way
        self._sending: dict[Overlapped, int] = {}  # the bytes that each is to send
        self.queued_bytes = 0
        self._taking = True
        self._numbers = dict.fromkeys(
            (
                *("received_packets", "received_bytes", "truncated"),
                *("sent_packets", "sent_bytes", "dropped"),
            ),
            0,
        )

    @property
    def closing(self) -> bool:
        """True once the server stops."""
        return self._closing

    def listen(self, sock: socket.socket) -> None:
        """Begin to receive."""
        # A duplicate, since the service closes its own as soon as nothing new is to be taken.
        self.port._join(self)
        own = self._sock = sock.dup()  # `end` closes it, where no handle does
        # The mode is for all who have the socket; one with a timeout is in this one already.
        if not DONT_WAIT or own.gettimeout() is not None:
            own.setblocking(False)
        self._handle = self.port._associate_for(self, own, self)
        self._endpoint = PortableEndpoint(self, own.getsockname())
        self._receive()

    def _serve(self, completion: Completion) -> None:
        if completion.overlapped in self._receiving:
            self._take_received(completion)
        elif completion.overlapped in self._sending:  # else the port was closed meanwhile
            self._take_sent(completion)

    def end(self) -> None:
        super().end()
        self.port._part(self)
        if self._sock is not None:
            self._sock.close()

    def port_closed(self) -> None:
        """Its operations are over, and no packet of them comes."""
        with self._lock:
            self._closing = True
            self._receiving.clear()
            self._sending.clear()
            self.queued_bytes = 0
            self._changed.notify_all()

    def stop_listening(self) -> None:
        """Take nothing new."""
        with self._lock:
            self._taking = False
            receiving = list(self._receiving)
        for operation in receiving:
            operation.cancel()

    def close_connections(self) -> None:
        """Close the socket once callbacks are over and what is queued has gone out."""
        with self._lock:
            self._retiring = True
            self._close_when_idle()

    def abort_connections(self) -> None:
        """Close the socket at once."""
        with self._lock:
            self._closing = True
            self._close()

    def _is_over(self) -> bool:
        return not (self._receiving or self._sending or self._at_work)

    def stats(self) -> dict[str, int]:
        """Numbers for a look inside."""
        with self._lock:
            return {**self._numbers, "queued_bytes": self.queued_bytes}

    def send(self, data: bytes, address: Any) -> bool:
        """See `Endpoint.send`."""
        self.check_fork()
        # Under the lock, so that nothing is sent to the number of the socket once it is free.
        with self._lock:
            if self._sock is None or self._closing:
                raise ConnectionClosed("this endpoint is closed: nothing can be sent any more")
            if not self._sending:
                try:
                    self._count_sent(self._sock.sendto(data, NO_SIGNAL | DONT_WAIT, address))
                    return True
                except BlockingIOError:
                    pass
            if self.queued_bytes + len(data) <= self._send_limit and self._queue(data, address):
                return True
            self._numbers["dropped"] += 1
            return False

    def _queue(self, data: bytes, address: Any) -> bool:
        """Send when there is room; False when nothing would tell of it. Lock held."""
        assert self._handle is not None
        operation = Overlapped()
        self._sending[operation] = len(data)
        self.queued_bytes += len(data)
        try:
            self._handle.sendto(data, address, overlapped=operation)
        except BaseException as error:
            if not operation.pending:
                self._over(operation)
            if isinstance(error, OSError) and error.errno == errno.ENOBUFS:
                return False
            raise
        return True

    def _count_sent(self, size: int) -> None:
        self._numbers["sent_packets"] += 1
        self._numbers["sent_bytes"] += size

    def _receive(self) -> None:
        """Have as many receives under way as there are to be."""
        while (error := self._start_receives()) is not None:
            self._failed(error)

    def _start_receives(self) -> OSError | None:
        """Returned: why that failed."""
        with self._lock:
            self._changed.notify_all()
            while self._taking and self._handle and len(self._receiving) < OUTSTANDING:
                operation = Overlapped()
                try:
                    self._receiving.add(operation)
                    # One byte more shows a datagram that is too long.
                    self._handle.recvfrom(self._buffer_size + 1, overlapped=operation)
                except BaseException as error:
                    if not operation.pending:
                        self._receiving.discard(operation)
                    if isinstance(error, (HandleClosed, PortClosed)):
                        return None
                    if isinstance(error, OSError):
                        return error
                    raise
        return None

    def _take_received(self, completion: Completion) -> None:
        operation, error = completion.overlapped, completion.error
        assert error is None or isinstance(error, OSError)
        data, address = (b"", None) if error is not None else operation.result()
        with self._lock:
            wanted = error is None and not self._retiring and self._count_received(len(data))
            if wanted:
                self._at_work.add(operation)
            self._receiving.discard(operation)
        # Before the callback, so that others go on while it blocks.
        persist(self._receive)
        if wanted:
            try:
                self.handler.received(self._endpoint, data, address)
            except BaseException:
                tell(
                    logging.ERROR,
                    "%r: exception in received(), the datagram is lost",
                    self._endpoint,
                    error=True,
                )
            self._callback_is_over(operation)
        elif error is not None and not isinstance(error, OperationAborted):
            self._failed(error)

    def _recover(self, completion: Completion, error: BaseException) -> None:
        with self._lock:
            self._receiving.discard(completion.overlapped)
            self._at_work.discard(completion.overlapped)
            self._over(completion.overlapped)
        super()._recover(completion, error)
        self._receive()

    def _callback_is_over(self, reason: object) -> None:
        self.check_fork()
        with self._lock:
            self._at_work.discard(reason)
            self._close_when_idle()

    def _count_received(self, size: int) -> bool:
        """False for a datagram that is too long. Lock held."""
        if size > self._buffer_size:
            self._numbers["truncated"] += 1
            return False
        self._numbers["received_packets"] += 1
        self._numbers["received_bytes"] += size
        return True

    def _take_sent(self, completion: Completion) -> None:
        error = completion.error
        assert error is None or isinstance(error, OSError)
        with self._lock:
            self._over(completion.overlapped)
            if error is None:
                self._count_sent(completion.transferred)
            elif error.errno == errno.ENOBUFS:
                self._numbers["dropped"] += 1
                error = None
        if error is not None and not isinstance(error, OperationAborted):
            self._failed(error)

    def _over(self, operation: Overlapped) -> None:
        """A send has ended, unless that was seen before. Lock held."""
        if operation in self._sending:
            self.queued_bytes -= self._sending[operation]
            del self._sending[operation]
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        """Lock held."""
        if self._retiring and not self._at_work:
            self._closing = True
        if not self._sending:
            if self._closing:
                self._close()
            self._changed.notify_all()

    def _close(self) -> None:
        """Lock held."""
        if self._handle is not None:
            self._handle.close()

    def _failed(self, error: OSError) -> None:
        try:
            with self._lock:
                self._at_work.add(error)
            self.handler.failed(self._endpoint, error)
        except BaseException:
            tell(logging.ERROR, "%r: exception in failed()", self._endpoint, error=True)
        finally:
            try:
                self._callback_is_over(error)
            except BaseException:
                self._callback_is_over(error)
                raise
