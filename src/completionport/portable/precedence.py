"""Which operations on a file wait for which; ``native/precedence.pyx`` is its twin and says why."""

from __future__ import annotations

from collections.abc import Sequence

from ..operation import Operation
from .requests import Request

CHANGES = (Operation.WRITE, Operation.ALLOCATE)
MOVES_DATA = (Operation.READ, Operation.WRITE)


def waits_for_nothing(request: Request) -> bool:
    """What changes nothing: `stat`, and a read at an offset."""
    return request.operation is Operation.STAT or (
        request.operation is Operation.READ and request.offset is not None
    )


def is_in_turn(request: Request, queue: Sequence[Request], appends: bool) -> bool:
    """Whether nothing that has to come first is in the queue before it."""
    if waits_for_nothing(request):
        return True
    for earlier in queue:
        if earlier is request:
            return True
        if _must_follow(request, earlier, appends):
            return False
    return True


def _at_position(request: Request) -> bool:
    return request.offset is None and request.operation in MOVES_DATA


def _must_follow(later: Request, earlier: Request, appends: bool) -> bool:
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
    if appends and one.operation is other.operation is Operation.WRITE:
        return True
    first, second = (one, other) if one.offset <= other.offset else (other, one)
    assert first.offset is not None
    assert second.offset is not None
    return first.offset == second.offset or second.offset < first.offset + first.extent
