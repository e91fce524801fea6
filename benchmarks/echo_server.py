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


class Answers(Handler):
    """A question has ``size`` bytes, however they come; the answer has ``more``."""

    def __init__(self, size: int, more: int) -> None:
        self.size = size
        self.more = bytes(more)

    def received(self, connection: Connection, data: bytes) -> None:
        if connection.state is not None:
            data = connection.state + data
            connection.state = None
        if len(data) >= self.size or data == b"?":  # which asks whether the server runs
            connection.send(data + self.more)
        else:
            connection.state = data


def collect(number: int, frame: object) -> None:
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--buffer-size", type=int)
    parser.add_argument("--more", type=int, default=0, help="bytes of 0 behind each echo")
    parser.add_argument("--size", type=int, help="of a message that is answered with more")
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
    handler = (
        WorkingEcho(work)
        if work
        else Answers(options.size, options.more)
        if options.more
        else Echo()
    )
    Server(handler, host="127.0.0.1", **chosen).serve_forever()


if __name__ == "__main__":
    main()
