"""What the system's calls give back, whichever system it is."""

from __future__ import annotations

from typing import Any, NamedTuple


class Started(NamedTuple):
    """How a call that starts an operation has ended."""

    code: int
    """0: it has succeeded already. ``ERROR_IO_PENDING``: it is under way. Else it was refused."""
    transferred: int = 0
    """Bytes, where it has succeeded."""


class Taken(NamedTuple):
    """One packet."""

    transferred: int
    key: Any
    overlapped: Any
    status: int
    """NTSTATUS."""
    code: int
    """The Windows code, 0 for success."""
