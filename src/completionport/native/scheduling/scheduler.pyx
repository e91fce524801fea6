# cython: language_level=3, freethreading_compatible=True
"""Packets to threads: first in first out for packets, last in first out for threads."""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ..primitives.atomics cimport (
    cp_add_fetch,
    cp_count_locked,
    cp_futex_wait,
    cp_futex_wake,
    cp_now_ns,
    cp_peek,
    cp_store_release,
)
from ..primitives.gil cimport CP_HAS_GIL
from ..primitives.guard cimport guard_dispose, guard_open
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_open, cp_light_mutex_unlock
from ..primitives.times cimport MEASURE_EVERY, MEASURED, count_time, is_sample, measured_now_ns
from .calls cimport is_stuck, line_is_worth_it, line_to_lead_for, may_leave, wants_watch
from .packets cimport NONE, append, choose, gives_way, is_older, place_in_line, take_line, unlink, wants_timers
from .places cimport give_place_back, has_room, set_blocked, start_turn, take_place
from .standby cimport LONG_TURN, call_standby, end_long_turn, look_while_hot, replace_those_that_block
from .strands cimport drop_strand, hold_back, hold_strand, let_strand_go, next_held_back
from .waiters cimport UNCALLED, back_from_waiting, call, stack_insert, taker_of

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef extern from "thread_record.h" nogil:
    void* cp_thread_record
    int cp_thread_records_open(void (*at_thread_end)(void*) noexcept) noexcept
    int cp_thread_record_set(void* record) noexcept

cdef extern from "thread_clock.h" nogil:
    int cp_own_clock()
    int cp_own_number()

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

cdef extern from "errno.h" nogil:
    enum: EINTR
    enum: ETIMEDOUT

FOREVER = -1
POLL = 0

# A thread that always finds packets looks into the kernel after this many, so that a program
# that keeps posting to itself does not shut out the sockets.
cdef enum:
    LOOK_INTO_KERNEL_AFTER = 61
    SPARE_PACKETS = 256
    SIGNALS_AT_ONCE = 8
    CACHE_LINE = 64

cdef struct Signals:
    # Futex words to wake once the lock is free. Waking one whose thread has gone on is harmless.
    uint32_t* words[SIGNALS_AT_ONCE]
    int count
    bint leader


