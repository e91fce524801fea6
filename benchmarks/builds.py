"""Two builds of the library beside each other: this source tree's, and another one.

    python benchmarks/builds.py echo64 echo1000 idle --before TREE
    python benchmarks/builds.py echo64 post_get --without-stats
    python benchmarks/builds.py all --before TREE --folder FOLDER    keep both builds for next time

``--before`` is the source tree of an older commit, such as `git worktree add` makes it.
``--without-stats`` compares with a build of this tree that measures nothing: what `port.stats()`
and `server.stats()` cost. COMPLETIONPORT_WITHOUT_STATS leaves out the counters, the histograms,
and each look at the clock for them.
Both builds are made in the same way. Servers are started afresh in each round, since two processes
of one program differ by some percent; "now, again" shows how much the same build differs from
itself.
Exit status: 0 when all bars hold, 1 when one does not or a program failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from harness import PROBLEMS, interleaved, ours, parse, parser, run, script
from processes import (
    HERE,
    EchoServer,
    Failed,
    apart,
    hold_idle,
    load,
    run_client,
)
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

ROOT = HERE.parent
NOW, AGAIN = "now", "now, again"
LOADS = {"echo64": (64, 100), "echo1000": (1000, 1000)}
IDLE_CONNECTIONS, IDLE_ROUNDS = 9000, 3
MOST_BYTES = 64
"""More for an idle connection."""


def source_tree(text: str) -> Path:
    """The type of an argument that is a folder with the library's source."""
    path = Path(text)
    if not (path / "src" / "completionport" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"there is no src/completionport in {path}")
    return path


def build_into(folder: Path, source: Path, without_stats: bool) -> None:
    """Compile and install the library there, unless that was done before."""
    if (folder / "completionport").exists():
        return
    with tempfile.TemporaryDirectory() as tree:
        # A copy without what was compiled: the other build must not be taken for this one.
        shutil.copytree(
            source / "src", Path(tree, "src"), ignore=shutil.ignore_patterns("*.so", "*.c")
        )
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copy(source / name, tree)
        environment = {**os.environ, "COMPLETIONPORT_WITHOUT_STATS": "1" if without_stats else ""}
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", folder, tree],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if done.returncode:
        raise Failed(f"the library does not build:\n{done.stderr}")


def with_path(folder: Path, command: list[str]) -> list[str]:
    """The command, with the library from that folder."""
    return ["env", f"PYTHONPATH={folder}", *command]


def row(engine: str, build: str) -> str:
    return f"{ours(engine)}, {build}"


def builds(options: argparse.Namespace) -> dict[str, Path]:
    """The rows of an engine, and the build of each."""
    return {options.base: options.folders[0], NOW: options.folders[1], AGAIN: options.folders[1]}


def servers(options: argparse.Namespace) -> dict[str, list[str]]:
    return {
        row(engine, build): with_path(folder, script("echo_server.py", "--engine", engine))
        for engine in options.engine
        for build, folder in builds(options).items()
    }


def echo(name: str, options: argparse.Namespace) -> Report:
    connections, size = LOADS[name]
    to_base = f"to {options.base}"
    columns = ["server", "req/s", to_base, "CPU us/req", to_base, "client busy"]
    report = Report(f"{name}: {connections} connections of {size} bytes", columns)

    def measure(server: EchoServer) -> Round:
        return load(server, connections, size, options.seconds)

    report.rounds = interleaved(
        servers(options), options.rounds, measure, report.failures, places=apart(), fresh=True
    )
    for engine in options.engine:
        base = row(engine, options.base)
        for build in builds(options):
            server = row(engine, build)
            if found := report.rounds.get(server):
                report.rows.append(
                    [
                        server,
                        f"{middle(found, 'rate'):,.0f}",
                        thousandths(ratios(report.rounds, server, base, "rate")),
                        f"{middle(found, 'server_cpu_us'):.3f}",
                        thousandths(ratios(report.rounds, server, base, "server_cpu_us")),
                        f"{middle(found, 'client_load'):.0%}",
                    ]
                )
        for figure, what, limit in (
            ("rate", "throughput", 2 - options.most),
            ("server_cpu_us", "CPU for each request", options.most),
        ):
            text = f"{row(engine, NOW)}, {what} against {options.base}"
            ratio_bar(report, text, row(engine, NOW), base, limit, figure, limit < 1)
    note_disturbance(report)
    return report


