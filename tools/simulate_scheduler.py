"""Simulate the scheduler on more cores than there are to measure on.

    python tools/simulate_scheduler.py cores        throughput against cores, one ring
    python tools/simulate_scheduler.py shards       the same with the port in several rings
    python tools/simulate_scheduler.py uneven       a fifth of the connections has 80 % of the work
    python tools/simulate_scheduler.py doubts       what other costs than the measured ones change
    python tools/simulate_scheduler.py two-cores    what measure_two_cores.py measures
    python tools/simulate_scheduler.py all          everything; --plots docs draws the pictures

Discrete events, standard library only (the pictures need matplotlib). The same seed gives the
same figures. Every worker has a core of its own; clients and the network are on other machines.
What is assumed is in docs/scaling.md. The model is in scheduler_model.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from scheduler_model import SENDS, Costs, Load, Outcome, simulate

CORES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
OFFERED = 0.8
HANDLERS = (1.0, 2.0, 10.0, 100.0, 1000.0)
KERNEL = ("receive", "send", "ring_receive", "ring_send")
STEPS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 150.0, 200.0)
ENOUGH = 0.8
"""Scaling has stopped where fewer than this part of the cores' worth is done."""


class Runs:
    """Runs on the same costs and seed, each made once."""

    def __init__(self, costs: Costs, seed: int) -> None:
        self.costs = costs
        self.seed = seed
        self._made: dict[tuple[int, Load, Costs], Outcome] = {}

    def __call__(self, cores: int, load: Load, costs: Costs | None = None) -> Outcome:
        key = cores, load, costs or self.costs
        if key not in self._made:
            self._made[key] = simulate(cores, load, key[2], self.seed)
        return self._made[key]

    def efficiency(self, cores: int, load: Load, costs: Costs | None = None) -> float:
        """Throughput against so many times that of one core."""
        one = self(1, replace(load, shards=1), costs)
        return self(cores, load, costs).rate / (cores * one.rate)

    def shortest(self, cores: int, sends: str) -> float | None:
        """The shortest handler with which so many cores do ENOUGH; None: not even the longest."""
        low, high = 0, len(STEPS)
        while low < high:
            middle = (low + high) // 2
            if self.efficiency(cores, Load(STEPS[middle], sends)) >= ENOUGH:
                high = middle
            else:
                low = middle + 1
        return STEPS[low] if low < len(STEPS) else None


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    sys.stdout.flush()


def show_cores(runs: Runs) -> None:
    for sends in SENDS:
        rows = []
        for cores in CORES:
            row = [str(cores)]
            for handler in HANDLERS:
                load = Load(handler, sends)
                share = runs.efficiency(cores, load)
                row.append(f"{runs(cores, load).rate:,.0f} ({share:.0%})")
            rows.append(row)
        head = ["cores", *(f"{handler:,.0f} us" for handler in HANDLERS)]
        table(f"one ring, {SENDS[sends]}: requests a second (of cores x one core)", head, rows)
    rows = []
    for cores in (2, 4, 8, 12, 16, 32, 64):
        shortest = [runs.shortest(cores, sends) for sends in SENDS]
        rows.append([str(cores), *(f"{time:g} us" if time else "none" for time in shortest)])
    title = (
        f"the shortest handler with which the cores give {ENOUGH:.0%} of what they could, one ring"
    )
    table(title, ["cores", *SENDS], rows)


def show_shards(runs: Runs) -> None:
    for sends in ("batched", "epoll"):
        rows = []
        for handler in (2.0, 10.0, 100.0):
            for cores in (8, 12, 16, 64):
                row = [f"{handler:,.0f} us", str(cores)]
                for shards in (1, 2, 4, 8, cores):
                    share = runs.efficiency(cores, Load(handler, sends, shards=shards))
                    row.append(f"{share:.0%}")
                rows.append(row)
        table(
            f"several rings, {SENDS[sends]}: part of what the cores could do",
            ["handler", "cores", "1", "2", "4", "8", "one a core"],
            rows,
        )


