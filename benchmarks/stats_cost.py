"""What `port.stats()` and `server.stats()` cost: the library beside a build that measures nothing.

    python benchmarks/stats_cost.py all
    python benchmarks/stats_cost.py echo64 --folder FOLDER    keep both builds there for next time

Both are built from this source tree; COMPLETIONPORT_WITHOUT_STATS leaves out the counters, the
histograms, and each look at the clock for them. Servers are started afresh in each round, since two
processes of one program differ by some percent; "with, again" shows how much the same build differs
from itself.
Exit status: 0 when all bars hold, 1 when one does not or a program failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import PROBLEMS, interleaved, ours, parse, parser, run, script
from processes import (
    HERE,
    EchoServer,
    Failed,
    apart,
    load,
    run_client,
)
from report import Report, Round, middle, note_disturbance, ratio_bar, ratios

ROOT = HERE.parent
WITH, WITHOUT, AGAIN = "with", "without", "with, again"
CONNECTIONS, SIZE = 64, 100
MOST = 1.02
"""What measuring may cost: 2 %."""


def build_into(folder: Path, without: bool) -> None:
    """Compile and install the library there, unless that was done before."""
    if (folder / "completionport").exists():
        return
    with tempfile.TemporaryDirectory() as tree:
        # A copy without what was compiled: the other build must not be taken for this one.
        shutil.copytree(
            ROOT / "src", Path(tree, "src"), ignore=shutil.ignore_patterns("*.so", "*.c")
        )
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree)
        environment = {**os.environ, "COMPLETIONPORT_WITHOUT_STATS": "1" if without else ""}
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", folder, tree],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    if done.returncode:
        raise Failed(f"the library does not build:\n{done.stderr}")


def with_path(folder: Path, command: list[str]) -> list[str]:
    """The command, with the library from that folder."""
    return ["env", f"PYTHONPATH={folder}", *command]


def thousandths(values: list[float]) -> str:
    return f"{median(values):.3f}" if values else "-"


def row(engine: str, build: str) -> str:
    return f"{ours(engine)}, {build}"


def echo64(options: argparse.Namespace) -> Report:
    columns = ["server", "req/s", "to without", "CPU us/req", "to without", "client busy"]
    report = Report(f"echo64: {CONNECTIONS} connections of {SIZE} bytes", columns)
    commands = {
        row(engine, build): with_path(
            options.builds[WITHOUT if build == WITHOUT else WITH],
            script("echo_server.py", "--engine", engine),
        )
        for engine in options.engine
        for build in (WITHOUT, WITH, AGAIN)
    }

    def measure(server: EchoServer) -> Round:
        return load(server, CONNECTIONS, SIZE, options.seconds)

    report.rounds = interleaved(
        commands, options.rounds, measure, report.failures, places=apart(), fresh=True
    )
    for engine in options.engine:
        base = row(engine, WITHOUT)
        for build in (WITHOUT, WITH, AGAIN):
            name = row(engine, build)
            if found := report.rounds.get(name):
                report.rows.append(
                    [
                        name,
                        f"{middle(found, 'rate'):,.0f}",
                        thousandths(ratios(report.rounds, name, base, "rate")),
                        f"{middle(found, 'server_cpu_us'):.3f}",
                        thousandths(ratios(report.rounds, name, base, "server_cpu_us")),
                        f"{middle(found, 'client_load'):.0%}",
                    ]
                )
        for figure, what, limit in (
            ("rate", "throughput", 2 - MOST),
            ("server_cpu_us", "CPU for each request", MOST),
        ):
            text = f"{row(engine, WITH)}, {what} against without"
            ratio_bar(report, text, row(engine, WITH), base, limit, figure, limit < 1)
    note_disturbance(report)
    return report


def post_get(options: argparse.Namespace) -> Report:
    """Its ratio to a queue, measured in turn in the same process, says more than its rate."""
    columns = ["port", "pairs/s", "to SimpleQueue", "that to without"]
    report = Report("post_get: pairs of post and get in one thread", columns)
    for engine in options.engine:
        program = [sys.executable, str(HERE / "post_get.py"), "--json", "--engine", engine]
        program += ["--rounds", "5", "--pairs", "50000"]
        rounds: dict[str, list[Round]] = {row(engine, b): [] for b in (WITHOUT, WITH, AGAIN)}
        try:
            for index in range(options.rounds):
                for build in (WITHOUT, WITH, AGAIN)[:: 1 if index % 2 else -1]:
                    command = with_path(
                        options.builds[WITHOUT if build == WITHOUT else WITH], program
                    )
                    rounds[row(engine, build)].append(run_client(command, 60, apart().server))
        except PROBLEMS as failure:
            report.failures[ours(engine)] = str(failure)
            continue
        report.rounds |= rounds
        for name, found in rounds.items():
            to_without = ratios(rounds, name, row(engine, WITHOUT), "ratio")
            rate = f"{middle(found, 'port_pairs'):,.0f}"
            compared = thousandths([entry["ratio"] for entry in found])
            report.rows.append([name, rate, compared, thousandths(to_without)])
        text = f"{row(engine, WITH)}, pairs (to SimpleQueue) against without"
        ratio_bar(report, text, row(engine, WITH), row(engine, WITHOUT), 2 - MOST, "ratio")
    return report


CASES = {function.__name__: function for function in (echo64, post_get)}


def main() -> int:
    made = parser(__doc__, CASES, rounds=20, seconds=0.6)
    made.add_argument("--folder", type=Path, help="where the builds are; a temporary one otherwise")
    options = parse(made)

    def prepare() -> dict[str, str]:
        options.builds = {}
        for name in (WITHOUT, WITH):
            options.builds[name] = (options.folder / name).absolute()
            build_into(options.builds[name], name == WITHOUT)
        return {}

    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        return run(CASES, options, prepare)


if __name__ == "__main__":
    sys.exit(main())
