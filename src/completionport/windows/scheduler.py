"""The kernel's port as the queue of packets, and what the kernel knows nothing of.

The kernel holds the packets, lets threads wait, and sees to the concurrency. Kept here are the
Python objects that its numbers stand for, and the strands: a packet whose strand is at work is
taken from the kernel and stays back in the strand's line; its turn comes as a new packet of the
kernel.

Nor does the kernel know that not every thread takes every packet. What a thread took that is not
for it is put aside for the next one that comes, or for one that waits: that is told by a procedure
call in that very thread (``QueueUserAPC``), which ends its wait. So it takes no place in the
kernel's count of running threads. A thread that is dismissed is told the same way.

For each of the program's packets that lies aside the kernel has a turn, a packet without contents:
so it is the kernel, which alone knows how many threads run, that lets a thread go for it. A thread
that takes a turn and not the program's packets calls one that does, and waits again. With nobody to
be called, the next thread that comes for such packets gives a turn back to the kernel first.

Finalizers call in here as well, at any allocation. The lock is reentrant and the last one in the
order: nothing else is waited for under it, and the state is whole at every allocation.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..interface.errors import WHILE_WAITING, PortClosed
from ..portable.channels.requests import Request
from ..portable.scheduling.packets import Hand, look
from ..portable.scheduling.places import (
    ALL,
    PROGRAMS,
    SERVED,
    CrewMembers,
    Packet,
    Place,
    PortableStrand,
    this_place,
)
from ..portable.scheduling.recorder import NOT_MEASURED, Recorder
from ..portable.scheduling.scheduler import END, STUCK_AFTER
from ..portable.scheduling.timers import PortableTimer, TimerQueue
from . import alerts, api
from .api import INFINITE
from .flights import Flight
from .kernel_port import Harvest, KernelPort

LONGEST_WAIT = 1 << 30
"""Milliseconds; longer waits are cut in pieces."""
PATIENCE = 1.0
"""Seconds that `close` waits for the kernel to let go, and for threads to leave."""
AT_ONCE = 64
WAKE = 0
"""The key of a packet that only has a thread look again, and of every file."""
OWN = (1 << 64) - 1
"""The key of a packet that was made here for a flight, which knows its outcome itself."""
TURN = OWN - 1
"""The key of a packet that lets a thread take the program's packets that lie aside."""


class _Waiter:
    """One thread in `KernelScheduler.take`."""

    __slots__ = ("alarm", "crew", "hand", "takes")

    def __init__(
        self, alarm: api.Alarm, hand: list[Packet], takes: int, crew: CrewMembers | None
    ) -> None:
        self.alarm = alarm
        self.hand = hand  # what it took from the kernel, and not yet counted as taken
        self.takes = takes
        self.crew = crew


def _takes_of(packet: Packet) -> int:
    """The bit of those who take it."""
    return PROGRAMS if packet.consumer is None else SERVED


