"""What a datagram server's user writes (`DatagramHandler`), and what it is given (`Endpoint`)."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from .service_socket import ServiceSocket

if TYPE_CHECKING:
    from .datagram_server import DatagramServer
    from .interface import Buffers


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


class Endpoint(ServiceSocket):
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
        """Send one datagram: ``data``, a bytes-like object or a list of them, to ``address``.

        It never waits. When the socket's buffer is full the datagram is queued, up to the server's
        ``send_limit`` bytes; above that it is dropped, as the network would do with it, and so
        is one for a Unix socket whose receiver's queue is full. A mutable object may be
        changed as soon as the call has returned.

        ``address`` is given as for `Handle.sendto`. To answer with the very object that
        `DatagramHandler.received` was given is quickest; a host name is looked up each time, which
        may block.

        Returned: True when the kernel has it or it is queued, False when it was dropped.
        Raised: `TypeError` for anything else, `ConnectionClosed` once the server stops, `OSError`
        when the operating system refuses it (``EMSGSIZE``, ``ENETUNREACH``, ``ECONNREFUSED``).
        """
