"""io_uring beside epoll: processor time for each request, and throughput.

    python benchmarks/engines.py all               one after the other, some two minutes
    python benchmarks/engines.py echo64 short      cases by name

One server for each engine, in rounds that alternate; the ratio is taken within each round.
``--before PYTHON``, an interpreter with another build of the package, runs its servers beside them.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import NamedTuple

from harness import interleaved, ours, parse, parser, run, script
from processes import EchoServer, apart, load
from report import Report, Round, middle, note_disturbance, ratio_bar, ratios, times

BAR = 1.02


class Load(NamedTuple):
    connections: int
    size: int
    more: int
    reconnect: bool
    what: str


LOADS = {
    "echo64": Load(64, 100, 0, False, "64 connections, 100 bytes and their echo"),
    "answer64": Load(64, 100, 30, False, "64 connections, 100 bytes, answered with 130"),
    "answer1000": Load(1000, 100, 30, False, "1,000 connections, 100 bytes, answered with 130"),
    "short": Load(64, 100, 30, True, "64 at a time: connect, 100 bytes, answer of 130, close"),
}


def case(name: str, options: argparse.Namespace) -> Report:
    wanted = LOADS[name]
    report = Report(
        f"{name}: {wanted.what}", ["server", "req/s", "p50 us", "p99 us", "CPU us/req", "to epoll"]
    )
    extra = ("--more", str(wanted.more))
    sizes = ("--size", str(wanted.size), *extra)
    commands = {}
    for engine in ("epoll", "io_uring"):
        commands[ours(engine)] = script("echo_server.py", "--engine", engine, *sizes)
        if options.before:
            commands[f"before {engine}"] = script(
                "echo_server.py", "--engine", engine, *sizes, python=[options.before]
            )
    arguments = [*extra, "--reconnect"] if wanted.reconnect else [*extra]

    def measure(server: EchoServer) -> Round:
        return load(server, wanted.connections, wanted.size, options.seconds, *arguments)

    report.rounds = interleaved(commands, options.rounds, measure, report.failures, places=apart())
    for server, rounds in report.rounds.items():
        report.rows.append(
            [
                server,
                f"{middle(rounds, 'rate'):,.0f}",
                f"{middle(rounds, 'p50_us'):,.0f}",
                f"{middle(rounds, 'p99_us'):,.0f}",
                f"{middle(rounds, 'server_cpu_us'):.2f}",
                times(ratios(report.rounds, server, ours("epoll"), "server_cpu_us")),
            ]
        )
    note_disturbance(report)
    ratio_bar(
        report, "io_uring, CPU for each request against epoll", ours("io_uring"), ours("epoll"),
        BAR, "server_cpu_us", at_least=False,
    )  # fmt: skip
    return report


def main() -> int:
    made = parser(__doc__, LOADS, rounds=15, seconds=0.7)
    made.add_argument("--before", metavar="PYTHON", help="an interpreter with another build")
    return run({name: partial(case, name) for name in LOADS}, parse(made))


if __name__ == "__main__":
    sys.exit(main())
