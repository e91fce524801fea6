"""How long an echo takes while another connection's callback computes for seconds.

    python benchmarks/computing.py [--engine E] [--seconds S]

On a free-threaded interpreter the computing worker has a core of its own. Under the GIL it gives
way every 5 ms (`sys.getswitchinterval`), so some echoes take about that long, or twice. On io_uring
the kernel finishes what the computing thread had started at that thread's next timer tick.
Exit status: 1 when the 99th percentile is above 10 ms on a free-threaded interpreter.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time

from arguments import add_engines, duration, engines_of

from completionport import Connection, Handler, Server


class Computing(Handler):
    """Echoes, and computes for as many seconds as the message says if it says so."""

    def received(self, connection: Connection, data: bytes) -> None:
        if data.startswith(b"compute "):
            end = time.monotonic() + float(data.split()[1])
            while time.monotonic() < end:
                sum(range(100))
        connection.send(data)


def echoes(client: socket.socket, until: float) -> list[float]:
    """Round-trip times, one after the other, with a pause between, as a person or a sensor asks."""
    times = []
    while time.monotonic() < until:
        began = time.monotonic()
        client.sendall(b"x")
        client.recv(16)
        times.append(time.monotonic() - began)
        time.sleep(0.002)
    return times


def measure(engine: str, seconds: float) -> dict[str, list[float]]:
    server = Server(Computing(), port=0, concurrency=2, workers=4, engine=engine)
    found: dict[str, list[float]] = {}
    with (
        server,
        socket.create_connection(server.address) as busy,
        socket.create_connection(server.address) as other,
    ):
        found["nobody computes"] = echoes(other, time.monotonic() + 1)
        busy.sendall(b"compute %f" % seconds)
        found["one computes"] = echoes(other, time.monotonic() + seconds * 0.9)
        busy.recv(64)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_engines(parser)
    parser.add_argument("--seconds", type=duration, default=3.0)
    options = parser.parse_args()
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    worst = 0.0
    print(f"{'':28}  {'echoes':>6}  {'p50 ms':>7}  {'p99 ms':>7}  {'max ms':>7}")
    for engine in engines_of(options):
        for what, times in measure(engine, options.seconds).items():
            p99 = statistics.quantiles(times, n=100)[98]
            worst = max(worst, p99)
            print(
                f"{engine + ', ' + what:28}  {len(times):6}  {statistics.median(times) * 1e3:7.2f}"
                f"  {p99 * 1e3:7.2f}  {max(times) * 1e3:7.2f}"
            )
    return int(worst > 0.01 and not with_gil)


if __name__ == "__main__":
    sys.exit(main())
