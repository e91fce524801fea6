"""The tests on the Windows CPython of `windows_python.py`: a process for each file, some at a time.

    python tools/windows_tests.py                          all of them
    python tools/windows_tests.py tests/test_order.py ...  these

A file whose time is over is ended and run once more, which is told: a test that hangs by itself
hangs again. So is a file that fails, when all others are done: Wine has faults of its own that come
and go (`wine_faults.py` shows some), and what was printed of the failure stays to be looked into.

Exit status: 0 when all passed, 1 when not, 77 when no Windows CPython can be had here.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import windows_python

TESTS = windows_python.ROOT / "tests"
NOTHING_COLLECTED = 5
"""pytest's status for a file of which not one test is for this system."""
LONG = 45.0
"""Seconds after which the places of a test's threads are printed. No test takes as long."""
FEW = 2
"""So many files that fail may do so by chance."""
LONGEST = [
    "test_server",
    "test_server_life",
    "win32",
    "test_leak",
    "test_blocking",
    "test_wake_ups",
    "test_streams",
    "test_exit",
]
"""Those that are begun first, so that none is left alone at the end."""
LAST_LINE = re.compile(r"(\d+|no tests) .* in [\d.]+s( \([\d:]+\))?")
REASON = re.compile(r"^(SKIPPED|XFAIL)(?: \[(\d+)\])? (?:\S+:\d+: |\S+ - )(.*)$")


@dataclass
class Run:
    """One run of the tests of one file."""

    path: Path
    status: int
    seconds: float
    output: str

    @property
    def took_too_long(self) -> bool:
        return self.status == windows_python.TIME_OVER

    @property
    def failed(self) -> bool:
        # A process that crashes under Wine may end with 0.
        return self.status not in (0, NOTHING_COLLECTED) or not self.came_to_its_end

    @property
    def came_to_its_end(self) -> bool:
        """Whether pytest's last line is there, and nothing behind it."""
        return LAST_LINE.fullmatch(self.last_line) is not None

    @property
    def last_line(self) -> str:
        return self.output.rstrip().rpartition("\n")[2].strip("= \r")

    @property
    def numbers(self) -> str:
        """What pytest's last line tells: how many passed, and so on."""
        if self.came_to_its_end:
            return self.last_line
        return f"exit status {self.status}, it did not come to its end in order"

    def reasons(self) -> collections.Counter[str]:
        """Why tests did not run, or were expected to fail, and how many of them."""
        found: collections.Counter[str] = collections.Counter()
        for line in self.output.splitlines():
            if parts := REASON.match(line):
                found[parts[3]] += int(parts[2] or 1)
        return found


class Runner:
    """Runs the tests of files, side by side."""

    def __init__(self, version: str, folder: str, limit: float) -> None:
        self.tool = [
            *(sys.executable, str(Path(windows_python.__file__)), "--version", version),
            *("--folder", folder),
        ]
        self.limit = limit
        self._lock = threading.Lock()  # one prints at a time
        self._reasons: collections.Counter[str] = collections.Counter()  # _lock
        self._failed: list[Path] = []  # _lock
        self._took_too_long: list[Path] = []  # _lock
        self._passed_alone: list[Path] = []  # once all others are done

    def run_all(self, paths: list[Path], workers: int) -> int:
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(self.run, paths))
        if len(self._failed) <= FEW:
            self._run_failed_again()
        print(f"\nNot run, or expected to fail, of {len(paths)} files:")
        for reason, count in self._reasons.most_common():
            print(f"{count:5}  {reason}")
        for path in self._took_too_long:
            print(f"its time was over, and it was run once more: {name(path)}")
        for path in self._passed_alone:
            print(f"failed beside others, and passed alone: {name(path)}")
        for path in self._failed:
            print(f"FAILED: {name(path)}")
        print(f"{len(paths)} files in {time.monotonic() - begun:.0f} s", flush=True)
        return 1 if self._failed else 0

    def run(self, path: Path) -> None:
        run = self._once(path)
        if run.took_too_long:
            with self._lock:
                self._took_too_long.append(path)
                self._show(run, f"its time, {self.limit:.0f} s, was over: once more")
            run = self._once(path)
        with self._lock:
            self._reasons += run.reasons()
            if run.failed:
                self._failed.append(path)
            self._show(run, run.numbers)

    def _run_failed_again(self) -> None:
        """Those that fail alone too have failed."""
        failed, self._failed = self._failed, []
        for path in failed:
            run = self._once(path)
            self._show(run, f"failed before, alone: {run.numbers}")
            (self._failed if run.failed else self._passed_alone).append(path)

    def _once(self, path: Path) -> Run:
        begun = time.monotonic()
        # A folder of its own: in one for all, processes that end at the same time take the same old
        # folders away, and fail.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            done = subprocess.run(
                [
                    *(*self.tool, "--timeout", str(self.limit), "run", "-m", "pytest"),
                    *("-p", "no:cacheprovider", "-v", "--color=no"),
                    *("--timeout=0", "-o", f"faulthandler_timeout={LONG}"),
                    "--basetemp=Z:" + os.path.join(folder, "t").replace("/", "\\"),
                    os.path.relpath(path, windows_python.ROOT),
                ],
                cwd=windows_python.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        return Run(path, done.returncode, time.monotonic() - begun, done.stdout)

    def _show(self, run: Run, what: str) -> None:
        """Print what came of a run, and all of its output if that was not what it should be."""
        print(f"{name(run.path):32} {run.seconds:4.0f} s  {what}", flush=True)
        if run.failed:
            print(run.output, flush=True)


def name(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


def default_paths() -> list[Path]:
    """Every file of tests, those that take long first; the suite of Win32's names as one."""
    paths = [*TESTS.glob("test_*.py"), TESTS / "win32"]
    order = {stem: place for place, stem in enumerate(LONGEST)}
    return sorted(paths, key=lambda path: (order.get(path.stem, len(order)), path.stem))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE", help="(all)")
    # One more than there are processors: much of the time tests wait.
    workers = (os.cpu_count() or 1) + 1
    parser.add_argument("--workers", type=int, default=workers, help="(%(default)s)")
    parser.add_argument(
        "--limit", type=float, default=600.0, metavar="SECONDS", help="for a file (%(default)s)"
    )
    windows_python.add_options(parser)
    options = parser.parse_args()
    windows = windows_python.WindowsPython(options.folder.resolve(), options.version)
    if status := windows_python.prepare(windows):
        return status
    paths = [path.resolve() for path in options.paths] or default_paths()
    runner = Runner(options.version, str(options.folder), options.limit)
    with windows.session():
        return runner.run_all(paths, options.workers)


if __name__ == "__main__":
    sys.exit(main())
