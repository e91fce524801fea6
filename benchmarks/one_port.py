"""Echoes, datagrams, timers and file reads on one port, against each on a port of its own.

    python benchmarks/one_port.py all                     two minutes
    python benchmarks/one_port.py all --engine epoll

All come at fixed rates, so the processor time of the process is what is compared. One port has a
concurrency of 1; so has each of the four. On one port the pool has a thread and each server brings
one: one of the three works at a time. Servers are started afresh in each round.
Exit status: 0 when all bars hold, 1 when one does not or a program failed.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import arguments
from harness import interleaved, ours, parse, parser, run, script
from processes import EchoServer, apart, build, load
from report import (
    Bar,
    Report,
    Round,
    middle,
    middle_half,
    note_disturbance,
    ratio_bar,
    ratios,
    thousandths,
)

RATES = {"echoes": 20_000, "datagrams": 20_000, "timers": 10_000, "reads": 5_000}
"""A second."""
CLIENTS, SIZE = 64, 100
BEFORE, BEHIND = 0.5, 0.3
"""Seconds that the clients run before and behind what is measured."""
ONE, APART = "one port", "four ports"
MOST = 1.05
SERVED = 0.98
"""Of the load, or the figures say nothing."""


def figures_of(server: EchoServer) -> dict[str, float]:
    with socket.create_connection(("127.0.0.1", server.port), 10) as asking:
        asking.sendall(b"figures")
        with asking.makefile() as answer:
            return dict(json.loads(answer.readline()))


def measure(server: EchoServer, options: argparse.Namespace) -> Round:
    """Both clients at once; the server tells what it did meanwhile, and what that took."""
    seconds = BEFORE + options.seconds + BEHIND
    with ThreadPoolExecutor(2) as clients:
        both = [
            clients.submit(
                load, server, CLIENTS, SIZE, seconds, "--rate", str(options.rates[name]), *kind
            )
            for name, kind in (("echoes", []), ("datagrams", ["--udp"]))
        ]
        time.sleep(BEFORE)
        begin = figures_of(server)
        time.sleep(options.seconds)
        end = figures_of(server)
        echoes, datagrams = (client.result() for client in both)
    took = end["time"] - begin["time"]
    rates = {name: (end[name] - begin[name]) / took for name in options.rates}
    return {
        **rates,
        "cpu": (end["cpu"] - begin["cpu"]) / took,
        "served": min(rates[name] / options.rates[name] for name in rates),
        "echo_p99": echoes["p99_us"],
        "datagram_p99": datagrams["p99_us"],
        # The client that ends first takes the other one for somebody else's.
        "others": min(echoes["others"], datagrams["others"]),
    }


def one_port(options: argparse.Namespace) -> Report:
    columns = [f"{name}/s" for name in RATES]
    columns += ["echo p99 us", "datagram p99 us", "processors", f"to {APART}"]
    report = Report("one port: four kinds of load at fixed rates", ["server", *columns])
    commands = {}
    for engine in options.engine:
        command = script("one_port_server.py", "--engine", engine)
        for name in ("timers", "reads"):
            command += [f"--{name}", str(options.rates[name])]
        commands[f"{ours(engine)}, {APART}"] = [*command, "--apart"]
        commands[f"{ours(engine)}, {ONE}"] = command
    report.rounds = interleaved(
        commands,
        options.rounds,
        lambda server: measure(server, options),
        report.failures,
        places=apart(),
        fresh=True,
    )
    for engine in options.engine:
        one, base = f"{ours(engine)}, {ONE}", f"{ours(engine)}, {APART}"
        for name in (base, one):
            if not (rounds := report.rounds.get(name)):
                continue
            cells = [f"{middle(rounds, f):,.0f}" for f in (*RATES, "echo_p99", "datagram_p99")]
            compared = thousandths(ratios(report.rounds, name, base, "cpu"))
            cells += [f"{middle(rounds, 'cpu'):.3f}", compared]
            report.rows.append([name, *cells])
            served = [entry["served"] for entry in rounds]
            what = f"{name}, part of the load that was served"
            report.bars.append(Bar(what, median(served), SERVED, True, middle_half(served)))
        ratio_bar(report, f"{one}, CPU against {APART}", one, base, MOST, "cpu", at_least=False)
    note_disturbance(report)
    return report


CASES = {"one_port": one_port}


def main() -> int:
    made = parser(__doc__, CASES, rounds=14, seconds=0.8)
    made.add_argument(
        "--part", type=arguments.duration, default=1.0, help="of the load, on a slower machine"
    )
    options = parse(made)
    options.rates = {name: max(round(rate * options.part), 1) for name, rate in RATES.items()}

    def prepare() -> dict[str, str]:
        build("client")
        return {}

    return run(CASES, options, prepare)


if __name__ == "__main__":
    sys.exit(main())
