"""What a server's user writes (`Handler`), and what it is given (`Connection`)."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from .service_socket import ServiceSocket

if TYPE_CHECKING:
    from .interface import Buffers
    from .server import Server


class Handler:
    """The callbacks of a server. One object serves all connections.

    What belongs to one connection lives in ``connection.state``. The callbacks of one connection
    come in order and never at the same time; those of different connections may run on
    different workers at the same time. An exception in a callback is logged with its
    traceback, and closes that connection only.
    """

    def connected(self, connection: Connection) -> None:
        """A client has connected."""

    def received(self, connection: Connection, data: bytes) -> None:
        """``data`` has come: 1 to ``buffer_size`` bytes, however the peer had divided them."""

    def end_of_stream(self, connection: Connection) -> None:
        """The peer will send no more. Unless overridden, this closes the connection."""
        connection.close()

    def drained(self, connection: Connection) -> None:
        """The kernel has taken all that was queued, after it once had not taken all at once."""

    def closed(self, connection: Connection, error: Exception | None) -> None:
        """The connection is over: the last callback, exactly one for each `connected`.

        ``error`` is None after a `Connection.close` or `Connection.abort`; else what ended it:
        an `OSError` from the network, the exception of a callback, or `TimeoutError`
        after ``idle_timeout``.
        """


class Connection(ServiceSocket):
    """One client of a `Server`. Every method may be called from any thread, at any time."""

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
        """Send ``data``, a bytes-like object or a list of them, after all that was sent before.

        It never waits: what the kernel does not take is queued, and a mutable object may be
        changed as soon as the call has returned. While more than the server's ``send_limit``
        bytes are queued, nothing is received from this peer.

        Raised: `TypeError` for anything else, `ConnectionClosed` after the end.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Receive no more, and close when what is queued has gone out."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once; what is queued is dropped."""

    @abc.abstractmethod
    def pause(self) -> None:
        """Have no `Handler.received` called until `resume`; TCP then holds the peer back."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Receive again after `pause`."""
