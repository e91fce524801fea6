# cython: language_level=3, freethreading_compatible=True
"""The engine on epoll(7): readiness from the kernel, completions made here.

Nothing but reads past the page cache is ever in the kernel here (`aio`), and cancelling is taking from
a queue. Else `in_kernel` counts what the port's pool has, which is what would have to wait for a disk,
and the sends of a datagram server, while they are made without the lock.
"""

import os

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from ..channels.channels cimport side_by_side
from ..channels.datagrams cimport datagrams_receive, datagrams_release
from ..channels.engine cimport REGULAR, Channel, EngineType, Operation, Stream
from ..channels.sources cimport give_source_up, prepare_source
from ..channels.streams cimport stream_input_if_ready, stream_schedule
from ..pool.offload cimport offload_cancel, offload_start
from ..scheduling.scheduler cimport POLL, somebody_leads, wake_threads
from .aio cimport Aio, aio_close, aio_collect, aio_open, aio_start
from .readiness cimport (
    WAKER,
    Readiness,
    readiness_add,
    readiness_close,
    readiness_open,
    readiness_remove,
    readiness_repeat,
    readiness_wait,
)

cdef extern from "sys/epoll.h" nogil:
    unsigned EPOLLET

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
        EINTR, ENOMEM

cdef struct Epoll:
    Engine engine               # first
    int wake_descriptor
    Readiness readiness
    Aio aio                     # opened with the first file that has O_DIRECT


cdef int open_channel(Engine* engine, Channel* channel) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    if channel.direct:
        aio_open(&epoll.aio, epoll.readiness.descriptor, WAKER)
    if channel.kind == REGULAR:
        # The pool carries out what is asked of a file, whether it could be polled or not.
        return 0
    return readiness_add(&epoll.readiness, channel)


cdef void close_channel(Engine* engine, Channel* channel) noexcept nogil:
    readiness_remove(&(<Epoll*> engine).readiness, channel)


# -- operations -----------------------------------------------------------------------------------


cdef bint is_native(Operation* operation) noexcept nogil:
    return False


cdef void start(Engine* engine, Operation* operation) noexcept nogil:
    # The next edge carries it on. Where there is none to come, one is asked for; a file has none.
    if side_by_side(operation.channel):
        if not aio_start(&(<Epoll*> engine).aio, operation):
            offload_start(operation)
    elif operation.wants_source and prepare_source(operation):
        offload_start(operation)
    elif operation.gives_way or operation.wants_source:
        if operation.wants_source:
            give_source_up(operation)
        operation.gives_way = False
        readiness_repeat(&(<Epoll*> engine).readiness, operation.channel)


cdef bint cancel(Engine* engine, Operation* operation) noexcept nogil:
    # A request of `aio` tells by its completion.
    return operation.offloaded and offload_cancel(operation)


cdef void submit(Engine* engine) noexcept nogil:
    """Nothing is held back here."""


# -- streams --------------------------------------------------------------------------------------


cdef void start_input(Engine* engine, Stream* stream) noexcept nogil:
    stream.wants_input = True
    if stream.readable:
        stream_schedule(stream, True)


cdef void stop_input(Engine* engine, Stream* stream) noexcept nogil:
    stream.wants_input = False


cdef void watch(Engine* engine, Stream* stream) noexcept nogil:
    """Errors are told in any case."""


cdef int64_t next_input(
    Engine* engine, Stream* stream, char* scratch, size_t scratch_size, char** data
) noexcept nogil:
    if stream.datagrams != NULL:
        return datagrams_receive(stream, data)
    data[0] = scratch
    return stream_input_if_ready(stream, scratch, scratch_size)


cdef void release_input(Engine* engine, Stream* stream) noexcept nogil:
    # A stream's data lies in the worker's scratch memory.
    if stream.datagrams != NULL:
        datagrams_release(stream)


cdef int provide_buffers(Engine* engine, size_t size) noexcept nogil:
    return 0


# -- events ---------------------------------------------------------------------------------------


cdef int wait(Engine* engine, int64_t deadline_ns) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    cdef bint woken
    cdef int result = readiness_wait(&epoll.readiness, deadline_ns, &woken)
    if woken:
        aio_collect(&epoll.aio)
    if woken and deadline_ns == POLL and somebody_leads(engine.scheduler):
        # Not the leader, but it has taken what was to wake the leader.
        wake(engine)
    return result


cdef void wake(Engine* engine) noexcept nogil:
    # Registered edge-triggered: each write is an event, nobody has to read it. The counter would
    # be full after 2**64 of them.
    cdef uint64_t one = 1
    while write((<Epoll*> engine).wake_descriptor, &one, sizeof(one)) < 0 and errno == EINTR:
        pass


cdef void reap(Engine* engine, bint pause) noexcept nogil:
    aio_collect(&(<Epoll*> engine).aio)
    wake_threads(engine.scheduler)


# -- the engine's life ----------------------------------------------------------------------------


cdef void destroy(Engine* engine) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> engine
    readiness_close(&epoll.readiness)
    aio_close(&epoll.aio)
    close(epoll.wake_descriptor)
    free(epoll)


cdef EngineType epoll_type
epoll_type.wait = wait
epoll_type.wake = wake
epoll_type.open_channel = open_channel
epoll_type.close_channel = close_channel
epoll_type.is_native = is_native
epoll_type.start = start
epoll_type.cancel = cancel
epoll_type.start_input = start_input
epoll_type.stop_input = stop_input
epoll_type.watch = watch
epoll_type.next_input = next_input
epoll_type.release_input = release_input
epoll_type.submit = submit
epoll_type.reap = reap
epoll_type.provide_buffers = provide_buffers
epoll_type.destroy = destroy


cdef int epoll_new(Scheduler* scheduler, Engine** engine) noexcept nogil:
    cdef Epoll* epoll = <Epoll*> calloc(1, sizeof(Epoll))
    cdef int error
    if epoll == NULL:
        return ENOMEM
    epoll.engine.type = &epoll_type
    epoll.engine.scheduler = scheduler
    epoll.wake_descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if epoll.wake_descriptor < 0:
        error = errno
        free(epoll)
        return error
    error = readiness_open(&epoll.readiness, &epoll.engine, epoll.wake_descriptor, EPOLLET)
    if error != 0:
        close(epoll.wake_descriptor)
        free(epoll)
        return error
    engine[0] = &epoll.engine
    return 0


def probe(bint thorough):
    """``(reason, remedy, features)``: an empty reason means that the engine runs here.

    ``thorough``: with the features that take long to ask for, and that the engine can do without.
    """
    cdef Engine* engine = NULL
    cdef Epoll* epoll
    cdef dict features = {"edge-triggered events": True, "wake-up by eventfd": True}
    cdef int error = epoll_new(NULL, &engine)
    if error != 0:
        return (
            f"epoll_create1 failed: {os.strerror(error)}",
            "Raise the limit of open files (ulimit -n), or use engine='selectors'",
            {},
        )
    epoll = <Epoll*> engine
    if thorough:
        # 30 ms: io_destroy(2) waits until no processor looks at the context any more.
        features["reads past the page cache"] = bool(
            aio_open(&epoll.aio, epoll.readiness.descriptor, WAKER)
        )
    destroy(engine)
    return "", "", features
