"""Which descriptors are ready: an epoll(7) instance, and the channels that its events belong to."""

from libc.stdint cimport int64_t, uint32_t

from ..channels.engine cimport Channel, Engine
from ..primitives.atomics cimport cp_mutex

cdef enum:
    WAKER = 0xffffffff          # as a slot number: what tells only that somebody is to come back

cdef struct Slot:
    Channel* channel
    uint32_t generation
    uint32_t next_free

cdef struct Readiness:
    int descriptor
    # Which channel an event belongs to: `table_lock`, which may be taken with a channel's lock
    # held, never the other way round.
    cp_mutex table_lock
    Slot* slots
    uint32_t slot_count
    uint32_t free_slot
    int64_t* doubt_ns           # constant: the engine's

# ``waker``: a descriptor whose events `readiness_wait` tells apart, with these epoll(7) flags.
# 0 or an errno, then nothing is left of it.
cdef int readiness_open(Readiness* table, Engine* engine, int waker, unsigned flags) noexcept nogil
cdef void readiness_close(Readiness* table) noexcept nogil
# Channel lock; 0 or an errno. A regular file is not taken in, and its kind set.
cdef int readiness_add(Readiness* table, Channel* channel) noexcept nogil
cdef void readiness_remove(Readiness* table, Channel* channel) noexcept nogil
# Tell once more what the channel is ready for. Channel lock.
cdef void readiness_repeat(Readiness* table, Channel* channel) noexcept nogil
# Wait until the deadline, and carry on with what has become ready: 0, ETIMEDOUT or EINTR.
cdef int readiness_wait(Readiness* table, int64_t deadline_ns, bint* woken) noexcept nogil
