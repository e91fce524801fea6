"""A TCP server: the callbacks that its user writes, what they are given, its listening socket."""

from __future__ import annotations

import abc
import contextlib
import os
import socket
import sys
from typing import Any

from ..interface.handle import Buffers
from ..interface.port import Completion, CompletionPort
from ..shared.arguments import LARGEST_WORKERS, check_count
from ..shared.association import listens, refuse_tls
from .callbacks import check_handler, is_overridden
from .service import S, Service, ServiceSocket, bound_socket, check_port

# On Windows SO_REUSEADDR would let any program take the address away.
SO_ADDRESS: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)

DESCRIPTORS = 16384
"""For so many (as far as the limit allows) there is room in the process's table from the start."""


class Handler:
    """The callbacks of a server. One object serves all connections.

    What belongs to one connection lives in ``connection.state``. The callbacks of one connection
    come in order and never at the same time; those of different connections may run on
    different workers at the same time. An exception in a callback is logged with its
    traceback, and closes that connection only.

    They are plain functions: nobody would run what a coroutine function returns.
    """

    def connected(self, connection: Connection) -> None:
        """A client has connected."""

    def received(self, connection: Connection, data: bytes) -> None:
        """``data`` has come: 1 to ``buffer_size`` bytes, however the peer had divided them.

        It must be overridden; a server that only talks does so with ``pass``.
        """

    def end_of_stream(self, connection: Connection) -> None:
        """The peer will send no more. Unless overridden, this closes the connection.

        It is closed behind what is queued by then. A client that ends its side as soon as it has
        asked, as ```nc -N``` does, gets no more than that: where answers come later, from another
        thread, override this, and close the connection behind the last answer.
        """
        connection.close()

    def drained(self, connection: Connection) -> None:
        """The kernel has taken all that was queued, after it once had not taken all at once.

        It does not come any more once `Connection.close` or `Connection.abort` was called: what
        sends a long answer piece by piece closes behind the last one.
        """

    def stopping(self, connection: Connection) -> None:
        """The server stops, by `Server.stop` or a signal. Unless overridden, this closes.

        It comes once for each connection that is open then and not closing, in its order with the
        other callbacks, also while the connection is paused. One that overrides it and returns
        keeps the connection: it is served on, and sends from any thread go out, until it is closed
        or the grace is over. Then it is aborted: `closed` with None. ``stop(0)`` asks nobody.
        """
        connection.close()

    def closed(self, connection: Connection, error: Exception | None) -> None:
        """The connection is over: the last callback, exactly one for each `connected`.

        ``error`` is None after a `Connection.close` or `Connection.abort`; else what ended it:
        an `OSError` from the network, the exception of a callback, or `TimeoutError`
        after ``idle_timeout``. A reset is told when it comes, also to a connection that is paused
        or whose peer has ended its side: what was not received by then is lost.
        """

    def packet(self, completion: Completion) -> None:
        """A packet of the program's, taken from the port that the server made for itself.

        What `CompletionPort.post`, timers, ``associate`` and ``submit`` of
        ``server.completion_port`` bring; unless overridden, these raise `PortOwned`. It is called
        by a worker, in order with nothing but what a `Strand` says, also side by side with other
        callbacks. An exception is logged, and the server goes on. The end of the server closes its
        port: what has not come by then is dropped. With ``completion_port`` given it is never
        called: there the program takes its packets itself.
        """


class Connection(ServiceSocket[S]):
    """One client of a `Server`. Every method may be called from any thread, at any time.

    ``Connection[Client]`` says to a type checker of what type its ``state`` is.

    In the child of a ``fork()`` each raises `PortForked`: the connection is the parent's.
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def server(self) -> Server:
        """The server it belongs to."""

    @property
    @abc.abstractmethod
    def peername(self) -> Any:
        """The peer's address, as `socket.socket.getpeername` gives it; kept after the end."""

    @property
    @abc.abstractmethod
    def closing(self) -> bool:
        """True once `close` or `abort` was called, or the connection has failed."""

    @abc.abstractmethod
    def send(self, data: Buffers) -> None:
        """Send ``data``, a bytes-like object or a sequence of them, after all that was sent before.

        It never waits: what the kernel does not take is queued, and a mutable object may be
        changed as soon as the call has returned. While more than the server's ``send_limit``
        bytes are queued, nothing is received from this peer.

        Raised: `TypeError` for anything else, `ConnectionClosed` after the end.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Receive no more, send what is queued, and close.

        The close lingers: behind the last byte this side is ended (``shutdown``), and what the peer
        still sends is read and thrown away, until the peer ends its side too, but for 2 s and 1 MiB
        at most, and not beyond the grace of a server that stops. A system that closes a socket
        with input that nobody has read resets the connection, and the peer would lose the end of
        what it was sent (RFC 9112, 9.6). `Handler.closed` comes behind that. Where the peer has
        ended its side there is nothing to wait for.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once, without lingering; what is queued is dropped."""

    @abc.abstractmethod
    def pause(self) -> None:
        """Have no `Handler.received` called until `resume`; TCP then holds the peer back."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Receive again after `pause`."""


