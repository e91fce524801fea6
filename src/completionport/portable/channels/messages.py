"""Ancillary data: descriptors that go with a message, and those that came with one."""

from __future__ import annotations

import array
import errno
import operator
import os
import socket
from collections.abc import Iterable
from typing import Any, TypeAlias

from ...interface.errors import system_error
from ...shared.arguments import LARGEST_ANCILLARY

Items: TypeAlias = "list[tuple[int, int, bytes]]"

RIGHTS = (socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", -1))
NO_ANCILLARY = (
    "there is no ancillary data here: Windows' sockets carry no descriptors, and Python gives no "
    "access to the rest. To hand a socket over, send the bytes of socket.share(); for another "
    "handle see multiprocessing.reduction.DupHandle"
)
CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def prepared(ancillary: Any) -> Items:
    """The data as it will be sent, with duplicates of the descriptors: the caller's."""
    try:
        items = [(_small(level), _small(kind), _bytes(data)) for level, kind, data in ancillary]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"ancillary data is a sequence of (level, type, bytes-like data) tuples: {error}"
        ) from None
    if items and not hasattr(socket, "CMSG_SPACE"):
        raise system_error(errno.EOPNOTSUPP, NO_ANCILLARY)
    size = sum(socket.CMSG_SPACE(len(data)) for _, _, data in items)
    if size > LARGEST_ANCILLARY:
        raise ValueError(f"ancillary data has at most {LARGEST_ANCILLARY} bytes, not {size}")
    duplicates: Items = []
    try:
        for level, kind, data in items:
            if (level, kind) == RIGHTS:
                data = _duplicates(data)
            duplicates.append((level, kind, data))
    except OSError as error:
        close_descriptors(duplicates)
        raise system_error(
            error.errno or 0, f"{error.strerror}: a descriptor in the ancillary data"
        ) from None
    return duplicates


def _small(number: Any) -> int:
    value = operator.index(number)
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{value} does not fit into 32 bits")
    return value


def _bytes(data: Any) -> bytes:
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise ValueError("the data is not contiguous")
        return bytes(view)


def descriptors_in(items: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in ancillary data."""
    found: list[int] = []
    for level, kind, data in items:
        if (level, kind) == RIGHTS:
            found += _numbers(data)
    return found


def close_descriptors(items: Iterable[tuple[int, int, bytes]]) -> None:
    """Close the descriptors in ancillary data."""
    for number in descriptors_in(items):
        os.close(number)


def _numbers(data: bytes) -> list[int]:
    numbers = array.array("i")
    # A truncated one may end in the middle of a number.
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


def _duplicates(data: bytes) -> bytes:
    made: list[int] = []
    try:
        for number in _numbers(data):
            made.append(os.dup(number))
    except BaseException:
        for number in made:
            os.close(number)
        raise
    return array.array("i", made).tobytes()
