"""I/O completion ports for Python: any number of threads on one port."""

from __future__ import annotations

from .errors import (
    AlreadyAssociated,
    CompletionPortError,
    EngineUnavailable,
    HandleClosed,
    OperationAborted,
    OperationPending,
    PortClosed,
    PortForked,
)
from .interface import CompletionPort, Handle
from .operation import Operation
from .overlapped import Completion, Overlapped

__all__ = [
    "AlreadyAssociated",
    "Completion",
    "CompletionPort",
    "CompletionPortError",
    "EngineUnavailable",
    "Handle",
    "HandleClosed",
    "Operation",
    "OperationAborted",
    "OperationPending",
    "Overlapped",
    "PortClosed",
    "PortForked",
]
