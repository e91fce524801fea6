# cython: language_level=3, freethreading_compatible=True
"""Threads go in and out without a shared counter; only who closes looks at all of them.

A thread announces where it is in its own record, then reads `closed`. The closing thread sets
`closed`, then reads all records. Each writes before it reads, with a fence between, so one of them
sees the other.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from .atomics cimport (
    cp_add_fetch,
    cp_futex_wait,
    cp_futex_wake,
    cp_load_acquire,
    cp_load_int,
    cp_mutex,
    cp_mutex_lock,
    cp_mutex_unlock,
)

cdef extern from "guard.h" nogil:
    void cp_pair_fences()
    void cp_often_fence()
    void cp_rare_fence()

cdef extern from "thread_record.h" nogil:
    void* cp_thread_record
    int cp_thread_records_open(void (*at_thread_end)(void*) noexcept) noexcept
    int cp_thread_record_set(void* record) noexcept

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

cdef extern from "errno.h" nogil:
    enum:
        ETIMEDOUT

cdef extern from *:
    """
    #define cp_announce(place, guard) __atomic_store_n((place), (guard), __ATOMIC_RELEASE)
    #define cp_seen(place) __atomic_load_n((place), __ATOMIC_ACQUIRE)
    """
    void cp_announce(Guard** place, Guard* guard) nogil
    Guard* cp_seen(Guard** place) nogil

cdef struct Record:
    # Of one thread.
    Guard* inside       # atomic: written by the thread, read by those who close
    int depth           # own thread only: how many times it went into `inside`
    # `records_lock`:
    Record* previous
    Record* following

cdef struct Opened:
    # A guard of this process. `records_lock`.
    Guard* guard
    Opened* following

cdef cp_mutex records_lock
cdef Record* records
cdef Opened* opened


cdef void thread_ended(void* ended) noexcept nogil:
    cdef Record* record = <Record*> ended
    if record.inside != NULL:
        # The interpreter ends, and with it threads wherever they next wait for something of Python's.
        record.depth = 1
        cp_thread_record_set(record)
        guard_leave(record.inside)
    cp_mutex_lock(&records_lock)
    unlink(record)
    cp_mutex_unlock(&records_lock)
    # What another destructor of this thread does may go inside once more: with a new record, whose
    # turn comes in the next round (pthread_key_create(3)).
    cp_thread_record_set(NULL)
    free(record)


cdef void unlink(Record* record) noexcept nogil:
    global records
    if record.previous == NULL:
        records = record.following
    else:
        record.previous.following = record.following
    if record.following != NULL:
        record.following.previous = record.previous


cdef Record* new_record() noexcept nogil:
    global records
    cdef Record* record = <Record*> calloc(1, sizeof(Record))
    if record == NULL or cp_thread_record_set(record) != 0:
        free(record)
        return NULL
    cp_mutex_lock(&records_lock)
    record.following = records
    if records != NULL:
        records.previous = record
    records = record
    cp_mutex_unlock(&records_lock)
    return record


cdef bint guard_open(Guard* guard) noexcept nogil:
    """For a new guard, which is all zeros; False when there is no memory."""
    global opened
    cdef Opened* entry = <Opened*> malloc(sizeof(Opened))
    if entry == NULL:
        return False
    entry.guard = guard
    cp_mutex_lock(&records_lock)
    entry.following = opened
    opened = entry
    cp_mutex_unlock(&records_lock)
    return True


cdef void guard_dispose(Guard* guard) noexcept nogil:
    """Undo `guard_open`: its memory goes."""
    cdef Opened** place = &opened
    cdef Opened* entry
    cp_mutex_lock(&records_lock)
    while place[0].guard != guard:
        place = &place[0].following
    entry = place[0]
    place[0] = entry.following
    cp_mutex_unlock(&records_lock)
    free(entry)


cdef bint guard_enter(Guard* guard) noexcept nogil:
    """Go inside, as often as one likes; False when the guard is closed."""
    cdef Record* record = <Record*> cp_thread_record
    if record == NULL:
        record = new_record()
    if record != NULL and record.inside == NULL:
        cp_announce(&record.inside, guard)
        record.depth = 1
        cp_often_fence()
    elif record != NULL and record.inside == guard:
        record.depth += 1
    else:
        cp_add_fetch(&guard.nested, 1)
        cp_rare_fence()
    if cp_load_acquire(&guard.closed):
        guard_leave(guard)
        return False
    return True


cdef void guard_leave(Guard* guard) noexcept nogil:
    """Undo one `guard_enter` of this thread."""
    cdef Record* record = <Record*> cp_thread_record
    if record != NULL and record.inside == guard:
        record.depth -= 1
        if record.depth != 0:
            return
        cp_announce(&record.inside, NULL)
        cp_often_fence()
    else:
        cp_add_fetch(&guard.nested, -1)
        cp_rare_fence()
    if cp_load_acquire(&guard.closed):
        cp_add_fetch(<int*> &guard.left, 1)
        cp_futex_wake(&guard.left, 1)


cdef bint somebody_inside(Guard* guard) noexcept nogil:
    cdef Record* record
    cdef bint found = cp_load_int(&guard.nested) != 0
    cp_mutex_lock(&records_lock)
    record = records
    while record != NULL and not found:
        found = cp_seen(&record.inside) == guard
        record = record.following
    cp_mutex_unlock(&records_lock)
    return found


cdef bint guard_wait_until_alone(Guard* guard, int64_t deadline_ns) noexcept nogil:
    """Wait until no thread is inside; `closed` is set, so none comes in for long.

    The calling thread is not inside. What those inside wait for must have been woken. False when
    the time is over (negative: no limit).
    """
    cdef uint32_t left
    cp_rare_fence()
    while True:
        left = cp_load_acquire(&guard.left)
        if not somebody_inside(guard):
            return True
        if cp_futex_wait(&guard.left, left, deadline_ns) == ETIMEDOUT:
            return False


cdef void before_fork() noexcept nogil:
    cp_mutex_lock(&records_lock)


cdef void in_parent() noexcept nogil:
    cp_mutex_unlock(&records_lock)


cdef void in_child() noexcept nogil:
    """The other threads are the parent's: their records say nothing here.

    So is what the guards stand before: nobody comes in any more.
    """
    global records, records_lock
    cdef Opened* entry = opened
    while entry != NULL:
        entry.guard.closed = 1
        entry.guard.nested = 0
        entry = entry.following
    records_lock = 0
    records = <Record*> cp_thread_record
    if records != NULL:
        records.previous = records.following = NULL
    cp_pair_fences()


cp_pair_fences()
if cp_thread_records_open(thread_ended) != 0 or pthread_atfork(before_fork, in_parent, in_child) != 0:
    raise MemoryError("no key left for thread-local data")
