"""One completion port of the kernel, and the packets that a thread takes from it."""

from __future__ import annotations

import ctypes

from . import alerts, api
from .api import OVERLAPPED_ENTRY


class Harvest:
    """What one call took from the kernel's queue: it belongs to the thread that made the call.

    The entries are in memory before the call returns, so that nothing is lost when a signal
    handler raises right behind it.
    """

    __slots__ = ("_count", "_entries", "_size", "next")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries = (OVERLAPPED_ENTRY * size)()
        self._count = api.DWORD()
        self.next = 0
        """The first entry that was not dealt with yet."""

    def entry(self) -> OVERLAPPED_ENTRY | None:
        """The next entry; None when all were dealt with."""
        return self._entries[self.next] if self.next < self._count.value else None


class KernelPort:
    """A handle of a completion port. Who calls it sees to it that it is open."""

    __slots__ = ("handle",)

    def __init__(self, concurrency: int) -> None:
        self.handle: int | None = api.CreateIoCompletionPort(
            api.INVALID_HANDLE_VALUE, None, 0, concurrency
        )
        if not self.handle:
            raise api.error(api.last_error())

    def associate(self, file: int) -> int:
        """Bind a file to the port. Returned: 0, or the code of what went wrong."""
        if api.CreateIoCompletionPort(file, self.handle, 0, 0):
            return 0
        return int(api.last_error())

    def post(self, key: int, overlapped: int | None = None, transferred: int = 0) -> None:
        """Append a packet. Never blocks."""
        if not api.PostQueuedCompletionStatus(self.handle, transferred, key, overlapped):
            raise api.error(api.last_error())

    def wait(
        self, harvest: Harvest, count: int, milliseconds: int, *, heeds_signals: bool = False
    ) -> bool:
        """Take up to ``count`` packets, waiting for the first one; False when the time is over.

        Or where a procedure call of the thread's own (an APC) has ended the wait.
        ``heeds_signals``: a signal ends it too, and its handler has run. Main thread.
        """
        harvest.next = 0
        harvest._count.value = 0
        arguments = (
            self.handle,
            ctypes.addressof(harvest._entries),
            min(count, harvest._size),
            ctypes.addressof(harvest._count),
            milliseconds,
        )
        was_alerted = False
        # A call that failed leaves a count that means nothing, and a handler that raises leaves it
        # at that: so there is nothing in what it counts.
        ctypes.memset(harvest._entries, 0, ctypes.sizeof(harvest._entries))
        if heeds_signals:
            came, was_alerted = alerts.wait(api.GetQueuedCompletionStatusEx, *arguments, True)
        else:
            came = api.GetQueuedCompletionStatusEx(*arguments, milliseconds != 0)
        if came:
            return True
        code = api.last_error()
        harvest._count.value = 0
        if was_alerted or code in (api.WAIT_TIMEOUT, api.WAIT_IO_COMPLETION):
            return False
        raise api.error(code)

    def depth(self) -> int:
        """How many packets are in the kernel's queue."""
        number = ctypes.c_long()
        status = api.NtQueryIoCompletion(
            self.handle, 0, ctypes.addressof(number), ctypes.sizeof(number), None
        )
        return 0 if status else number.value

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            api.CloseHandle(handle)
