"""The queue of packets, and which one is a thread's. The scheduler's lock in all of these."""

from .scheduler cimport Packet, Scheduler, set_head
from .waiters cimport UNCALLED

cdef enum:
    NONE = -1


cdef inline void append(Scheduler* s, Packet* packet) noexcept nogil:
    packet.next = NULL
    if s.tail == NULL:
        set_head(s, packet)
    else:
        s.tail.next = packet
    s.tail = packet
    s.queued += 1


cdef inline int place_in_queue(Scheduler* s, int ahead) noexcept nogil:
    """Which packet is the thread's, counted from the head; NONE when there is none.

    A thread that was signalled says how many that were signalled before it are still ``ahead``: it
    leaves that many packets to them. So threads that are signalled for a burst get its packets in the
    order of the signals, whichever of them comes to run first. For a thread that comes of its own
    accord (UNCALLED) there is what nobody passed over.
    """
    cdef int place = s.passed_over if ahead == UNCALLED else min(ahead, s.woken)
    return place if s.queued > place else NONE


cdef inline Packet* unlink(Scheduler* s, int place) noexcept nogil:
    cdef Packet* packet = s.head
    cdef Packet* before = NULL
    cdef int i
    for i in range(place):
        before = packet
        packet = packet.next
    if before == NULL:
        set_head(s, packet.next)
    else:
        before.next = packet.next
    if packet.next == NULL:
        s.tail = before
    if place < s.passed_over:
        s.passed_over -= 1
    else:
        s.passed_over = place
    s.queued -= 1
    return packet