def show_uneven(runs: Runs) -> None:
    rows = []
    for handler in (10.0, 100.0, 1000.0):
        for cores in (8, 16):
            offered = OFFERED * cores * runs(1, Load(handler, "direct")).rate
            row = [f"{handler:,.0f} us", str(cores)]
            for shards, steals in (
                (1, False),
                *((n, s) for n in (2, 4, cores) for s in (False, True)),
            ):
                load = Load(handler, "direct", shards, steals, offered=offered)
                row.append(f"{runs(cores, load).rate / offered:.0%}")
            rows.append(row)
    head = ["handler", "cores", "1 ring", "2", "2 steal", "4", "4 steal", "each", "each steals"]
    title = (
        f"uneven load of {OFFERED:.0%} of what the cores can do: part of it that is served\n"
        "  (the heavy connections are all in the first rings; sends are direct)"
    )
    table(title, head, rows)


def show_doubts(runs: Runs) -> None:
    costs = runs.costs
    slow = {name: getattr(costs, name) * 2 for name in KERNEL}
    changes: dict[str, tuple[dict[str, Any], int]] = {
        "as measured": ({}, 128),
        "cache lines 4 times slower": ({"transfer": costs.transfer * 4}, 128),
        "2 cache lines with a lock": ({"lines": 2}, 128),
        "wake-ups as without a hypervisor": ({"wake_call": 1.5, "wake_latency": 5.0}, 128),
        "kernel half as fast": (slow, 128),
        "library half as fast": ({"own": costs.own * 2}, 128),
        "32 connections a core": ({}, 32),
        "8 connections a core": ({}, 8),
    }
    rows = []
    for name, (changed, connections) in changes.items():
        row = [name]
        for handler in (2.0, 10.0):
            for sends in SENDS:
                load = Load(handler, sends, connections=connections)
                row.append(f"{runs.efficiency(16, load, replace(costs, **changed)):.0%}")
        rows.append(row)
    head = ["costs", *(f"{sends} {handler} us" for handler in (2, 10) for sends in SENDS)]
    table("one ring, 16 cores: part of what the cores could do, on other costs", head, rows)


def show_two_cores(runs: Runs) -> None:
    """To be held against what measure_two_cores.py prints."""
    rows = []
    for handler in (0.0, 1.0, 10.0, 100.0):
        rates = [runs(cores, Load(handler, "posts")).rate for cores in (1, 2)]
        row = [f"{handler:.0f} us", *(f"{rate:,.0f}" for rate in rates)]
        rows.append([*row, f"{rates[1] / rates[0]:.2f}"])
    table("post and get, no I/O: packets a second", ["handler", "1 core", "2 cores", "ratio"], rows)
    rows = []
    for sends in ("batched", "epoll"):
        for handler in (2.0, 10.0, 100.0):
            loads = [(cores, Load(handler, sends, connections=64 // cores)) for cores in (1, 2)]
            each = [f"{cores / runs(cores, load).rate * 1e6:.1f}" for cores, load in loads]
            rows.append([f"{handler:.0f} us", SENDS[sends], *each])
    table(
        "echo, 64 connections: core microseconds for each request, idle time included",
        ["handler", "engine", "1 core", "2 cores"],
        rows,
    )


WHAT = {
    "cores": show_cores,
    "shards": show_shards,
    "uneven": show_uneven,
    "doubts": show_doubts,
    "two-cores": show_two_cores,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=[*WHAT, "all"], nargs="?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--costs", type=Path, help="what measure_costs.py --json wrote")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the pictures there")
    options = parser.parse_args()
    if options.plots:
        try:
            from plot_scaling import draw
        except ImportError as missing:
            parser.error(f"--plots: {missing}; pip install 'completionport[tools]'")
    runs = Runs(Costs.read(options.costs) if options.costs else Costs.read(), options.seed)
    print(f"SIMULATED, seed {options.seed}; {runs.costs}")
    for name, show in WHAT.items():
        if options.what in (name, "all"):
            show(runs)
    if options.plots:
        draw(runs, options.plots)


if __name__ == "__main__":
    main()
