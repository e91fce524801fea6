# cython: language_level=3, freethreading_compatible=True
"""Packets to threads: first in first out for packets, last in first out for threads."""

from libc.stdlib cimport calloc, free, malloc

from .atomics cimport (
    cp_add_fetch,
    cp_futex_wait,
    cp_futex_wake,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_store_release,
)

cdef extern from "thread_record.h" nogil:
    void* cp_thread_record
    int cp_thread_records_open(void (*at_thread_end)(void*) noexcept) noexcept
    void cp_thread_record_set(void* record) noexcept

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

cdef struct Signals:
    # Futex words to wake once the lock is free. Waking one whose thread has gone on is harmless.
    uint32_t* words[SIGNALS_AT_ONCE]
    int count
    bint leader


cdef Scheduler* scheduler_new(int concurrency) noexcept nogil:
    cdef Scheduler* s = <Scheduler*> calloc(1, sizeof(Scheduler))
    if s != NULL:
        s.references = 1
        s.concurrency = concurrency
    return s


cdef void scheduler_release(Scheduler* s) noexcept nogil:
    cdef PostedPacket* spare
    if cp_add_fetch(&s.references, -1) == 0:
        while s.spare != NULL:
            spare = s.spare
            s.spare = <PostedPacket*> spare.packet.next
            free(spare)
        free(s)


# -- threads ------------------------------------------------------------------------------------


cdef void thread_ended(void* record) noexcept nogil:
    cdef Waiter* me = <Waiter*> record
    if me.held != NULL:
        give_place_back(me)
        scheduler_release(me.held)
    free(me)


cdef inline Waiter* current_thread() noexcept nogil:
    cdef Waiter* me = <Waiter*> cp_thread_record
    if me == NULL:
        me = <Waiter*> calloc(1, sizeof(Waiter))
        cp_thread_record_set(me)
    return me


cdef void give_place_back(Waiter* me) noexcept nogil:
    cdef Scheduler* s = me.held
    if me.holds_place:
        me.holds_place = False
        if enter(s):
            cp_mutex_lock(&s.lock)
            s.running -= 1
            unlock_and_wake(s)
            leave(s)


cdef void use_port(Waiter* me, Scheduler* s) noexcept nogil:
    """A thread works for one port at a time: coming to this one ends its work for another."""
    if me.held != s:
        if me.held != NULL:
            give_place_back(me)
            scheduler_release(me.held)
        cp_add_fetch(&s.references, 1)
        me.held = s


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


cdef inline void back_from_waiting(Scheduler* s, Waiter* me) noexcept nogil:
    if me.on_stack:
        stack_remove(s, me)
    elif me.signalled:
        s.woken -= 1
    me.signalled = False


cdef inline void signal_thread(Scheduler* s, Waiter* waiter, Signals* signals) noexcept nogil:
    stack_remove(s, waiter)
    waiter.signalled = True
    s.woken += 1
    s.wakeups += 1
    if waiter == s.leader:
        signals.leader = True
        return
    cp_store_release(&waiter.signal, 1)
    if signals.count == SIGNALS_AT_ONCE:
        cp_futex_wake(&waiter.signal, 1)
    else:
        signals.words[signals.count] = &waiter.signal
        signals.count += 1


cdef inline void send_signals(Scheduler* s, Signals* signals) noexcept nogil:
    cdef int i
    for i in range(signals.count):
        cp_futex_wake(signals.words[i], 1)
    if signals.leader:
        s.kernel_wake(s.engine)


cdef inline void unlock_and_wake(Scheduler* s) noexcept nogil:
    """Unlock, and let go the threads that packets and free places allow to."""
    cdef Signals signals
    signals.count = 0
    signals.leader = False
    while (
        s.newest != NULL
        and s.running + s.woken < s.concurrency
        and (s.queued > s.woken or (s.leader == NULL and s.woken == 0))
    ):
        signal_thread(s, s.newest, &signals)
    cp_mutex_unlock(&s.lock)
    send_signals(s, &signals)


cdef void wake_threads(Scheduler* s) noexcept nogil:
    """Let threads go for packets that were pushed without waking anybody."""
    cp_mutex_lock(&s.lock)
    unlock_and_wake(s)


# -- packets ------------------------------------------------------------------------------------


cdef inline void append(Scheduler* s, Packet* packet) noexcept nogil:
    packet.next = NULL
    if s.tail == NULL:
        s.head = packet
    else:
        s.tail.next = packet
    s.tail = packet
    s.queued += 1


cdef void push(Scheduler* s, Packet* packet, bint wake) noexcept nogil:
    """Queue a completion. With ``wake`` false the caller sees to `wake_threads` itself."""
    cp_mutex_lock(&s.lock)
    append(s, packet)
    s.completed += 1
    if wake and s.newest != NULL:
        unlock_and_wake(s)
    else:
        cp_mutex_unlock(&s.lock)


cdef bint post(Scheduler* s, void* transferred, void* key, void* overlapped) noexcept nogil:
    """Queue three references, which the packet owns from now on; False when there is no memory
    or the port is closed."""
    cdef PostedPacket* posted
    cp_mutex_lock(&s.lock)
    if s.guard.closed:
        cp_mutex_unlock(&s.lock)
        return False
    posted = s.spare
    if posted != NULL:
        s.spare = <PostedPacket*> posted.packet.next
        s.spare_count -= 1
    else:
        posted = <PostedPacket*> malloc(sizeof(PostedPacket))
        if posted == NULL:
            cp_mutex_unlock(&s.lock)
            return False
        posted.packet.kind = PACKET_POSTED
    posted.transferred = transferred
    posted.key = key
    posted.overlapped = overlapped
    append(s, &posted.packet)
    s.posted += 1
    if s.newest != NULL:
        unlock_and_wake(s)
    else:
        cp_mutex_unlock(&s.lock)
    return True


