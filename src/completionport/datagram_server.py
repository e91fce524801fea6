"""A server for datagrams: its arguments, its socket, and its core."""

from __future__ import annotations

import socket
from typing import Any

from .arguments import check_count
from .datagram_handler import DatagramHandler
from .interface import CompletionPort
from .service import Service, bound_socket

LONGEST = 1 << 16
"""No UDP datagram is longer, bytes."""


class DatagramServer(Service):
    """A UDP server on a completion port.

    ``handler``: a `DatagramHandler`.
    ``host``, ``port``: where to receive; port 0 takes a free one, see `address`. ``sock``, a bound
    datagram socket of your own (UDP or Unix), takes their place; it is closed with the server.
    ``workers``: threads, 1 or more; None for 8, or twice ``concurrency`` where that is more. At
    most ``concurrency`` of them run callbacks; the others step in for those whose callback blocks.
    ``concurrency``, ``engine``: as for `CompletionPort`.
    ``buffer_size``: the longest datagram that is received, 64 to 2**16 bytes; a longer one is
    dropped, and counted as ``truncated``.
    ``receive_buffer``: SO_RCVBUF in bytes, what the kernel keeps while all workers are busy; None
    for the system's default. What does not fit is lost.
    ``send_limit``: bytes that are queued when the socket's buffer is full; above that, sends are
    dropped.
    ``reuse_port``: SO_REUSEPORT, so that several processes can share the port.

    Raised: `TypeError` and `ValueError` for wrong arguments, `OSError` when the address can't be
    had, `EngineUnavailable`.
    """

    def __init__(
        self,
        handler: DatagramHandler,
        host: str = "127.0.0.1",
        port: int = 5050,
        *,
        workers: int | None = None,
        concurrency: int = 0,
        buffer_size: int = LONGEST,
        receive_buffer: int | None = None,
        send_limit: int = 1 << 20,
        engine: str | None = None,
        reuse_port: bool = False,
        sock: socket.socket | None = None,
    ) -> None:
        if not isinstance(handler, DatagramHandler):
            raise TypeError(f"handler must be a DatagramHandler, not {type(handler).__name__}")
        check_count("workers", workers, 1, optional=True)
        check_count("buffer_size", buffer_size, 64, LONGEST)
        check_count("receive_buffer", receive_buffer, 1, optional=True)
        check_count("send_limit", send_limit, 0)
        if sock is not None:
            if not isinstance(sock, socket.socket):
                raise TypeError(f"sock must be a socket, not {type(sock).__name__}")
            if sock.type != socket.SOCK_DGRAM:
                raise ValueError("sock must be a datagram socket")
        self.handler = handler
        own = sock or bound_socket(host, port, socket.SOCK_DGRAM, reuse_port=reuse_port)
        if receive_buffer is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        super().__init__(
            own,
            sock is None,
            workers,
            concurrency,
            engine,
            lambda port: _core_class(port)(
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


def _core_class(port: CompletionPort) -> Any:
    if port.engine in ("io_uring", "epoll"):
        from .native.server.datagram_core import DatagramCore

        return DatagramCore
    from .portable.datagram_core import DatagramCore as PortableCore

    return PortableCore
