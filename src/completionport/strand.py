"""`Strand`: packets that are worked on one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interface import CompletionPort


class Strand:
    """A line in which packets of a port are handed out one at a time, in order.

    Made with ``Strand(port)``. Packets are bound to it by `CompletionPort.associate` (all packets
    of that handle) and by `CompletionPort.post`. While a thread is at work on a packet of the
    strand the next one stays back, whoever waits in `CompletionPort.get`; the packets of other
    strands, and those of none, go on meanwhile. So what the packets of one strand share needs no
    lock.

    The thread is at work until it calls `get` or `get_many` again (of this port or another one),
    ends, or calls `release`. `get_many` gives at most one packet of a strand.

    Any number of handles can be bound to one strand, and each handle to one strand only. A strand
    lives as long as something refers to it or is bound to it.

    Raised: `TypeError` when ``port`` is no `CompletionPort`, `PortClosed`.
    """

    __slots__ = ()

    def __new__(cls, port: CompletionPort) -> Strand:
        from .interface import CompletionPort

        if not isinstance(port, CompletionPort):
            raise TypeError(f"a Strand needs a CompletionPort, not {type(port).__name__}")
        return port._new_strand()

    @property
    def port(self) -> CompletionPort | None:
        """The port, or None once the port object is gone. A strand does not keep its port alive."""
        raise NotImplementedError

    @property
    def queued(self) -> int:
        """How many packets stay back until the one before them is done with."""
        raise NotImplementedError

    def release(self) -> None:
        """Be done with the packet of this strand before the next `get`: the next one may go.

        Raised: `RuntimeError` when the calling thread is not at work on a packet of the strand.
        """
        raise NotImplementedError


def check_strand(strand: Any, port: CompletionPort) -> None:
    """Raise what is due when ``strand`` is neither None nor a strand of ``port``."""
    if strand is None:
        return
    if not isinstance(strand, Strand):
        raise TypeError(f"strand must be a Strand or None, not {type(strand).__name__}")
    if strand.port is not port:
        raise ValueError("the strand belongs to another port")
