"""Measure what tools/simulate_scheduler.py needs to know about a machine.

python tools/measure_costs.py [--json docs/scaling-costs.json]

Takes a few seconds, a C compiler, and two cores that have nothing else to do. All times are
microseconds, each the median of many; of three runs the smallest is taken, as other programs can
only add to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent / "src" / "completionport" / "native"
ROOMS = [NATIVE / "primitives", NATIVE / "engines"]
"""Where the headers are."""
SOURCE, PROGRAM = HERE / "measure_costs.c", HERE / "build" / "measure_costs"
RUNS = 3

MEANING = {
    "lock": "lock and unlock, nobody else wants it",
    "line_transfer": "what one core wrote is seen by another",
    "wake_call": "futex wake of a thread that slept 30 us: the caller's time",
    "wake_latency": "the same: until that thread runs, on another core",
    "wake_call_after_500_us": "futex wake of a thread that slept 500 us: the caller's time",
    "wake_latency_after_500_us": "the same: until that thread runs",
    "epoll_wait": "epoll_wait that finds one event",
    "epoll_event": "each further event of the same call",
    "receive": "recv(2) of 100 bytes, TCP over loopback",
    "send": "send(2) of 100 bytes, TCP over loopback",
    "receive_two_threads": "recv(2) in two threads at once: time for each of all",
    "send_two_threads": "send(2) in two threads at once: time for each of all",
    "ring_enter": "io_uring_enter with one request that does nothing",
    "ring_request": "each further request of the same call",
    "ring_receive": "a receive of 100 bytes by the ring, 32 in a call",
    "ring_send": "a send of 100 bytes by the ring, 32 in a call",
    "ring_receive_shared": "receives by two threads on one ring: time for each of all",
    "ring_send_shared": "sends by two threads on one ring: time for each of all",
    "ring_receive_two_rings": "receives by two threads on a ring of their own",
    "ring_send_two_rings": "sends by two threads on a ring of their own",
}


def build() -> Path:
    newest = max(file.stat().st_mtime for file in [SOURCE, *NATIVE.glob("*/*.h")])
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < newest:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            sys.exit("no C compiler found: install one, or name it in CC")
        PROGRAM.parent.mkdir(exist_ok=True)
        folders = [f"-I{room}" for room in ROOMS]
        command = [*compiler.split(), "-O2", "-pthread", *folders, "-o", PROGRAM, SOURCE]
        subprocess.run(command, check=True, timeout=120)
    return PROGRAM


def measure() -> dict[str, float]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: what passes between them is measured")
    command = [build(), str(cores[0]), str(cores[1])]
    runs: list[dict[str, float]] = []
    for _ in range(RUNS):
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        runs.append(json.loads(done.stdout))
    return {name: min(run[name] for run in runs) for name in runs[0]}


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    costs = measure()
    machine = f"{processor()}, {os.cpu_count()} processors, Linux {platform.release()}"
    print(machine)
    for name, value in costs.items():
        print(f"  {name:26} {value:8.3f} us  {MEANING[name]}")
    if options.json:
        rounded = {name: round(value, 3) for name, value in costs.items()}
        text = json.dumps({"machine": machine, "microseconds": rounded}, indent=2)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
