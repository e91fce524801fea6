"""Measure what several workers give, and say which of the promised figures hold.

    python benchmarks/workers.py ft200 blocking      two cases
    python benchmarks/workers.py all --free-threaded PYTHON

Server and client share two cores. The interpreter that runs this is measured, and a free-threaded
one beside it, which must have completionport installed. Rounds are as in `run.py`: interleaved,
ratios within a round, the median and the middle half of the rounds.
Exit status: 0 when all bars that could be measured hold, 1 when one does not or a program failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from harness import PROBLEMS, interleaved, parse, parser, run, script
from interpreters import Interpreter, Interpreters
from processes import HERE, EchoServer, build, load, run_client, together
from report import (
    Bar,
    Report,
    Round,
    middle,
    middle_half,
    note_disturbance,
    ratio_bar,
    ratios,
    times,
)

CONNECTIONS, SIZE = 64, 100
SLOW_EVERY, SLOW_MS = 100, 20
SLEEPERS, SLEEP_MS, FAST, SLEEPER_WORKERS = 32, 100, 8, 64
SLOW_BAR, FAST_BAR = 295, 0.55
PACE = 4000
"""Messages a second of the case `blocking`: asyncio, that blocks for 20 ms in each 25, keeps up."""


def server(python: Interpreter, engine: str, workers: int, *arguments: str) -> list[str]:
    arguments = ("--engine", engine, "--workers", str(workers), *arguments)
    return script("echo_server.py", *arguments, python=python.command)


def row(python: Interpreter, engine: str, workers: int) -> str:
    return f"{python.kind} {engine}, {workers} worker{'s' if workers > 1 else ''}"


def available(options: argparse.Namespace, report: Report, *kinds: str) -> list[Interpreter]:
    """Those interpreters, and a note about each one that is missing."""
    pythons: Interpreters = options.interpreters
    for kind in kinds:
        if kind in pythons.missing:
            report.notes.append(f"{kind}: skipped, {pythons.missing[kind]}")
    return [pythons.found[kind] for kind in kinds if kind in pythons.found]


def throughput(
    report: Report,
    commands: dict[str, list[str]],
    references: dict[str, str],
    options: argparse.Namespace,
) -> None:
    """Closed-loop rounds and their table. ``references``: which row each one is compared with."""

    def measure(server: EchoServer) -> Round:
        return load(server, CONNECTIONS, SIZE, options.seconds)

    report.rounds = interleaved(
        commands, options.rounds, measure, report.failures, places=together()
    )
    for name, rounds in report.rounds.items():
        cores = median(entry["rate"] * entry["server_cpu_us"] / 1e6 for entry in rounds)
        report.rows.append(
            [
                name,
                f"{middle(rounds, 'rate'):,.0f}",
                times(ratios(report.rounds, name, references[name], "rate")),
                f"{middle(rounds, 'p50_us'):,.0f}",
                f"{middle(rounds, 'p99_us'):,.0f}",
                f"{max(entry['max_us'] for entry in rounds):,.0f}",
                f"{middle(rounds, 'server_cpu_us'):.2f}",
                f"{cores:.2f}",
                f"{middle(rounds, 'client_load'):.0%}",
            ]
        )
    note_disturbance(report)


def columns(reference: str) -> list[str]:
    latencies = ["p50 us", "p99 us", "worst us"]
    return ["server", "req/s", f"to {reference}", *latencies, "CPU us/req", "cores", "client busy"]


def scaling(
    title: str,
    kinds: tuple[str, ...],
    workers: int,
    limit: float,
    options: argparse.Namespace,
    microseconds: float = 0,
    extra: tuple[str, ...] = (),
) -> Report:
    """The same server with several workers and with one."""
    handler = f"a handler of {microseconds:g} us" if microseconds else "the echo handler"
    report = Report(
        f"{title}: {handler}, {workers} workers against 1, {CONNECTIONS} connections",
        columns("1 worker"),
    )
    commands: dict[str, list[str]] = {}
    references: dict[str, str] = {}
    pythons = available(options, report, *kinds)
    for python in pythons:
        compute = ("--compute", str(python.iterations(microseconds))) if microseconds else ()
        for engine in options.engine:
            for count in (1, workers):
                name = row(python, engine, count)
                commands[name] = server(python, engine, count, *compute, *extra)
                references[name] = row(python, engine, 1)
    if not commands:
        return report
    throughput(report, commands, references, options)
    for python in pythons:
        for engine in options.engine:
            name = row(python, engine, workers)
            ratio_bar(report, f"{name}, throughput against 1", name, references[name], limit)
        if microseconds and python.kind == "free-threaded":
            note_two_threads(report, python)
    return report


def note_two_threads(report: Report, python: Interpreter) -> None:
    """The ratio that no server can exceed."""
    command = [*python.command, str(HERE / "work.py"), "--threads"]
    try:
        found = run_client(command, 20, together().server)
    except PROBLEMS as failure:
        report.failures["two threads without a server"] = str(failure)
        return
    ratio = found["two_to_one"]
    report.notes.append(f"Two threads that only compute, without a server: {ratio:.2f} times one.")


def ft200(options: argparse.Namespace) -> Report:
    return scaling("ft200", ("free-threaded",), 2, 1.8, options, 200)


def ft50(options: argparse.Namespace) -> Report:
    return scaling("ft50", ("free-threaded",), 2, 1.5, options, 50)


def echo_workers(options: argparse.Namespace) -> Report:
    return scaling("echo_workers", ("free-threaded", "GIL"), 4, 0.95, options)


def gil50(options: argparse.Namespace) -> Report:
    extra = ("--concurrency", "0")
    return scaling("gil50", ("GIL",), 16, 0.95, options, 50, extra)


def blocking(options: argparse.Namespace) -> Report:
    """The latency of those whose callback does not block, while others do."""
    what = f"one callback in {SLOW_EVERY} blocks for {SLOW_MS} ms; latency of the others"
    report = Report(
        f"blocking: {CONNECTIONS} connections, {what}",
        [
            "server",
            f"{PACE:,} req/s: p50 us",
            "p99 us",
            "max us",
            "closed loop: req/s",
            "p50 us",
            "p99 us",
        ],
    )
    slow = ("--slow-ms", str(SLOW_MS))
    commands = {name: script(f"echo_{name}.py", *slow) for name in ("asyncio", "uvloop")}
    ours = []
    for python in available(options, report, "GIL"):
        for engine in options.engine:
            name = row(python, engine, 8)
            ours.append(name)
            commands[name] = server(python, engine, 8, "--concurrency", "0", *slow)

    def measure(server: EchoServer) -> Round:
        marked = ("--slow-every", str(SLOW_EVERY))
        paced = load(server, CONNECTIONS, SIZE, options.seconds, *marked, "--rate", str(PACE))
        closed = load(server, CONNECTIONS, SIZE, options.seconds, *marked)
        return {**paced, **{f"closed_{name}": value for name, value in closed.items()}}

    report.rounds = interleaved(
        commands, options.rounds, measure, report.failures, places=together()
    )
    figures = ["others_p50_us", "others_p99_us", "others_max_us"]
    figures += ["closed_rate", "closed_others_p50_us", "closed_others_p99_us"]
    for name, rounds in report.rounds.items():
        report.rows.append([name, *(f"{middle(rounds, figure):,.0f}" for figure in figures)])
        if name in ours:
            found = [entry["others_p99_us"] / 1000 for entry in rounds]
            text = f"{name}, ms of p99 of the others at {PACE:,} req/s"
            report.bars.append(Bar(text, median(found), 5, False, middle_half(found)))
    note_disturbance(report)
    return report


def sleepers(options: argparse.Namespace) -> Report:
    """What callbacks that sleep without saying so leave to those that do not."""
    report = Report(
        f"sleepers: {SLEEPERS} connections whose callback sleeps {SLEEP_MS} ms beside {FAST} fast"
        f" ones, {SLEEPER_WORKERS} workers",
        ["server", "slow/s", "fast/s", "alone", "to alone", "fast p99 us", "CPU us/req"],
    )
    scripts = {"Server": "echo_server.py", "WorkerPool": "echo_pool.py"}
    commands = {}
    for python in available(options, report, "GIL", "free-threaded"):
        for engine in options.engine:
            for name, file in scripts.items():
                arguments = ("--engine", engine, "--workers", str(SLEEPER_WORKERS))
                commands[f"{python.kind} {engine}, {name}"] = script(
                    file, *arguments, "--slow-ms", str(SLEEP_MS), python=python.command
                )

    def measure(server: EchoServer) -> Round:
        alone = load(server, FAST, SIZE, options.seconds)
        # The others come first and go last.
        with ThreadPoolExecutor(1) as beside:
            all_slow = ("--slow-every", "1")
            slow = beside.submit(load, server, SLEEPERS, SIZE, options.seconds + 0.6, *all_slow)
            time.sleep(0.4)
            found = load(server, FAST, SIZE, options.seconds)
            return {
                **found,
                "slow": slow.result()["rate"],
                "alone": alone["rate"],
                "part": found["rate"] / alone["rate"],
            }

    report.rounds = interleaved(
        commands, options.rounds, measure, report.failures, places=together()
    )
    for name, rounds in report.rounds.items():
        figures = [f"{middle(rounds, figure):,.0f}" for figure in ("slow", "rate", "alone")]
        figures.append(f"{middle(rounds, 'part'):.2f}")
        figures.append(f"{middle(rounds, 'p99_us'):,.0f}")
        report.rows.append([name, *figures, f"{middle(rounds, 'server_cpu_us'):.2f}"])
        for what, figure, limit in (
            ("answers a second that slept", "slow", SLOW_BAR),
            ("fast ones to what they are alone", "part", FAST_BAR),
        ):
            values = [entry[figure] for entry in rounds]
            bar = Bar(f"{name}, {what}", median(values), limit, True, middle_half(values))
            report.bars.append(bar)
    note_disturbance(report)
    return report


def comparison(options: argparse.Namespace) -> Report:
    """Three ways to use two cores, with the same work for each message."""
    report = Report(
        f"comparison: a handler of 50 us on two cores, {CONNECTIONS} connections",
        columns("uvloop"),
    )
    pythons = available(options, report, "GIL", "free-threaded")
    iterations = pythons[0].iterations(50)
    compute = ("--compute", str(iterations))
    uvloop = "uvloop, 2 processes"
    commands = {uvloop: script("echo_uvloop.py", "--processes", "2", *compute)}
    for python in pythons:
        name = f"{python.kind}, a thread for each connection"
        commands[name] = script("echo_threads.py", *compute, python=python.command)
        if python.kind == "free-threaded":
            for engine in options.engine:
                commands[row(python, engine, 2)] = server(python, engine, 2, *compute)
        took = iterations / python.iterations_per_us
        report.notes.append(
            f"{iterations} iterations for each message: {took:.1f} us {python.kind}"
        )
    throughput(report, commands, dict.fromkeys(commands, uvloop), options)
    return report


CASES = {
    function.__name__: function
    for function in (ft200, ft50, echo_workers, gil50, blocking, sleepers, comparison)
}


def main() -> int:
    made = parser(__doc__, CASES, rounds=10, seconds=0.5)
    made.add_argument(
        "--free-threaded",
        metavar="PYTHON",
        help="an interpreter that has completionport installed; otherwise looked for on the PATH",
    )
    options = parse(made)

    def find() -> dict[str, str]:
        build("client")
        found = options.interpreters = Interpreters(options.free_threaded)
        return found.about()

    return run(CASES, options, find)


if __name__ == "__main__":
    sys.exit(main())
