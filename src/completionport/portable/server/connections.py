"""A server's connection on the port's handles, so that it runs on every engine.

A connection is a strand: one worker at a time carries out what its state asks for. State
changes under the connection's lock; whoever changes it while no worker is at it posts a packet.

The locks are reentrant, since a finalizer may call a connection's methods while its thread is
inside one. Order: a connection's lock, then the core's. No callback runs under either.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...interface.error_codes import add_codes
from ...interface.errors import (
    ConnectionClosed,
    HandleClosed,
    OperationAborted,
    PortClosed,
    PortForked,
)
from ...interface.handle import Overlapped
from ...interface.port import Completion
from ...servers.stream_server import Connection
from ...shared.buffers import joined_bytes
from ...shared.reports import persist, tell

if TYPE_CHECKING:
    from ...interface.handle import Handle
    from ...servers.stream_server import Handler, Server
    from ..port.port import PortablePort

SENT_AT_ONCE = 1 << 18
"""About so many bytes go into one send operation, so that the queue is seen to shrink."""
NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
LINGER = 2.0
"""Seconds that a closed connection waits for its peer's end,"""
LINGER_BYTES = 1 << 20
"""and so many bytes of what the peer still sends are thrown away."""


class _Step(enum.Enum):
    """What a strand does next."""

    CONNECTED = enum.auto()
    RECEIVED = enum.auto()
    END_OF_STREAM = enum.auto()
    DRAINED = enum.auto()
    RECEIVE = enum.auto()
    STOPPING = enum.auto()
    CLOSED = enum.auto()
    FORGET = enum.auto()


class ConnectionsCore(Protocol):
    """What has the connections, as one of them sees it."""

    server: Server
    handler: Handler
    port: PortablePort
    asks: bool
    idle_timeout: float | None
    send_limit: int
    buffer_size: int

    @property
    def forked(self) -> bool:
        """Whether this is a forked child."""

    def check_fork(self) -> None:
        """Raise `PortForked` where it is due."""

    def serve(self, taken: list[Completion]) -> None:
        """A packet of the core's was taken."""

    def port_closed(self) -> None:
        """Nothing of the port is under way any more."""

    def look_at(self, connection: PortableConnection) -> None:
        """Have somebody look at it until it is over, or receives again."""

    def forget(self, connection: PortableConnection) -> None:
        """A connection has ended."""


