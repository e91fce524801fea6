# cython: language_level=3, freethreading_compatible=True
"""Reads past the page cache by the kernel's asynchronous I/O, io_submit(2).

How the kernel behaves, as far as the code below leans on it:

- Only what is read with O_DIRECT is asynchronous: of a file in the page cache io_submit would wait for the disk.
- With RWF_NOWAIT a read that would have to wait on its way to the disk (for the file's map of blocks, or for
  a place in the disk's queue) completes with EAGAIN: the pool has it then.
- Writes are the pool's: one that makes a file longer is carried out within io_submit.
- A request can't be cancelled: io_cancel(2) knows none of a file's.
- The request is copied, and so is its vector; only the memory that is read into has to stay.
- A context belongs to the process, not to a thread, and a child of fork has none of it.

A request counts in its operation's and channel's `in_kernel`: that keeps buffers, descriptor and engine.
"""

from libc.stdint cimport int64_t, uint64_t, uintptr_t

from ..channels.channels cimport (
    abort_operation,
    channel_release,
    channel_retain,
    finish_operation,
    let_go_if_idle,
)
from ..channels.engine cimport CP_READ, Channel, Operation, iovec
from ..channels.steps cimport FINISHED, IOV_MAX, WAIT, Progress, account
from ..pool.offload cimport offload_start
from ..primitives.atomics cimport cp_load_acquire, cp_mutex_lock, cp_mutex_unlock, cp_store_release

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN, EPOLL_CTL_ADD
    unsigned EPOLLET
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        unsigned events
        epoll_data_t data
    int epoll_ctl(int epoll, int command, int descriptor, epoll_event* event)

cdef extern from "sys/eventfd.h" nogil:
    enum:
        EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from * nogil:
    """
    #include <linux/aio_abi.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    static inline long cp_io_setup(unsigned requests, unsigned long *context)
    {
        return syscall(SYS_io_setup, requests, context);
    }
    static inline long cp_io_destroy(unsigned long context)
    {
        return syscall(SYS_io_destroy, context);
    }
    static inline int cp_io_read(unsigned long context, int descriptor, const struct iovec *vector,
                                 int count, int64_t offset, int completions, void *data)
    {
        struct iocb request, *list = &request;
        memset(&request, 0, sizeof request);
        request.aio_data = (uintptr_t)data;
        request.aio_lio_opcode = IOCB_CMD_PREADV;
        request.aio_rw_flags = RWF_NOWAIT;
        request.aio_fildes = descriptor;
        request.aio_buf = (uintptr_t)vector;
        request.aio_nbytes = count;
        request.aio_offset = offset;
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = completions;
        return syscall(SYS_io_submit, context, 1, &list) == 1;
    }
    static inline long cp_io_getevents(unsigned long context, long count, struct io_event *events)
    {
        struct timespec now = {0, 0};
        return syscall(SYS_io_getevents, context, 0, count, events, &now);
    }
    """
    cdef struct io_event:
        uint64_t data
        int64_t res
    long cp_io_setup(unsigned requests, unsigned long* context)
    long cp_io_destroy(unsigned long context)
    bint cp_io_read(
        unsigned long context, int descriptor, const iovec* vector, int count, int64_t offset,
        int completions, void* data,
    )
    long cp_io_getevents(unsigned long context, long count, io_event* events)

cdef enum:
    REQUESTS = 1024      # under way at a time; the pool has what is more
    EVENTS_AT_ONCE = 64


cdef bint aio_open(Aio* aio, int epoll, unsigned tag) noexcept nogil:
    cdef epoll_event event
    cdef bint opened
    if cp_load_acquire(&aio.state) != UNTRIED:
        return aio.state == OPEN
    cp_mutex_lock(&aio.lock)
    if aio.state == UNTRIED:
        aio.context = 0
        aio.descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = tag
        if (
            aio.descriptor >= 0
            and epoll_ctl(epoll, EPOLL_CTL_ADD, aio.descriptor, &event) == 0
            and cp_io_setup(REQUESTS, &aio.context) == 0
        ):
            cp_store_release(&aio.state, OPEN)
        else:
            if aio.descriptor >= 0:
                close(aio.descriptor)
            cp_store_release(&aio.state, REFUSED)
    opened = aio.state == OPEN
    cp_mutex_unlock(&aio.lock)
    return opened


cdef void aio_close(Aio* aio) noexcept nogil:
    if aio.state == OPEN:
        # In the child of a fork there is no such context, and the call fails.
        cp_io_destroy(aio.context)
        close(aio.descriptor)


cdef bint aio_start(Aio* aio, Operation* operation) noexcept nogil:
    cdef Channel* channel = operation.channel
    if (
        not channel.direct or operation.code != CP_READ or operation.offset < 0
        or cp_load_acquire(&aio.state) != OPEN
    ):
        return False
    # Another thread may see the completion at once: it waits for the channel's lock.
    if not cp_io_read(
        aio.context, channel.descriptor, operation.vector, min(operation.vector_count, IOV_MAX),
        operation.offset + operation.transferred, aio.descriptor, operation,
    ):
        return False
    operation.in_kernel = True
    channel.in_kernel += 1
    return True


cdef void completed(Aio* aio, Operation* operation, int64_t result) noexcept nogil:
    cdef Channel* channel = channel_retain(operation.channel)
    cdef Progress progress
    cp_mutex_lock(&channel.lock)
    operation.in_kernel = False
    progress = account(operation, result)
    if operation.cancelled and progress != FINISHED:
        abort_operation(operation)
        progress = FINISHED
    if progress == FINISHED:
        finish_operation(operation, False)
    elif progress == WAIT or not aio_start(aio, operation):
        offload_start(operation)
    channel.in_kernel -= 1
    let_go_if_idle(channel)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)


cdef void aio_collect(Aio* aio) noexcept nogil:
    cdef io_event events[EVENTS_AT_ONCE]
    cdef long count = EVENTS_AT_ONCE
    cdef long i
    if cp_load_acquire(&aio.state) != OPEN:
        return
    while count == EVENTS_AT_ONCE:
        count = cp_io_getevents(aio.context, EVENTS_AT_ONCE, events)
        for i in range(count):
            completed(aio, <Operation*> <uintptr_t> events[i].data, events[i].res)
