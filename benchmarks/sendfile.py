"""Sending a file over loopback: `Handle.sendfile` and `socket.sendfile`, in turn.

The file lies in memory (/dev/shm where there is one), and what comes is read and thrown away by a
process on another core. A time ends when the reader has seen all of it. The two take turns, the
other one first each time; the ratio is the median of the rounds', with their middle half.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from arguments import add_engine, whole
from processes import apart
from report import middle_half

from completionport import CompletionPort

MEBIBYTE = 1 << 20


def drain(listener: socket.socket, cores: set[int] | None) -> None:
    """Read each connection to its end, and say so with one byte."""
    if cores is not None:
        os.sched_setaffinity(0, cores)
    space = bytearray(MEBIBYTE)
    while True:
        connection, _ = listener.accept()
        with connection:
            while connection.recv_into(space):
                pass
            connection.send(b".")


def by_socket(sock: socket.socket, file: IO[bytes]) -> int:
    return sock.sendfile(file)


def by_port(port: CompletionPort) -> Callable[[socket.socket, IO[bytes]], int]:
    def send(sock: socket.socket, file: IO[bytes]) -> int:
        # Its duplicate, so that the socket itself stays the caller's.
        handle = port.associate(sock.dup(), None)
        handle.sendfile(file)
        done = port.get(60)
        handle.close()
        if done is None or done.error:
            raise SystemExit(f"sendfile: {done and done.error}")
        return int(done.transferred)

    return send


def timed(send: Callable[[Any, Any], int], address: Any, file: IO[bytes], size: int) -> float:
    with socket.create_connection(address) as sock:
        file.seek(0)
        start = time.perf_counter()
        if send(sock, file) != size:
            raise SystemExit("not all of the file was sent")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_engine(parser)
    parser.add_argument("--size", type=whole(), default=1024, help="of the file, MiB")
    parser.add_argument("--rounds", type=whole(), default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    places = apart()
    if places.server is not None:
        os.sched_setaffinity(0, places.server)
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    size = options.size * MEBIBYTE
    times: dict[str, list[float]] = {"socket": [], "port": []}
    with (
        tempfile.TemporaryFile(dir=folder) as file,
        socket.create_server(("127.0.0.1", 0)) as listener,
        CompletionPort(engine=options.engine) as port,
    ):
        for _ in range(options.size):
            file.write(os.urandom(MEBIBYTE))
        file.flush()
        reader = multiprocessing.get_context("fork").Process(
            target=drain, args=(listener, places.client), daemon=True
        )
        reader.start()
        ways = {"socket": by_socket, "port": by_port(port)}
        for index in range(options.rounds):
            for name in sorted(ways, reverse=bool(index % 2)):
                times[name].append(timed(ways[name], listener.getsockname(), file, size))
        reader.terminate()
        reader.join()
    rate = {name: size / statistics.median(found) / MEBIBYTE for name, found in times.items()}
    pairs = zip(times["socket"], times["port"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    low, high = middle_half(ratios)
    figures = {
        "port_rate": rate["port"],
        "socket_rate": rate["socket"],
        "ratio": statistics.median(ratios),
        "middle_half_low": low,
        "middle_half_high": high,
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
