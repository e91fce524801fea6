"""Which operations on a file wait for which; ``native.channels.precedence`` says why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import itemgetter

from ...interface.operation import Operation
from .requests import Request

CHANGES = (Operation.WRITE, Operation.ALLOCATE)
MOVES_DATA = (Operation.READ, Operation.WRITE)


def waits_for_nothing(request: Request) -> bool:
    """What changes nothing: `stat`, and a read at an offset."""
    return request.operation is Operation.STAT or (
        request.operation is Operation.READ and request.offset is not None
    )


def may_cover_all(request: Request, appends: bool) -> bool:
    """Whether it may change any byte of the file."""
    return request.operation in CHANGES and (
        request.offset is None or (appends and request.operation is Operation.WRITE)
    )


class Spans:
    """Changes at an offset that were started, by offset: no two of them cover the same byte.

    So thousands can be pending. The channel's lock guards it.
    """

    def __init__(self) -> None:
        # By offset. One list, so that a signal handler that raises leaves it whole.
        self._entries: list[tuple[int, Request]] = []

    def add(self, request: Request) -> None:
        """A second time it does nothing."""
        assert request.offset is not None
        place = self._place(request.offset)
        if place == len(self._entries) or self._entries[place][1] is not request:
            self._entries.insert(place, (request.offset, request))

    def remove(self, request: Request) -> None:
        """A second time it does nothing."""
        assert request.offset is not None
        place = self._place(request.offset)
        if place < len(self._entries) and self._entries[place][1] is request:
            del self._entries[place]

    def meets(self, request: Request) -> bool:
        """Whether one of them covers some of the same bytes."""
        assert request.offset is not None
        place = self._place(request.offset)
        return any(
            _may_meet(request, other, False)
            for _, other in self._entries[max(place - 1, 0) : place + 1]
        )

    def _place(self, offset: int) -> int:
        return bisect_left(self._entries, offset, key=itemgetter(0))


def hides(pending: Request, gone: Request, appends: bool) -> bool:
    """Whether all that had to wait for a change that is over waits for a pending one too."""
    if (
        gone.operation not in CHANGES
        or not gone.extent
        or may_cover_all(gone, appends)
        or pending.operation not in CHANGES
    ):
        return False
    if may_cover_all(pending, appends):
        return True
    assert gone.offset is not None
    assert pending.offset is not None
    return pending.offset <= gone.offset and (
        gone.offset + gone.extent <= pending.offset + pending.extent
    )


def is_in_turn(request: Request, queue: Iterable[Request], appends: bool) -> bool:
    """Whether nothing that has to come first is in the queue before it."""
    for earlier in queue:
        if earlier is request:
            return True
        if must_follow(request, earlier, appends):
            return False
    return True


def _at_position(request: Request) -> bool:
    return request.offset is None and request.operation in MOVES_DATA


def must_follow(later: Request, earlier: Request, appends: bool) -> bool:
    if later.operation is Operation.FSYNC:
        return earlier.operation in CHANGES
    if _at_position(later) and _at_position(earlier):
        return True
    return (
        later.operation in CHANGES
        and earlier.operation in CHANGES
        and _may_meet(later, earlier, appends)
    )


def _may_meet(one: Request, other: Request, appends: bool) -> bool:
    """Whether two operations that change the file may cover the same byte."""
    if one.offset is None or other.offset is None:
        return True
    if appends and Operation.WRITE in (one.operation, other.operation):
        # It goes to the end, wherever that is by then.
        return True
    first, second = (one, other) if one.offset <= other.offset else (other, one)
    assert first.offset is not None
    assert second.offset is not None
    return first.offset == second.offset or second.offset < first.offset + first.extent
