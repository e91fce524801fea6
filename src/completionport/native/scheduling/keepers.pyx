# cython: language_level=3, freethreading_compatible=True
"""Threads that wait until a port is stuck: packets wait, and all threads at work block."""

from libc.stdint cimport int64_t, uint32_t

from ..primitives.atomics cimport cp_futex_wait, cp_futex_wake
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from .calls cimport is_stuck
from .scheduler cimport (
    TAKE_CLOSED,
    TAKE_INTERRUPTED,
    TAKE_PACKET,
    TAKE_TIMEOUT,
    Scheduler,
    TakeStatus,
    is_closed,
    timers_are_due,
    unlock_and_wake,
    with_timers,
)
from .timer_heap cimport fire_if_due

cdef extern from "errno.h" nogil:
    enum: EINTR
    enum: ETIMEDOUT


cdef void dismiss_keepers(Scheduler* s) noexcept nogil:
    """Make all threads in `wait_until_stuck` return."""
    cp_light_mutex_lock(&s.lock)
    s.stuck += 1
    cp_light_mutex_unlock(&s.lock)
    cp_futex_wake(&s.stuck, 0x7fffffff)


cdef TakeStatus wait_until_stuck(Scheduler* s, int64_t deadline_ns) noexcept nogil:
    """Wait until packets are queued and all threads at work block. The caller is inside `enter`.

    TAKE_PACKET when it is so.
    """
    cdef uint32_t seen
    cdef int error
    cdef bint stuck
    cp_light_mutex_lock(&s.lock)
    s.keepers += 1
    seen = s.stuck
    if s.leader == NULL:
        # Nobody else may be there for a timer that becomes due.
        deadline_ns = with_timers(s, deadline_ns)
    unlock_and_wake(s)
    error = cp_futex_wait(&s.stuck, seen, deadline_ns)
    if timers_are_due(s):
        fire_if_due(s)
    cp_light_mutex_lock(&s.lock)
    s.keepers -= 1
    stuck = is_stuck(s)
    cp_light_mutex_unlock(&s.lock)
    if is_closed(s):
        return TAKE_CLOSED
    if error == EINTR:
        return TAKE_INTERRUPTED
    return TAKE_PACKET if error != ETIMEDOUT and stuck else TAKE_TIMEOUT