class PortableConnection(Connection):
    """One client of a server."""

    __slots__ = (
        "__weakref__",
        "_active",
        "_closed_told",
        "_closing",
        "_connected_told",
        "_core",
        "_drained_due",
        "_end",
        "_end_told",
        "_failure",
        "_flushing",
        "_forgotten",
        "_handle",
        "_inbox",
        "_linger_left",
        "_linger_until",
        "_lock",
        "_nudged",
        "_outbox",
        "_paused",
        "_peername",
        "_queued",
        "_receive_operation",
        "_received_bytes",
        "_received_packets",
        "_receiving",
        "_retiring",
        "_send_operation",
        "_sending",
        "_sent_bytes",
        "_shut",
        "_sock",
        "_sockname",
        "_stopping_due",
        "_used",
        "_was_full",
        "state",
    )

    def __init__(self, core: ConnectionsCore, sock: socket.socket) -> None:
        self.state: Any = None
        self._core = core
        self._sock = sock
        self._peername = _address(sock.getpeername)
        self._sockname = _address(sock.getsockname)
        self._lock = threading.RLock()  # guards everything below
        self._handle: Handle  # set before anything begins
        self._receive_operation = Overlapped()
        self._send_operation = Overlapped()
        self._outbox: deque[bytes | memoryview] = deque()  # not yet given to the kernel or handle
        self._queued = 0  # bytes that the kernel has not taken
        self._inbox: deque[bytes] = deque()  # received and not yet delivered
        self._failure: BaseException | None = None
        self._active = 0  # the thread that is at it
        self._nudged = False  # a packet that brings a worker is on its way
        self._receiving = False  # the handle has a receive under way
        self._sending = 0  # bytes in the send that the handle has under way
        self._flushing = False  # a thread is in `_flush`
        self._was_full = False  # the kernel did not take everything at once
        self._paused = False
        self._closing = False  # close() or abort() was called, or it failed
        self._retiring = False  # it ends with the callback that is at work
        self._stopping_due = False  # its handler is to be asked what becomes of it
        # While it lingers: until when, and how many bytes it still takes. None before.
        self._linger_until: float | None = None
        self._linger_left = LINGER_BYTES
        self._shut = False  # the handle is closed
        self._end = False  # the peer sends no more
        self._drained_due = False
        self._connected_told = False
        self._end_told = False
        self._closed_told = False
        self._forgotten = False  # the core has it no more
        self._used = time.monotonic()  # when something was last sent or received
        self._received_bytes = 0
        self._received_packets = 0
        self._sent_bytes = 0

    def __repr__(self) -> str:
        return f"<Connection {self._peername!r}{', closing' if self._closing else ''}>"

    @property
    def server(self) -> Server:
        return self._core.server

    @property
    def peername(self) -> Any:
        return self._peername

    @property
    def sockname(self) -> Any:
        return self._sockname

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def send_queue_size(self) -> int:
        return self._queued

    def send(self, data: Any) -> None:
        piece = joined_bytes(data)
        self._core.check_fork()
        with self._lock:
            if self._closing:
                raise ConnectionClosed("this connection is closed: nothing can be sent any more")
            if piece:
                self._outbox.append(piece)
            self._queued += len(piece)
            self._flush()
            self._nudge()

    def close(self) -> None:
        self._core.check_fork()
        with self._lock:
            if self._closing:
                return
            self._closing = True
            if not self._queued:
                self._linger()
            self._nudge()

    def _retire(self) -> None:
        """The server stops: ask the handler, or close it once the callback at work has answered."""
        with self._lock:
            if self._core.asks:
                self._stopping_due = True
                self._nudge()
            elif self._active or not self._connected_told:
                self._retiring = True
            else:
                self.close()

    def abort(self) -> None:
        self._core.check_fork()
        self._fail(None)

    def pause(self) -> None:
        self._core.check_fork()
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        self._core.check_fork()
        with self._lock:
            self._paused = False
            self._nudge()

    def _fail(self, error: BaseException | None) -> None:
        """Close it at once, for this reason."""
        if self._core.forked:
            return
        if isinstance(error, OSError):
            add_codes(error)
        with self._lock:
            if self._failure is None and not self._shut:
                self._failure = error
            self._shut_down()
            self._nudge()

    def _expire(self) -> None:
        """Nothing went through for too long."""
        self._fail(
            None
            if self._closing
            else TimeoutError(f"nothing was received or sent for {self._core.idle_timeout:g} s")
        )

    def _port_closed(self) -> None:
        """No packet comes any more: this thread calls back, unless another one is at it."""
        with self._lock:
            self._shut_down()
            self._receiving = False
            self._sending = 0
        try:
            self._run()
        except BaseException as error:
            self._recover(error)
            raise

    def _begin(self) -> None:
        """Have a worker come for the first callback."""
        with self._lock:
            self._nudge()

    def _take(self, completion: Completion) -> None:
        """A worker took one of the connection's packets."""
        operation = completion.overlapped
        try:
            with self._lock:
                if operation is self._receive_operation:
                    self._receiving = False
                    self._take_received(completion)
                elif operation is self._send_operation:
                    self._take_sent(completion)
                else:
                    self._nudged = False
        except MemoryError as error:
            persist(self._fail, error)
        self._run()

    def _recover(self, error: BaseException) -> None:
        """This thread was interrupted in the midst of something: that ends the connection."""
        with self._lock:
            if self._active == threading.get_ident():
                self._active = 0
            self._receiving = self._receive_operation.pending
            if not self._send_operation.pending:
                self._sending = 0
            self._nudged = False
            self._fail(error)

    def _run(self) -> None:
        """Carry out what the state asks for, unless another worker is at it."""
        me = threading.get_ident()
        with self._lock:
            if self._active:
                return
            self._active = me
        while self._active == me:
            try:
                self._carry_out()
            except PortForked:
                raise
            except BaseException as error:
                # Memory is short: the turn goes on, so that the connection comes to its end.
                persist(self._fail, error)

    def _carry_out(self) -> None:
        """One step of what the state asks for; with none left the connection is not `_active`."""
        handler = self._core.handler
        callback: Callable[..., None] | None = None
        arguments: tuple[Any, ...] = ()
        with self._lock:
            if self._retiring and self._connected_told:
                self.close()
            step = self._next()
            if step is None:
                if self._is_deaf():
                    self._core.look_at(self)
                self._active = 0
            elif step is _Step.RECEIVE:
                self._receive()
            elif step is _Step.RECEIVED:
                arguments = (self._inbox.popleft(),)
                self._received_packets += 1
                callback = handler.received
            elif step is _Step.CONNECTED:
                callback = handler.connected
            elif step is _Step.END_OF_STREAM:
                self._end_told = True
                callback = handler.end_of_stream
            elif step is _Step.DRAINED:
                self._drained_due = False
                callback = handler.drained
            elif step is _Step.STOPPING:
                self._stopping_due = False
                callback = handler.stopping
            elif step is _Step.CLOSED:
                callback, arguments = handler.closed, (self._failure,)
        if step is _Step.FORGET:
            persist(self._core.forget, self)
            self._forgotten = True
        elif callback is not None:
            try:
                # Plain steps: it is called once, whatever a signal handler raises.
                if step is _Step.CONNECTED:
                    self._connected_told = True
                elif step is _Step.CLOSED:
                    self._closed_told = True
                callback(self, *arguments)
            except BaseException as error:
                tell(
                    logging.ERROR,
                    "%r: exception in a callback, the connection is closed",
                    self,
                    error=error,
                )
                self._fail(error)
            self._core.check_fork()

    def _look(self, now: float) -> bool:
        """Of one that lingers or does not receive: end it where it is time. True: look again."""
        with self._lock:
            if self._linger_until is not None:
                if now >= self._linger_until:
                    self._shut_down()
                    self._nudge()
            elif self._is_deaf():
                error = _failure_of(self._sock)
                if error is not None:
                    self._fail(error)
            return self._is_deaf()

    # -- the lock is held in everything below

    def _next(self) -> _Step | None:
        if not self._connected_told:
            return _Step.CONNECTED
        if self._shut:
            if self._receiving or self._sending or self._forgotten:
                return None
            return _Step.FORGET if self._closed_told else _Step.CLOSED
        if self._linger_until is not None:
            return None if self._receiving else _Step.RECEIVE
        if self._closing:
            return None
        if self._stopping_due:
            return _Step.STOPPING
        if self._drained_due:
            return _Step.DRAINED
        if self._paused:
            return None
        if self._inbox:
            return _Step.RECEIVED
        if self._end:
            return None if self._end_told else _Step.END_OF_STREAM
        if self._receiving or self._queued > self._core.send_limit:
            return None
        return _Step.RECEIVE

    def _nudge(self) -> None:
        """See to it that a worker comes, if there is anything to do."""
        if self._active or self._nudged or self._next() is None:
            return
        self._nudged = True
        try:
            self._core.port._post_for(self._core, self)
        except PortClosed:
            pass  # who closes it comes
        except BaseException:
            self._nudged = False
            raise

    def _is_deaf(self) -> bool:
        """Whether a worker has to look now and then for its end, which no operation would bring."""
        return not self._shut and (
            self._linger_until is not None
            or (not self._receiving and not self._sending and not self._closing)
        )

    def _receive(self) -> None:
        self._receiving = True
        try:
            self._handle.recv(self._core.buffer_size, overlapped=self._receive_operation)
        except (HandleClosed, PortClosed):
            self._receiving = False
            self._shut_down()
        except BaseException as error:
            self._receiving = self._receive_operation.pending
            self._fail(None if self._linger_until is not None else error)
            if not isinstance(error, (OSError, MemoryError)):
                raise

    def _take_received(self, completion: Completion) -> None:
        if completion.error is not None:
            if self._linger_until is not None:
                self._shut_down()
            elif not isinstance(completion.error, OperationAborted):
                self._fail(completion.error)
        elif completion.transferred == 0:
            self._end = True
            if self._linger_until is not None:
                self._shut_down()
        else:
            self._used = time.monotonic()
            self._received_bytes += completion.transferred
            if not self._closing:
                self._inbox.append(completion.overlapped.result())
            elif self._linger_until is not None:
                self._linger_left -= completion.transferred
                if self._linger_left <= 0:
                    self._shut_down()

    def _flush(self) -> None:
        """Send what can be sent now; an operation carries the rest."""
        if self._flushing or self._sending or self._shut:
            return
        # Whoever comes in here a second time, through a finalizer, has appended to the outbox.
        self._flushing = True
        try:
            self._send_now()
        except OSError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(error)  # nobody knows what has gone out
            raise
        finally:
            self._flushing = False
        if not self._outbox and not self._sending and self._was_full:
            self._was_full = False
            self._drained_due = True

    def _send_now(self) -> None:
        try:
            while self._outbox:
                piece = self._outbox[0]
                count = self._sock.send(piece, NO_SIGNAL)
                self._sent(count)
                if count == len(piece):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = memoryview(piece)[count:]
                    self._was_full = True  # also where a reader is quick and the next try succeeds
        except (BlockingIOError, InterruptedError):
            self._was_full = True
            self._send_rest()

    def _send_rest(self) -> None:
        pieces: list[bytes | memoryview] = []
        size = 0
        while self._outbox and size < SENT_AT_ONCE:
            piece = self._outbox.popleft()
            room = SENT_AT_ONCE - size
            if len(piece) > room:
                view = memoryview(piece)
                piece = view[:room]
                self._outbox.appendleft(view[room:])
            pieces.append(piece)
            size += len(piece)
        self._sending = size
        try:
            self._handle.send(pieces, overlapped=self._send_operation)
        except (HandleClosed, PortClosed):
            self._sending = 0
            self._shut_down()
        except BaseException as error:
            if not self._send_operation.pending:
                self._sending = 0
            self._fail(error)
            if not isinstance(error, (OSError, MemoryError)):
                raise

    def _take_sent(self, completion: Completion) -> None:
        self._sending = 0
        if completion.transferred:
            self._sent(completion.transferred)
        if completion.error is not None:
            if not isinstance(completion.error, OperationAborted):
                self._fail(completion.error)
            return
        self._flush()
        if self._closing and not self._queued:
            self._linger()

    def _sent(self, count: int) -> None:
        self._queued = max(self._queued - count, 0)
        self._sent_bytes += count
        self._used = time.monotonic()

    def _linger(self) -> None:
        """All has gone out: end our side, and throw away what the peer still sends."""
        if self._shut or self._linger_until is not None:
            return
        self._inbox.clear()
        if self._end:
            self._shut_down()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone already
            self._shut_down()
            return
        self._linger_until = time.monotonic() + LINGER
        self._core.look_at(self)

    def _shut_down(self) -> None:
        self._closing = True
        if self._shut:
            return
        self._outbox.clear()
        self._inbox.clear()
        self._queued = 0
        # Under the lock, so that no send goes to the number of the socket once it is free.
        persist(self._handle.close)
        self._shut = True


def _failure_of(sock: socket.socket) -> OSError | None:
    """What has ended the connection, where nobody receives."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        # Linux calls a reset EPIPE where the peer had ended its side before.
        number = errno.ECONNRESET if number == errno.EPIPE else number
        return OSError(number, os.strerror(number))
    if sys.platform == "win32":
        # There only a call tells: one that sends nothing, and so takes nothing either.
        try:
            sock.send(b"")
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            return error
    return None


def _address(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError:
        return None  # a peer that is gone already
