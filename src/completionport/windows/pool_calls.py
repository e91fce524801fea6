"""What Windows has no overlapped call for: the port's pool of threads makes the call that waits.

A call works on a duplicate of the file's handle, which is its own: the channel may let its handle
go meanwhile, and no number is used again under it.
"""

from __future__ import annotations

import errno
import msvcrt
import os
from collections.abc import Callable

from ..interface.errors import system_error
from ..interface.operation import Operation
from ..portable.pool.file_calls import CALLS
from ..shared.arguments import LARGEST_OFFSET
from . import api
from .channel_state import ChannelState
from .flights import Flight


class PoolCall:
    """One such call. It belongs to whoever takes it out of the pool's line."""

    function = False

    __slots__ = ("_channel", "_flight", "_handle", "error", "taken_back")

    def __init__(self, channel: ChannelState, flight: Flight) -> None:
        self._channel = channel
        self._flight = flight
        self._handle = api.duplicate(channel.handle)
        self.error: OSError | None = None
        self.taken_back = False

    def begin(self) -> int:
        """Give it to the pool. The channel's lock is held."""
        try:
            self._channel.offload.start(self)
        except BaseException:
            api.CloseHandle(self._handle)
            raise
        self._channel.begin_pool_call()
        return api.ERROR_IO_PENDING

    def take_back(self) -> bool:
        """Complete it as cancelled; False when a thread is at it. The channel's lock is held."""
        if self.taken_back or not self._channel.offload.cancel(self):
            return False
        self.taken_back = True
        api.CloseHandle(self._handle)
        self._flight.set_outcome(api.STATUS_SUCCESS, 0)
        self._channel.scheduler.repost(self._flight)
        self._channel.end_pool_call()
        return True

    def refuse(self) -> None:
        """No thread can be had: the calling one makes the call."""
        if self._channel.offload.cancel(self):
            self()

    def __call__(self) -> bool:
        """On a thread of the pool."""
        request = self._flight.request
        try:
            if request.operation is Operation.ALLOCATE:
                self._allocate()
            else:
                self._call_with_descriptor()
        except OSError as error:
            self.error = error
        except Exception as error:
            self.error = OSError(errno.EINVAL, str(error))
        finally:
            if self._handle:
                api.CloseHandle(self._handle)
        self._flight.set_outcome(api.STATUS_SUCCESS, 0)
        self._channel.scheduler.repost(self._flight)
        try:
            with self._channel.lock:
                self._channel.end_pool_call()
        finally:
            self._channel.chores.run()
        return False

    def _call_with_descriptor(self) -> None:
        descriptor = msvcrt.open_osfhandle(self._handle, os.O_RDONLY)
        self._handle = 0  # the descriptor has it
        try:
            CALLS[self._flight.request.operation](descriptor, self._flight.request)
        finally:
            os.close(descriptor)

    def _allocate(self) -> None:
        """A file that is not sparse has space for all that it is long."""
        request = self._flight.request
        assert request.offset is not None
        end = request.offset + request.extent
        if end > LARGEST_OFFSET:
            raise system_error(errno.EFBIG, "no file can be that long")
        # Windows has no step that leaves a longer file alone: what another handle appends in
        # between is cut off.
        if api.file_size(self._handle) < end:
            api.set_length(self._handle, end)


def prepare(channel: ChannelState, flight: Flight) -> Callable[[], int]:
    """The call that gives a request to the pool."""
    flight.extra = PoolCall(channel, flight)
    return flight.extra.begin  # type: ignore[no-any-return]


def finish(channel: ChannelState, flight: Flight, code: int) -> None:
    """Put what came of it into the request."""
    call: PoolCall = flight.extra
    if call.error is not None:
        flight.request.fail(call.error)
    elif not call.taken_back:
        flight.request.complete = True