class Server(Service):
    """A TCP server on a completion port.

    ``handler``: a `Handler` with a `Handler.received` of its own; one object for all connections.
    ``host``, ``port``: where to listen; port 0 takes a free one, see `address`. ``listener``, a
    listening socket of your own, takes their place; it is closed with the server. It is put into
    non-blocking mode, for all who have it.
    ``workers``: threads, 1 to 32768; None for 8, or twice ``concurrency`` where that is more. At
    most ``concurrency`` of them run callbacks; the others step in for those whose callback blocks.
    ``concurrency``, ``engine``: as for `CompletionPort`, of the port that the server makes.
    ``completion_port``: a port that the program made, in its place. Any number of servers can be on
    one, beside handles, timers, posts and a `WorkerPool`, all under its one concurrency. Whoever
    takes packets there serves the connections too: the workers, and each thread in
    `CompletionPort.get`, which goes on waiting behind it. `stop` leaves that port open.
    ``backlog``: connections that may wait to be accepted.
    ``buffer_size``: the most bytes that one `Handler.received` gets, 64 to 2**20. While a callback
    is at work its client may go on sending: some 256 KiB (four times ``buffer_size``, where that is
    more than 64 KiB) are received ahead at most, and all such connections of a server share 16 MiB.
    The rest stays in the socket, and TCP holds the client back.
    ``max_connections``: more clients than that wait in the backlog; None for no limit.
    ``idle_timeout``: seconds without a byte after which a connection is closed, or None.
    ``send_limit``: bytes queued for a peer that does not read, after which nothing is received
    from it until they have gone out.
    ``reuse_port``: SO_REUSEPORT, so that several processes can share the port.

    Call `serve_forever`, or `start` and `stop`, or use it as a context manager: that starts the
    server, and stops it at the end of the block with the usual grace.

    Raised: `TypeError` and `ValueError` for wrong arguments, also for ``concurrency`` or ``engine``
    beside ``completion_port``; `OSError` when the address can't be had, which it names;
    `EngineUnavailable`, `PortClosed`, `PortForked`; `PortOwned` for the port of another server.

    Running out of descriptors pauses accepting, says so once in the log ``completionport``,
    and goes on when there are some again.
    """

    def __init__(
        self,
        handler: Handler,
        host: str = "127.0.0.1",
        port: int = 5050,
        *,
        workers: int | None = None,
        concurrency: int = 0,
        completion_port: CompletionPort | None = None,
        backlog: int = 4096,
        buffer_size: int = 16384,
        max_connections: int | None = None,
        idle_timeout: float | None = None,
        send_limit: int = 1 << 20,
        engine: str | None = None,
        reuse_port: bool = False,
        listener: socket.socket | None = None,
    ) -> None:
        check_handler(handler, Handler)
        check_port(completion_port, concurrency, engine)
        check_count("workers", workers, 1, LARGEST_WORKERS, optional=True)
        check_count("backlog", backlog, 0)
        check_count("buffer_size", buffer_size, 64, 1 << 20)
        check_count("max_connections", max_connections, 1, optional=True)
        check_count("send_limit", send_limit, 0)
        if idle_timeout is not None:
            if not isinstance(idle_timeout, (int, float)):
                raise TypeError(
                    f"idle_timeout must be seconds or None, not {type(idle_timeout).__name__}"
                )
            if not 0 < idle_timeout < 1e9:
                raise ValueError(
                    "idle_timeout must be more than 0 seconds and less than 1e9, or None for no "
                    f"limit, not {idle_timeout}"
                )
        if listener is not None and not isinstance(listener, socket.socket):
            raise TypeError(f"listener must be a socket, not {type(listener).__name__}")
        if listener is not None:
            refuse_tls(listener)
            if listener.type != socket.SOCK_STREAM or not listens(listener):
                raise ValueError(
                    "listener must be a stream socket that listens: call listen() first"
                )
        self.handler = handler
        """The handler of all its connections."""
        super().__init__(
            listener or _listen(host, port, backlog, reuse_port),
            listener is None,
            workers,
            concurrency,
            engine,
            completion_port,
            handler.packet if is_overridden(handler, Handler, "packet") else None,
            lambda port: Server._core_class(port)(
                port,
                handler,
                self,
                buffer_size=buffer_size,
                max_connections=max_connections,
                idle_timeout=idle_timeout,
                send_limit=send_limit,
                # Of a listener that others made, what waits to be accepted may not have it.
                inherits_nodelay=listener is None and sys.platform == "linux",
            ),
        )

    def _prepare(self) -> None:
        self._socket.setblocking(False)
        _make_room_for_descriptors(self._socket.fileno())

    def stats(self) -> dict[str, Any]:
        """Numbers for a look inside.

        ``connections`` now; so far ``accepted``, ``received_packets`` (calls of
        `Handler.received`), ``received_bytes``, ``sent_bytes``. And of `CompletionPort.stats`:
        ``queued``, ``taken``, ``waiting``, ``running``, ``blocked``, ``replaced``, ``wakeups``,
        ``queue_time`` (how long connections with something to tell waited for a worker) and
        ``work_time`` (how long callbacks took).
        """
        return super().stats()


def _make_room_for_descriptors(descriptor: int) -> None:
    """Have the process's table of descriptors grow now, and at once to what a server may need.

    While it grows in a process with threads, the kernel makes the thread that opens a file wait
    for all processors (synchronize_rcu in its expand_fdtable), 10 to 70 ms for each doubling;
    by then thousands of clients may have come. Before there are threads it takes nothing.
    """
    if sys.platform != "linux":
        return
    import fcntl
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    highest = DESCRIPTORS if limit == resource.RLIM_INFINITY else min(limit, DESCRIPTORS)
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, highest - 1))


def _listen(host: str, port: int, backlog: int, reuse_port: bool) -> socket.socket:
    return bound_socket(
        host,
        port,
        socket.SOCK_STREAM,
        (socket.SOL_SOCKET, SO_ADDRESS),
        # Linux hands it on to the accepted sockets. Without it an answer of several
        # segments waits for the acknowledgement of the first.
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        reuse_port=reuse_port,
        backlog=backlog,
    )
