# cython: language_level=3, freethreading_compatible=True
"""Channels that wait in an epoll(7) instance until they are ready. It belongs to no thread.

How the kernel behaves, as far as the code below leans on it:

- Descriptors are registered once, edge-triggered, for input and output. An edge that comes between
  an attempt that found nothing and the end of that attempt is not lost: the attempt holds the
  channel's lock, and the thread that got the event looks at the channel's queues under it.
- After a receive that brought less than was asked for, a TCP socket is empty, and the next byte
  makes a new edge (epoll(7), question 9). The end of the stream does not, when its edge came before:
  hence `hung_up`. And a receive stops at an urgent byte, whatever lies behind it; that there is one is part
  of the event (EPOLLPRI). A Unix socket's stops behind descriptors too, which no event tells of.
- EPOLLPRI without EPOLLIN says that only the urgent byte is there. A plain receive would throw it away.
- EPOLL_CTL_DEL does not take back an event that another thread has just fetched. So an event carries
  a place in a table and a generation number, never a pointer.
- Regular files can't be registered (EPERM): the pool carries their operations out.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from ..channels.channels cimport (
    channel_release,
    channel_retain,
    channel_runs_side_by_side,
    run_queue,
)
from ..channels.engine cimport (
    NEW_DOUBT,
    NO_DOUBT,
    OLD_DOUBT,
    REGULAR,
    Engine,
    Operation,
    Stream,
)
from ..channels.streams cimport DOUBT_NS, stream_ready
from ..primitives.atomics cimport cp_mutex_lock, cp_mutex_unlock, cp_now_ns, cp_peek_64, cp_set_64
from ..scheduling.scheduler cimport POLL

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLL_CLOEXEC
        EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    unsigned EPOLLET
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int command, int descriptor, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int count, int timeout_ms)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_OOB

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EINTR, ENOMEM, EPERM, ETIMEDOUT

cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #include <time.h>
    #include <signal.h>
    #ifndef __NR_epoll_pwait2
    #define __NR_epoll_pwait2 441
    #endif
    /* epoll_wait(2) counts in milliseconds, epoll_pwait2(2) (Linux 5.11) in nanoseconds. */
    static inline int cp_epoll_wait(int epoll, struct epoll_event *events, int count,
                                    int64_t timeout_ns)
    {
        struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        int result;
        if (timeout_ns <= 0)
            return epoll_wait(epoll, events, count, timeout_ns < 0 ? -1 : 0);
        result = (int)syscall(__NR_epoll_pwait2, epoll, events, count, &limit, NULL, 0);
        if (result < 0 && (errno == ENOSYS || errno == EPERM)) {
            int64_t ms = (timeout_ns + 999999) / 1000000;
            result = epoll_wait(epoll, events, count, ms > 0x7fffffff ? 0x7fffffff : (int)ms);
        }
        return result;
    }
    """
    int cp_epoll_wait(int epoll, epoll_event* events, int count, int64_t timeout_ns)

cdef enum:
    EVENTS_AT_ONCE = 256
    NO_SLOT = 0xffffffff


cdef int readiness_open(Readiness* table, Engine* engine, int waker, unsigned flags) noexcept nogil:
    cdef epoll_event event
    cdef int error
    table.doubt_ns = &engine.doubt_ns
    table.slots = NULL
    table.slot_count = 0
    table.free_slot = NO_SLOT
    table.descriptor = epoll_create1(EPOLL_CLOEXEC)
    if table.descriptor < 0:
        return errno
    event.events = EPOLLIN | flags
    event.data.u64 = WAKER
    if epoll_ctl(table.descriptor, EPOLL_CTL_ADD, waker, &event) != 0:
        error = errno
        close(table.descriptor)
        return error
    return 0


cdef void readiness_close(Readiness* table) noexcept nogil:
    close(table.descriptor)
    free(table.slots)


# -- the table --------------------------------------------------------------------------------------


cdef uint32_t take_slot(Readiness* table, Channel* channel) noexcept nogil:
    cdef Slot* grown
    cdef uint32_t index
    cdef uint32_t count
    if table.free_slot == NO_SLOT:
        count = max(2 * table.slot_count, <uint32_t> 64)
        grown = <Slot*> realloc(table.slots, count * sizeof(Slot))
        if grown == NULL:
            return NO_SLOT
        table.slots = grown
        for index in range(table.slot_count, count):
            grown[index].channel = NULL
            grown[index].generation = 0
            grown[index].next_free = index + 1 if index + 1 < count else <uint32_t> NO_SLOT
        table.free_slot = table.slot_count
        table.slot_count = count
    index = table.free_slot
    table.free_slot = table.slots[index].next_free
    table.slots[index].channel = channel
    table.slots[index].generation += 1
    if table.slots[index].generation == 0:
        # That says of a channel that it does not wait here.
        table.slots[index].generation = 1
    channel.slot = index
    channel.generation = table.slots[index].generation
    return index


cdef void free_slot(Readiness* table, Channel* channel) noexcept nogil:
    cp_mutex_lock(&table.table_lock)
    table.slots[channel.slot].channel = NULL
    table.slots[channel.slot].next_free = table.free_slot
    table.free_slot = channel.slot
    cp_mutex_unlock(&table.table_lock)
    channel.slot = NO_SLOT