cdef Scheduler* scheduler_new(int concurrency) noexcept nogil:
    cdef size_t size = (sizeof(Scheduler) + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    cdef Scheduler* s = <Scheduler*> aligned_alloc(CACHE_LINE, size)
    if s != NULL:
        memset(s, 0, size)
        if not guard_open(&s.guard):
            free(s)
            return NULL
        cp_light_mutex_open(&s.lock)
        s.references = 1
        s.concurrency = concurrency
        s.served.takes = TAKES_SERVED
        s.programs.takes = TAKES_PROGRAMS
        s.next_timer_ns = NO_TIMER
        s.rescue_ns = NO_TIMER
    return s


cdef void scheduler_release(Scheduler* s) noexcept nogil:
    cdef PostedPacket* spare
    if cp_add_fetch(&s.references, -1) == 0:
        while s.spare != NULL:
            spare = s.spare
            s.spare = <PostedPacket*> spare.packet.next
            free(spare)
        free(s.timers)
        guard_dispose(&s.guard)
        free(s)

cdef void thread_ended(void* record) noexcept nogil:
    cdef Waiter* me = <Waiter*> record
    if me.held != NULL:
        end_turn_elsewhere(me)
        scheduler_release(me.held)
    cp_thread_record_set(NULL)
    free(me.scratch)
    free(me)


cdef inline Waiter* current_thread() noexcept nogil:
    """NULL when there is no memory for a thread that was not here before."""
    return <Waiter*> cp_thread_record if cp_thread_record != NULL else new_thread()


cdef Waiter* new_thread() noexcept nogil:
    cdef Waiter* me = <Waiter*> calloc(1, sizeof(Waiter))
    if me == NULL or cp_thread_record_set(me) != 0:
        free(me)
        return NULL
    me.clock = cp_own_clock()
    me.number = cp_own_number()
    return me


cdef int own_number() noexcept nogil:
    """gettid(2) of the calling thread; 0 where it has no record, which takes memory."""
    cdef Waiter* me = current_thread()
    return 0 if me == NULL else me.number


cdef void end_turn_elsewhere(Waiter* me) noexcept nogil:
    """Be done with what was taken from the port that was used before."""
    cdef Scheduler* s = me.held
    cdef bint inside = me.holds_place and enter(s)
    if me.holds_place:
        cp_light_mutex_lock(&s.lock)
        end_turn(s, me)
        give_place_back(s, me)
        if inside:
            unlock_and_wake(s)
            leave(s)
        else:
            # Nobody else looks at a closed port's places, but the holders must leave its list.
            cp_light_mutex_unlock(&s.lock)


cdef void use_port(Waiter* me, Scheduler* s) noexcept nogil:
    """A thread works for one port at a time: coming to this one ends its work for another."""
    if me.held != s:
        if me.held != NULL:
            end_turn_elsewhere(me)
            scheduler_release(me.held)
        cp_add_fetch(&s.references, 1)
        me.held = s

cdef inline void end_turn(Scheduler* s, Waiter* me) noexcept nogil:
    """The thread is done with what it had taken."""
    if me.started_ns != 0 or me.strands != NULL:
        end_noted_turn(s, me)


cdef void end_noted_turn(Scheduler* s, Waiter* me) noexcept nogil:
    """Of one that is measured, or holds strands."""
    cdef int64_t took
    cdef int64_t now
    if me.started_ns != 0:
        now = cp_now_ns()
        took = now - me.started_ns
        me.started_ns = 0
        count_time(&s.work_times, took)
        if took > LONG_TURN:
            end_long_turn(s, me, now, took)
        # One long turn says little of the next: the average grows by a third at most, and the next
        # turns are measured, to see whether they are long too.
        if took > 4 * s.work_ns + 1000:
            took = 4 * s.work_ns + 1000
            s.to_measure = MEASURE_EVERY
        set_time(&s.work_ns, s.work_ns + (took - s.work_ns) // 8)
    while me.strands != NULL:
        let_strand_go(s, me.strands)


cdef bint start_blocking(Scheduler* s) noexcept nogil:
    """The calling thread says that it is about to block; False when it holds no place."""
    cdef Waiter* me = <Waiter*> cp_thread_record
    if me == NULL or me.held != s or not me.holds_place or not enter(s):
        return False
    cp_light_mutex_lock(&s.lock)
    me.declared += 1
    set_blocked(s, me, True)
    if s.newest != NULL and s.queued > s.woken:
        s.replaced += MEASURED
    unlock_and_wake(s)
    leave(s)
    return True


cdef void end_blocking(Scheduler* s) noexcept nogil:
    cdef Waiter* me = current_thread()
    if me.held == s:
        cp_light_mutex_lock(&s.lock)
        # Both are over when it has called get meanwhile.
        if me.holds_place and me.declared > 0:
            me.declared -= 1
            if me.declared == 0:
                set_blocked(s, me, False)
        cp_light_mutex_unlock(&s.lock)

cdef inline void add_signal(Signals* signals, Waiter* waiter) noexcept nogil:
    if signals.count == SIGNALS_AT_ONCE:
        cp_futex_wake(&waiter.signal, 1)
    else:
        signals.words[signals.count] = &waiter.signal
        signals.count += 1


cdef inline void signal_thread(
    Scheduler* s, Waiter* waiter, Line* line, Signals* signals
) noexcept nogil:
    call(s, waiter, line)
    s.wakeups += MEASURED
    if waiter == s.leader:
        signals.leader = True
        return
    cp_store_release(&waiter.signal, 1)
    add_signal(signals, waiter)


cdef inline void have_one_stand_by(Scheduler* s, Signals* signals) noexcept nogil:
    cdef Waiter* waiter = call_standby(s)
    if waiter != NULL:
        add_signal(signals, waiter)


cdef inline void send_signals(Scheduler* s, Signals* signals) noexcept nogil:
    cdef int i
    for i in range(signals.count):
        cp_futex_wake(signals.words[i], 1)
    if signals.leader:
        s.kernel_wake(s.engine)


cdef Watch watch = NULL
cdef Fire fire_timers = NULL


cdef void on_watch(Watch function) noexcept nogil:
    """What is called, without a lock, when a port wants to be watched."""
    global watch
    watch = function


cdef void on_timers(Fire function) noexcept nogil:
    """What is called, without a lock, when timers are due."""
    global fire_timers
    fire_timers = function


cdef inline bint let_one_go(Scheduler* s, bint stuck, Signals* signals) noexcept nogil:
    """Signal a waiting thread if that is worth it: for a packet, or to lead. Lock.

    ``stuck``: those at work are, and it is worth it in any case.
    """
    cdef bint served = line_is_worth_it(s, &s.served, stuck)
    cdef bint programs = line_is_worth_it(s, &s.programs, stuck)
    cdef Line* line
    if served or programs:
        line = &s.served if served else &s.programs
        if served and programs and is_older(&s.programs, &s.served):
            line = &s.programs
        signal_thread(s, taker_of(s, line), line, signals)
        return True
    if s.leader == NULL and s.woken == 0 and (stuck or s.running == 0 or s.work_ns >= WAKE_COST) and (
        s.served.queued == 0 or s.served.takers == 0
    ) and (s.programs.queued == 0 or s.programs.takers == 0):
        signal_thread(s, s.newest, line_to_lead_for(s, s.newest), signals)
        return True
    return False


cdef void let_dismissed_go(Scheduler* s, Signals* signals) noexcept nogil:
    """Signal the waiting threads that may leave their crew. Lock."""
    cdef Waiter* waiter = s.newest
    cdef Waiter* older
    while waiter != NULL:
        older = waiter.older
        if may_leave(s, waiter.crew):
            signal_thread(s, waiter, line_to_lead_for(s, waiter), signals)
        waiter = older


cdef void unlock_and_wake(Scheduler* s) noexcept nogil:
    """Unlock, and let go the threads that packets and free places allow to."""
    unlock_and_let_go(s, True)


cdef void unlock_and_let_go(Scheduler* s, bint standby) noexcept nogil:
    cdef Signals signals
    cdef Attention before = s.attention
    cdef bint unwatched
    signals.count = 0
    signals.leader = False
    if s.dismissed != 0:
        let_dismissed_go(s, &signals)
    while (
        s.newest != NULL and s.running + s.woken < s.concurrency and let_one_go(s, False, &signals)
    ):
        pass
    if standby and s.hot:
        have_one_stand_by(s, &signals)
    unwatched = before != WATCHED and wants_watch(s)
    if unwatched:
        s.attention = WATCHED
    cp_light_mutex_unlock(&s.lock)
    send_signals(s, &signals)
    if unwatched:
        watch(s, before == DROWSY)


cdef void unlock_and_wake_from_outside(Scheduler* s) noexcept nogil:
    """For a caller that is not inside, as every caller has to be that may wake the leader."""
    if s.guard.closed:
        # The closing thread wakes all.
        cp_light_mutex_unlock(&s.lock)
        return
    # It can't fail: the port is closed under the lock.
    enter(s)
    unlock_and_wake(s)
    leave(s)


cdef void unlock_and_help(Scheduler* s) noexcept nogil:
    """Unlock, and let threads go without asking whether it is worth it: those at work are stuck."""
    cdef Signals signals
    signals.count = 0
    signals.leader = False
    while (
        s.newest != NULL and s.running + s.woken < s.concurrency and let_one_go(s, True, &signals)
    ):
        if s.blocked != 0:
            s.replaced += MEASURED
    if s.hot:
        have_one_stand_by(s, &signals)
    if s.keepers != 0 and is_stuck(s):
        s.stuck += 1
        cp_futex_wake(&s.stuck, 1)
    cp_light_mutex_unlock(&s.lock)
    send_signals(s, &signals)


cdef void wake_threads(Scheduler* s) noexcept nogil:
    """Let threads go for packets that were pushed without waking anybody."""
    cp_light_mutex_lock(&s.lock)
    unlock_and_wake(s)

cdef inline void enqueue(Scheduler* s, Packet* packet) noexcept nogil:
    """Into the queue, or into its strand when that is busy. Lock."""
    packet.queued_ns = 0
    if (s.running == 0 and s.queued == 0) or is_sample(s.posted + s.completed, s.work_ns):
        packet.queued_ns = measured_now_ns()
    if packet.strand != NULL:
        if packet.strand.busy:
            hold_back(s, packet)
            return
        packet.strand.busy = True
    append(s, packet)


cdef void push(Scheduler* s, Packet* packet, bint wake) noexcept nogil:
    """Queue a completion. With ``wake`` false the caller sees to `wake_threads` itself."""
    cp_light_mutex_lock(&s.lock)
    s.completed += MEASURED
    enqueue(s, packet)
    if wake and s.newest != NULL:
        unlock_and_wake(s)
    else:
        cp_light_mutex_unlock(&s.lock)


cdef bint post(
    Scheduler* s, void* transferred, void* key, void* overlapped, Strand* strand
) noexcept nogil:
    """Queue three references, which the packet owns from now on; False when there is no memory
    or the port is closed. The caller need not be inside."""
    cdef PostedPacket* posted
    cp_light_mutex_lock(&s.lock)
    if s.guard.closed:
        cp_light_mutex_unlock(&s.lock)
        return False
    posted = s.spare
    if posted != NULL:
        s.spare = <PostedPacket*> posted.packet.next
        s.spare_count -= 1
    else:
        posted = <PostedPacket*> malloc(sizeof(PostedPacket))
        if posted == NULL:
            cp_light_mutex_unlock(&s.lock)
            return False
        posted.packet.kind = PACKET_POSTED
        posted.packet.consumer = NULL
    posted.transferred = transferred
    posted.key = key
    posted.overlapped = overlapped
    posted.packet.strand = strand
    if strand != NULL:
        strand_retain(strand)
    s.posted += MEASURED
    enqueue(s, &posted.packet)
    if s.newest != NULL or s.keepers != 0:
        unlock_and_wake_from_outside(s)
    else:
        cp_light_mutex_unlock(&s.lock)
    return True


cdef void put_back(Scheduler* s, Packet* packet) noexcept nogil:
    cdef Strand* strand = packet.strand
    cdef Line* line = line_of(s, packet)
    cp_light_mutex_lock(&s.lock)
    line.taken -= 1
    packet.queued_ns = 0
    if strand != NULL:
        # The thread holds it until its next call.
        packet.next = strand.head
        strand.head = packet
        if strand.tail == NULL:
            strand.tail = packet
        cp_count_locked(&strand.queued, 1)
        s.held_back += 1
    else:
        packet.next = line.head
        set_head(line, packet)
        if line.tail == NULL:
            line.tail = packet
        line.queued += 1
        s.queued += 1
    unlock_and_wake_from_outside(s)


cdef void push_timed(Scheduler* s, Packet* packets, bint wake) noexcept nogil:
    """Queue the packets of timers, a list. Without ``wake`` the caller is on its way to take one."""
    cdef Packet* following
    cp_light_mutex_lock(&s.lock)
    while packets != NULL:
        following = packets.next
        s.posted += MEASURED
        enqueue(s, packets)
        packets = following
    if wake:
        unlock_and_wake(s)
    else:
        cp_light_mutex_unlock(&s.lock)


cdef inline void pop(
    Scheduler* s, Waiter* me, Taken* taken, Line* line, int place, bint more
) noexcept nogil:
    """Take the packet at that place. With ``more`` the thread is at its turn already."""
    cdef Packet* packet = unlink(s, line, place)
    cdef PostedPacket* posted
    if not more:
        start_turn(s, me, packet)
    if packet.queued_ns != 0:
        count_time(&s.queue_times, (cp_now_ns() if more else me.started_ns) - packet.queued_ns)
    if packet.strand != NULL:
        hold_strand(me, packet.strand)
        if packet.kind == PACKET_TIMER:
            strand_release(packet.strand)
    taken.packet = packet
    taken.thread = me
    if packet.kind == PACKET_POSTED:
        posted = <PostedPacket*> packet
        taken.packet = NULL
        taken.transferred = posted.transferred
        taken.key = posted.key
        taken.overlapped = posted.overlapped
        if packet.strand != NULL:
            strand_release(packet.strand)
        if s.spare_count < SPARE_PACKETS:
            packet.next = <Packet*> s.spare
            s.spare = posted
            s.spare_count += 1
        else:
            free(posted)


cdef bint stand_in(Scheduler* s, int takes, Crew* crew, Taken* taken) noexcept nogil:
    """Of a thread that stood by and now has the GIL, behind TAKE_STANDBY: `take_ready`. The caller need
    not be inside, and calls `take` or `wake_threads` behind it."""
    cp_light_mutex_lock(&s.lock)
    s.standby = NULL
    cp_light_mutex_unlock(&s.lock)
    return take_ready(s, takes, crew, taken, False)


cdef bint take_ready(Scheduler* s, int takes, Crew* crew, Taken* taken, bint more) noexcept nogil:
    """Take a packet without waiting and without a look into the kernel; a thread that is to leave its crew
    takes none.

    With ``more`` the thread has just taken one and keeps its place. The caller need not be inside.
    """
    cdef Waiter* me = current_thread()
    cdef bint found = False
    cdef Line* line
    if me == NULL:
        return False  # `take` says so
    if me.held != s:
        use_port(me, s)
    if me.serving != 0:
        takes = TAKES_PROGRAMS
    cp_light_mutex_lock(&s.lock)
    if not more:
        end_turn(s, me)
        if me.blocked:
            me.declared = 0
            set_blocked(s, me, False)
        if s.hot:
            replace_those_that_block(s, me)
    line = choose(s, takes)
    if line == NULL and not more and CP_HAS_GIL and s.hot and has_room(s, me):
        if not look_while_hot(s):
            return False
        line = choose(s, takes)
    if line != NULL and not s.guard.closed and (
        more or (
            has_room(s, me)
            and s.since_kernel < LOOK_INTO_KERNEL_AFTER
            and not may_leave(s, crew)
            and (takes == TAKES_ALL or not gives_way(s, line))
            and not (cp_peek_64(&s.next_timer_ns) != NO_TIMER and wants_timers(s))
        )
    ):
        if not more and not me.holds_place:
            take_place(s, me)
        s.since_kernel += 1
        pop(s, me, taken, line, line.passed_over, more)
        found = True
        if s.newest != NULL or (s.queued != 0 and s.submits_late and s.attention != WATCHED):
            unlock_and_wake_from_outside(s)
            return True
    cp_light_mutex_unlock(&s.lock)
    return found


cdef TakeStatus take(
    Scheduler* s, int takes, Crew* crew, int64_t deadline_ns, Taken* taken, uint64_t* arrival
) noexcept nogil:
    """Take a packet, waiting until ``deadline_ns`` (FOREVER, POLL). The caller is inside `enter`,
    as is every caller that may wake the leader. ``crew``: that the thread waits as one of, or NULL.

    ``arrival``: 0, or what a call before has left there, which this one goes on with: then the
    thread keeps its place among those that wait.
    """
    cdef Waiter* me = current_thread()
    cdef TakeStatus status
    cdef int error = 0
    cdef bint looked = False
    cdef bint reaped = False
    cdef bint fired = False
    cdef int64_t until_ns
    cdef Line* line
    cdef int place
    cdef int ahead = UNCALLED
    if me == NULL:
        return TAKE_NO_MEMORY
    if me.held != s:
        use_port(me, s)
    if me.serving != 0:
        takes = TAKES_PROGRAMS
    cp_light_mutex_lock(&s.lock)
    end_turn(s, me)
    give_place_back(s, me)
    if arrival[0] == 0:
        s.arrivals += 1
        arrival[0] = s.arrivals
    me.arrival = arrival[0]
    me.takes = takes
    me.crew = crew
    s.waiting += 1
    while True:
        if s.guard.closed:
            status = TAKE_CLOSED
            break
        if s.since_kernel >= LOOK_INTO_KERNEL_AFTER:
            s.since_kernel = 0
            if s.leader == NULL:
                cp_light_mutex_unlock(&s.lock)
                s.kernel_wait(s.engine, POLL)
                cp_light_mutex_lock(&s.lock)
                continue
        if rescue_is_due(s):
            cp_light_mutex_unlock(&s.lock)
            s.rescue(s.engine)
            cp_light_mutex_lock(&s.lock)
            continue
        if (not fired or choose(s, takes) == NULL) and timers_are_due(s):
            # Once, unless nothing came of it: packets that are there already are not to wait for more.
            fired = True
            cp_light_mutex_unlock(&s.lock)
            fire_timers(s, False)
            cp_light_mutex_lock(&s.lock)
            continue
        if may_leave(s, crew):
            crew.leaving -= 1
            s.dismissed -= 1
            status = TAKE_DISMISSED
            break
        line = me.line
        place = place_in_line(line, ahead) if ahead != UNCALLED and line.takes & takes else NONE
        if place == NONE:
            line = choose(s, takes if ahead == UNCALLED else takes & ~line.takes)
            if line != NULL:
                place = line.passed_over
        if place != NONE and s.running < s.concurrency and not (
            # What the leader reaped belongs to a thread that came later, if one waits.
            reaped and line.takers != 0 and taker_of(s, line).arrival > me.arrival
        ) and (takes == TAKES_ALL or deadline_ns == POLL or not gives_way(s, line)):
            take_place(s, me)
            s.since_kernel += 1
            cp_store_release(&me.returning, 1)
            pop(s, me, taken, line, place, False)
            status = TAKE_PACKET
            break
        # What was kept for this thread is there for all.
        s.served.passed_over = min(s.served.passed_over, s.served.woken)
        s.programs.passed_over = min(s.programs.passed_over, s.programs.woken)
        if error == EINTR:
            status = TAKE_INTERRUPTED
            break
        if error == ETIMEDOUT or deadline_ns == POLL:
            if looked or s.leader != NULL or s.running >= s.concurrency:
                status = TAKE_TIMEOUT
                break
            looked = True
            cp_light_mutex_unlock(&s.lock)
            s.kernel_wait(s.engine, POLL)
            cp_light_mutex_lock(&s.lock)
            continue
        if s.standby == me:
            if s.running >= s.concurrency:
                status = TAKE_STANDBY
                break
            s.standby = NULL
        if s.leader == NULL and s.running < s.concurrency and place == NONE:
            stack_insert(s, me)
            set_leader(s, me)
            s.since_kernel = 0
            until_ns = with_timers(s, with_rescue(s, deadline_ns))
            s.leader_until_ns = until_ns if until_ns != FOREVER else NO_TIMER
            if s.queued > s.woken:
                # It may have reaped what others take.
                unlock_and_wake(s)
            else:
                cp_light_mutex_unlock(&s.lock)
            error = s.kernel_wait(s.engine, until_ns)
            cp_light_mutex_lock(&s.lock)
            set_leader(s, NULL)
            fired = False
            if until_ns != deadline_ns and error == ETIMEDOUT:
                # The time of a timer or of `rescue` has come, the thread's own has not.
                error = 0
            else:
                looked = True
            reaped = not me.signalled
        else:
            stack_insert(s, me)
            unlock_and_wake(s)
            # Another thread leads, or nobody may: what this one has started must not wait for that.
            s.kernel_submit(s.engine)
            error = cp_futex_wait(&me.signal, 0, deadline_ns)
            cp_light_mutex_lock(&s.lock)
            reaped = False
        ahead = back_from_waiting(s, me)
    s.waiting -= 1
    if s.standby == me and status != TAKE_STANDBY:
        s.standby = NULL
    # With a packet it may have to wait for the GIL: before that no other thread is to.
    unlock_and_let_go(s, status != TAKE_PACKET)
    return status


cdef void thread_is_back(Scheduler* s) noexcept nogil:
    """The thread that has left `take` holds the GIL again, or needs none. The caller need not be inside."""
    cdef Waiter* me = <Waiter*> cp_thread_record
    if me != NULL:
        cp_store_release(&me.returning, 0)
    if CP_HAS_GIL and cp_peek(&s.hot):
        cp_light_mutex_lock(&s.lock)
        unlock_and_wake_from_outside(s)


cdef bint serves() noexcept nogil:
    """Whether the calling thread is in the midst of a consumer's packet."""
    cdef Waiter* me = <Waiter*> cp_thread_record
    return me != NULL and me.serving != 0


cdef void drop_served(Scheduler* s, Packet* packet) noexcept:
    """Of one that was taken, and whose port is closed: dropped once nothing is with the kernel any more."""
    cp_light_mutex_lock(&s.lock)
    if not s.drained:
        # Who closes the port comes to it.
        append(s, packet)
        cp_light_mutex_unlock(&s.lock)
        return
    cp_light_mutex_unlock(&s.lock)
    packet.consumer.drop(packet)


cdef void drop_queued(Packet* packet) noexcept:
    """Of a consumer's, by the thread that closes the port: in the midst of it, as one that serves is."""
    cdef Waiter* me = current_thread()
    cdef int before = 0
    if me != NULL:
        before = me.serving
        me.serving = before + 1
    packet.consumer.drop(packet)
    if me != NULL:
        # In the child of a fork in there it was set to 0.
        me.serving = before


cdef Packet* close_queue(Scheduler* s) noexcept nogil:
    """Take what is queued out, to be dropped. `closed` is set and no thread is inside."""
    cdef Packet* packets
    cdef Strand* strand
    cp_light_mutex_lock(&s.lock)
    strand = s.strands
    while strand != NULL:
        while strand.head != NULL:
            append(s, next_held_back(s, strand))
        strand = strand.following
    packets = take_line(&s.served, take_line(&s.programs, NULL))
    s.queued = 0
    s.drained = True
    cp_light_mutex_unlock(&s.lock)
    return packets


cdef void announce_close(Scheduler* s) noexcept nogil:
    """Set `closed` and wake every waiting thread; the caller then waits until it is alone."""
    cdef Signals signals
    signals.count = 0
    signals.leader = False
    cp_light_mutex_lock(&s.lock)
    cp_store_release(&s.guard.closed, 1)
    while s.newest != NULL:
        signal_thread(s, s.newest, &s.served, &signals)
    s.stuck += 1
    cp_light_mutex_unlock(&s.lock)
    cp_futex_wake(&s.stuck, 0x7fffffff)
    send_signals(s, &signals)


cdef void strand_retain(Strand* strand) noexcept nogil:
    cp_add_fetch(&strand.references, 1)


cdef void strand_release(Strand* strand) noexcept nogil:
    """One reference less. Without the scheduler's lock, or it is not the last one."""
    cdef Scheduler* s = strand.scheduler
    if cp_add_fetch(&strand.references, -1) == 0:
        cp_add_fetch(&s.references, 1)
        cp_light_mutex_lock(&s.lock)
        drop_strand(s, strand)
        cp_light_mutex_unlock(&s.lock)
        scheduler_release(s)


cdef bint strand_let_go(Strand* strand) noexcept nogil:
    """For the calling thread; False when it does not hold the strand."""
    cdef Scheduler* s = strand.scheduler
    cdef Waiter* me = <Waiter*> cp_thread_record
    cp_light_mutex_lock(&s.lock)
    if me == NULL or strand.holder != me:
        cp_light_mutex_unlock(&s.lock)
        return False
    let_strand_go(s, strand)
    unlock_and_wake_from_outside(s)
    return True


cdef void in_child() noexcept nogil:
    """What this thread had taken is the parent's; the CPU clock is another one."""
    cdef Waiter* me = <Waiter*> cp_thread_record
    if me != NULL:
        me.holds_place = me.blocked = me.on_stack = False
        me.strands = NULL
        me.serving = 0
        me.clock = cp_own_clock()
        me.number = cp_own_number()


if cp_thread_records_open(thread_ended) != 0 or pthread_atfork(NULL, NULL, in_child) != 0:
    raise MemoryError("no key left for thread-local data")