def post_get(options: argparse.Namespace) -> Report:
    """Its ratio to a queue, measured in turn in the same process, says more than its rate."""
    columns = ["port", "pairs/s", "to SimpleQueue", f"that to {options.base}"]
    report = Report("post_get: pairs of post and get in one thread", columns)
    for engine in options.engine:
        program = [sys.executable, str(HERE / "post_get.py"), "--json", "--engine", engine]
        program += ["--rounds", "5", "--pairs", "50000"]
        commands = {
            row(engine, build): with_path(folder, program)
            for build, folder in builds(options).items()
        }
        rounds: dict[str, list[Round]] = {name: [] for name in commands}
        try:
            for index in range(options.rounds):
                for name in list(commands)[:: 1 if index % 2 else -1]:
                    rounds[name].append(run_client(commands[name], 60, apart().server))
        except PROBLEMS as failure:
            report.failures[ours(engine)] = str(failure)
            continue
        report.rounds |= rounds
        now, base = row(engine, NOW), row(engine, options.base)
        for name, found in rounds.items():
            rate = f"{middle(found, 'port_pairs'):,.0f}"
            compared = thousandths([entry["ratio"] for entry in found])
            to_base = thousandths(ratios(rounds, name, base, "ratio"))
            report.rows.append([name, rate, compared, to_base])
        text = f"{now}, pairs (to SimpleQueue) against {options.base}"
        ratio_bar(report, text, now, base, 2 - options.most, "ratio")
    return report


def idle(options: argparse.Namespace) -> Report:
    columns = ["server", "bytes each", f"more than {options.base}"]
    report = Report(f"idle: {IDLE_CONNECTIONS} connections that say nothing", columns)

    def measure(server: EchoServer) -> Round:
        return hold_idle(server, IDLE_CONNECTIONS)

    # Memory hardly varies.
    rounds = min(options.rounds, IDLE_ROUNDS)
    report.rounds = interleaved(
        servers(options), rounds, measure, report.failures, places=apart(), fresh=True
    )
    for engine in options.engine:
        base = report.rounds.get(row(engine, options.base), [])
        for build in builds(options):
            name = row(engine, build)
            found = report.rounds.get(name, [])
            more = [a["bytes_each"] - b["bytes_each"] for a, b in zip(found, base, strict=False)]
            if not more:
                continue
            report.rows.append(
                [name, f"{middle(found, 'bytes_each'):,.0f}", f"{median(more):,.0f}"]
            )
            if build == NOW:
                what = f"{name}, bytes of a connection more than {options.base}"
                report.bars.append(Bar(what, median(more), MOST_BYTES, False, middle_half(more)))
    return report


CASES = {
    **{name: partial(echo, name) for name in LOADS},
    **{function.__name__: function for function in (post_get, idle)},
}


def main() -> int:
    made = parser(__doc__, CASES, rounds=20, seconds=0.6)
    other = made.add_mutually_exclusive_group(required=True)
    other.add_argument(
        "--before",
        metavar="TREE",
        type=source_tree,
        help="not behind that one by more than 1 %%, and at most 64 bytes more for a connection",
    )
    other.add_argument(
        "--without-stats", action="store_true", help="what measuring costs: 2 %% at most"
    )
    made.add_argument("--folder", type=Path, help="where the builds are; a temporary one otherwise")
    options = parse(made)
    options.base = "before" if options.before else "without stats"
    options.most = 1.01 if options.before else 1.02

    def prepare() -> dict[str, str]:
        options.folders = [(options.folder / name).absolute() for name in (options.base, NOW)]
        build_into(options.folders[0], options.before or ROOT, options.without_stats)
        build_into(options.folders[1], ROOT, False)
        return {}

    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        return run(CASES, options, prepare)


if __name__ == "__main__":
    sys.exit(main())