cdef Channel* find_channel(Readiness* table, uint64_t data) noexcept nogil:
    """The channel of an event, with a reference; NULL when it has gone."""
    cdef Channel* channel = NULL
    cdef uint32_t index = <uint32_t> data
    cp_mutex_lock(&table.table_lock)
    if index < table.slot_count and table.slots[index].generation == data >> 32:
        channel = table.slots[index].channel
        if channel != NULL:
            channel_retain(channel)
    cp_mutex_unlock(&table.table_lock)
    return channel


cdef int tell_of(Readiness* table, Channel* channel, int command) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET
    event.data.u64 = <uint64_t> channel.generation << 32 | channel.slot
    return epoll_ctl(table.descriptor, command, channel.descriptor, &event)


cdef void readiness_repeat(Readiness* table, Channel* channel) noexcept nogil:
    # A change makes a new edge of what is ready at that time (epoll_ctl(2)).
    tell_of(table, channel, EPOLL_CTL_MOD)


cdef int readiness_add(Readiness* table, Channel* channel) noexcept nogil:
    cdef uint32_t index
    cdef int error
    cp_mutex_lock(&table.table_lock)
    index = take_slot(table, channel)
    cp_mutex_unlock(&table.table_lock)
    if index == NO_SLOT:
        return ENOMEM
    if tell_of(table, channel, EPOLL_CTL_ADD) == 0:
        return 0
    error = errno
    free_slot(table, channel)
    if error == EPERM:
        channel.kind = REGULAR
        return channel_runs_side_by_side(channel)
    return error


cdef void readiness_remove(Readiness* table, Channel* channel) noexcept nogil:
    cdef epoll_event event
    if channel.slot != NO_SLOT and channel.generation != 0:
        epoll_ctl(table.descriptor, EPOLL_CTL_DEL, channel.descriptor, &event)
        free_slot(table, channel)


# -- events -----------------------------------------------------------------------------------------


cdef inline bint wants_urgent(Operation* operation) noexcept nogil:
    return operation != NULL and operation.flags & MSG_OOB != 0


cdef void channel_ready(Channel* channel, uint32_t events) noexcept nogil:
    cdef Stream* stream
    cdef bint failed = events & (EPOLLHUP | EPOLLERR) != 0
    cdef bint input = failed or events & (EPOLLIN | EPOLLRDHUP) != 0
    cp_mutex_lock(&channel.lock)
    if not channel.closing:
        if channel.owner != NULL:
            stream = <Stream*> channel
            if events & EPOLLPRI:
                stream.short_empties = False
            if input:
                stream_ready(stream, failed or events & EPOLLRDHUP != 0, events & EPOLLERR != 0)
        elif input or (events & EPOLLPRI and wants_urgent(channel.input.head)):
            if input:
                channel.stopped_short = False
            run_queue(channel, &channel.input, False)
        if failed or events & EPOLLOUT:
            run_queue(channel, &channel.output, False)
    cp_mutex_unlock(&channel.lock)


cdef void look_again(Readiness* table) noexcept nogil:
    """Streams whose last receive was short, and that heard nothing since the last look, are asked about once more.

    TCP makes no edge when such a receive has left something: it should not, and nobody would come back.
    """
    cdef Channel* channel
    cdef Stream* stream
    cdef bint more = False
    cdef uint32_t index = 0
    cp_set_64(table.doubt_ns, 0)
    while True:
        channel = NULL
        cp_mutex_lock(&table.table_lock)
        while index < table.slot_count and channel == NULL:
            channel = table.slots[index].channel
            index += 1
        if channel != NULL:
            channel_retain(channel)
        cp_mutex_unlock(&table.table_lock)
        if channel == NULL:
            break
        cp_mutex_lock(&channel.lock)
        if channel.owner != NULL and not channel.closing:
            stream = <Stream*> channel
            if stream.doubt == NEW_DOUBT:
                stream.doubt = OLD_DOUBT
                more = True
            elif stream.doubt == OLD_DOUBT:
                stream.doubt = NO_DOUBT
                readiness_repeat(table, channel)
        cp_mutex_unlock(&channel.lock)
        channel_release(channel)
    if more:
        cp_set_64(table.doubt_ns, cp_now_ns() + DOUBT_NS)


cdef int readiness_wait(Readiness* table, int64_t deadline_ns, bint* woken) noexcept nogil:
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef Channel* channel
    cdef int64_t timeout = -1
    cdef int64_t doubt_ns = cp_peek_64(table.doubt_ns)
    cdef int64_t now
    cdef int count
    cdef int i
    cdef bint doubts = False
    woken[0] = False
    if deadline_ns == POLL:
        timeout = 0
    elif deadline_ns > 0:
        timeout = max(deadline_ns - cp_now_ns(), 0)
    if doubt_ns != 0:
        now = cp_now_ns()
        if doubt_ns <= now:
            look_again(table)
            doubt_ns = cp_peek_64(table.doubt_ns)
        if doubt_ns != 0 and (timeout < 0 or timeout > doubt_ns - now):
            timeout = max(doubt_ns - now, 0)
            doubts = True
    count = cp_epoll_wait(table.descriptor, events, EVENTS_AT_ONCE, timeout)
    if count == 0:
        return 0 if doubts else ETIMEDOUT
    if count < 0:
        return EINTR
    for i in range(count):
        if <uint32_t> events[i].data.u64 == WAKER:
            woken[0] = True
            continue
        channel = find_channel(table, events[i].data.u64)
        if channel != NULL:
            channel_ready(channel, events[i].events)
            channel_release(channel)
    return 0
