"""One parked thread stands by while callbacks are known to block: it waits for the GIL, without a packet.

Under the GIL a callback that blocks lets the GIL go, and that is all that can be noticed at once. So the thread
that gets it then looks at those at work: who sleeps, and not for the GIL, blocks. This takes two changes of the
GIL where a callback only lets it go for a moment, so a port does it only while it pays: it is *hot*.

- A turn that is long makes the port hot for a trial, a few times a second at most.
- A thread that was found to block makes it hot for some times as long as it blocked.

Without a GIL nobody stands by: then the monitor looks more often while the port is hot. The scheduler's lock in
all of these.
"""

from libc.stdint cimport int64_t, uint64_t

from ..primitives.atomics cimport cp_load_acquire, cp_now_ns, cp_set, cp_store_release
from ..primitives.gil cimport AWAKE, CP_HAS_GIL, SLEEPS, Sleep, gil_word, sleep_of
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from ..primitives.times cimport MEASURED
from .places cimport set_blocked
from .scheduler cimport POLL, Scheduler, Waiter, enter, leave
from .waiters cimport stack_remove

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef enum:
    # A turn that took longer may have blocked, ns.
    LONG_TURN = 100000
    # Longer than this no thread blocks until the monitor finds it, ns.
    FOUND_ANYWAY = 5000000
    # A hot port does about two thirds of the echoes of a cold one. So it is hot for so many times what it
    # would have lost by a callback that blocked: it then loses less by being hot.
    TIMES_AS_LONG = 4
    HOTTEST = 400000000
    # A trial is long enough to meet callbacks that are worth it, and short beside the time to the next one.
    TRIAL = 10000000
    FIRST_TRIAL_GAP = 40000000
    LAST_TRIAL_GAP = 1280000000
    AT_WORK_AT_ONCE = 8
    TRIES = 4

cdef struct AtWork:
    # What a thread that holds a place is at.
    Waiter* thread          # not to be followed without the scheduler's lock
    uint64_t turn
    int number
    Sleep sleep
    uint64_t place


cdef inline bint can_be_hot() noexcept nogil:
    return gil_word != 0 or not CP_HAS_GIL


cdef inline void heat(Scheduler* s, int64_t now, int64_t blocked_for) noexcept nogil:
    """A thread was found to block, for so long as far as it is known."""
    if can_be_hot():
        s.hot_until_ns = min(
            max(s.hot_until_ns, now) + TIMES_AS_LONG * min(blocked_for, <int64_t> FOUND_ANYWAY),
            now + HOTTEST,
        )
        s.trial_gap_ns = 0
        cp_set(&s.hot, True)


cdef inline void end_long_turn(Scheduler* s, Waiter* me, int64_t now, int64_t took) noexcept nogil:
    """The thread is back from a turn of more than LONG_TURN."""
    if me.blocked:
        heat(s, now, took)
    elif not s.hot and now >= s.next_trial_ns and can_be_hot():
        # Did it block? The next ones are looked at.
        s.next_trial_ns = now + s.trial_gap_ns
        s.trial_gap_ns = min(max(2 * s.trial_gap_ns, <int64_t> FIRST_TRIAL_GAP), <int64_t> LAST_TRIAL_GAP)
        s.hot_until_ns = now + TRIAL
        cp_set(&s.hot, True)


cdef inline void cool(Scheduler* s, int64_t now) noexcept nogil:
    """The monitor has looked at the port."""
    s.in_vain = False
    if s.hot and now >= s.hot_until_ns:
        cp_set(&s.hot, False)


cdef inline Waiter* call_standby(Scheduler* s) noexcept nogil:
    """A parked thread that is to stand by from now on, or NULL. The caller wakes it."""
    cdef Waiter* waiter
    if (
        not (CP_HAS_GIL and s.hot) or s.standby != NULL or s.in_vain or s.running == 0
        or s.running + s.woken < s.concurrency or (s.queued <= s.woken and s.leader != NULL)
    ):
        return NULL
    waiter = s.newest
    if waiter != NULL and waiter == s.leader:
        waiter = waiter.older
    if waiter != NULL and cp_now_ns() >= s.hot_until_ns:
        cp_set(&s.hot, False)
    elif waiter != NULL:
        stack_remove(s, waiter)
        s.standby = waiter
        s.wakeups += MEASURED
        cp_store_release(&waiter.signal, 1)
        return waiter
    return NULL


cdef inline void replace_those_that_block(Scheduler* s, Waiter* me) noexcept nogil:
    """The calling thread has the GIL. So those who hold all places wait for it, or block, and that is
    looked at. Lock, which is let go meanwhile."""
    cdef AtWork others[AT_WORK_AT_ONCE]
    cdef AtWork* other
    cdef Waiter* thread = s.holders
    cdef int64_t left = s.running - me.holds_place
    cdef int count = 0
    cdef int i
    cdef int tries
    if not CP_HAS_GIL or left < s.concurrency or (s.queued <= s.woken and s.leader != NULL):
        return
    while thread != NULL and left > 0 and count < AT_WORK_AT_ONCE:
        if thread != me and not thread.blocked:
            left -= 1
            if not cp_load_acquire(&thread.returning):
                others[count].thread = thread
                others[count].turn = thread.turn
                others[count].number = thread.number
                count += 1
        thread = thread.next_holder
    cp_light_mutex_unlock(&s.lock)
    for i in range(count):
        other = &others[i]
        other.sleep = sleep_of(other.number, gil_word, &other.place)
        tries = 1
        while other.sleep == AWAKE and tries < TRIES:
            # It let the GIL go a moment ago: it may be on its way to where it will sleep.
            sched_yield()
            other.sleep = sleep_of(other.number, gil_word, &other.place)
            tries += 1
    cp_light_mutex_lock(&s.lock)
    s.in_vain = True    # unless one of them blocks
    for i in range(count):
        other = &others[i]
        thread = s.holders if other.sleep == SLEEPS else NULL
        while thread != NULL and thread != other.thread:
            thread = thread.next_holder
        if thread != NULL and thread.turn == other.turn and not thread.blocked:
            thread.blocked_at = other.place
            thread.slept_times = -1
            set_blocked(s, thread, True)
            s.replaced += MEASURED
            s.in_vain = False


cdef inline bint look_while_hot(Scheduler* s) noexcept nogil:
    """A look into the kernel with the GIL held: one call. Lock; without it when it returns False, at the end.

    While a port is hot others wait for the GIL, and who lets it go to look has it back only behind them.
    """
    if s.leader != NULL:
        return True
    cp_light_mutex_unlock(&s.lock)
    if not enter(s):
        return False
    s.kernel_wait(s.engine, POLL)
    leave(s)
    cp_light_mutex_lock(&s.lock)
    s.since_kernel = 0
    return True
