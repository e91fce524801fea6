"""The timers of a port below Python: a heap by time, and packets for those that are due."""

from libc.stdint cimport int64_t

from .scheduler cimport Packet, Scheduler

cdef struct TimedPacket:
    # Lies in its Timer object, to which it holds one reference from `timer_set` until it is taken,
    # cancelled or dropped.
    Packet packet           # first: the packet queue links through it
    int64_t when_ns         # constant
    size_t place            # in the heap, from 1 on, else 0: its lock; read as an atomic too
    # As the reference to the Timer:
    void* timer
    void* transferred
    void* key
    void* overlapped

# Threads that would sleep for longer look again. The caller is inside, and has written what they look at.
cdef void wait_no_longer(Scheduler* s, int64_t when_ns) noexcept nogil
cdef bint open_timers(Scheduler* s) noexcept nogil
cdef bint timer_set(Scheduler* s, TimedPacket* timed) noexcept nogil
cdef bint timer_cancel(Scheduler* s, TimedPacket* timed) noexcept nogil
cdef void fire_if_due(Scheduler* s) noexcept nogil
cdef size_t timers_pending(Scheduler* s) noexcept nogil
cdef Packet* close_timers(Scheduler* s) noexcept nogil
