"""The model behind simulate_scheduler.py: workers, packet queues, rings, and what each step costs.

A worker is a generator that yields how long it is busy (microseconds), or None to sleep until
`Model.resume`. Locks are first come, first served: who wants one is told when it will be through,
and what it changes changes at that time.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

Steps = Generator[float | None, None, None]

MEASURED = Path(__file__).resolve().parent.parent / "docs" / "scaling-costs.json"
SENDS = {
    "batched": "io_uring, sends by the ring while packets wait",
    "direct": "io_uring, each send a system call",
    "epoll": "epoll, receives and sends by the workers",
}
LOOK_INTO_KERNEL_AFTER = 61
SUBMIT_AT = 64
EVENTS_AT_ONCE = 256
MONITOR_US = 1000.0
KERNEL_TICK_US = 4000.0
# As in native/scheduling/scheduler.*: work as long as that, or so much short work.
WAKE_COST_US = 12.0
BACKLOG_COST_US = 1000.0
ROUND_TRIP_US = 50.0
NEVER = float("inf")


@dataclass(frozen=True)
class Costs:
    """Microseconds. What `measure_costs.py` measures, and, from `section` on, what is derived from
    other measurements, see docs/scaling.md."""

    transfer: float = 0.06
    wake_call: float = 10.0
    wake_latency: float = 20.0
    receive: float = 0.84
    send: float = 0.84
    ring_enter: float = 0.18
    ring_receive: float = 0.88
    ring_send: float = 0.84
    epoll_wait: float = 0.2
    epoll_event: float = 0.05
    section: float = 0.03
    """What a thread does to the packet queue under its lock."""
    lines: int = 5
    """Cache lines that a lock's next holder has to fetch when the last one was on another core."""
    own: float = 1.5
    """The rest of a request: library, Python's call, waking the peer."""
    connection_lines: int = 10
    """Cache lines of a connection, to be fetched by a worker that did not serve it last."""

    @classmethod
    def read(cls, path: Path = MEASURED) -> Costs:
        measured = json.loads(path.read_text())["microseconds"]
        names = [name for name in cls.__dataclass_fields__ if name in measured]
        return cls(measured["line_transfer"], **{name: measured[name] for name in names})


@dataclass(frozen=True)
class Load:
    handler: float
    sends: str = "batched"
    shards: int = 1
    steals: bool = True
    connections: int = 128
    """For each core."""
    offered: float = 0.0
    """Requests a second, of which a fifth of the connections makes 80 %; 0 is as many as possible,
    all connections alike."""


@dataclass(frozen=True)
class Outcome:
    rate: float
    """Requests a second."""
    work: float
    """How many cores were in handlers, on average."""
    wakeups: float
    """For each request."""
    stolen: float
    """Part of the requests that a worker of another shard served."""


class Lock:
    """Handing it to another core costs the cache lines that its holder needs: the lock's own and
    those that it guards."""

    def __init__(self, handover: float) -> None:
        self.handover = handover
        self.free_at = 0.0
        self.last: Worker | None = None

    def through(self, now: float, who: Worker, hold: float) -> float:
        """How long it takes from now until ``who`` has had it for ``hold``."""
        start = max(now, self.free_at)
        if self.last is not who:
            start += self.handover
            self.last = who
        self.free_at = start + hold
        return self.free_at - now


class Shard:
    def __init__(self, costs: Costs) -> None:
        self.lock = Lock(costs.transfer * costs.lines)
        self.ring = Lock(costs.transfer * costs.lines)
        self.packets: deque[Connection] = deque()
        self.completed: deque[Connection] = deque()
        self.unsent: list[Connection] = []
        self.leader: Worker | None = None
        self.parked: list[Worker] = []
        self.woken = 0
        self.since_kernel = 0
        self.average = 0.0


class Worker:
    def __init__(self, home: Shard) -> None:
        self.home = home
        self.asleep = False
        self.signal: Shard | None = None  # the shard whose packets it was woken for
        self.tasks: list[Connection] = []  # receives that the kernel keeps for it to carry out
        self.tasks_since = NEVER
        self.steps: Steps


class Connection:
    def __init__(self, shard: Shard, owner: Worker, pause: float) -> None:
        self.shard = shard
        self.owner = owner
        self.last = owner
        self.pause = pause


