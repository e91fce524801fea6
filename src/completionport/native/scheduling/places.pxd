"""The places of threads at work: what `concurrency` bounds. The scheduler's lock in all of these."""

from ..primitives.times cimport measured_now_ns
from .scheduler cimport WAKE_COST, Packet, Scheduler, Waiter


cdef inline void set_blocked(Scheduler* s, Waiter* thread, bint blocked) noexcept nogil:
    """A thread that blocks holds its place, but the place does not count."""
    if thread.blocked != blocked:
        thread.blocked = blocked
        if blocked:
            s.running -= 1
            s.blocked += 1
        else:
            s.running += 1
            s.blocked -= 1


cdef inline void take_place(Scheduler* s, Waiter* me) noexcept nogil:
    me.holds_place = True
    s.running += 1
    me.previous_holder = NULL
    me.next_holder = s.holders
    if s.holders != NULL:
        s.holders.previous_holder = me
    s.holders = me


cdef inline void give_place_back(Scheduler* s, Waiter* me) noexcept nogil:
    if not me.holds_place:
        return
    me.holds_place = False
    me.declared = 0
    set_blocked(s, me, False)
    s.running -= 1
    if me.previous_holder == NULL:
        s.holders = me.next_holder
    else:
        me.previous_holder.next_holder = me.next_holder
    if me.next_holder != NULL:
        me.next_holder.previous_holder = me.previous_holder


cdef inline void start_turn(Scheduler* s, Waiter* me, Packet* packet) noexcept nogil:
    """The thread goes off to work on this packet; measured where the packet is."""
    me.turn += 1
    me.started_ns = 0
    s.in_vain = False
    if s.to_measure > 0:
        s.to_measure -= 1
        me.started_ns = measured_now_ns()
    elif packet.queued_ns != 0 or s.work_ns >= WAKE_COST or s.hot:
        me.started_ns = measured_now_ns()


cdef inline bint has_room(Scheduler* s, Waiter* me) noexcept nogil:
    """A place for the thread, which may hold one. Lock."""
    return s.running - me.holds_place < s.concurrency