cdef inline void pop(Scheduler* s, Taken* taken) noexcept nogil:
    cdef Packet* packet = s.head
    cdef PostedPacket* posted
    s.head = packet.next
    if s.head == NULL:
        s.tail = NULL
    s.queued -= 1
    s.taken += 1
    taken.packet = packet
    if packet.kind == PACKET_POSTED:
        posted = <PostedPacket*> packet
        taken.packet = NULL
        taken.transferred = posted.transferred
        taken.key = posted.key
        taken.overlapped = posted.overlapped
        if s.spare_count < SPARE_PACKETS:
            packet.next = <Packet*> s.spare
            s.spare = posted
            s.spare_count += 1
        else:
            free(posted)


cdef bint take_ready(Scheduler* s, Taken* taken, bint more) noexcept nogil:
    """Take a packet without waiting and without a look into the kernel.

    With ``more`` the thread has just taken one and keeps its place.
    """
    cdef Waiter* me = current_thread()
    cdef bint found = False
    if me.held != s:
        use_port(me, s)
    cp_mutex_lock(&s.lock)
    if not s.guard.closed and s.head != NULL and (
        more or (
            s.running - me.holds_place < s.concurrency
            and s.since_kernel < LOOK_INTO_KERNEL_AFTER
        )
    ):
        if not more:
            s.running += 1 - me.holds_place
            me.holds_place = True
        s.since_kernel += 1
        pop(s, taken)
        found = True
        if s.newest != NULL:
            unlock_and_wake(s)
            return True
    cp_mutex_unlock(&s.lock)
    return found


cdef TakeStatus take(Scheduler* s, int64_t deadline_ns, Taken* taken) noexcept nogil:
    """Take a packet, waiting until ``deadline_ns`` (FOREVER, POLL). The caller is inside `enter`,
    as is every caller that may wake the leader."""
    cdef Waiter* me = current_thread()
    cdef TakeStatus status
    cdef int error = 0
    cdef bint looked = False
    cdef bint reaped = False
    if me.held != s:
        use_port(me, s)
    cp_mutex_lock(&s.lock)
    if me.holds_place:
        me.holds_place = False
        s.running -= 1
    s.arrivals += 1
    me.arrival = s.arrivals
    s.waiting += 1
    while True:
        if s.guard.closed:
            status = TAKE_CLOSED
            break
        if s.since_kernel >= LOOK_INTO_KERNEL_AFTER:
            s.since_kernel = 0
            if s.leader == NULL:
                cp_mutex_unlock(&s.lock)
                s.kernel_wait(s.engine, POLL)
                cp_mutex_lock(&s.lock)
                continue
        if s.head != NULL and s.running < s.concurrency and not (
            # What the leader reaped belongs to a thread that came later, if one waits.
            reaped and s.newest != NULL and s.newest.arrival > me.arrival
        ):
            me.holds_place = True
            s.running += 1
            s.since_kernel += 1
            pop(s, taken)
            status = TAKE_PACKET
            break
        if error == EINTR:
            status = TAKE_INTERRUPTED
            break
        if error == ETIMEDOUT or deadline_ns == POLL:
            if looked or s.leader != NULL or s.running >= s.concurrency:
                status = TAKE_TIMEOUT
                break
            looked = True
            cp_mutex_unlock(&s.lock)
            s.kernel_wait(s.engine, POLL)
            cp_mutex_lock(&s.lock)
            continue
        if s.leader == NULL and s.running < s.concurrency and s.head == NULL:
            stack_insert(s, me)
            s.leader = me
            s.since_kernel = 0
            cp_mutex_unlock(&s.lock)
            error = s.kernel_wait(s.engine, deadline_ns)
            cp_mutex_lock(&s.lock)
            s.leader = NULL
            looked = True
            reaped = not me.signalled
        else:
            stack_insert(s, me)
            unlock_and_wake(s)
            # Another thread leads, or nobody may: what this one has started must not wait for that.
            s.kernel_submit(s.engine)
            error = cp_futex_wait(&me.signal, 0, deadline_ns)
            cp_mutex_lock(&s.lock)
            reaped = False
        back_from_waiting(s, me)
    s.waiting -= 1
    unlock_and_wake(s)
    return status


cdef Packet* close_queue(Scheduler* s) noexcept nogil:
    """Take what is queued out, to be dropped. `closed` is set and no thread is inside."""
    cdef Packet* packets
    cp_mutex_lock(&s.lock)
    packets = s.head
    s.head = s.tail = NULL
    s.queued = 0
    cp_mutex_unlock(&s.lock)
    return packets


cdef void announce_close(Scheduler* s) noexcept nogil:
    """Set `closed` and wake every waiting thread; the caller then waits until it is alone."""
    cdef Signals signals
    signals.count = 0
    signals.leader = False
    cp_mutex_lock(&s.lock)
    cp_store_release(&s.guard.closed, 1)
    while s.newest != NULL:
        signal_thread(s, s.newest, &signals)
    cp_mutex_unlock(&s.lock)
    send_signals(s, &signals)


if cp_thread_records_open(thread_ended) != 0:
    raise MemoryError("no key left for thread-local data")
