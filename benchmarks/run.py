"""Run the benchmarks and say which of the promised figures hold.

    python benchmarks/run.py echo64            one case
    python benchmarks/run.py all --json FILE   all of them, figures to a file as well

Servers run on one core and the client on another, all servers of a case are kept for all of its
rounds, and each round visits them in another order: what the machine does meanwhile meets all
of them. Rounds are short and many, since a virtual machine changes its speed from one second to
the next. A ratio is taken within each round; the median of the rounds is printed, and beside a
bar the middle half of them.
Exit status: 0 when all bars hold, 1 when one does not or a program failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from processes import (
    HERE,
    EchoServer,
    Failed,
    build,
    cores,
    echo_server,
    hold_idle,
    load,
    raise_descriptor_limit,
    run_client,
)

Round = dict[str, Any]
Results = dict[str, list[Round]]

IDLE_CONNECTIONS = 9000
DISTURBED = 0.06
"""Processors in use by other programs, from which on figures are doubtful."""
PROBLEMS = (Failed, OSError, subprocess.SubprocessError)
"""What one server may do without ending the run."""


@dataclass
class Bar:
    """A figure that was promised, and what it is."""

    what: str
    value: float
    limit: float
    at_least: bool
    middle_half: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        sign = ">=" if self.at_least else "<="
        text = f"  {verdict:13}  {self.what}: {self.value:.4g} (promised {sign} {self.limit:g})"
        if self.middle_half:
            text += ", middle half {:.3g} to {:.3g}".format(*self.middle_half)
        return text


@dataclass
class Report:
    """What one case gave."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    rounds: Results = field(default_factory=dict)

    def show(self) -> None:
        print(f"\n{self.title}")
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        for row in [self.columns, *self.rows]:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            print("  " + "  ".join(cells))
        for note in self.notes:
            print(f"  {note}")
        for name, failure in self.failures.items():
            print(f"  {name} failed: {failure}")
        for bar in self.bars:
            print(bar)
        sys.stdout.flush()

    def fails(self) -> bool:
        return bool(self.failures) or not all(bar.holds for bar in self.bars)


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / name), "--port", "{port}", *arguments]


def ours(engine: str) -> str:
    return f"completionport {engine}"


def servers(options: argparse.Namespace, *references: str) -> dict[str, list[str]]:
    """The commands of the servers of a case: those to compare with, then the one of each engine."""
    known = {
        "C epoll": [str(build("echo_epoll")), "{port}"],
        "uvloop": script("echo_uvloop.py"),
        "asyncio": script("echo_asyncio.py"),
    }
    commands = {name: known[name] for name in references}
    extra = ["--workers", str(options.workers)] if options.workers is not None else []
    for engine in options.engine:
        commands[ours(engine)] = script("echo_server.py", "--engine", engine, *extra)
    return commands


def interleaved(
    commands: dict[str, list[str]],
    rounds: int,
    measure: Callable[[EchoServer], Round],
    failures: dict[str, str],
    fresh: bool = False,
) -> Results:
    """Measure all servers in each round; one that fails is left out from then on."""
    results: Results = {name: [] for name in commands}
    with contextlib.ExitStack() as stack:
        started: dict[str, EchoServer] = {}
        for index in range(rounds):
            names = list(commands)
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                if name in failures:
                    continue
                try:
                    if fresh:
                        with echo_server(commands[name]) as server:
                            results[name].append(measure(server))
                        continue
                    if name not in started:
                        started[name] = stack.enter_context(echo_server(commands[name]))
                    results[name].append(measure(started[name]))
                except PROBLEMS as failure:
                    failures[name] = str(failure)
    return {name: found for name, found in results.items() if name not in failures}


def middle(rounds: list[Round], name: str) -> float:
    return float(median(entry[name] for entry in rounds))


def ratios(results: Results, name: str, reference: str, figure: str) -> list[float]:
    """The ratio within each round; none when one of the two was not measured."""
    pairs = zip(results.get(name, ()), results.get(reference, ()), strict=False)
    return [a[figure] / b[figure] for a, b in pairs]


def times(values: list[float]) -> str:
    return f"{median(values):.2f}" if values else "-"


def throughput(
    title: str,
    commands: dict[str, list[str]],
    load_of: tuple[int, int],
    reference: str,
    options: argparse.Namespace,
) -> Report:
    """A closed-loop case: requests a second, latency, and CPU for each request."""
    connections, size = load_of
    columns = ["server", "req/s", f"to {reference}", "p50 us", "p99 us", "CPU us/req", "to C epoll"]
    columns.append("client busy")
    report = Report(f"{title}: {connections} connections of {size} bytes", columns)

    def measure(server: EchoServer) -> Round:
        return load(server, connections, size, options.seconds)

    results = interleaved(commands, options.rounds, measure, report.failures)
    report.rounds = results
    for name, rounds in results.items():
        report.rows.append(
            [
                name,
                f"{middle(rounds, 'rate'):,.0f}",
                times(ratios(results, name, reference, "rate")),
                f"{middle(rounds, 'p50_us'):,.0f}",
                f"{middle(rounds, 'p99_us'):,.0f}",
                f"{middle(rounds, 'server_cpu_us'):.2f}",
                times(ratios(results, name, "C epoll", "server_cpu_us")),
                f"{middle(rounds, 'client_load'):.0%}",
            ]
        )
    everything = [entry for rounds in results.values() for entry in rounds]
    if everything and (others := middle(everything, "others")) > DISTURBED:
        report.notes.append(
            f"Other programs used {others:.2f} processors meanwhile: these figures are doubtful."
        )
    return report


