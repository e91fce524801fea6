# cython: language_level=3, freethreading_compatible=True
"""The engine on epoll(7): readiness from the kernel, completions made here.

How the kernel behaves, as far as the code below leans on it:

- Descriptors are registered once, edge-triggered, for input and output. An edge that comes between
  an attempt that found nothing and the end of that attempt is not lost: the attempt holds the
  channel's lock, and the thread that got the event looks at the channel's queues under it.
- After a receive that brought less than was asked for, a stream socket is empty, and the next byte
  makes a new edge (epoll(7), question 9). The end of the stream does not, when its edge came before:
  hence `hung_up`.
- EPOLL_CTL_DEL does not take back an event that another thread has just fetched. So an event carries
  a place in a table and a generation number, never a pointer.
- Regular files can't be registered (EPERM): their operations are done at once.

Nothing is ever in the kernel here: `in_kernel` stays 0, and cancelling is taking from a queue.
"""

import os

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from .atomics cimport cp_mutex, cp_mutex_lock, cp_mutex_unlock, cp_now_ns
from .channels cimport channel_release, channel_retain, run_queue
from .engine cimport REGULAR, Channel, EngineType, Operation, Stream
from .scheduler cimport POLL, somebody_leads, wake_threads
from .streams cimport stream_ready, stream_receive, stream_schedule

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLL_CLOEXEC
        EPOLL_CTL_ADD, EPOLL_CTL_DEL
    unsigned EPOLLET
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int command, int descriptor, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int count, int timeout_ms)

cdef extern from "sys/eventfd.h" nogil:
    enum:
        EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    ssize_t write(int descriptor, const void* data, size_t size)

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN, EINTR, ENOMEM, EPERM, ETIMEDOUT

