# cython: language_level=3, freethreading_compatible=True
"""The timers of a port below Python: a heap by time, and packets for those that are due.

No thread sees to it. Threads on their way through `take` look at `next_timer_ns`, and the leader
waits no longer than that. A timer is in the heap, then its packet is in the queue: the heap's lock
makes one step of it, and is held until the packet is in the queue, so that timers of equal time keep
their order. It is taken before the scheduler's lock.

A heap with four children to a node: half as deep as one with two, and the four lie in two lines of
the cache. Its entries carry the time, so that a comparison does not touch the timers themselves.
Each timer knows its place, so one that is cancelled leaves at once.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from ..primitives.atomics cimport (
    cp_futex_wake,
    cp_mutex,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek_64,
    cp_peek_size,
    cp_set_64,
)
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from .scheduler cimport (
    NO_TIMER,
    on_timers,
    push_timed,
)

cdef extern from "atomics.h" nogil:
    void set_size "cp_store_relaxed"(size_t* field, size_t value)

cdef enum:
    # So many due timers at once become packets, so that the lock is never held for long.
    FIRED_AT_ONCE = 64
    LEAST_ROOM = 64

cdef struct Entry:
    int64_t when_ns
    uint64_t sequence       # those of equal time go in the order in which they were set
    TimedPacket* timed

cdef struct TimerHeap:
    cp_mutex lock
    # lock; `count` is written as an atomic:
    Entry* entries
    size_t count
    size_t room
    uint64_t sequence


cdef inline bint before(Entry* one, Entry* other) noexcept nogil:
    return one.when_ns < other.when_ns or (
        one.when_ns == other.when_ns and one.sequence < other.sequence
    )


cdef inline void put(TimerHeap* heap, size_t place, Entry* entry) noexcept nogil:
    heap.entries[place] = entry[0]
    set_size(&entry.timed.place, place + 1)


cdef void rise(TimerHeap* heap, size_t place, Entry entry) noexcept nogil:
    """Put the entry where it belongs, at `place` or above it."""
    cdef size_t parent
    while place > 0:
        parent = (place - 1) // 4
        if not before(&entry, &heap.entries[parent]):
            break
        put(heap, place, &heap.entries[parent])
        place = parent
    put(heap, place, &entry)


cdef void sink(TimerHeap* heap, size_t place, Entry entry) noexcept nogil:
    """Put the entry where it belongs, at `place` or below it."""
    cdef size_t child
    cdef size_t other
    cdef size_t last
    while True:
        child = place * 4 + 1
        if child >= heap.count:
            break
        last = min(child + 3, heap.count - 1)
        for other in range(child + 1, last + 1):
            if before(&heap.entries[other], &heap.entries[child]):
                child = other
        if not before(&heap.entries[child], &entry):
            break
        put(heap, place, &heap.entries[child])
        place = child
    put(heap, place, &entry)


cdef void remove(TimerHeap* heap, size_t place) noexcept nogil:
    cdef Entry last
    set_size(&heap.entries[place].timed.place, 0)
    set_size(&heap.count, heap.count - 1)
    if place != heap.count:
        last = heap.entries[heap.count]
        if place > 0 and before(&last, &heap.entries[(place - 1) // 4]):
            rise(heap, place, last)
        else:
            sink(heap, place, last)
    if heap.room > LEAST_ROOM and heap.count < heap.room // 4:
        resize(heap, heap.room // 2)


cdef bint resize(TimerHeap* heap, size_t room) noexcept nogil:
    cdef Entry* entries = <Entry*> realloc(heap.entries, room * sizeof(Entry))
    if entries == NULL:
        return False
    heap.entries = entries
    heap.room = room
    return True


cdef inline void tell_next(Scheduler* s, TimerHeap* heap) noexcept nogil:
    """Let threads know until when they may wait. The heap's lock."""
    cdef int64_t next_ns = heap.entries[0].when_ns if heap.count != 0 else NO_TIMER
    if next_ns != s.next_timer_ns:  # written by nobody else meanwhile
        cp_set_64(&s.next_timer_ns, next_ns)


cdef bint open_timers(Scheduler* s) noexcept nogil:
    """For a new scheduler, which frees them; False when there is no memory."""
    s.timers = calloc(1, sizeof(TimerHeap))
    return s.timers != NULL


