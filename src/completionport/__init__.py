"""I/O completion ports for Python: any number of threads on one port."""

from __future__ import annotations

from .changes import Change, ChangeAction
from .datagram_handler import DatagramHandler, Endpoint
from .datagram_server import DatagramServer
from .directories import open_directory
from .errors import (
    AlreadyAssociated,
    CompletionPortError,
    ConnectionClosed,
    EngineUnavailable,
    HandleClosed,
    OperationAborted,
    OperationPending,
    PortClosed,
    PortForked,
)
from .handler import Connection, Handler
from .histogram import Histogram
from .interface import CompletionPort, Handle
from .operation import Operation
from .overlapped import Completion, Overlapped
from .pool import WorkerPool
from .server import Server
from .signals import SignalWatch
from .strand import Strand
from .timer import Timer

__all__ = [
    "AlreadyAssociated",
    "Change",
    "ChangeAction",
    "Completion",
    "CompletionPort",
    "CompletionPortError",
    "Connection",
    "ConnectionClosed",
    "DatagramHandler",
    "DatagramServer",
    "Endpoint",
    "EngineUnavailable",
    "Handle",
    "HandleClosed",
    "Handler",
    "Histogram",
    "Operation",
    "OperationAborted",
    "OperationPending",
    "Overlapped",
    "PortClosed",
    "PortForked",
    "Server",
    "SignalWatch",
    "Strand",
    "Timer",
    "WorkerPool",
    "open_directory",
]