cdef extern from * nogil:
    """
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <signal.h>
    static inline int cp_accept_now(int descriptor)
    {
        return accept4(descriptor, NULL, NULL, SOCK_CLOEXEC);
    }
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
    int cp_accept_now(int descriptor)
    int cp_epoll_wait(int epoll, epoll_event* events, int count, int64_t timeout_ns)
    ssize_t recv(int descriptor, void* data, size_t size, int flags)
    enum:
        MSG_DONTWAIT

cdef enum:
    EVENTS_AT_ONCE = 256
    NO_SLOT = 0xffffffff
    WAKE_EVENT = 0xffffffff     # as a slot number

cdef struct Slot:
    Channel* channel
    uint32_t generation
    uint32_t next_free

cdef struct Epoll:
    Engine engine               # first
    int descriptor
    int wake_descriptor
    # Which channel an event belongs to: `table_lock`, which may be taken with a channel's lock
    # held, never the other way round.
    cp_mutex table_lock
    Slot* slots
    uint32_t slot_count
    uint32_t free_slot


cdef uint32_t take_slot(Epoll* epoll, Channel* channel) noexcept nogil:
    cdef Slot* grown
    cdef uint32_t index
    cdef uint32_t count
    if epoll.free_slot == NO_SLOT:
        count = max(2 * epoll.slot_count, <uint32_t> 64)
        grown = <Slot*> realloc(epoll.slots, count * sizeof(Slot))
        if grown == NULL:
            return NO_SLOT
        epoll.slots = grown
        for index in range(epoll.slot_count, count):
            grown[index].channel = NULL
            grown[index].generation = 0
            grown[index].next_free = index + 1 if index + 1 < count else <uint32_t> NO_SLOT
        epoll.free_slot = epoll.slot_count
        epoll.slot_count = count
    index = epoll.free_slot
    epoll.free_slot = epoll.slots[index].next_free
    epoll.slots[index].channel = channel
    epoll.slots[index].generation += 1
    channel.slot = index
    channel.generation = epoll.slots[index].generation
    return index


cdef void free_slot(Epoll* epoll, Channel* channel) noexcept nogil:
    cp_mutex_lock(&epoll.table_lock)
    epoll.slots[channel.slot].channel = NULL
    epoll.slots[channel.slot].next_free = epoll.free_slot
    epoll.free_slot = channel.slot
    cp_mutex_unlock(&epoll.table_lock)
    channel.slot = NO_SLOT


cdef Channel* find_channel(Epoll* epoll, uint64_t data) noexcept nogil:
    """The channel of an event, with a reference; NULL when it has gone."""
    cdef Channel* channel = NULL
    cdef uint32_t index = <uint32_t> data
    cp_mutex_lock(&epoll.table_lock)
    if index < epoll.slot_count and epoll.slots[index].generation == data >> 32:
        channel = epoll.slots[index].channel
        if channel != NULL:
            channel_retain(channel)
    cp_mutex_unlock(&epoll.table_lock)
    return channel


cdef int open_channel(Engine* engine, Channel* channel) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    cdef epoll_event event
    cdef uint32_t index
    cdef int error
    cp_mutex_lock(&epoll.table_lock)
    index = take_slot(epoll, channel)
    cp_mutex_unlock(&epoll.table_lock)
    if index == NO_SLOT:
        return ENOMEM
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = <uint64_t> channel.generation << 32 | index
    if epoll_ctl(epoll.descriptor, EPOLL_CTL_ADD, channel.descriptor, &event) == 0:
        return 0
    error = errno
    free_slot(epoll, channel)
    if error == EPERM:
        channel.kind = REGULAR
        return 0
    return error


cdef void close_channel(Engine* engine, Channel* channel) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    cdef epoll_event event
    if channel.slot != NO_SLOT and channel.generation != 0:
        epoll_ctl(epoll.descriptor, EPOLL_CTL_DEL, channel.descriptor, &event)
        free_slot(epoll, channel)


# -- operations -----------------------------------------------------------------------------------


cdef bint is_native(Operation* operation) noexcept nogil:
    return False


cdef void start(Engine* engine, Operation* operation) noexcept nogil:
    """The next edge carries it on."""


cdef bint cancel(Engine* engine, Operation* operation) noexcept nogil:
    return True


cdef void submit(Engine* engine) noexcept nogil:
    """Nothing is held back here."""


# -- streams --------------------------------------------------------------------------------------


cdef void start_input(Engine* engine, Stream* stream) noexcept nogil:
    stream.wants_input = True
    if stream.readable:
        stream_schedule(stream, True)


cdef void stop_input(Engine* engine, Stream* stream) noexcept nogil:
    stream.wants_input = False


cdef int64_t next_input(
    Engine* engine, Stream* stream, char* scratch, size_t scratch_size, char** data
) noexcept nogil:
    cdef ssize_t result
    if not stream.listens:
        data[0] = scratch
        return stream_receive(stream, scratch, scratch_size)
    if stream.error != 0:
        return -stream.error
    if not stream.readable or not stream.wants_input:
        return -EAGAIN
    result = cp_accept_now(stream.channel.descriptor)
    if result >= 0:
        return result
    if errno == EAGAIN:
        stream.readable = False
        return -EAGAIN
    if errno == EINTR:
        return next_input(engine, stream, scratch, scratch_size, data)
    stream.error = errno
    stream.wants_input = False
    return -stream.error


cdef void release_input(Engine* engine, Stream* stream) noexcept nogil:
    """The data lies in the worker's scratch memory."""


cdef int provide_buffers(Engine* engine, size_t size) noexcept nogil:
    return 0


# -- events ---------------------------------------------------------------------------------------


cdef void channel_ready(Channel* channel, uint32_t events) noexcept nogil:
    cdef Stream* stream
    cdef bint failed = events & (EPOLLHUP | EPOLLERR) != 0
    cp_mutex_lock(&channel.lock)
    if not channel.closing:
        if channel.owner != NULL:
            stream = <Stream*> channel
            if failed or events & (EPOLLIN | EPOLLRDHUP):
                stream_ready(stream, failed or events & EPOLLRDHUP != 0)
        elif failed or events & (EPOLLIN | EPOLLRDHUP):
            run_queue(channel, &channel.input, False)
        if failed or events & EPOLLOUT:
            run_queue(channel, &channel.output, False)
    cp_mutex_unlock(&channel.lock)


