# cython: language_level=3, freethreading_compatible=True
"""Finds the threads that block with a packet, so that the port lets others go in their place.

One thread for all ports of the process, without the GIL, made when the first port wants it. It
sleeps while no port has to be watched: a port has while threads wait in `get` that could not see to
what comes, because those at work hold all places, or because nobody looks into the kernel. Then it
looks every few milliseconds at each thread that is at work on the same packet as at its last look: what
has used no processor meanwhile, and does not wait for one, blocks.

It also lets a thread go when those at work take long, and gives the kernel what they have started.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from ..primitives.atomics cimport (
    cp_add_fetch,
    cp_futex_wait,
    cp_futex_wake,
    cp_load_acquire,
    cp_mutex,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
)
from ..primitives.gil cimport (
    AWAKE,
    CP_HAS_GIL,
    UNTOLD,
    WAITS_FOR_GIL,
    Sleep,
    gil_word,
    sleep_of,
)
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from .places cimport set_blocked
from .calls cimport wants_watch
from .scheduler cimport (
    DROWSY,
    FOREVER,
    UNWATCHED,
    WATCHED,
    Attention,
    Scheduler,
    Waiter,
    enter,
    leave,
    on_watch,
    scheduler_release,
    unlock_and_help,
    unlock_and_wake,
)
from .standby cimport FOUND_ANYWAY, cool, heat

cdef extern from "thread_clock.h" nogil:
    int64_t cp_clock_ns(int clock)
    bint cp_thread_sleeps(int number)
    int64_t cp_times_slept(int number)
    bint cp_another_thread_runs()
    int cp_start_thread(void* (*body)(void*) noexcept nogil)

cdef extern from "time.h" nogil:
    enum:
        CLOCK_PROCESS_CPUTIME_ID

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

cdef enum:
    # While every thread at work comes back to the port from one look to the next. A look costs some
    # microseconds, and more where the processor that it interrupts has to come back to its work.
    TICK_NS = 4000000
    # While one was seen not to, and for some time after it.
    ALERT_TICK_NS = 1000000
    ALERT_FOR_NS = 200000000
    # While a port is hot (standby.pxd) in an interpreter without a GIL, where no thread can stand by.
    HOT_TICK_NS = 250000
    # A port is watched for so long after it last wanted it: to wake the monitor costs more than some ticks.
    LINGER_TICKS = 30
    # With nothing waiting it only has to notice that blocked threads run again.
    SLOWEST_TICK_NS = 64000000
    # A thread that used less than this part of the time blocks.
    IDLE_PART = 20
    # Who used so much from one look to the next, with the same packet, is long at it. Who used less
    # and does not sleep has probably lost its processor: the kernel moves it to one that has nothing
    # to do, and another thread of ours would only take turns with it.
    LONG_WORK_NS = 250000
    # But then it gets one again before so long.
    LONGEST_LOSS_NS = 12000000
    # Where it can't be told exactly: who waits for the GIL asks for it every switch interval (5 ms), and so uses
    # a processor now and then; who blocks does not. So while some thread computes, one has to be still for so long.
    STILL_NS = 12000000
    MOST_SUSPECTS = 256

cdef struct Entry:
    Scheduler* scheduler    # one reference
    Entry* next
    int idle_ticks          # the monitor's alone

cdef struct Suspect:
    Waiter* thread          # not to be followed without the scheduler's lock
    uint64_t turn
    int clock
    int number
    bint blocked
    bint judged
    uint64_t blocked_at
    int64_t slept_times
    bint known              # it was looked at before in this turn
    bint computes
    bint sleeps
    bint long_at_it         # with its packet, and not because it lost its processor
    int64_t used
    int64_t elapsed
    int64_t turn_at_ns
    int64_t before_cpu_ns
    int64_t before_at_ns
    int64_t cpu_ns
    int64_t at_ns

# `monitor_lock`:
cdef cp_mutex monitor_lock
cdef Entry* arrived         # asked for since the last look
cdef bint started
# Atomic, futex word: counts what came.
cdef uint32_t arrivals
# The monitor's alone:
cdef Entry* watches
cdef int64_t alert_until_ns
cdef bint look_again_soon
cdef bint look_at_once          # nobody can stand by, and callbacks are known to block
cdef int64_t process_cpu_ns     # of all threads, at the last look
cdef int64_t process_at_ns
cdef bint process_computes      # since then, and it has a GIL
cdef Suspect suspects[MOST_SUSPECTS]


cdef void watch(Scheduler* s, bint known) noexcept nogil:
    """Look at this port from now on; its `attention` was set by the caller."""
    if not known:
        add_watch(s)
    cp_add_fetch(<int*> &arrivals, 1)
    cp_futex_wake(&arrivals, 1)


cdef void add_watch(Scheduler* s) noexcept nogil:
    global arrived, started
    cdef Entry* entry = <Entry*> calloc(1, sizeof(Entry))
    if entry == NULL:
        return
    entry.scheduler = s
    cp_add_fetch(&s.references, 1)
    cp_mutex_lock(&monitor_lock)
    entry.next = arrived
    arrived = entry
    if not started:
        started = cp_start_thread(run) == 0
    cp_mutex_unlock(&monitor_lock)


cdef void* run(void* nothing) noexcept nogil:
    global watches, arrived
    cdef uint32_t seen
    cdef int64_t pause = ALERT_TICK_NS
    cdef Entry* entry
    while True:
        seen = cp_load_acquire(&arrivals)
        cp_mutex_lock(&monitor_lock)
        while arrived != NULL:
            entry = arrived
            arrived = entry.next
            entry.next = watches
            watches = entry
        cp_mutex_unlock(&monitor_lock)
        if watches == NULL:
            cp_futex_wait(&arrivals, seen, FOREVER)
            continue
        if not look_at_all():
            pause = min(pause * 2, <int64_t> SLOWEST_TICK_NS)
        elif look_at_once:
            pause = HOT_TICK_NS
        elif look_again_soon or process_at_ns < alert_until_ns:
            pause = ALERT_TICK_NS
        else:
            pause = TICK_NS
        if watches != NULL:
            cp_futex_wait(&arrivals, seen, cp_now_ns() + pause)


cdef bint look_at_all() noexcept nogil:
    """One look at each port; True when one of them can't wait long for the next."""
    global watches, process_cpu_ns, process_at_ns, process_computes, look_again_soon, look_at_once
    cdef int64_t used = cp_clock_ns(CLOCK_PROCESS_CPUTIME_ID)
    cdef int64_t now = cp_now_ns()
    cdef Entry** place = &watches
    cdef Entry* entry
    cdef bint awake = False
    cdef Attention attention
    process_computes = CP_HAS_GIL and (used - process_cpu_ns) * 10 >= now - process_at_ns
    process_cpu_ns = used
    process_at_ns = now
    look_again_soon = look_at_once = False
    while place[0] != NULL:
        entry = place[0]
        attention = UNWATCHED
        if enter(entry.scheduler):
            if look_at(entry.scheduler):
                entry.idle_ticks = 0
            else:
                entry.idle_ticks += 1
            attention = WATCHED
            if entry.idle_ticks > LINGER_TICKS:
                attention = relax(entry.scheduler)
            leave(entry.scheduler)
        if attention != UNWATCHED:
            awake = awake or attention == WATCHED
            place = &entry.next
        else:
            place[0] = entry.next
            scheduler_release(entry.scheduler)
            free(entry)
    return awake


