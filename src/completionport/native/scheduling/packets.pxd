"""The two lines of packets, and which packet is a thread's. The scheduler's lock in all of these."""

from libc.stdint cimport int32_t

from .scheduler cimport (
    SHORT_WORK,
    TAKES_PROGRAMS,
    TAKES_SERVED,
    Line,
    Packet,
    Scheduler,
    line_of,
    set_head,
    timers_are_due,
)
from .waiters cimport UNCALLED

cdef enum:
    NONE = -1
    # While packets are short and many, one in so many (a power of 2) looks whether a timer is due.
    LOOK_AT_TIMERS_EVERY = 32


cdef inline void append(Scheduler* s, Packet* packet) noexcept nogil:
    cdef Line* line = line_of(s, packet)
    if line != s.last_line:
        # So between two heads there are no more numbers than packets behind the older one, twice over.
        s.last_line = line
        s.number += 1
    packet.number = s.number
    packet.next = NULL
    if line.tail == NULL:
        set_head(line, packet)
    else:
        line.tail.next = packet
    line.tail = packet
    line.queued += 1
    s.queued += 1


cdef inline bint wants_timers(Scheduler* s) noexcept nogil:
    """Whether due timers have to come into the queue before the next packet is taken."""
    return (
        s.since_kernel & (LOOK_AT_TIMERS_EVERY - 1) == 0 or s.work_ns >= SHORT_WORK
    ) and timers_are_due(s)


cdef inline bint is_older(Line* line, Line* other) noexcept nogil:
    """Both have packets: whether the first of the one came before that of the other."""
    return <int32_t> (line.head.number - other.head.number) < 0


cdef inline int place_in_line(Line* line, int ahead) noexcept nogil:
    """Which packet is the thread's, counted from the head; NONE when there is none.

    A thread that was signalled says how many that were signalled before it are still ``ahead``: it
    leaves that many packets to them. So threads that are signalled for a burst get its packets in the
    order of the signals, whichever of them comes to run first. For a thread that comes of its own
    accord (UNCALLED) there is what nobody passed over.
    """
    cdef int place = line.passed_over if ahead == UNCALLED else min(ahead, line.woken)
    return place if line.queued > place else NONE


cdef inline Line* other_than(Scheduler* s, Line* line) noexcept nogil:
    return &s.programs if line == &s.served else &s.served


cdef inline bint gives_way(Scheduler* s, Line* line) noexcept nogil:
    """Whether a thread that does not take the other line leaves the last place to one that does.

    Else threads that always find packets of their own would keep out those for whom older ones wait.
    """
    cdef Line* other = other_than(s, line)
    return (
        other.queued != 0 and other.takers + other.woken != 0 and is_older(other, line)
        and s.running + s.woken + 1 >= s.concurrency
    )


cdef inline Line* choose(Scheduler* s, int takes) noexcept nogil:
    """From which line a thread takes that was not signalled; NULL where there is nothing for it."""
    cdef bint served = s.served.queued > s.served.passed_over and takes & TAKES_SERVED != 0
    if s.programs.queued <= s.programs.passed_over or not takes & TAKES_PROGRAMS:
        return &s.served if served else NULL
    return &s.served if served and is_older(&s.served, &s.programs) else &s.programs


cdef inline Packet* unlink(Scheduler* s, Line* line, int place) noexcept nogil:
    cdef Packet* packet = line.head
    cdef Packet* before = NULL
    cdef int i
    for i in range(place):
        before = packet
        packet = packet.next
    if before == NULL:
        set_head(line, packet.next)
    else:
        before.next = packet.next
    if packet.next == NULL:
        line.tail = before
    if place < line.passed_over:
        line.passed_over -= 1
    else:
        line.passed_over = place
    line.queued -= 1
    line.taken += 1
    s.queued -= 1
    return packet


cdef inline Packet* take_line(Line* line, Packet* following) noexcept nogil:
    """All of a line, with those behind it."""
    cdef Packet* packets = line.head
    if packets == NULL:
        return following
    line.tail.next = following
    set_head(line, NULL)
    line.tail = NULL
    line.queued = 0
    line.passed_over = 0
    return packets
