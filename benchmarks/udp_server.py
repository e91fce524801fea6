"""Datagram echo on `completionport.DatagramServer`, with its defaults."""

from __future__ import annotations

import argparse
from typing import Any

from completionport import DatagramHandler, DatagramServer, Endpoint


class Echo(DatagramHandler):
    def received(self, endpoint: Endpoint, data: bytes, address: Any) -> None:
        endpoint.send(data, address)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    options = parser.parse_args()
    DatagramServer(Echo(), "127.0.0.1", options.port, engine=options.engine).serve_forever()