cdef Attention relax(Scheduler* s) noexcept nogil:
    """Look less often, or not at all, unless the port wants it again."""
    cp_light_mutex_lock(&s.lock)
    if not wants_watch(s):
        s.attention = DROWSY if s.blocked != 0 else UNWATCHED
    cdef Attention attention = s.attention
    cp_light_mutex_unlock(&s.lock)
    return attention


cdef bint look_at(Scheduler* s) noexcept nogil:
    """Judge the threads at work, and do what follows; True when the port wants to be watched."""
    global alert_until_ns, look_again_soon, look_at_once
    cdef int count = 0
    cdef int i
    cdef bint wanted
    cdef bint stuck
    cdef bint computing = process_computes
    cdef Waiter* thread
    cp_light_mutex_lock(&s.lock)
    wanted = wants_watch(s)
    thread = s.holders
    stuck = thread != NULL
    while thread != NULL and count < MOST_SUSPECTS:
        if thread.started_ns != 0 and process_at_ns - thread.started_ns > ALERT_TICK_NS:
            # The next look tells what it does.
            look_again_soon = True
        if thread.turn != thread.seen_turn:
            # It comes back to the port: all is well so far.
            thread.seen_turn = thread.turn
            thread.seen_turn_at_ns = process_at_ns
            thread.seen_cpu_ns = -1
            stuck = False
        # Those that block are many, and each takes as long to look at as one that may.
        if not cp_load_acquire(&thread.returning) and not (
            thread.blocked and thread.seen_cpu_ns >= 0
            and process_at_ns - thread.seen_at_ns < TICK_NS
        ):
            suspects[count].thread = thread
            suspects[count].turn = thread.turn
            suspects[count].clock = thread.clock
            suspects[count].number = thread.number
            suspects[count].blocked = thread.blocked
            suspects[count].blocked_at = thread.blocked_at
            suspects[count].slept_times = thread.slept_times
            suspects[count].turn_at_ns = thread.seen_turn_at_ns
            suspects[count].before_cpu_ns = thread.seen_cpu_ns
            suspects[count].before_at_ns = thread.seen_at_ns
            count += 1
        thread = thread.next_holder
    cp_light_mutex_unlock(&s.lock)
    for i in range(count):
        look_at_thread(&suspects[i])
        if suspects[i].long_at_it:
            alert_until_ns = process_at_ns + ALERT_FOR_NS
        elif suspects[i].known:
            stuck = False
        if CP_HAS_GIL and suspects[i].known:
            if suspects[i].computes or not (suspects[i].sleeps or suspects[i].blocked):
                computing = True
            elif not computing and not suspects[i].blocked:
                # It may wait for the GIL, and who holds that for a processor.
                computing = cp_another_thread_runs()
    for i in range(count):
        judge(&suspects[i], computing)
    if stuck:
        # What those at work have started must not wait for them.
        s.kernel_submit(s.engine)
    cp_light_mutex_lock(&s.lock)
    thread = s.holders
    while thread != NULL and count != 0:
        for i in range(count):
            if suspects[i].thread == thread and suspects[i].turn == thread.turn:
                thread.seen_cpu_ns = suspects[i].cpu_ns
                thread.seen_at_ns = suspects[i].at_ns
                thread.blocked_at = suspects[i].blocked_at
                thread.slept_times = suspects[i].slept_times
                if suspects[i].judged and thread.declared == 0:
                    if suspects[i].blocked and not thread.blocked:
                        heat(s, process_at_ns, FOUND_ANYWAY)
                    set_blocked(s, thread, suspects[i].blocked)
                break
        thread = thread.next_holder
    cool(s, process_at_ns)
    look_at_once = look_at_once or (s.hot and not CP_HAS_GIL)
    if stuck or s.blocked != 0:
        unlock_and_help(s)
    elif s.hot:
        unlock_and_wake(s)
    else:
        cp_light_mutex_unlock(&s.lock)
    return wanted


