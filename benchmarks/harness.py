"""What all sets of cases need: the command line, measuring in rounds, showing what came out."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import arguments
from processes import (
    HERE,
    EchoServer,
    Failed,
    Places,
    apart,
    echo_server,
    raise_descriptor_limit,
)
from report import Report, Results, Round

PROBLEMS = (Failed, OSError, subprocess.SubprocessError)
"""What one server may do without ending the run."""

Case = Callable[[argparse.Namespace], Report]


def script(name: str, *arguments: str, python: Sequence[str] = (sys.executable,)) -> list[str]:
    """The command of a server under an interpreter; `echo_server` fills the port in."""
    return [*python, str(HERE / name), "--port", "{port}", *arguments]


def ours(engine: str) -> str:
    return f"completionport {engine}"


def interleaved(
    commands: dict[str, list[str]],
    rounds: int,
    measure: Callable[[EchoServer], Round],
    failures: dict[str, str],
    *,
    places: Places,
    fresh: bool = False,
    kind: int = socket.SOCK_STREAM,
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
                        with echo_server(commands[name], places, kind) as server:
                            results[name].append(measure(server))
                        continue
                    if name not in started:
                        started[name] = stack.enter_context(
                            echo_server(commands[name], places, kind)
                        )
                    results[name].append(measure(started[name]))
                except PROBLEMS as failure:
                    failures[name] = str(failure)
    return {name: found for name, found in results.items() if name not in failures}


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


def parser(
    description: str | None, cases: Iterable[str], rounds: int, seconds: float
) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("case", choices=[*cases, "all"], nargs="+")
    made.add_argument("--rounds", type=arguments.whole(), default=rounds)
    made.add_argument(
        "--seconds", type=arguments.duration, default=seconds, help="measured in each round"
    )
    arguments.add_engines(made)
    made.add_argument(
        "--json", metavar="FILE", type=arguments.file_to_write, help="write all figures there"
    )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    options = made.parse_args()
    options.engine = arguments.engines_of(options)
    return options


def write_json(
    path: Path, about: dict[str, str], options: argparse.Namespace, reports: dict[str, Report]
) -> None:
    written = {name: asdict(report) for name, report in reports.items()}
    for name, report in reports.items():
        for entry, bar in zip(written[name]["bars"], report.bars, strict=True):
            entry["holds"] = bar.holds
    whole = {"machine": about, "rounds": options.rounds, "seconds": options.seconds}
    path.write_text(json.dumps({**whole, "cases": written}, indent=1) + "\n")


def run(
    cases: Mapping[str, Case],
    options: argparse.Namespace,
    more_about: Callable[[], dict[str, str]] = dict,
) -> int:
    """Run the cases that were asked for; gives the exit status.

    ``more_about``: what is to be known beyond the machine and this interpreter.
    """
    # Otherwise a SIGTERM would leave the servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_descriptor_limit()
    names = list(cases) if "all" in options.case else list(dict.fromkeys(options.case))
    reports: dict[str, Report] = {}
    about = machine()
    try:
        about.update(more_about())
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        if apart().server is None:
            print("Only one processor: server and client share it, and the figures say little.")
        sys.stdout.flush()
        for name in names:
            reports[name] = cases[name](options)
            reports[name].show()
    except PROBLEMS as failure:
        print(f"{Path(sys.argv[0]).name}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json and reports:
            write_json(options.json, about, options, reports)
    return int(any(report.fails() for report in reports.values()))
