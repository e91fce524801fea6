"""Echo server on asyncio's own event loop: a Protocol that writes what it receives."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable
from typing import cast

from work import add_options, work_of


class Echo(asyncio.Protocol):
    __slots__ = ("write",)

    write: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: uvloop's transports are none of asyncio's classes.
        self.write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        self.write(data)


def protocol(work: Callable[[bytes], object] | None) -> type[Echo]:
    if work is None:
        return Echo
    do = work

    class WorkingEcho(Echo):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            do(data)
            self.write(data)

    return WorkingEcho


def listen(port: int, shared: bool) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(4096)
    return listener


def divide(options: argparse.Namespace) -> tuple[socket.socket, int | None]:
    """Fork the other processes; in each of them, its listening socket.

    All listen before the first one serves, so no connection is refused. A child also gets the
    end of a pipe that closes when the parent is gone, in whatever way.
    """
    listeners = [listen(options.port, options.processes > 1) for _ in range(options.processes)]
    reader, writer = os.pipe()
    mine, parent = listeners[0], None
    for listener in listeners[1:]:
        if not os.fork():
            os.close(writer)
            mine, parent = listener, reader
            break
    for listener in listeners:
        if listener is not mine:
            listener.close()
    return mine, parent


async def serve(options: argparse.Namespace, listener: socket.socket, parent: int | None) -> None:
    loop = asyncio.get_running_loop()
    # Asked for before memory is measured, so that garbage is not counted.
    loop.add_signal_handler(signal.SIGUSR1, gc.collect)
    if parent is not None:
        loop.add_reader(parent, os._exit, 0)
    server = await loop.create_server(protocol(work_of(options)), sock=listener, backlog=4096)
    await server.serve_forever()


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--processes", type=int, default=1, help="more than one share the port by SO_REUSEPORT"
    )
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments(__doc__)
    asyncio.run(serve(options, *divide(options)))
