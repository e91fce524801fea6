"""Whether a waiting thread is to be called, and what for. The scheduler's lock in all of these."""

from libc.stdint cimport int64_t

from .scheduler cimport TAKES_PROGRAMS, WAKE_COST, Crew, Line, Scheduler, Waiter

cdef enum:
    # Two threads that work on tiny packets hinder each other, and each batch after that costs
    # another wake-up, until one of them is alone again: only so much of it is worth another thread, ns.
    BACKLOG_COST = 1000000


cdef inline bint line_is_worth_it(Scheduler* s, Line* line, bint stuck) noexcept nogil:
    """Whether a waiting thread should be let go for packets of this line although others are at work. Lock.

    When it says no and is wrong, because those others take long, the monitor mends it. With a crew that takes
    one line only, those at work may never come for the other.
    """
    cdef int64_t left = line.queued - line.woken
    return left > 0 and line.takers != 0 and (
        stuck or s.running == 0 or s.work_ns >= WAKE_COST or left * s.work_ns >= BACKLOG_COST
        or (s.choosy != 0 and line == &s.programs)
    )


cdef inline Line* line_to_lead_for(Scheduler* s, Waiter* waiter) noexcept nogil:
    """The line for whose packets a thread that is only to lead is likely to come back."""
    if waiter.takes == TAKES_PROGRAMS or (s.served.taken == 0 and waiter.takes & TAKES_PROGRAMS):
        return &s.programs
    return &s.served


cdef inline bint may_leave(Scheduler* s, Crew* crew) noexcept nogil:
    """Whether a thread of the crew is dismissed, and what it was to see to before is taken. Lock."""
    return crew != NULL and crew.leaving > 0 and (
        not crew.takes & TAKES_PROGRAMS or s.programs.queued == 0 or s.programs.taken >= crew.until
    )


cdef inline bint wants_watch(Scheduler* s) noexcept nogil:
    """Whether the port would have to know at once if a thread blocks. Lock."""
    if s.holders == NULL:
        return False
    if s.queued != 0 and (
        s.keepers != 0 or s.submits_late or (s.served.queued != 0 and s.served.takers != 0)
        or (s.programs.queued != 0 and s.programs.takers != 0)
    ):
        return True
    return s.newest != NULL and s.leader == NULL


cdef inline bint is_stuck(Scheduler* s) noexcept nogil:
    """Packets wait, all threads at work block, and no waiting one takes them. Lock."""
    return s.running == 0 and (
        (s.served.queued != 0 and s.served.takers == 0)
        or (s.programs.queued != 0 and s.programs.takers == 0)
    )
