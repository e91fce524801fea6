"""Operations of a port that belong to no handle: functions, and what is asked of names."""

from __future__ import annotations

from typing import Any

from ...interface.handle import Overlapped, check_overlapped
from ...interface.operation import Operation
from ..channels.requests import Request
from ..pool.file_channel import SideBySide
from ..scheduling.places import PortableStrand


class Errand:
    """What an operation without a handle has in its place: key, strand, a way to cancel it."""

    __slots__ = ("_line", "_strand", "key")

    is_errand = True
    _consumer = None

    def __init__(self, line: SideBySide, key: Any, strand: PortableStrand | None) -> None:
        self._line = line
        self.key = key
        self._strand = strand

    def cancel(self, overlapped: Overlapped) -> int:
        return self._line.cancel(overlapped)


def new_request(
    line: SideBySide,
    operation: Operation,
    key: Any,
    overlapped: Overlapped | None,
    strand: PortableStrand | None,
) -> Request:
    """A request; `start` comes next."""
    check_overlapped(overlapped)
    errand = Errand(line, key, strand)
    request = Request(operation, errand)
    request.overlapped = Overlapped() if overlapped is None else overlapped
    return request


def start(line: SideBySide, request: Request) -> Overlapped:
    """Claim its Overlapped, and carry the request out, now or later."""
    # The request lets go of it as soon as another thread has taken the packet.
    overlapped = request.overlapped
    step = map(overlapped._begin, (request.handle,), (request.operation,))  # type: ignore[arg-type]
    # No call, behind which a signal handler could raise.
    [_] = step
    try:
        line.start(request)
    except BaseException:
        if not request.begun:
            overlapped._withdraw()
        raise
    return overlapped
