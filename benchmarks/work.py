"""What the handlers under test do beyond echoing, the same in every server.

    python benchmarks/work.py --calibrate 50

prints how many iterations take 50 us on this interpreter and core, as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

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


def calibrate(microseconds: float) -> dict[str, float]:
    """How many iterations take that long. The fastest of many is what an undisturbed core does."""
    clock = time.perf_counter

    def took(iterations: int) -> float:
        start = clock()
        compute(iterations)
        return clock() - start

    sample = 2000
    end = clock() + 0.7
    fastest = took(sample)
    while clock() < end:
        fastest = min(fastest, took(sample))
    iterations = max(1, round(sample * microseconds / (fastest * 1e6)))
    return {"iterations": iterations}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calibrate", type=float, metavar="US", required=True)
    print(json.dumps(calibrate(parser.parse_args().calibrate)))


if __name__ == "__main__":
    main()