cdef void look_at_thread(Suspect* suspect) noexcept nogil:
    cdef bint asleep
    suspect.sleeps = suspect.long_at_it = False
    suspect.at_ns = cp_now_ns()
    suspect.cpu_ns = cp_clock_ns(suspect.clock)
    suspect.known = suspect.before_cpu_ns >= 0 and suspect.cpu_ns >= 0
    if suspect.known:
        suspect.used = suspect.cpu_ns - suspect.before_cpu_ns
        suspect.elapsed = suspect.at_ns - suspect.before_at_ns
        suspect.computes = suspect.used * IDLE_PART >= suspect.elapsed
        suspect.long_at_it = (
            suspect.used >= LONG_WORK_NS
            or suspect.at_ns - suspect.turn_at_ns >= LONGEST_LOSS_NS
        )
        if suspect.blocked or not suspect.computes or not suspect.long_at_it:
            asleep = cp_thread_sleeps(suspect.number)
            suspect.long_at_it = suspect.long_at_it or asleep
            if suspect.blocked and suspect.computes:
                suspect.computes = works_again(suspect, asleep)
            suspect.sleeps = asleep and not suspect.computes


cdef bint works_again(Suspect* suspect, bint asleep) noexcept nogil:
    """Whether it is the work of a thread that blocked which used the processor.

    The kernel wakes it for more: it finishes the io_uring requests of a thread in that thread, in the
    midst of the system call where that one sleeps, which then goes on as if nothing had been.
    """
    cdef int64_t before = suspect.slept_times
    cdef uint64_t place
    if asleep:
        suspect.slept_times = -1
        sleep_of(suspect.number, gil_word, &place)
        # 0 where it has woken up meanwhile.
        return suspect.blocked_at == 0 or (place != 0 and place != suspect.blocked_at)
    # Awake at two looks, and did not sleep between them.
    suspect.slept_times = cp_times_slept(suspect.number)
    return suspect.slept_times == before


cdef void judge(Suspect* suspect, bint others_compute) noexcept nogil:
    cdef Sleep sleep
    suspect.judged = suspect.known and (suspect.computes or suspect.sleeps)
    if not suspect.judged:
        return
    if suspect.sleeps and not suspect.blocked:
        sleep = sleep_of(suspect.number, gil_word, &suspect.blocked_at)
        if sleep == AWAKE or sleep == WAITS_FOR_GIL:
            suspect.judged = False
            return
        if sleep == UNTOLD and others_compute and (
            suspect.elapsed < STILL_NS or suspect.used != 0
        ):
            suspect.judged = False
            if suspect.elapsed < STILL_NS:
                # Measured from the same moment at the next look.
                suspect.cpu_ns = suspect.before_cpu_ns
                suspect.at_ns = suspect.before_at_ns
            return
        suspect.slept_times = -1
    suspect.blocked = suspect.sleeps


cdef void in_child() noexcept nogil:
    """The thread is not in the child, and neither are the ports that it watched."""
    global monitor_lock, arrived, started, watches
    monitor_lock = 0
    arrived = watches = NULL
    started = False


on_watch(watch)
if pthread_atfork(NULL, NULL, in_child) != 0:
    raise MemoryError("pthread_atfork failed")
