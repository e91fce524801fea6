"""Threads that wait in `get`. The scheduler's lock in all of these.

A waiting thread is on the stack until it is signalled; then it counts as on its way, until it is back
under the lock.
"""

from ..primitives.atomics cimport cp_store_release
from .scheduler cimport TAKES_PROGRAMS, TAKES_SERVED, Line, Scheduler, Waiter

cdef enum:
    UNCALLED = -1   # instead of how many were signalled before: nobody did, the thread came by itself


cdef inline void count_taker(Scheduler* s, Waiter* waiter, int by) noexcept nogil:
    if waiter.takes & TAKES_SERVED:
        s.served.takers += by
    if waiter.takes & TAKES_PROGRAMS:
        s.programs.takers += by


cdef inline Waiter* taker_of(Scheduler* s, Line* line) noexcept nogil:
    """The waiting thread that came last of those that take of the line, which has `takers`."""
    cdef Waiter* waiter = s.newest
    while not waiter.takes & line.takes:
        waiter = waiter.older
    return waiter


cdef inline void stack_insert(Scheduler* s, Waiter* me) noexcept nogil:
    # By arrival: a thread that was woken for nothing gets its old position back.
    cdef Waiter* newer = NULL
    cdef Waiter* older = s.newest
    while older != NULL and older.arrival > me.arrival:
        newer = older
        older = older.older
    me.newer = newer
    me.older = older
    if newer == NULL:
        s.newest = me
    else:
        newer.older = me
    if older != NULL:
        older.newer = me
    me.on_stack = True
    count_taker(s, me, 1)
    me.signalled = False
    cp_store_release(&me.signal, 0)


cdef inline void stack_remove(Scheduler* s, Waiter* me) noexcept nogil:
    if me.newer == NULL:
        s.newest = me.older
    else:
        me.newer.older = me.older
    if me.older != NULL:
        me.older.newer = me.newer
    me.on_stack = False
    count_taker(s, me, -1)


cdef inline int back_from_waiting(Scheduler* s, Waiter* me) noexcept nogil:
    """How many threads that were signalled before this one for its line are still on their way, or UNCALLED."""
    cdef int ahead = UNCALLED
    cdef Waiter* before
    cdef Line* line = me.line
    if me.on_stack:
        stack_remove(s, me)
    elif me.signalled:
        ahead = 0
        before = me.signalled_before
        while before != NULL:
            ahead += 1
            before = before.signalled_before
        if me.signalled_before != NULL:
            me.signalled_before.signalled_after = me.signalled_after
        if me.signalled_after == NULL:
            line.last_signalled = me.signalled_before
        else:
            me.signalled_after.signalled_before = me.signalled_before
        line.woken -= 1
        s.woken -= 1
    me.signalled = False
    return ahead


cdef inline void call(Scheduler* s, Waiter* waiter, Line* line) noexcept nogil:
    """From the stack to those who are signalled for the line and on their way."""
    stack_remove(s, waiter)
    waiter.signalled = True
    waiter.line = line
    waiter.signalled_after = NULL
    waiter.signalled_before = line.last_signalled
    if line.last_signalled != NULL:
        line.last_signalled.signalled_after = waiter
    line.last_signalled = waiter
    line.woken += 1
    s.woken += 1
