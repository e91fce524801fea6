"""What must be so in the simulation behind docs/scaling.md, whatever its costs are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

from scheduler_model import SENDS, Costs, Load, simulate  # noqa: E402

COSTS = Costs()


def rate(cores: int, load: Load, seed: int = 1, costs: Costs = COSTS) -> float:
    return simulate(cores, load, costs, seed, requests=32 * cores + 4000).rate


def small(handler: float, sends: str, shards: int = 1) -> Load:
    return Load(handler, sends, shards, connections=32)


@pytest.mark.parametrize("handler", [1.0, 10.0, 100.0])
def test_one_core_does_one_request_after_the_other(handler):
    each = handler + COSTS.own + COSTS.receive + COSTS.send + 2 * COSTS.section + COSTS.epoll_event
    # Each call that asks the kernel brings at least one event and at most all connections.
    found = 1e6 / rate(1, Load(handler, "epoll"))
    assert each * 0.98 < found < (each + COSTS.epoll_wait) * 1.02


@pytest.mark.parametrize("sends", ["batched", "direct"])
def test_one_ring_never_does_more_than_its_lock_lets_through(sends):
    each = COSTS.ring_receive + (COSTS.ring_send if sends == "batched" else 0)
    assert rate(16, Load(1.0, sends)) <= 1e6 / each * 1.1


@pytest.mark.parametrize("sends", SENDS)
@pytest.mark.parametrize("handler", [1.0, 10.0, 100.0])
def test_more_cores_never_give_much_less(handler, sends):
    rates = [rate(cores, small(handler, sends)) for cores in (1, 2, 4, 8, 16, 32, 64)]
    for fewer, more in pairwise(rates):
        assert more >= 0.9 * fewer


@pytest.mark.parametrize("sends", SENDS)
def test_long_handlers_scale_to_64_cores(sends):
    one = rate(1, small(1000.0, sends))
    assert rate(64, small(1000.0, sends)) == pytest.approx(64 * one, rel=0.05)


def test_the_same_seed_gives_the_same_result():
    load = Load(5.0, "batched", shards=2, offered=300_000.0)
    assert simulate(4, load, COSTS, 7, 3000) == simulate(4, load, COSTS, 7, 3000)
    assert simulate(4, load, COSTS, 7, 3000) != simulate(4, load, COSTS, 8, 3000)


def test_a_ring_for_each_core_without_stealing_is_so_many_machines():
    one = rate(1, Load(2.0, "direct", connections=32))
    apart = rate(8, Load(2.0, "direct", 8, steals=False, connections=32))
    assert apart == pytest.approx(8 * one, rel=0.05)


def test_stealing_serves_what_uneven_shards_leave():
    offered = 0.8 * 8 * rate(1, Load(100.0, "direct"))
    alone, stealing = (
        simulate(8, Load(100.0, "direct", 4, steals, offered=offered), COSTS, 1)
        for steals in (False, True)
    )
    assert alone.stolen == 0 < stealing.stolen
    assert stealing.rate > 1.3 * alone.rate


def test_dearer_cache_lines_never_help():
    slow = replace(COSTS, transfer=COSTS.transfer * 4)
    assert rate(16, Load(2.0, "epoll"), costs=slow) < rate(16, Load(2.0, "epoll"))


def test_the_command_prints_its_seed_and_that_it_is_simulated():
    done = subprocess.run(
        [sys.executable, TOOLS / "simulate_scheduler.py", "two-cores", "--seed", "5"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SIMULATED, seed 5")
