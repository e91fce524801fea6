"""The file of a sendfile: what can be sent of it without waiting for a disk, and reading the rest.

Its twin is ``native.channels.sources``, which says how the system behaves.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from typing import Any

PIECE = 128 << 10
"""What the page cache is asked for, and the pool reads, in one go, bytes."""
LOOK_AHEAD = 1 << 20
"""So much is sent before the page cache is asked again, bytes."""
NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
DISTANT_SYSTEMS = (
    *("fuse", "nfs", "smb", "cifs", "9p", "ceph", "afs", "coda", "vboxsf", "virtiofs"),
)
"""How the names of the file systems begin that may ask a server for each byte."""


class SourceKind(enum.Enum):
    """What is known of the file."""

    UNTOLD = enum.auto()  # nobody says what the page cache has of it
    TOLD = enum.auto()  # it is asked for, and what is not there is read by the pool
    DISTANT = enum.auto()  # a file server's: all of it is read by the pool


class Source:
    """The part of a file that is to be sent, with a duplicate of the file's descriptor.

    It belongs to its request, and is guarded as that is.
    """

    __slots__ = (
        *("data", "descriptor", "gone", "kind", "left", "offset", "read", "ready", "wants_read"),
    )

    def __init__(self, descriptor: int, offset: int, left: int) -> None:
        """It may wait for a file server."""
        self.descriptor = descriptor  # -1 when it is closed, or the pool's
        self.offset = offset
        self.left = left  # bytes
        self.gone = 0  # bytes that were sent
        self.ready = 0  # up to there it can be sent without waiting for a disk
        self.data = b""  # what was read of a distant file, as far as it was not sent
        self.wants_read = False  # the pool is to read on before more can be sent,
        self.read: Any = None  # and is at it, or has it in line: a `SourceRead`
        self.kind = kind_of(descriptor, offset)

    def sendable(self) -> int:
        """How many bytes to ask the system to send; 0: the pool is to read."""
        most = min(self.left, LOOK_AHEAD)
        if self.kind is SourceKind.UNTOLD:
            return most
        if self.ready <= self.offset:
            self.ready = self.offset
            if self.kind is SourceKind.TOLD and self._is_cached(self.offset):
                self._look_for(self.offset + most)
        return min(self.ready - self.offset, most)

    def came(self, data: bytes) -> None:
        """The pool has read it."""
        self.ready = self.offset + len(data)
        if not data:
            self.left = 0
        elif self.kind is SourceKind.DISTANT:
            self.data = data
        # Else it is in the page cache now.

    def close(self) -> None:
        if self.descriptor >= 0:
            step = map(os.close, (self.descriptor,))
            self.descriptor = -1
            try:
                [_] = step
            except OSError:
                return

    def _look_for(self, end: int) -> None:
        while self.ready < end:
            following = min(self.ready + PIECE, end)
            if not self._is_cached(following - 1):
                return
            self.ready = following

    def _is_cached(self, offset: int) -> bool:
        assert NO_WAIT is not None
        try:
            os.preadv(self.descriptor, [bytearray(1)], offset, NO_WAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # to send it will tell what is wrong
        return True


def close_source(descriptor: int) -> None:
    """It was only read from: whatever close(2) says, it is closed."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def kind_of(descriptor: int, offset: int) -> SourceKind:
    """It may wait for a file server."""
    if NO_WAIT is None:
        return SourceKind.UNTOLD
    try:
        os.preadv(descriptor, [bytearray(1)], offset, NO_WAIT)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP and _is_distant(descriptor):
            return SourceKind.DISTANT
        return SourceKind.UNTOLD
    return SourceKind.TOLD


def _is_distant(descriptor: int) -> bool:
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = file.readlines()
    except OSError:
        return False
    for line in mounts:
        before, _, behind = line.partition(" - ")
        if before.split()[2] == number:
            return behind.startswith(DISTANT_SYSTEMS)
    return False
