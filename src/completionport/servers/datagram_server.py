"""A server for datagrams: the callbacks that its user writes, what they are given, its socket."""

from __future__ import annotations

import abc
import socket
from typing import Any

from ..interface.handle import Buffers
from ..interface.port import Completion, CompletionPort
from ..shared.arguments import LARGEST_WORKERS, check_count
from .callbacks import check_handler, is_overridden
from .service import S, Service, ServiceSocket, bound_socket, check_port

LONGEST = 1 << 16
"""No UDP datagram is longer, bytes."""


class DatagramHandler:
    """The callbacks of a `DatagramServer`.

    Datagrams are given to the workers in the order in which they came, but the callbacks of
    different ones may run at the same time on different workers: while one blocks the others
    go on, and with a ``concurrency`` above 1 several compute. What they share needs a lock. An
    exception in a callback is logged with its traceback, and the server goes on.
    """

    def received(self, endpoint: Endpoint, data: bytes, address: Any) -> None:
        """One datagram came from ``address``, which is as `socket.socket.recvfrom` gives it."""

    def failed(self, endpoint: Endpoint, error: OSError) -> None:
        """Receiving failed, or a datagram that was queued could not be sent. The server goes on."""

    def packet(self, completion: Completion) -> None:
        """A packet of the program's, taken from the port that the server made for itself.

        What `CompletionPort.post`, timers, ``associate`` and ``submit`` of
        ``server.completion_port`` bring; unless overridden, these raise `PortOwned`. It is called
        by a worker, in order with nothing but what a `Strand` says, also side by side with other
        callbacks. An exception is logged, and the server goes on. The end of the server closes its
        port: what has not come by then is dropped. With ``completion_port`` given it is never
        called: there the program takes its packets itself.
        """


class Endpoint(ServiceSocket[S]):
    """The socket of a `DatagramServer`. Every method may be called from any thread, at any time."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def server(self) -> DatagramServer:
        """The server it belongs to."""

    @property
    @abc.abstractmethod
    def closing(self) -> bool:
        """True once the server stops."""

    @abc.abstractmethod
    def send(self, data: Buffers, address: Any) -> bool:
        """Send one datagram: ``data``, a bytes-like object or a sequence of them, to ``address``.

        It never waits. When the socket's buffer is full the datagram is queued, up to the server's
        ``send_limit`` bytes; above that it is dropped, as the network would do with it, and so
        is one for a Unix socket whose receiver's queue is full. A mutable object may be
        changed as soon as the call has returned.

        ``address`` is given as for `Handle.sendto`. To answer with the very object that
        `DatagramHandler.received` was given is quickest; a host name is looked up each time, which
        may block.

        Returned: True when the kernel has it or it is queued, False when it was dropped.
        Raised: `TypeError` for anything else, `ConnectionClosed` once the server has stopped,
        `PortForked` in the child of a ``fork()``, `OSError` when the operating system refuses it
        (``EMSGSIZE``, ``ENETUNREACH``, ``ECONNREFUSED``).
        """


class DatagramServer(Service):
    """A UDP server on a completion port.

    ``handler``: a `DatagramHandler`.
    ``host``, ``port``: where to receive; port 0 takes a free one, see `address`. ``sock``, a bound
    datagram socket of your own (UDP or Unix), takes their place; it is closed with the server.
    ``workers``: threads, 1 to 32768; None for 8, or twice ``concurrency`` where that is more. At
    most ``concurrency`` of them run callbacks; the others step in for those whose callback blocks.
    ``concurrency``, ``engine``: as for `CompletionPort`, of the port that the server makes.
    ``completion_port``: a port that the program made, in its place: see `Server`.
    ``buffer_size``: the longest datagram that is received, 64 to 2**16 bytes; a longer one is
    dropped, and counted as ``truncated``.
    ``receive_buffer``: SO_RCVBUF in bytes, what the kernel keeps while all workers are busy; None
    for the system's default. What does not fit is lost.
    ``send_limit``: bytes that are queued when the socket's buffer is full; above that, sends are
    dropped.
    ``reuse_port``: SO_REUSEPORT, so that several processes can share the port.

    Call `serve_forever`, or `start` and `stop`, or use it as a context manager: that starts the
    server, and stops it at the end of the block with the usual grace.

    Raised: as for `Server`.
    """

    def __init__(
        self,
        handler: DatagramHandler,
        host: str = "127.0.0.1",
        port: int = 5050,
        *,
        workers: int | None = None,
        concurrency: int = 0,
        completion_port: CompletionPort | None = None,
        buffer_size: int = LONGEST,
        receive_buffer: int | None = None,
        send_limit: int = 1 << 20,
        engine: str | None = None,
        reuse_port: bool = False,
        sock: socket.socket | None = None,
    ) -> None:
        check_handler(handler, DatagramHandler)
        check_port(completion_port, concurrency, engine)
        check_count("workers", workers, 1, LARGEST_WORKERS, optional=True)
        check_count("buffer_size", buffer_size, 64, LONGEST)
        check_count("receive_buffer", receive_buffer, 1, optional=True)
        check_count("send_limit", send_limit, 0)
        if sock is not None:
            if not isinstance(sock, socket.socket):
                raise TypeError(f"sock must be a socket, not {type(sock).__name__}")
            if sock.type != socket.SOCK_DGRAM:
                raise ValueError("sock must be a datagram socket")
        self.handler = handler
        """The handler of all its datagrams."""
        own = sock or bound_socket(host, port, socket.SOCK_DGRAM, reuse_port=reuse_port)
        if receive_buffer is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        super().__init__(
            own,
            sock is None,
            workers,
            concurrency,
            engine,
            completion_port,
            handler.packet if is_overridden(handler, DatagramHandler, "packet") else None,
            lambda port: DatagramServer._core_class(port)(
                port, handler, self, buffer_size=buffer_size, send_limit=send_limit
            ),
        )

    def stats(self) -> dict[str, Any]:
        """Numbers for a look inside.

        So far ``received_packets`` (calls of `DatagramHandler.received`), ``received_bytes``,
        ``truncated`` (datagrams that were too long), ``sent_packets``, ``sent_bytes``, ``dropped``
        (sends that found no room); ``queued_bytes`` now. What the kernel dropped because nobody
        took it in time is not among them. And of `CompletionPort.stats`: ``queued``, ``taken``,
        ``waiting``, ``running``, ``blocked``, ``replaced``, ``wakeups``, ``queue_time`` and
        ``work_time``.
        """
        return super().stats()
