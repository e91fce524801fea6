"""A UDP echo server, with what it has done at the end.

    python examples/udp_echo.py --port 5050
    echo hello | nc -u -w1 127.0.0.1 5050

Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from typing import Any

from completionport import DatagramHandler, DatagramServer, Endpoint


class Echo(DatagramHandler):
    """Sends each datagram back to where it came from."""

    def received(self, endpoint: Endpoint, data: bytes, address: Any) -> None:
        endpoint.send(data, address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5050, help="0 takes a free one")
    parser.add_argument("--workers", type=int, help="threads; 8 when left out")
    parser.add_argument("--engine", help="the best one here when left out")
    options = parser.parse_args()

    server = DatagramServer(
        Echo(), options.host, options.port, workers=options.workers, engine=options.engine
    )
    host, port = server.address[:2]
    print(f"UDP echo on {host} port {port}, engine {server.completion_port.engine}", flush=True)
    server.serve_forever()
    numbers = server.stats()
    print(
        f"{numbers['received_packets']} datagrams of {numbers['received_bytes']} bytes received, "
        f"{numbers['sent_packets']} sent, {numbers['dropped']} dropped"
    )


if __name__ == "__main__":
    main()
