"""`Handle.send` with and without ``zero_copy``, in turn, on io_uring.

Over loopback (TCP, read and thrown away by a process on another core), where the kernel copies in
any case, or into a sink (UDP, an interface that drops what it is given, in a network namespace of
its own, which takes root): what sending costs where the network takes the pages as they are.
CPU time is that of the sending process, a ratio is taken in each round, medians are printed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from arguments import whole
from processes import apart
from sendfile import MEBIBYTE, drain

from completionport import CompletionPort

IN_FLIGHT = 4 * MEBIBYTE
"""Bytes: the peer acknowledges small sends late, up to 40 ms."""
FRESH = 64 * MEBIBYTE
"""Bytes of data that take turns: more than the processor keeps near."""
LARGEST_DATAGRAM = 50_000
SINK = ("10.9.0.2", 9)
CLONE_NEWNET = 0x40000000


@contextmanager
def loopback(cores: set[int] | None) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader = multiprocessing.get_context("fork").Process(
            target=drain, args=(listener, cores), daemon=True
        )
        reader.start()
        yield listener.getsockname()
        reader.terminate()
        reader.join()


@contextmanager
def sink(cores: set[int] | None) -> Iterator[tuple[str, int]]:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SystemExit(f"zero_copy: no network namespace of its own: {reason}; it takes root")
    for command in (
        "ip link add sink type ifb",
        "ip addr add 10.9.0.1/24 dev sink",
        f"ip link set sink mtu {LARGEST_DATAGRAM + 100} up",
        f"ip neigh add {SINK[0]} lladdr 02:00:00:00:00:01 dev sink",
    ):
        done = subprocess.run(command.split(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"zero_copy: {command}: {done.stderr.strip()}")
    yield SINK


def timed(
    port: CompletionPort, sock: socket.socket, data: list[bytes], total: int, zero_copy: bool
) -> tuple[float, float]:
    """MiB a second, and microseconds of CPU for each MiB."""
    stream = sock.type == socket.SOCK_STREAM
    size = len(data[0])
    handle = port.associate(sock, None)
    started, spent = time.perf_counter(), time.process_time()
    left = total // size
    under_way = 0
    most = max(IN_FLIGHT // size, 2)
    while left or under_way:
        while left and under_way < most:
            handle.send(data[left % len(data)], zero_copy=zero_copy)
            left -= 1
            under_way += 1
        done = port.get(60)
        if done is None or done.error:
            raise SystemExit(f"send: {done and done.error}")
        under_way -= 1
    if stream:
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    spent = time.process_time() - spent
    taken = time.perf_counter() - started
    handle.close()
    amount = total / MEBIBYTE
    return amount / taken, spent / amount * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=["loopback", "sink"])
    parser.add_argument("size", type=whole(), help="of a send, bytes")
    parser.add_argument("--total", type=whole(), default=256, help="MiB in each turn")
    parser.add_argument("--rounds", type=whole(), default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    streams = options.network == "loopback"
    if not streams and options.size > LARGEST_DATAGRAM:
        parser.error(f"a datagram here has at most {LARGEST_DATAGRAM:,} bytes")
    places = apart()
    if places.server is not None:
        os.sched_setaffinity(0, places.server)
    data = [os.urandom(options.size) for _ in range(FRESH // options.size)]
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with (
        (loopback if streams else sink)(places.client) as address,
        CompletionPort(engine="io_uring") as port,
    ):
        for index in range(options.rounds):
            for zero_copy in (index % 2 == 0, index % 2 != 0):
                kind = socket.SOCK_STREAM if streams else socket.SOCK_DGRAM
                sock = socket.socket(type=kind)
                sock.connect(address)
                total = options.total * MEBIBYTE
                found[zero_copy].append(timed(port, sock, data, total, zero_copy))
        numbers = port.stats()
    rates = {key: [rate for rate, _ in value] for key, value in found.items()}
    spent = {key: [cpu for _, cpu in value] for key, value in found.items()}
    figures = {
        "send_rate": statistics.median(rates[False]),
        "zero_copy_rate": statistics.median(rates[True]),
        "ratio": ratio(rates[True], rates[False]),
        "send_cpu_us": statistics.median(spent[False]),
        "zero_copy_cpu_us": statistics.median(spent[True]),
        "cpu_ratio": ratio(spent[True], spent[False]),
        "copied": numbers["zero_copy_copied"] / max(numbers["zero_copy_sends"], 1),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
