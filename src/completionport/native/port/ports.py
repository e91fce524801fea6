"""The compiled ports under their public types, one for each engine."""

from __future__ import annotations

from ...interface import CompletionPort
from ...interface import Handle as PublicHandle
from ...strand import Strand as PublicStrand
from ...timer import Timer
from .handles import Handle as CompiledHandle
from .port import Port
from .strand import Strand as CompiledStrand
from .timers import Timer as CompiledTimer


class Handle(CompiledHandle, PublicHandle):
    """A handle of a compiled engine."""

    __slots__ = ()


class Strand(CompiledStrand, PublicStrand):
    """A strand of a compiled engine."""

    __slots__ = ()


Timer.register(CompiledTimer)


class IoUringPort(Port, CompletionPort):
    """A completion port on io_uring."""

    ENGINE = "io_uring"
    HANDLE = Handle
    STRAND = Strand


class EpollPort(Port, CompletionPort):
    """A completion port on epoll."""

    ENGINE = "epoll"
    HANDLE = Handle
    STRAND = Strand


PORTS: dict[str, type[CompletionPort]] = {"io_uring": IoUringPort, "epoll": EpollPort}