class Model:
    def __init__(self, cores: int, load: Load, costs: Costs, seed: int) -> None:
        self.load, self.costs = load, costs
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.counter = 0
        self.requests = self.stolen = self.wakeups = 0
        self.work = 0.0
        self.on_ring = load.sends in ("batched", "direct")
        self.shards = [Shard(costs) for _ in range(load.shards)]
        homes = [self.shards[core * load.shards // cores] for core in range(cores)]
        self.workers = [Worker(home) for home in homes]
        count = cores * load.connections
        for number in range(count):
            owner = self.workers[number * cores // count]
            # The heavy connections come first, so they are together in the first shards.
            connection = Connection(owner.home, owner, self.pause(number < count // 5, count))
            if load.sends == "posts":
                owner.home.packets.append(connection)
            else:
                self.answered(connection, 0.0)
        for worker in self.workers:
            worker.steps = self.life(worker)
            self.at(0.0, self.step, worker)
        self.at(MONITOR_US, self.monitor)

    def pause(self, heavy: bool, count: int) -> float:
        """How long a connection is silent after an answer, on average."""
        if not self.load.offered:
            return 0.0
        share = 0.8 / 0.2 if heavy else 0.2 / 0.8
        return max(0.0, count / (self.load.offered * share) * 1e6 - ROUND_TRIP_US)

    # -- time

    def at(self, delay: float, call: Callable[..., None], *arguments: object) -> None:
        self.counter += 1
        heapq.heappush(self.events, (self.now + delay, self.counter, call, arguments))

    def run(self, requests: int) -> None:
        goal = self.requests + requests
        while self.requests < goal:
            self.now, _, call, arguments = heapq.heappop(self.events)
            call(*arguments)

    def step(self, worker: Worker) -> None:
        busy = next(worker.steps)
        if busy is None:
            worker.asleep = True
        else:
            self.at(busy, self.step, worker)

    def resume(self, worker: Worker) -> None:
        if worker.asleep:
            worker.asleep = False
            self.at(self.costs.wake_latency, self.step, worker)

    # -- the network

    def arrive(self, connection: Connection) -> None:
        if not self.on_ring:
            self.complete(connection.shard, [connection])
            return
        # The kernel has the thread that armed the receive carry it out, when it next comes by.
        owner = connection.owner
        if not owner.tasks:
            owner.tasks_since = self.now
        owner.tasks.append(connection)
        self.resume(owner)

    def complete(self, shard: Shard, connections: list[Connection]) -> bool:
        """Whether somebody had to be woken."""
        shard.completed.extend(connections)
        if connections and shard.leader and shard.leader.asleep:
            self.resume(shard.leader)
            return True
        return False

    def monitor(self) -> None:
        for shard in self.shards:
            if len(shard.packets) > shard.woken or (shard.leader is None and not shard.woken):
                self.wake(shard)
        self.at(MONITOR_US, self.monitor)

    # -- waking

    def wake(self, shard: Shard) -> bool:
        """Wake a parked worker for the packets of ``shard``, its own ones first; a worker of
        another shard that waits in its kernel will do."""
        candidates = [shard]
        if self.load.steals and len(self.shards) > 1:
            candidates += [other for other in self.shards if other is not shard]
        for candidate in candidates:
            leader = candidate.leader
            if candidate.parked:
                follower = candidate.parked.pop()
            elif leader and leader.asleep and not leader.signal and candidate is not shard:
                follower = leader
            else:
                continue
            follower.signal = shard
            shard.woken += 1
            self.wakeups += 1
            self.resume(follower)
            return True
        return False

    def leave(self, shard: Shard) -> bool:
        """With a packet: wake a follower if what is left is worth it."""
        left = len(shard.packets) - shard.woken
        is_long = shard.average >= WAKE_COST_US
        worth = left > 0 and (is_long or left * shard.average >= BACKLOG_COST_US)
        if not worth and shard.leader is None and not shard.woken and shard.parked:
            worth = is_long
        return worth and self.wake(shard)

    # -- workers

    def life(self, me: Worker) -> Steps:
        home = me.home
        while True:
            yield home.lock.through(self.now, me, self.costs.section)
            if me.signal:
                me.signal.woken -= 1
                me.signal = None
            if home.since_kernel >= LOOK_INTO_KERNEL_AFTER and home.leader is None:
                home.since_kernel = 0
                yield from self.look(me, home)
                yield from self.reap(me, home)
            if home.packets:
                home.since_kernel += 1
                yield from self.serve(me, home, home.packets.popleft())
            elif home.leader is None and (home.completed or me.tasks or home.unsent):
                yield from self.lead(me, home, sleeps=False)
            elif (victim := self.victim(home)) is not None:
                yield self.costs.transfer * 2  # it has looked at that shard's queue and at others'
                yield victim.lock.through(self.now, me, self.costs.section)
                if victim.packets:
                    self.stolen += 1
                    yield from self.serve(me, victim, victim.packets.popleft())
            elif home.leader is None:
                yield from self.lead(me, home, sleeps=True)
            else:
                yield from self.park(me, home)

    def victim(self, home: Shard) -> Shard | None:
        if not self.load.steals or len(self.shards) == 1:
            return None
        longest = max(self.shards, key=lambda shard: len(shard.packets))
        return longest if longest.packets and longest is not home else None

    def park(self, me: Worker, home: Shard) -> Steps:
        home.parked.append(me)
        if home.unsent:
            yield from self.look(me, home)
        while not me.signal:
            if me.tasks:
                yield from self.look(me, home)
            else:
                yield None

    def lead(self, me: Worker, home: Shard, sleeps: bool) -> Steps:
        home.leader = me
        home.since_kernel = 0
        yield from self.look(me, home)
        while sleeps and not home.completed and not me.signal:
            if me.tasks:
                yield from self.look(me, home)
            else:
                yield None
        yield from self.reap(me, home)
        home.leader = None

    def look(self, me: Worker, shard: Shard) -> Steps:
        """Enter the kernel: submit what waits, carry out this thread's receives."""
        costs = self.costs
        if not self.on_ring:
            yield costs.epoll_wait
            return
        sends, shard.unsent = shard.unsent, []
        tasks: list[Connection] = []
        if me.home is shard:
            tasks, me.tasks = me.tasks, []
        if not sends and not tasks:
            yield costs.ring_enter
            return
        sending, receiving = len(sends) * costs.ring_send, len(tasks) * costs.ring_receive
        hold = costs.ring_enter + sending + receiving
        whole = shard.ring.through(self.now, me, hold)
        for number, connection in enumerate(sends, 1):
            self.answered(connection, whole - hold + costs.ring_enter + number * costs.ring_send)
        yield whole
        if self.complete(shard, tasks) and shard.leader is not me:
            yield costs.wake_call

    def reap(self, me: Worker, shard: Shard) -> Steps:
        """From the kernel's queue to the packets, which others may take at once."""
        for _ in range(min(len(shard.completed), EVENTS_AT_ONCE)):
            if not shard.completed:
                break
            connection = shard.completed.popleft()
            yield self.costs.epoll_event
            yield shard.lock.through(self.now, me, self.costs.section)
            shard.packets.append(connection)

    def serve(self, me: Worker, shard: Shard, connection: Connection) -> Steps:
        costs, sends = self.costs, self.load.sends
        began = self.now
        if self.leave(shard):
            yield costs.wake_call
        handler = self.load.handler * self.random.uniform(0.5, 1.5)
        own = costs.own
        if connection.last is not me:
            connection.last = me
            own += costs.connection_lines * costs.transfer
        if sends == "posts":
            yield handler + costs.section * 2
            yield shard.lock.through(self.now, me, costs.section)
            shard.packets.append(connection)
        elif sends == "batched" and shard.packets and shard is me.home:
            yield own + handler
            shard.unsent.append(connection)
            if len(shard.unsent) >= SUBMIT_AT or self.now - me.tasks_since > KERNEL_TICK_US:
                yield from self.look(me, shard)
        else:
            yield own + handler + costs.send + (0 if self.on_ring else costs.receive)
            self.answered(connection, 0.0)
            if me.tasks:
                # The way back from any system call leads past this thread's receives.
                yield from self.look(me, me.home)
        self.requests += 1
        self.work += handler
        # As `end_turn` of the scheduler: one long turn counts for little more than four usual ones.
        took = min(self.now - began, 4 * shard.average + 1)
        shard.average += (took - shard.average) / 8

    def answered(self, connection: Connection, delay: float) -> None:
        if connection.pause:
            delay += self.random.expovariate(1 / connection.pause)
        self.at(delay + ROUND_TRIP_US, self.arrive, connection)


def simulate(cores: int, load: Load, costs: Costs, seed: int, requests: int = 0) -> Outcome:
    """The steady state: what happens first is not counted."""
    requests = requests or max(8000, 4 * load.connections * cores)
    model = Model(cores, load, costs, seed)
    model.run(requests // 2)
    began, done, work = model.now, model.requests, model.work
    wakeups, stolen = model.wakeups, model.stolen
    model.run(requests)
    done = model.requests - done
    took = model.now - began
    return Outcome(
        rate=done / took * 1e6,
        work=(model.work - work) / took,
        wakeups=(model.wakeups - wakeups) / done,
        stolen=(model.stolen - stolen) / done,
    )
