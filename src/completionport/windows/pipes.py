"""The server's end of a named pipe: a client comes (``ConnectNamedPipe``), and is sent away."""

from __future__ import annotations

from collections.abc import Callable

from . import api
from .channel_state import ChannelState
from .flights import Flight


def accept(channel: ChannelState, flight: Flight) -> Callable[[], int]:
    """Wait for a client."""

    def call() -> int:
        done = api.ConnectNamedPipe(channel.handle, flight.address)
        code = 0 if done else int(api.last_error())
        if code == api.ERROR_PIPE_CONNECTED:
            # One came before the call: no failure, but the kernel gives no packet.
            flight.set_outcome(api.STATUS_SUCCESS, 0)
            return api.ERROR_HANDLE_EOF
        return code

    return call


def finish_accept(channel: ChannelState, flight: Flight, code: int) -> None:
    """A client is there: the connection is the pipe itself."""
    request = flight.request
    if code == api.ERROR_OPERATION_ABORTED:
        return
    if code:
        request.fail(api.error(code))
        return
    request.value = getattr(request.handle, "file", None)
    request.complete = True


def disconnect(channel: ChannelState, flight: Flight) -> Callable[[], int]:
    """Send the client away. It never waits, and Windows gives no packet for it."""

    def call() -> int:
        if not api.DisconnectNamedPipe(channel.handle):
            return int(api.last_error())
        flight.set_outcome(api.STATUS_SUCCESS, 0)
        return api.ERROR_HANDLE_EOF

    return call