def add_bars(
    report: Report, figure: str, reference: str, limits: dict[str, float], at_least: bool = True
) -> None:
    """The promised ratios to ``reference``, for those engines that were measured."""
    what = "throughput" if figure == "rate" else "CPU for each request"
    for engine, limit in limits.items():
        found = ratios(report.rounds, ours(engine), reference, figure)
        if found:
            text = f"{ours(engine)}, {what} against {reference}"
            half = (found[0], found[0])
            if len(found) > 1:
                low, _, high = quantiles(found, n=4, method="inclusive")
                half = (low, high)
            report.bars.append(Bar(text, median(found), limit, at_least, half))


def echo64(options: argparse.Namespace) -> Report:
    commands = servers(options, "C epoll", "uvloop")
    report = throughput("echo64", commands, (64, 100), "uvloop", options)
    add_bars(report, "rate", "uvloop", {"io_uring": 1.05, "epoll": 0.95})
    add_bars(report, "server_cpu_us", "C epoll", {"io_uring": 1.10}, at_least=False)
    return report


def echo1000(options: argparse.Namespace) -> Report:
    commands = servers(options, "C epoll", "uvloop")
    report = throughput("echo1000", commands, (1000, 1000), "uvloop", options)
    add_bars(report, "rate", "uvloop", {"io_uring": 1.3, "epoll": 1.0})
    return report


def article(options: argparse.Namespace) -> Report:
    commands = servers(argparse.Namespace(engine=[], workers=None), "C epoll", "asyncio")
    for engine in options.engine:
        commands[ours(engine)] = script("echo_article.py", "--engine", engine)
    report = throughput("article", commands, (64, 100), "asyncio", options)
    add_bars(report, "rate", "asyncio", {"io_uring": 0.8, "epoll": 0.8})
    return report


def idle(options: argparse.Namespace) -> Report:
    columns = ["server", "bytes each", "connected s", "all served s", "lost"]
    report = Report(f"idle: {IDLE_CONNECTIONS} connections that say nothing", columns)
    commands = servers(options, "uvloop")
    # Memory once used is not given back, so each round takes fresh servers. Three are plenty:
    # memory hardly varies.
    rounds = min(options.rounds, 3)

    def measure(server: EchoServer) -> Round:
        return hold_idle(server, IDLE_CONNECTIONS)

    report.rounds = interleaved(commands, rounds, measure, report.failures, fresh=True)
    for name, found in report.rounds.items():
        lost = sum(entry["lost"] for entry in found)
        each = middle(found, "bytes_each")
        connected = middle(found, "connect_seconds")
        served = middle(found, "served_seconds")
        report.rows.append([name, f"{each:,.0f}", f"{connected:.2f}", f"{served:.2f}", str(lost)])
        if name != "uvloop":
            worst = max(entry["served_seconds"] for entry in found)
            report.bars += [
                Bar(f"{name}, bytes of memory for each connection", each, 1300, at_least=False),
                Bar(f"{name}, seconds until all are served, worst round", worst, 2, at_least=False),
                Bar(f"{name}, connections lost", lost, 0, at_least=False),
            ]
    return report


def post_get(options: argparse.Namespace) -> Report:
    columns = ["engine", "port pairs/s", "SimpleQueue pairs/s", "ratio"]
    report = Report("post_get: pairs of post and get in one thread", columns)
    for engine in options.engine:
        command = [sys.executable, str(HERE / "post_get.py"), "--json", "--engine", engine]
        try:
            found = run_client([*command, "--rounds", str(options.rounds)], 60, cores()[0])
        except PROBLEMS as failure:
            report.failures[ours(engine)] = str(failure)
            continue
        figures = [f"{found[key]:,.0f}" for key in ("port_pairs", "queue_pairs")]
        report.rows.append([engine, *figures, times([found["ratio"]])])
        report.rounds[ours(engine)] = [found]
        what = f"{ours(engine)}, post and get against SimpleQueue"
        report.bars.append(Bar(what, found["ratio"], 0.5, at_least=True))
    return report


CASES = {function.__name__: function for function in (echo64, echo1000, article, idle, post_get)}


def machine() -> dict[str, str]:
    model = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    versions = {}
    for package in ("completionport", "uvloop"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "processor": f"{model}, {os.cpu_count()} processors",
        "kernel": ".".join(platform.release().split("-")[0].split(".")[:3]),
        "python": f"{platform.python_version()}{'' if gil else ' free-threaded'}",
        **versions,
    }


def parse(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=[*CASES, "all"], nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.6, help="measured in each round")
    parser.add_argument("--workers", type=int, help="of Server; its own default when left out")
    parser.add_argument(
        "--engine",
        action="append",
        choices=["io_uring", "epoll", "selectors"],
        help="may be given several times; io_uring and epoll when left out",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    options.engine = list(dict.fromkeys(options.engine or ["io_uring", "epoll"]))
    return options


def main() -> int:
    options = parse()
    # Otherwise a SIGTERM would leave the servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_descriptor_limit()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if cores()[0] is None:
        print("Only one processor: server and client share it, and the figures say little.")
    names = list(CASES) if "all" in options.case else list(dict.fromkeys(options.case))
    reports: dict[str, Report] = {}
    try:
        for name in names:
            reports[name] = CASES[name](options)
            reports[name].show()
    except Failed as failure:
        print(f"run.py: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json and reports:
            written = {name: asdict(report) for name, report in reports.items()}
            for name, report in reports.items():
                for entry, bar in zip(written[name]["bars"], report.bars, strict=True):
                    entry["holds"] = bar.holds
            whole = {"machine": about, "rounds": options.rounds, "seconds": options.seconds}
            options.json.write_text(json.dumps({**whole, "cases": written}, indent=1) + "\n")
    return int(any(report.fails() for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
