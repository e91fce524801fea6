"""What the system's calls give back, whichever system it is."""

from __future__ import annotations

from typing import Any, NamedTuple


def is_warning(status: int) -> bool:
    """Whether an NTSTATUS is one: then a packet comes as with success, and only for errors none."""
    return status >> 30 == 2


class Started(NamedTuple):
    """How a call that starts an operation has ended."""

    code: int
    """0: it has succeeded already. ``ERROR_IO_PENDING``: it is under way. Else it was refused.

    ``WSAEMSGSIZE``, ``ERROR_MORE_DATA``: it has received what there was room for.
    """
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
