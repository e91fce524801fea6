"""What the handlers under test do beyond echoing, the same in every server.

As a program it prints, as one line of JSON, how many iterations of it take a microsecond on this
interpreter and core, and with --threads how much faster two threads are than one.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from statistics import median

MARK_AT, MARK = 8, 0xFF
"""The byte by which `client.c` asks for a slow answer."""


def compute(iterations: int) -> int:
    """Pure Python that touches nothing but its own integers."""
    value = 1
    for step in range(iterations):
        value = (value * 31 + step) & 0xFFFF
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compute", type=int, default=0, help="iterations for each message")
    parser.add_argument(
        "--slow-ms",
        type=float,
        default=0.0,
        help="how long the callback of a marked message blocks",
    )


def work_of(options: argparse.Namespace) -> Callable[[bytes], object] | None:
    """What to do with each message before it is echoed; None for a plain echo.

    A message is taken to come in one piece, as it does on one machine up to a few kilobytes.
    """
    iterations: int = options.compute
    seconds: float = options.slow_ms / 1000
    if not seconds:
        return (lambda data: compute(iterations)) if iterations else None

    def work(data: bytes) -> None:
        if iterations:
            compute(iterations)
        if len(data) > MARK_AT and data[MARK_AT] == MARK:
            time.sleep(seconds)

    return work


def calibrate(seconds: float = 0.7, sample: int = 2000) -> dict[str, float]:
    """Iterations in a microsecond. The fastest of many tries is what an undisturbed core does."""
    clock = time.perf_counter
    fastest = float("inf")
    end = clock() + seconds
    while (start := clock()) < end:
        compute(sample)
        fastest = min(fastest, clock() - start)
    return {"iterations_per_us": sample / (fastest * 1e6)}


def compute_until(end: float, done: list[int]) -> None:
    count = 0
    while time.perf_counter() < end:
        compute(500)
        count += 1
    done.append(count)


def rate(threads: int, seconds: float = 0.25) -> float:
    done: list[int] = []
    end = time.perf_counter() + seconds
    started = [threading.Thread(target=compute_until, args=(end, done)) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(done) / seconds


def two_threads(rounds: int = 7) -> dict[str, float]:
    """What this machine and interpreter give two threads that share nothing."""
    return {"two_to_one": median(rate(2) / rate(1) for _ in range(rounds))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", action="store_true", help="two threads against one")
    print(json.dumps(two_threads() if parser.parse_args().threads else calibrate()))


if __name__ == "__main__":
    main()
