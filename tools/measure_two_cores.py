"""Measure on two cores what `simulate_scheduler.py two-cores` simulates, to see how far it is off.

python tools/measure_two_cores.py

For a free-threaded interpreter with the package installed, a C compiler, and two cores that have
nothing else to do. Takes about 20 seconds.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path

from completionport import CompletionPort, Connection, Handler, Server

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import processes

SECONDS = 0.2
ROUNDS = 10
"""Many and short: what other programs do hits some of them, and the best one is taken."""


def spin(microseconds: float) -> None:
    end = time.perf_counter_ns() + int(microseconds * 1000)
    while time.perf_counter_ns() < end:
        pass


def posts(threads: int, handler: float) -> float:
    """Packets a second where each thread posts one for the one it took."""
    stop = threading.Event()
    counts: list[int] = []

    def work(core: int) -> None:
        os.sched_setaffinity(0, {core})
        stopped, count = stop.is_set, 0
        while not stopped():
            port.get()
            if handler:
                spin(handler)
            port.post()
            count += 1
        counts.append(count)

    with CompletionPort(threads) as port:
        for _ in range(64 * threads):
            port.post()
        cores = sorted(os.sched_getaffinity(0))
        workers = [threading.Thread(target=work, args=(core,)) for core in cores[:threads]]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        time.sleep(SECONDS)
        stop.set()
        for worker in workers:
            worker.join()
        return sum(counts) / (time.perf_counter() - began)


def serve(port: int, engine: str, workers: int, handler: float) -> None:
    class Echo(Handler):
        def received(self, connection: Connection, data: bytes) -> None:
            spin(handler)
            connection.send(data)

    Server(Echo(), host="127.0.0.1", port=port, engine=engine, workers=workers).serve_forever()


def echo(engine: str, workers: int, handler: float) -> tuple[float, float]:
    """How many cores the server had, and its core microseconds for each request.

    One worker has a core of its own; two share both cores with the client.
    """
    command = [sys.executable, __file__, "{port}", engine, str(workers), str(handler)]
    with processes.echo_server(command, processes.Places(None, None)) as server:
        if workers == 1:
            for task in Path(f"/proc/{server.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {sorted(os.sched_getaffinity(0))[0]})
        rounds = [processes.load(server, 64, 100, SECONDS) for _ in range(ROUNDS)]
    # A handler that is interrupted spins no longer than one that is not, so rounds in which the
    # server had fewer cores look cheaper than they are.
    return max((r["server_cpu_us"] * r["rate"] / 1e6, r["server_cpu_us"]) for r in rounds)


def own_seconds() -> float:
    """CPU time of this process and of those it started and that have ended."""
    mine, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        sys.exit("a free-threaded interpreter is needed: under the GIL threads take turns")
    busy, spent, began = processes.busy_seconds(), own_seconds(), time.monotonic()
    print("post and get, no I/O: packets a second (1 thread, 2 threads, ratio)")
    for handler in (0.0, 1.0, 10.0, 100.0):
        one, two = (max(posts(threads, handler) for _ in range(ROUNDS)) for threads in (1, 2))
        print(f"  {handler:5.0f} us {one:12,.0f} {two:12,.0f} {two / one:6.2f}")
    print("echo, 64 connections: the server's core microseconds for each request (1 worker, 2)")
    for engine in ("io_uring", "epoll"):
        for handler in (2.0, 10.0, 100.0):
            (_, one), (had, two) = (echo(engine, workers, handler) for workers in (1, 2))
            print(f"  {handler:5.0f} us {engine:9} {one:7.1f} {two:7.1f} (with {had:.2f} cores)")
    others = processes.busy_seconds() - busy - (own_seconds() - spent)
    print(f"Other programs used {others / (time.monotonic() - began):.2f} processors meanwhile.")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
