"""I/O completion ports for Python: any number of threads on one port."""

from __future__ import annotations

from .directories import open_directory
from .engines import Completion, Overlapped
from .interface.errors import (
    AlreadyAssociated,
    CompletionPortError,
    ConnectionClosed,
    EngineUnavailable,
    HandleClosed,
    OperationAborted,
    OperationPending,
    PortClosed,
    PortForked,
    PortOwned,
)
from .interface.handle import Handle
from .interface.histogram import Histogram
from .interface.operation import Operation
from .interface.port import CompletionPort, SignalWatch, Strand
from .interface.timer import Timer
from .servers.datagram_server import DatagramHandler, DatagramServer, Endpoint
from .servers.stream_server import Connection, Handler, Server
from .servers.worker_pool import WorkerPool
from .shared.version import VERSION
from .watches.changes import Change, ChangeAction

__version__ = VERSION

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
    "PortOwned",
    "Server",
    "SignalWatch",
    "Strand",
    "Timer",
    "WorkerPool",
    "open_directory",
]

# So that a traceback, a pickle and `help` have the name that a program knows, in whatever room it
# stands. The compiled Completion can't be told.
for _name in __all__:
    if _name != "Completion":
        globals()[_name].__module__ = __name__