cdef int wait(Engine* engine, int64_t deadline_ns) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef Channel* channel
    cdef int64_t timeout = -1
    cdef int count
    cdef int i
    if deadline_ns == POLL:
        timeout = 0
    elif deadline_ns > 0:
        timeout = max(deadline_ns - cp_now_ns(), 0)
    count = cp_epoll_wait(epoll.descriptor, events, EVENTS_AT_ONCE, timeout)
    if count == 0:
        return ETIMEDOUT
    if count < 0:
        return EINTR
    for i in range(count):
        if <uint32_t> events[i].data.u64 == WAKE_EVENT:
            if deadline_ns == POLL and somebody_leads(engine.scheduler):
                # Not the leader, but it has taken what was to wake the leader.
                wake(engine)
            continue
        channel = find_channel(epoll, events[i].data.u64)
        if channel != NULL:
            channel_ready(channel, events[i].events)
            channel_release(channel)
    return 0


cdef void wake(Engine* engine) noexcept nogil:
    # Registered edge-triggered: each write is an event, nobody has to read it. The counter would
    # be full after 2**64 of them.
    cdef uint64_t one = 1
    write((<Epoll*> engine).wake_descriptor, &one, sizeof(one))


cdef void reap(Engine* engine, bint pause) noexcept nogil:
    wake_threads(engine.scheduler)


# -- the engine's life ----------------------------------------------------------------------------


cdef void destroy(Engine* engine) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    if epoll.descriptor >= 0:
        close(epoll.descriptor)
    if epoll.wake_descriptor >= 0:
        close(epoll.wake_descriptor)
    free(epoll.slots)
    free(epoll)


cdef EngineType epoll_type
epoll_type.name = b"epoll"
epoll_type.wait = wait
epoll_type.wake = wake
epoll_type.open_channel = open_channel
epoll_type.close_channel = close_channel
epoll_type.is_native = is_native
epoll_type.start = start
epoll_type.cancel = cancel
epoll_type.start_input = start_input
epoll_type.stop_input = stop_input
epoll_type.next_input = next_input
epoll_type.release_input = release_input
epoll_type.submit = submit
epoll_type.reap = reap
epoll_type.provide_buffers = provide_buffers
epoll_type.destroy = destroy


cdef int epoll_new(Scheduler* scheduler, Engine** engine) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> calloc(1, sizeof(Epoll))
    cdef epoll_event event
    cdef int error
    if epoll == NULL:
        return ENOMEM
    epoll.engine.type = &epoll_type
    epoll.engine.scheduler = scheduler
    epoll.free_slot = NO_SLOT
    epoll.descriptor = epoll_create1(EPOLL_CLOEXEC)
    epoll.wake_descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = WAKE_EVENT
    if epoll.descriptor < 0 or epoll.wake_descriptor < 0 or epoll_ctl(
        epoll.descriptor, EPOLL_CTL_ADD, epoll.wake_descriptor, &event
    ) != 0:
        error = errno
        destroy(&epoll.engine)
        return error
    engine[0] = &epoll.engine
    return 0


def probe():
    """``(reason, remedy, features)``: an empty reason means that the engine runs here."""
    cdef Engine* engine = NULL
    cdef int error = epoll_new(NULL, &engine)
    if error != 0:
        return (
            f"epoll_create1 failed: {os.strerror(error)}",
            "Raise the limit of open files (ulimit -n), or use engine='selectors'",
            {},
        )
    destroy(engine)
    return "", "", {"edge-triggered events": True, "wake-up by eventfd": True}