cdef bint timer_set(Scheduler* s, TimedPacket* timed) noexcept nogil:
    """Give a timer to the heap, with its references; False when there is no memory.

    The caller is inside.
    """
    cdef TimerHeap* heap = <TimerHeap*> s.timers
    cdef Entry entry
    cdef bint first
    cp_mutex_lock(&heap.lock)
    if heap.count == heap.room and not resize(heap, max(<size_t> LEAST_ROOM, heap.room * 2)):
        cp_mutex_unlock(&heap.lock)
        return False
    entry.when_ns = timed.when_ns
    entry.sequence = heap.sequence
    entry.timed = timed
    heap.sequence += 1
    set_size(&heap.count, heap.count + 1)
    rise(heap, heap.count - 1, entry)
    first = timed.place == 1
    if first:
        cp_set_64(&s.next_timer_ns, entry.when_ns)
    cp_mutex_unlock(&heap.lock)
    if first:
        wait_no_longer(s, entry.when_ns)
    return True


cdef void wait_no_longer(Scheduler* s, int64_t when_ns) noexcept nogil:
    """A thread that sleeps until later than that looks again.

    `next_timer_ns` was written before: who goes to sleep after this has seen it.
    """
    cdef bint wake = False
    cdef bint nudge = False
    cp_light_mutex_lock(&s.lock)
    if s.leader != NULL:
        wake = s.leader_until_ns > when_ns
    elif s.keepers != 0:
        s.stuck += 1
        nudge = True
    cp_light_mutex_unlock(&s.lock)
    if wake:
        s.kernel_wake(s.engine)
    if nudge:
        cp_futex_wake(&s.stuck, 0x7fffffff)


cdef bint timer_cancel(Scheduler* s, TimedPacket* timed) noexcept nogil:
    """Take a timer out; its references are the caller's. False when it is not in the heap any more.

    The caller is inside.
    """
    cdef TimerHeap* heap = <TimerHeap*> s.timers
    cdef bint found
    cp_mutex_lock(&heap.lock)
    found = timed.place != 0
    if found:
        remove(heap, timed.place - 1)
        tell_next(s, heap)
    cp_mutex_unlock(&heap.lock)
    return found


cdef void fire(Scheduler* s, bint wake) noexcept nogil:
    """Make packets of the timers that are due. The caller is inside and has no lock."""
    cdef TimerHeap* heap = <TimerHeap*> s.timers
    cdef Packet* first = NULL
    cdef Packet** end = &first
    cdef TimedPacket* timed
    cdef int count = 0
    cp_mutex_lock(&heap.lock)
    cdef int64_t now = cp_now_ns()
    while count < FIRED_AT_ONCE and heap.count != 0 and heap.entries[0].when_ns <= now:
        timed = heap.entries[0].timed
        remove(heap, 0)
        end[0] = &timed.packet
        end = &timed.packet.next
        count += 1
    end[0] = NULL
    tell_next(s, heap)
    if first != NULL:
        push_timed(s, first, wake)
    cp_mutex_unlock(&heap.lock)


cdef void fire_if_due(Scheduler* s) noexcept nogil:
    """Make packets of all timers that are due now, for a look at the queue. The caller is inside."""
    cdef int64_t now = cp_now_ns()
    while cp_peek_64(&s.next_timer_ns) <= now:
        fire(s, True)


cdef size_t timers_pending(Scheduler* s) noexcept nogil:
    return cp_peek_size(&(<TimerHeap*> s.timers).count)


cdef Packet* close_timers(Scheduler* s) noexcept nogil:
    """Take all timers out, to be dropped. The port is closed and no thread is inside."""
    cdef TimerHeap* heap = <TimerHeap*> s.timers
    cdef Packet* packets = NULL
    cdef TimedPacket* timed
    cp_mutex_lock(&heap.lock)
    while heap.count != 0:
        set_size(&heap.count, heap.count - 1)
        timed = heap.entries[heap.count].timed
        set_size(&timed.place, 0)
        timed.packet.next = packets
        packets = &timed.packet
    free(heap.entries)
    heap.entries = NULL
    heap.room = 0
    tell_next(s, heap)
    cp_mutex_unlock(&heap.lock)
    return packets


on_timers(fire)
