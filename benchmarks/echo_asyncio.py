"""Echo server on asyncio's own event loop: a Protocol that writes what it receives."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
from collections.abc import Callable
from typing import cast


class Echo(asyncio.Protocol):
    __slots__ = ("write",)

    write: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: uvloop's transports are none of asyncio's classes.
        self.write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        self.write(data)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    # Asked for before memory is measured, so that garbage is not counted.
    loop.add_signal_handler(signal.SIGUSR1, gc.collect)
    server = await loop.create_server(Echo, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(serve(arguments(__doc__).port))
