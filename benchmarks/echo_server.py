"""Echo server on `completionport.Server`, with the arguments that the benchmarks vary."""

from __future__ import annotations

import argparse
import gc
import signal
from typing import Any

from completionport import Connection, Handler, Server


class Echo(Handler):
    def received(self, connection: Connection, data: bytes) -> None:
        connection.send(data)


def collect(number: int, frame: object) -> None:
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--buffer-size", type=int)
    options = vars(parser.parse_args())
    # Asked for before memory is measured, so that garbage is not counted.
    signal.signal(signal.SIGUSR1, collect)
    # What was not asked for is the library's to choose: its defaults are what is measured.
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    Server(Echo(), host="127.0.0.1", **chosen).serve_forever()


if __name__ == "__main__":
    main()