class KernelScheduler:
    """Offers what `portable.scheduling.scheduler.Scheduler` does."""

    forked = False  # Windows has no fork

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.kernel = KernelPort(concurrency)
        # What the kernel has, by address; each step is atomic.
        self.flights: dict[int, Flight] = {}
        self._lock = threading.RLock()
        # Packets that were put, by the key under which the kernel has them. True: its strand has
        # given it its turn. Each step is atomic.
        self._put: dict[int, tuple[Packet, bool]] = {}
        self._keys = itertools.count(WAKE + 1)
        # Keys and flights that the kernel had no memory for; each step is atomic.
        self._late: deque[tuple[int, int | None]] = deque()
        self._waiting: dict[int, _Waiter] = {}  # threads in `take`, the newest last; _lock
        # What was taken by threads that it is not for, by who takes it; _lock
        self._aside: dict[int, deque[Packet]] = {PROGRAMS: deque(), SERVED: deque()}
        # Turns that the kernel has; of those that it gave, the ones for threads that were called,
        # and the ones for which there was nobody to be called; _lock
        self._turns_there = 0
        self._turns = 0
        self._turns_left = 0
        # Crews by the key of a packet in front of which is all that was there when they were told
        # that threads of theirs are to leave; _lock
        self._leaving: dict[int, CrewMembers] = {}
        self._programs_taken = 0  # packets of the program's; _lock
        self._dismissed = 0  # threads of all crews that are to leave; _lock
        self._choosy = False  # there is a crew that does not take the program's packets; _lock
        # Held by who closes the port, until nobody is in `take`; _lock
        self._gate: threading.Lock | None = None
        self.timers = TimerQueue()  # _lock, but for what says otherwise
        # The thread that waits no longer than until the next timer, and until when; _lock
        self._timekeeper: int | None = None
        self._until_ns: int | None = None
        self._due: deque[Packet] = deque()  # packets of timers that have come to their time; _lock
        self._back: dict[PortableStrand, None] = {}  # strands with packets that stay back; _lock
        # Tokens of threads at work on a packet, and of those that said that they block; _lock
        self._at_work: dict[object, None] = {}
        self._blocked: dict[object, None] = {}
        self._posts = 0  # posted packets taken; _lock
        self._operations = 0  # other packets taken; _lock
        self._work_time = Recorder()  # _lock
        self._queue_time = Recorder()  # _lock
        self._changed = threading.Condition(self._lock)  # what `wait_until_stuck` looks at
        self._dismissals = 0  # calls of `dismiss_watchers`; _lock
        self._closed = False  # never goes back; _lock
        self._self = weakref.ref(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def check_fork(self) -> None:
        """There is no fork."""

    def check(self) -> None:
        """Raise `PortClosed` where it is due."""
        if self._closed:
            raise PortClosed

    def bind(self, handle: int) -> int:
        """Bind a file to the kernel's port. Returned: 0, or the code of what went wrong."""
        with self._lock:
            self.check()
            return self.kernel.associate(handle)

    def put(self, packet: Packet) -> None:
        """Append a packet. Never blocks."""
        packet.since = time.monotonic_ns()
        with self._lock:
            if not self._closed:
                self._give([packet])
                return
        packet.drop()

    def set_timer(self, timer: PortableTimer) -> None:
        """Put the timer's packet at its time. Never blocks."""
        self.timers.add(timer)
        with self._lock:
            if self._closed:
                self.timers.drop()
            elif self._waiting and (self._until_ns is None or timer._when_ns < self._until_ns):
                self._hand(WAKE)  # who takes it waits no longer than until then

    def _fire(self) -> None:
        """Make packets of timers that are due. Lock held."""
        if self.timers:
            self.timers.fire(time.monotonic_ns(), self._due)
        while self._due:
            self._due[0].since = time.monotonic_ns()
            self._give(self._due)

    def _keep_time(self, thread: int) -> int | None:
        """See to the timers. Returned: until when the thread waits for them. Lock held."""
        next_ns = None
        if self.timers or self._due:
            self._fire()
            next_ns = self.timers.next_ns()
        nobody = self._timekeeper is None or self._timekeeper == thread
        if next_ns is None or not (nobody or self._until_ns is None or next_ns < self._until_ns):
            if self._timekeeper == thread:
                self._timekeeper = self._until_ns = None
            return None
        self._timekeeper, self._until_ns = thread, next_ns
        return next_ns

    def repost(self, flight: Flight) -> None:
        """Make a packet of a flight that the kernel gives none for. Never blocks."""
        with self._lock:
            if self.kernel.handle is not None:
                self._hand(OWN, flight.address)
                return
        self._drop_flight(flight.address)

    def register_wait(self, handle: int, address: int) -> int:
        """Have the system post a packet of the address, once the object is signaled."""
        with self._lock:
            self.check()
            assert self.kernel.handle is not None
            return api.register_wait(handle, self.kernel.handle, address)

    def end_turn(self, place: Place) -> None:
        """The thread is done with what it took. It waits for the lock, held for moments."""
        with self._lock:
            if place.since != NOT_MEASURED:
                self._work_time.add(time.monotonic_ns() - place.since)
                place.since = NOT_MEASURED
            while place.strands:
                self._advance(place.strands)
            self._at_work.pop(place.token, None)
            self._blocked.pop(place.token, None)
            place.holder = place.lent = None

    def let_strand_go(self, place: Place, strand: PortableStrand) -> None:
        """The thread is done with one strand."""
        with self._lock:
            mine = [strand]
            place.strands.remove(strand)
            self._advance(mine)

    def lend(self, place: Place) -> None:
        """The thread says that it blocks."""
        with self._lock:
            if place.token in self._at_work:
                self._blocked[place.token] = None
                self._at_work.pop(place.token, None)

    def regain(self, place: Place) -> None:
        """It blocks no more."""
        with self._lock:
            if place.token in self._blocked:
                self._at_work[place.token] = None
                self._blocked.pop(place.token, None)

    def settle(self) -> None:
        """Nothing is left for later."""

    def add_crew(self, crew: CrewMembers) -> None:
        """Threads are to wait as its members.

        Where they leave the program's packets to others, those that are put come aside at once: so
        they keep their order, whoever takes what the kernel has.
        """
        if crew.takes == ALL:
            return
        with self._lock:
            self.check()
            if self._choosy:
                return
            self._choosy = True
            # All there is at once, since what is an operation's goes back: its channel's lock comes
            # before this one.
            depth = max(self.kernel.depth(), 1)
            harvest = Harvest(depth)
            try:
                self.kernel.wait(harvest, depth, 0)
                while (entry := harvest.entry()) is not None:
                    packet, _ = self._put.get(entry.lpCompletionKey, (None, False))
                    if packet is not None and packet.consumer is None:
                        self._aside[PROGRAMS] += (packet,)
                        del self._put[entry.lpCompletionKey]
                    else:
                        self._hand_back(entry)
                    harvest.next += 1
                self._see_to_turns()
            except BaseException:
                self._put_back(harvest, Hand())
                raise

    def dismiss(self, crew: CrewMembers, count: int) -> None:
        """Have so many threads of the crew leave it: with their next `take`, waiting ones at once.

        Where they take the program's packets, those that are queued now are taken before.
        """
        with self._lock:
            crew.leaving += count
            self._dismissed += count
            if crew.takes & PROGRAMS and self.kernel.depth():
                # Which completions are the program's is seen as they are taken.
                key = next(self._keys)
                self._leaving[key] = crew
                if self._hand(key):
                    return
            self._all_is_seen(crew)

    def _all_is_seen(self, crew: CrewMembers) -> None:
        """Of what is to be taken before its threads leave. Lock held."""
        crew.until = self._programs_taken + self._programs_waiting()
        self._let_dismissed_go()

    def _let_dismissed_go(self) -> None:
        """Lock held."""
        for waiter in self._waiting.values():
            if self._may_leave(waiter.crew):
                waiter.alarm.ring()

    def _programs_waiting(self) -> int:
        """Of the program's packets, those that wait and were seen as such. Lock held."""
        mine = sum(packet.consumer is None for packet, _ in list(self._put.values()))
        back = sum(len(strand._line) for strand in list(self._back))
        hands = [packet for waiter in self._waiting.values() for packet in waiter.hand]
        in_hand = sum(packet.consumer is None for packet in hands)
        return mine + back + in_hand + len(self._aside[PROGRAMS])

    def _may_leave(self, crew: CrewMembers | None) -> bool:
        """Whether a thread of it is dismissed, and has seen to what it was to. Lock held."""
        if crew is None or crew.leaving <= 0:
            return False
        if not crew.takes & PROGRAMS:
            return True
        if crew in self._leaving.values():
            return False
        if self._programs_taken >= crew.until:
            return True
        return self._programs_waiting() == sum(len(one._line) for one in list(self._back))

    def _take_aside(self, takes: int, max_count: int, packets: list[Packet]) -> None:
        """What was put aside for a thread like this. Of consumers' one at a time. Lock held."""
        aside = self._aside[SERVED]
        if takes & SERVED and aside:
            packets.append(aside.popleft())
            return
        aside = self._aside[PROGRAMS]
        if takes & PROGRAMS and aside and self._turns:
            self._turns -= 1
            while aside and len(packets) < max_count:
                packets.append(aside.popleft())
        self._turns = min(self._turns, len(aside))
        self._turns_left = min(self._turns_left, len(aside) - self._turns)

    def _put_aside(self, takes: int, packets: list[Packet]) -> None:
        """Keep only what the thread takes. Lock held."""
        kinds = [bit for bit in map(_takes_of, packets) if bit & takes]
        kind = kinds[0] if kinds else 0
        kept = 0
        for packet in list(packets):
            if _takes_of(packet) == kind and (kind == PROGRAMS or kept == 0):
                kept += 1
            else:
                packets.remove(packet)
                self._aside[_takes_of(packet)].append(packet)
                self._changed.notify_all()
                if packet.consumer is None:
                    self._take_turn()
        if packets or takes != ALL:  # else the thread looks there itself
            self._call_for_aside()

    def _see_to_turns(self) -> None:
        """Have a turn for each of the program's packets that lies aside. Lock held."""
        aside = len(self._aside[PROGRAMS])
        while self._turns + self._turns_left + self._turns_there < aside:
            if not self._hand(TURN):
                return

    def _is_awaited(self) -> bool:
        """Whether somebody waits for the program's packets. Lock held."""
        return PROGRAMS in [waiter.takes & PROGRAMS for waiter in self._waiting.values()]

    def _take_turn(self) -> None:
        """The kernel has let a thread go for one of the program's packets. Lock held."""
        if self._turns + self._turns_left < len(self._aside[PROGRAMS]):
            if self._is_awaited():
                self._turns += 1
            else:
                self._turns_left += 1

    def _call_for_aside(self) -> None:
        """Have threads that wait look at what was put aside. Lock held."""
        called: list[_Waiter] = []
        for kind, aside in self._aside.items():
            wanted = len(aside) if kind == SERVED else min(len(aside), self._turns)
            for waiter in reversed(self._waiting.values()):
                if wanted <= 0:
                    break
                if waiter.takes & kind and waiter not in called:
                    wanted -= 1
                    called.append(waiter)
                    waiter.alarm.ring()

    def take(
        self,
        max_count: int,
        timeout: float | None,
        takes: int = ALL,
        crew: CrewMembers | None = None,
    ) -> Hand:
        """Take packets, waiting for the first one; none when the time is over.

        ``takes``, ``crew``: see the other scheduler.

        They are the thread's once it calls `hand_out`; `put_back` gives them back.
        """
        self.check()
        place = this_place()
        place.leave(self)
        if place.serving:
            takes = PROGRAMS
        me = threading.get_ident()
        is_main = alerts.is_main_thread()
        deadline = None if timeout is None else time.monotonic() + timeout
        harvest = Harvest(min(max_count, AT_ONCE))
        packets = Hand()
        entered = False
        try:
            with self._lock:
                if place.holder is not None:
                    self.end_turn(place)
                if self._closed:
                    raise PortClosed(WHILE_WAITING)
                entered = me not in self._waiting  # else a signal handler's, inside of another
                if entered:
                    self._waiting[me] = _Waiter(api.own_alarm(), packets, takes, crew)
                if takes & PROGRAMS and self._turns_left:
                    self._turns_left -= 1
                    self._hand(TURN)
            while not packets:
                with self._lock:
                    if self._may_leave(crew):
                        assert crew is not None
                        crew.leaving -= 1
                        self._dismissed -= 1
                        packets.dismissed = True
                        if entered:
                            self._leave(me)
                        return packets
                    self._take_aside(takes, max_count, packets)
                    if packets:
                        break
                    until_ns = self._keep_time(me)
                milliseconds = wait = INFINITE
                if deadline is not None:
                    left = math.ceil(max(deadline - time.monotonic(), 0.0) * 1000)
                    milliseconds = wait = min(left, LONGEST_WAIT)
                if until_ns is not None:
                    wait = min(wait, _milliseconds_until(until_ns))
                while self._late and self._hand(*self._late.popleft()):
                    pass
                # What is there costs no preparation for signals.
                came = self.kernel.wait(harvest, max_count, 0 if is_main else wait)
                if is_main and wait and not came:
                    came = self.kernel.wait(harvest, max_count, wait, heeds_signals=True)
                if self._closed:
                    raise PortClosed(WHILE_WAITING)
                if came:
                    self._sort(harvest, packets)
                    with self._lock:
                        self._put_aside(takes, packets)
                elif milliseconds == 0:
                    with self._lock:
                        if takes & PROGRAMS and self._take_turn_in_hand():
                            continue
                        if entered:
                            self._leave(me)
                        return packets
            packets.taken_at = now = time.monotonic_ns()
            with self._lock:
                self._at_work[place.token] = None
                place.holder = self._self
                self._count(packets)
                for packet in packets:
                    if packet.since != NOT_MEASURED:
                        self._queue_time.add(now - packet.since)
                if entered:
                    self._leave(me)
            return packets
        except BaseException:
            # A signal handler may raise at any step, also with packets in hand.
            try:
                self._take_nothing(harvest, packets, entered)
            except BaseException:
                self._take_nothing(harvest, packets, entered)
                raise
            raise

    def _take_nothing(self, harvest: Harvest, hand: Hand, entered: bool) -> None:
        """Without a packet; it may be done twice."""
        self._put_back(harvest, hand)
        with self._lock:
            self._at_work.pop(this_place().token, None)
            if entered:
                self._leave(threading.get_ident())

    def hand_out(self, hand: Hand, last: Iterable[Any]) -> None:
        """The packets are the program's now. ``last``: iterated through at the end."""
        place = this_place()
        strands = [one.strand for one in hand if one.strand is not None]
        place.strands = strands
        place.since = hand.taken_at
        # No call from here on: neither is a packet lost, nor does one come again.
        del hand[:]
        _ = END in last

    def put_back(self, hand: Hand) -> None:
        """Undo `take`: the packets come again. It may be done twice."""
        self._take_nothing(Harvest(1), hand, False)

    def _sort(self, harvest: Harvest, packets: list[Packet]) -> None:
        """Turn what the kernel gave into packets."""
        while (entry := harvest.entry()) is not None:
            address, key = entry.lpOverlapped, entry.lpCompletionKey
            if address:
                flight = self.flights.get(address)
                if flight is not None:
                    if key != OWN:
                        flight.set_outcome(entry.Internal, entry.dwNumberOfBytesTransferred)
                    if flight.channel.land(flight):
                        with self._lock:
                            self._hand_out(flight.request, False, packets)
                    self.flights.pop(address, None)
                    flight.let_go()
            elif key in self._put:
                with self._lock:
                    packet, its_turn = self._put[key]
                    self._hand_out(packet, its_turn, packets)
                    del self._put[key]
            elif key != WAKE:
                with self._lock:
                    self._take_note(key)
            harvest.next += 1

    def _take_note(self, key: int) -> None:
        """What is no packet has come. Lock held."""
        if key == TURN:
            self._turns_there = max(self._turns_there - 1, 0)
            self._take_turn()
        elif key in self._leaving:
            self._all_is_seen(self._leaving.pop(key))

    def _hand_back(self, entry: api.OVERLAPPED_ENTRY) -> None:
        """What the kernel gave, and is not a packet that was put, goes back to it. Lock held."""
        address, key = entry.lpOverlapped, entry.lpCompletionKey
        if not address:
            self._hand(key)
        elif address in self.flights:
            if key != OWN:
                self.flights[address].set_outcome(entry.Internal, entry.dwNumberOfBytesTransferred)
            self._hand(OWN, address)

    def _hand_out(self, packet: Packet, its_turn: bool, packets: list[Packet]) -> None:
        """Give a packet to the thread, or have it stay back behind its strand. Lock held."""
        strand = packet.strand
        if strand is not None and not its_turn:
            if strand._busy:
                strand._line.append(packet)
                self._back[strand] = None
                return
            strand._busy = True
        packets.append(packet)

    def _put_back(self, harvest: Harvest, packets: Hand) -> None:
        """What was taken from the kernel and not handed out goes back to it, or aside."""
        if self._closed:
            self._drop(harvest)
            for dropped in packets:
                dropped.drop()
            return
        with self._lock:
            while (entry := harvest.entry()) is not None:
                address, key = entry.lpOverlapped, entry.lpCompletionKey
                flight = self.flights.get(address)
                request = None if flight is None else flight.request
                strand = None if request is None else request.strand
                if request in packets or (strand is not None and request in strand._line):
                    # It was dealt with but for the last step.
                    self.flights.pop(address, None)
                    if flight is not None:
                        flight.let_go()
                elif key in self._put:
                    # Plain steps, so it is once.
                    packet, _ = self._put[key]
                    if packet not in packets:
                        packets += (packet,)
                    del self._put[key]
                else:
                    self._hand_back(entry)
                harvest.next += 1
            self._operations -= packets.operations
            self._posts -= packets.posts
            self._programs_taken -= packets.programs
            packets.operations = packets.posts = packets.programs = 0
            while packets:
                kind = _takes_of(packets[-1])
                # In one step. The kernel has let this thread go for it.
                step = map(packets.pop, (-1,))
                self._turns += kind == PROGRAMS
                self._aside[kind].extendleft(step)
            self._changed.notify_all()
            self._call_for_aside()

    def _leave(self, thread: int) -> None:
        with self._lock:
            self._waiting.pop(thread, None)
            self._see_to_turns()
            # Without a crew like that they are for what was put back, which comes first.
            if self._choosy and not self._is_awaited():
                self._turns, self._turns_left = 0, self._turns_left + self._turns
            self._call_for_aside()
            if self._dismissed:
                self._let_dismissed_go()
            # Or it has taken what was to make a timekeeper of somebody.
            if self._timekeeper is None or self._timekeeper == thread:
                self._timekeeper = self._until_ns = None
                if self._waiting and self.timers:
                    self._hand(WAKE)  # somebody else keeps the time
            if not self._waiting:
                if self._gate is not None:
                    self._gate.release()
                    self._gate = None
                self._changed.notify_all()
            elif self._closed:
                self._hand(WAKE)  # the next one leaves too

    def _give(self, packets: deque[Packet] | list[Packet]) -> None:
        """Move the first one to the kernel's queue, aside, or behind its strand. Lock held."""
        key, packet = next(self._keys), packets[0]
        strand = packet.strand
        # Plain steps up to the next call, so it is once.
        if strand is not None and strand._busy:
            strand._line += (packet,)
            self._back[strand] = None
            del packets[0]
            return
        if strand is not None:
            strand._busy = True
        if self._choosy and packet.consumer is None:
            self._aside[PROGRAMS] += (packet,)
        else:
            self._put[key] = packet, True
        del packets[0]
        try:
            self._tell(key)
        except BaseException:
            self._tell(key)
            raise

    def _tell(self, key: int) -> None:
        """A packet was put under the key, or aside. Lock held.

        Done twice it does no harm: a key that comes again means nothing.
        """
        if key in self._put:
            self._hand(key)
        else:
            self._changed.notify_all()
            self._see_to_turns()

    def _hand(self, key: int, address: int | None = None) -> bool:
        """Append to the kernel's queue; False when that has to wait for a thread in `take`."""
        with self._lock:
            if self.kernel.handle is None:
                return False
            self._turns_there += key == TURN
            try:
                self.kernel.post(key, address)
            except OSError:
                if key == TURN:
                    self._turns_there -= 1  # `_see_to_turns` comes again
                else:
                    self._late.append((key, address))
                return False
            return True

    def _advance(self, strands: list[PortableStrand]) -> None:
        """The packet at work of the first one is done with: its next one goes. Lock held."""
        strand = strands[0]
        if strand._line:
            # Plain steps behind that one call, as above.
            key, packet = next(self._keys), strand._line[0]
            if self._choosy and packet.consumer is None:
                self._aside[PROGRAMS] += (packet,)
            else:
                self._put[key] = packet, True
            del strand._line[0]
            del strands[0]
            try:
                self._tell(key)
            except BaseException:
                self._tell(key)
                raise
        else:
            strand._busy = False
            del strands[0]
        if not strand._line:
            self._back.pop(strand, None)

    def _count(self, hand: Hand) -> None:
        """They were taken. Lock held."""
        operations = sum(isinstance(packet, Request) for packet in hand)
        programs = len([packet for packet in hand if packet.consumer is None])
        posts = len(hand) - operations
        hand.operations, hand.posts, hand.programs = operations, posts, programs
        self._operations += operations
        self._posts += posts
        self._programs_taken += programs

    def shut(self) -> bool:
        """Refuse everything from now on. Returned: False when that was so before."""
        with self._lock:
            first, self._closed = not self._closed, True
            self._changed.notify_all()
            return first

    def close(self) -> None:
        """After `shut`, with every channel detached: wait for the kernel to let go.

        Returned once the threads have left and no memory is the kernel's any more. Where that does
        not come about in a second (a driver that does not cancel, a thread that the ending
        interpreter has stopped), what is still in use is left to the process.
        """
        end = time.monotonic() + PATIENCE
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            others = self._waiting.keys() - {threading.get_ident()}
            if others:
                self._gate = gate
                self._hand(WAKE)
        if others:
            gate.acquire(timeout=PATIENCE)
        harvest = Harvest(AT_ONCE)
        while self.kernel.handle is not None:
            wait = 0
            if self.flights:
                wait = max(math.ceil((end - time.monotonic()) * 1000), 0)
            if not self.kernel.wait(harvest, AT_ONCE, wait):
                break
            self._drop(harvest)
        with self._lock:
            if not self._waiting.keys() - {threading.get_ident()}:
                self.kernel.close()
            self.timers.drop()
        for aside in self._aside.values():
            while aside:
                aside.popleft().drop()
        while self._put:
            self._put.popitem()[1][0].drop()
        while self._back:
            strand = self._back.popitem()[0]
            while strand._line:
                strand._line.popleft().drop()

    def _drop(self, harvest: Harvest) -> None:
        """Nobody takes these: the port is closed."""
        while (entry := harvest.entry()) is not None:
            self._drop_flight(entry.lpOverlapped)
            harvest.next += 1

    def _drop_flight(self, address: int) -> None:
        flight = self.flights.pop(address, None)
        if flight is not None:
            if flight.sock is not None:
                flight.sock.close()
            flight.let_go()
            flight.request.drop()

    def _take_turn_in_hand(self) -> bool:
        """Whether a thread has taken a turn meanwhile, perhaps not noted yet. Lock held."""
        if not self._aside[PROGRAMS]:
            return False
        if not self._turns and self.kernel.depth() < self._turns_there:
            self._turns_there -= 1
            self._turns += 1
        return self._turns > 0

    def dismiss_watchers(self) -> None:
        """Make every `wait_until_stuck` return."""
        with self._lock:
            self._dismissals += 1
            self._changed.notify_all()

    def wait_until_stuck(self, timeout: float | None) -> bool:
        """Wait until packets wait that only another thread could take.

        The kernel lets a waiting thread go when another one blocks, so this is about a port at
        which no thread waits: while that is so, the depth of the kernel's queue is looked at.
        """
        self.check()
        deadline = None if timeout is None else time.monotonic() + timeout
        taken = -1
        with self._lock:
            before = self._dismissals
            while self._dismissals == before:
                if self._closed:
                    raise PortClosed(WHILE_WAITING)
                if not self._waiting:
                    self._fire()
                stuck = self._is_stuck()
                so_far = self._posts + self._operations
                if stuck and taken == so_far:
                    return True
                taken = so_far if stuck else -1
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if not self._waiting or any(self._aside.values()):
                    left = STUCK_AFTER if left is None else min(left, STUCK_AFTER)
                self._changed.wait(left)
        return False

    def _is_stuck(self) -> bool:
        """Whether packets wait that no waiting thread takes. Lock held."""
        if not self._waiting:
            notes = self._turns_there + len(self._leaving)
            return self.kernel.depth() > notes or any(self._aside.values())
        takes = 0
        for waiter in self._waiting.values():
            takes |= waiter.takes
        return any(aside and not takes & kind for kind, aside in self._aside.items())

    def numbers(self) -> dict[str, Any]:
        """A look inside."""
        with self._lock:
            self._fire()
            depth = 0 if self.kernel.handle is None else self.kernel.depth()
            put = [packet for packet, _ in list(self._put.values())]
            aside = [packet for packets in self._aside.values() for packet in packets]
            back = [packet for strand in list(self._back) for packet in look(strand._line)]
            # Completions that nobody took yet.
            flown = max(depth - len(put) - self._turns_there - len(self._leaving), 0)
            operations = flown + sum(isinstance(packet, Request) for packet in put + back + aside)
            queued = flown + len(put) + len(back) + len(aside)
            return {
                "concurrency": self.concurrency,
                "waiting": len(self._waiting),
                "running": len(self._at_work),
                "blocked": len(self._blocked),
                "replaced": 0,
                "woken": 0,
                "wakeups": 0,
                "timers": len(self.timers),
                "work_time": self._work_time.snapshot(),
                "queued": queued,
                "posted": self._posts + queued - operations,
                "completed": self._operations + operations,
                "taken": self._posts + self._operations,
                "queue_time": self._queue_time.snapshot(),
                "pending": max(len(self.flights) - flown, 0),
            }


def _milliseconds_until(when_ns: int) -> int:
    return min(max(-(-(when_ns - time.monotonic_ns()) // 1_000_000), 0), LONGEST_WAIT)
