"""A UDP echo server, with what it has done at the end.

    python examples/udp_echo.py --port 5050
    echo hello | nc -u -w1 127.0.0.1 5050

Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

from completionport import DatagramHandler, DatagramServer, Endpoint


class Echo(DatagramHandler):
    """Sends each datagram back to where it came from."""

    def received(self, endpoint: Endpoint, data: bytes, address: Any) -> None:
        endpoint.send(data, address)


class EchoServer(DatagramServer):
    def start(self) -> None:
        # Here and not before serve_forever: who reads it may end the server by a signal.
        host, port = self.address[:2]
        engine = self.completion_port.engine
        print(f"UDP echo on {host} port {port}, engine {engine}", flush=True)
        super().start()


def serve(options: argparse.Namespace) -> None:
    server = EchoServer(
        Echo(), options.host, options.port, workers=options.workers, engine=options.engine
    )
    try:
        server.serve_forever()
    finally:
        server.stop()
    numbers = server.stats()
    print(
        f"{numbers['received_packets']} datagrams of {numbers['received_bytes']} bytes received, "
        f"{numbers['sent_packets']} sent, {numbers['dropped']} dropped",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5050, help="0 takes a free one")
    parser.add_argument(
        "--workers", type=int, help="threads; 8, or twice the concurrency if that is more"
    )
    parser.add_argument("--engine", help="the best one here when left out")
    options = parser.parse_args()
    try:
        serve(options)
    except BrokenPipeError:
        # Who read it has gone: nothing is left to be said, at the end of the program neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, RuntimeError, ValueError) as error:
        with contextlib.suppress(BrokenPipeError):
            print(f"udp_echo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
