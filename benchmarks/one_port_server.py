"""TCP echo, datagram echo, timers and file reads in one process: on one port, or each on its own.

Timers and reads come at their rates by themselves, echoes and datagrams come from clients. The
message "figures" is answered with what was done so far, and the processor time that it took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

from completionport import (
    Completion,
    CompletionPort,
    Connection,
    DatagramHandler,
    DatagramServer,
    Endpoint,
    Handler,
    Server,
    WorkerPool,
)

FIGURES = b"figures"
BEAT = 0.01
"""Seconds until a timer fires again."""
BLOCK, BLOCKS = 4096, 4096


class Echo(Handler):
    def __init__(self, figures: Callable[[], bytes]) -> None:
        self.figures = figures
        self.count = 0

    def received(self, connection: Connection, data: bytes) -> None:
        self.count += 1
        connection.send(self.figures() if data == FIGURES else data)


class EchoDatagrams(DatagramHandler):
    def __init__(self) -> None:
        self.count = 0

    def received(self, endpoint: Endpoint, data: bytes, address: Any) -> None:
        self.count += 1
        endpoint.send(data, address)


class Timers:
    """They fire at a rate, spread evenly; one that comes late does not make the next one late."""

    def __init__(self, port: CompletionPort, rate: int) -> None:
        self.port = port
        self.count = 0
        number = max(int(rate * BEAT), 1)
        begin = time.monotonic()
        for index in range(number):
            self.set_next(begin + index / rate, number / rate)

    def set_next(self, due: float, beat: float) -> None:
        self.port.post_at(due + beat, beat, self.fired, due + beat)

    def fired(self, completion: Completion) -> None:
        self.count += 1
        self.set_next(completion.overlapped, completion.transferred)


class Reads(Timers):
    """A few with each timer: what paces them is to count for little."""

    TOGETHER = 10

    def __init__(self, port: CompletionPort, rate: int) -> None:
        self.done = 0
        self.places = random.Random(2)
        # It ends with the process.
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(bytes(BLOCK * BLOCKS))
        self.file.flush()
        self.handle = port.associate(self.file, self.read)
        super().__init__(port, max(rate // self.TOGETHER, 1))

    def fired(self, completion: Completion) -> None:
        super().fired(completion)
        for _ in range(self.TOGETHER):
            self.handle.read(BLOCK, self.places.randrange(BLOCKS) * BLOCK)

    def read(self, completion: Completion) -> None:
        if completion.error is not None:
            raise completion.error
        self.done += 1


def call(completion: Completion) -> None:
    completion.key(completion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--apart", action="store_true", help="each on a port of its own")
    parser.add_argument("--timers", type=int, required=True, help="a second")
    parser.add_argument("--reads", type=int, required=True, help="a second")
    options = parser.parse_args()

    def figures() -> bytes:
        found = {
            "time": time.monotonic(),
            "cpu": time.process_time(),
            "echoes": echo.count,
            "datagrams": datagrams.count,
            "timers": timers.count,
            "reads": reads.done,
        }
        return json.dumps(found).encode() + b"\n"

    first, *more = (
        CompletionPort(1, engine=options.engine) for _ in range(4 if options.apart else 1)
    )
    for_datagrams, for_timers, for_reads = more or [first] * 3
    echo, datagrams = Echo(figures), EchoDatagrams()
    address: tuple[str, int] = ("127.0.0.1", options.port)
    server = Server(echo, *address, workers=1, completion_port=first)
    beside = [DatagramServer(datagrams, *address, workers=1, completion_port=for_datagrams)]
    beside += [WorkerPool(port, call, 1) for port in dict.fromkeys((for_timers, for_reads))]
    timers, reads = Timers(for_timers, options.timers), Reads(for_reads, options.reads)
    for one in beside:
        one.start()
    server.serve_forever()
    os._exit(0)  # the others need no end of their own


if __name__ == "__main__":
    main()
