"""Echo server on `completionport.Server`, with the arguments that the benchmarks vary."""

from __future__ import annotations

import argparse
import gc
import signal
from collections.abc import Callable
from typing import Any

from work import add_options, work_of

from completionport import Connection, Handler, Server


class Echo(Handler):
    def received(self, connection: Connection, data: bytes) -> None:
        connection.send(data)


class WorkingEcho(Echo):
    def __init__(self, work: Callable[[bytes], object]) -> None:
        self.work = work

    def received(self, connection: Connection, data: bytes) -> None:
        self.work(data)
        connection.send(data)


def collect(number: int, frame: object) -> None:
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--buffer-size", type=int)
    add_options(parser)
    options = parser.parse_args()
    # Asked for before memory is measured, so that garbage is not counted.
    signal.signal(signal.SIGUSR1, collect)
    # What was not asked for is the library's to choose: its defaults are what is measured.
    names = ("port", "engine", "workers", "concurrency", "buffer_size")
    chosen: dict[str, Any] = {
        name: value for name in names if (value := getattr(options, name)) is not None
    }
    work = work_of(options)
    handler = WorkingEcho(work) if work else Echo()
    Server(handler, host="127.0.0.1", **chosen).serve_forever()


if __name__ == "__main__":
    main()
