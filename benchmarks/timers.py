"""A million timers set, fired and cancelled: `post_after` against uvloop's `call_later`.

Each timer's callback counts, in both. All are due before the first is fired, so that no waiting is
in the figures. Memory: what the process grows by while all are pending, each kind in a fresh one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from arguments import add_engine, whole
from processes import build

from completionport import CompletionPort

# While they are set none may come due. Slower machines need more.
AHEAD = 5.0
SPREAD = 0.5
# The kernel looks through all that are pending for each.
RING_CANCELLED = 20

Figures = dict[str, float]
Setter = Callable[[float, Callable[[], None]], "Timer"]


class Timer:
    """What both kinds have."""

    def cancel(self) -> object: ...


class Count:
    def __init__(self) -> None:
        self.value = 0

    def one(self) -> None:
        self.value += 1


def set_all(setter: Setter, delays: list[float], callback: Callable[[], None]) -> float:
    """Seconds that it took."""
    start = time.perf_counter()
    for delay in delays:
        setter(delay, callback)
    return time.perf_counter() - start


def cancel_all(setter: Setter, delays: list[float], callback: Callable[[], None]) -> float:
    timers = [setter(delay, callback) for delay in delays]
    start = time.perf_counter()
    for timer in timers:
        timer.cancel()
    return time.perf_counter() - start


def wait_until_due(delays: list[float], begun: float) -> None:
    time.sleep(max(begun + max(delays) + 0.1 - time.monotonic(), 0))


def of_port(port: CompletionPort, delays: list[float]) -> Figures:
    count, total = Count(), len(delays)
    get, post_after, callback = port.get, port.post_after, count.one

    def set_one(delay: float, callback: Callable[[], None]) -> Timer:
        return post_after(delay, 0, callback)

    # As `set_all` does it, without one more call for each.
    start = time.perf_counter()
    for delay in delays:
        post_after(delay, 0, callback)
    taken = time.perf_counter() - start
    wait_until_due(delays, time.monotonic())
    start = time.perf_counter()
    while count.value < total:
        get().key()
    fired = time.perf_counter() - start
    cancelled = cancel_all(set_one, delays, count.one)
    return figures(total, taken, fired, cancelled)


def of_uvloop(loop: asyncio.AbstractEventLoop, delays: list[float]) -> Figures:
    count, total = Count(), len(delays)
    taken = set_all(loop.call_later, delays, count.one)
    wait_until_due(delays, time.monotonic())

    def stop_when_done() -> None:
        if count.value < total:
            loop.call_soon(stop_when_done)
        else:
            loop.stop()

    start = time.perf_counter()
    loop.call_soon(stop_when_done)
    loop.run_forever()
    fired = time.perf_counter() - start
    cancelled = cancel_all(loop.call_later, delays, count.one)
    loop.call_soon(loop.stop)
    loop.run_forever()
    return figures(total, taken, fired, cancelled)


def figures(total: int, taken: float, fired: float, cancelled: float) -> Figures:
    return {
        "set_ns": taken / total * 1e9,
        "fire_ns": fired / total * 1e9,
        "cancel_ns": cancelled / total * 1e9,
        "rate": total / (taken + fired),
    }


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmRSS in /proc/self/status")


def memory(kind: str, engine: str | None, delays: list[float]) -> float:
    """Bytes for each pending timer."""
    if kind == "uvloop":
        loop = uvloop.new_event_loop()
        setter: Setter = loop.call_later
    else:
        port = CompletionPort(engine=engine)

        def setter(delay: float, callback: Callable[[], None]) -> Timer:
            return port.post_after(delay, 0, callback)

    count = Count()
    callback = count.one
    setter(3600, callback)
    before = resident()
    set_all(setter, delays, callback)
    return (resident() - before) / len(delays)


def memory_of(kind: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory", kind, "--count", str(options.count)]
    if options.engine:
        command += ["--engine", options.engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout)


def line_of(name: str, values: Figures) -> str:
    return (
        f"{name}: set {values['set_ns']:,.0f} ns, fire {values['fire_ns']:,.0f} ns, "
        f"cancel {values['cancel_ns']:,.0f} ns, {values['bytes_each']:,.0f} bytes each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_engine(parser)
    parser.add_argument("--rounds", type=whole(), default=5)
    parser.add_argument("--count", type=whole(), default=1_000_000, help="timers in each round")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument(
        "--ring", action="store_true", help="only what they would cost as requests of io_uring"
    )
    parser.add_argument("--memory", choices=["port", "uvloop"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ring:
        command = [str(build("ring_timers")), str(options.count), str(RING_CANCELLED)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        print(line_of("IORING_OP_TIMEOUT", found))
        return
    chance = random.Random(1)
    delays = [AHEAD + chance.random() * SPREAD for _ in range(options.count)]
    if options.memory:
        # They do not become due while it is measured.
        print(memory(options.memory, options.engine, [delay + 3600 for delay in delays]))
        return
    ours: list[Figures] = []
    theirs: list[Figures] = []
    loop = uvloop.new_event_loop()
    with CompletionPort(engine=options.engine) as port:
        for index in range(options.rounds):
            # Who comes first changes, so that neither always finds the warmer machine.
            if index % 2:
                theirs.append(of_uvloop(loop, delays))
            ours.append(of_port(port, delays))
            if not index % 2:
                theirs.append(of_uvloop(loop, delays))
        engine = port.engine
    loop.close()
    found = {
        "ours": {name: statistics.median(one[name] for one in ours) for name in ours[0]},
        "uvloop": {name: statistics.median(one[name] for one in theirs) for name in theirs[0]},
        "ratio": statistics.median(
            a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)
        ),
    }
    found["ours"]["bytes_each"] = memory_of("port", options)
    found["uvloop"]["bytes_each"] = memory_of("uvloop", options)
    if options.json:
        print(json.dumps(found))
        return
    for name, values in ((engine, found["ours"]), ("uvloop", found["uvloop"])):
        print(line_of(name, values))
    print(f"set and fired: {found['ratio']:.2f} times uvloop")


if __name__ == "__main__":
    main()
