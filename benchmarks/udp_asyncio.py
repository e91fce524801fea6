"""Datagram echo on asyncio's DatagramProtocol: on its own event loop, or on uvloop's."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any, cast


class Echo(asyncio.DatagramProtocol):
    __slots__ = ("sendto",)

    sendto: Callable[[bytes, Any], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sendto = cast("asyncio.DatagramTransport", transport).sendto

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.sendto(data, address)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", port))
    await loop.create_future()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    if options.uvloop:
        import uvloop

        uvloop.run(serve(options.port))
    else:
        asyncio.run(serve(options.port))
