"""The benchmarks, as commands: they run, and a wrong argument is told in a line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import WINDOWS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

pytestmark = [
    pytest.mark.skipif(WINDOWS, reason="the benchmarks are for Linux"),
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler"),
]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (name, arguments)
        for name in ("run", "workers", "engines", "builds", "one_port")
        for arguments in (
            [],
            ["no such case"],
            ["all", "--rounds", "0"],
            ["all", "--seconds", "nan"],
            ["all", "--engine", "kqueue"],
            ["all", "--json", "/no/such/folder/file"],
        )
    ]
    + [
        ("one_port", ["all", "--part", "0"]),
        ("one_port", ["all", "--part", "x"]),
        ("builds", ["all"]),
        ("builds", ["all", "--before", "/no/such/folder"]),
        ("builds", ["all", "--before", str(BENCHMARKS)]),
        ("builds", ["all", "--before", str(BENCHMARKS.parent), "--without-stats"]),
    ],
)
def test_a_wrong_argument_is_told_in_a_line(name, arguments):
    done = run(name, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"{name}.py: error: ")
    assert "Traceback" not in done.stderr


def test_one_port_measures_all_four_kinds(engine):
    """At a small part of the load, and no word on its bars: others are at work on this machine."""
    done = run(
        "one_port", "all", "--engine", engine, "--rounds", "1", "--seconds", "0.2", "--part", "0.05"
    )
    assert done.returncode in (0, 1)
    assert done.stderr == ""
    assert " failed: " not in done.stdout
    for server in ("one port", "four ports"):
        [row] = [line for line in done.stdout.splitlines() if f"{engine}, {server}  " in line]
        cells = row.split(server)[1].split()
        assert all(float(cell.replace(",", "")) > 0 for cell in cells[:4])
    assert f"completionport {engine}, one port, CPU against four ports: " in done.stdout
