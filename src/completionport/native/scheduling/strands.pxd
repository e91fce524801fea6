"""The lines of strands, and who is at work on a packet of which.

The scheduler's lock in all of these, but for `strand_new`, which takes it.
"""

from libc.stdlib cimport calloc, free

from ..primitives.atomics cimport cp_add_fetch, cp_count_locked
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from ..primitives.times cimport measured_now_ns
from .packets cimport append
from .scheduler cimport Packet, Scheduler, Strand, Waiter, scheduler_release, strand_retain


cdef inline void drop_strand(Scheduler* s, Strand* strand) noexcept nogil:
    """Lock, and the caller has a reference to the scheduler."""
    if strand.previous == NULL:
        s.strands = strand.following
    else:
        strand.previous.following = strand.following
    if strand.following != NULL:
        strand.following.previous = strand.previous
    free(strand)
    scheduler_release(s)


cdef inline void hold_back(Scheduler* s, Packet* packet) noexcept nogil:
    """Behind those of its strand that stay back already. Lock."""
    cdef Strand* strand = packet.strand
    packet.next = NULL
    if packet.queued_ns == 0:
        packet.queued_ns = measured_now_ns()
    if strand.tail == NULL:
        strand.head = packet
    else:
        strand.tail.next = packet
    strand.tail = packet
    cp_count_locked(&strand.queued, 1)
    s.held_back += 1


cdef inline Packet* next_held_back(Scheduler* s, Strand* strand) noexcept nogil:
    cdef Packet* packet = strand.head
    strand.head = packet.next
    if strand.head == NULL:
        strand.tail = NULL
    cp_count_locked(&strand.queued, -1)
    s.held_back -= 1
    return packet


cdef inline void hold_strand(Waiter* me, Strand* strand) noexcept nogil:
    """The thread takes a packet of the strand. Lock."""
    strand_retain(strand)
    strand.holder = me
    strand.next_held = me.strands
    me.strands = strand


cdef inline void let_strand_go(Scheduler* s, Strand* strand) noexcept nogil:
    """Its holder, the calling thread, is done with the packet: the next one may go. Lock."""
    cdef Waiter* holder = strand.holder
    cdef Strand** place = &holder.strands
    while place[0] != strand:
        place = &place[0].next_held
    place[0] = strand.next_held
    strand.next_held = NULL
    strand.holder = NULL
    if strand.head != NULL:
        append(s, next_held_back(s, strand))
    else:
        strand.busy = False
    if cp_add_fetch(&strand.references, -1) == 0:
        drop_strand(s, strand)


cdef inline Strand* strand_new(Scheduler* s) noexcept nogil:
    cdef inline Strand* strand = <Strand*> calloc(1, sizeof(Strand))
    if strand == NULL:
        return NULL
    strand.references = 1
    strand.scheduler = s
    cp_add_fetch(&s.references, 1)
    cp_light_mutex_lock(&s.lock)
    strand.following = s.strands
    if s.strands != NULL:
        s.strands.previous = strand
    s.strands = strand
    cp_light_mutex_unlock(&s.lock)
    return strand
