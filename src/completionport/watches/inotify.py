"""inotify(7), which Python has no module for, by way of ctypes."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ..interface.errors import system_error

if TYPE_CHECKING:
    import ctypes

# <sys/inotify.h>
MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
MOVE_SELF = 0x800
UNMOUNT = 0x2000
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x1000000
DONT_FOLLOW = 0x2000000
MASK_ADD = 0x20000000
ISDIR = 0x40000000

_HEADER = struct.Struct("iIII")


class Event(NamedTuple):
    """One event as the kernel tells it."""

    watch: int
    mask: int
    cookie: int
    name: str


@cache
def _library() -> ctypes.CDLL:
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        library.inotify_init1  # noqa: B018
    except (ImportError, AttributeError, TypeError):
        raise system_error(
            errno.ENOSYS,
            "changes of a directory can't be read here: that takes inotify(7) and ctypes",
        ) from None
    return library


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        reason = os.strerror(number)
        if number == errno.ENOSPC:
            reason = "no more directories can be watched: raise fs.inotify.max_user_watches"
        elif number == errno.EMFILE:
            reason += " (or fs.inotify.max_user_instances is reached)"
        raise system_error(number, reason)
    return result


def new() -> int:
    """A new instance: its descriptor, which never makes a read wait."""
    return _checked(_library().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def add(descriptor: int, path: str, mask: int) -> int:
    """Watch a path; the watch's number, the same one for the same file."""
    return _checked(_library().inotify_add_watch(descriptor, os.fsencode(path), mask))


def remove(descriptor: int, watch: int) -> None:
    """End a watch; one that has ended already is no error."""
    _library().inotify_rm_watch(descriptor, watch)


def events(data: bytes) -> Iterator[Event]:
    """What was read."""
    position = 0
    while position < len(data):
        watch, mask, cookie, size = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        name = os.fsdecode(data[position : position + size].rstrip(b"\0"))
        position += size
        yield Event(watch, mask, cookie, name)
