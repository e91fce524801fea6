# cython: language_level=3, freethreading_compatible=True
"""The engine on io_uring(7): one ring for all threads of a port.

How the kernel behaves, as far as the code below leans on it:

- The ring is made with IORING_SETUP_COOP_TASKRUN and without SINGLE_ISSUER: any thread submits, any
  thread takes completions. A request that has to wait is finished by the thread that submitted it,
  when that thread next enters the kernel, at the latest at its next timer tick.
- When a thread ends, the kernel cancels the requests that it submitted. Such a completion says
  ECANCELED although nobody asked: the request is submitted again.
- Several requests on one socket may overtake each other, so only the head of each queue of a channel
  is with the kernel.
- A multishot request gives completions until one comes without IORING_CQE_F_MORE. With ENOBUFS it
  ended because all provided buffers are in use.
- A request holds the open file, not its number; but the number is read when the request is
  submitted, so a descriptor is closed only when nothing of its channel is in the ring.

Every request counts in its channel's `in_kernel` and holds a reference to the channel.
"""

import os

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from .atomics cimport (
    cp_load_acquire,
    cp_mutex,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_store_release,
)
from .buffers cimport (
    BUFFER_GROUP,
    BufferPool,
    pool_close,
    pool_filled,
    pool_grow,
    pool_open,
    pool_release,
)
from .channels cimport (
    FINISHED,
    GO_ON,
    WAIT,
    Progress,
    abort_operation,
    account,
    channel_release,
    channel_retain,
    let_go_if_idle,
    pop_operation,
    queue_of,
    run_queue,
    settle,
)
from .engine cimport SOCKET, Channel, Chunk, EngineType, Operation, Stream
from .scheduler cimport POLL, wake_threads
from .streams cimport stream_schedule

cdef extern from "uring_abi.h" nogil:
    cdef struct cp_sqe:
        unsigned char opcode
        unsigned char flags
        uint16_t ioprio
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data
        uint16_t buf_group
    cdef struct cp_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags
    cdef struct cp_sq_offsets:
        uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array
    cdef struct cp_cq_offsets:
        uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags
    cdef struct cp_uring_params:
        uint32_t sq_entries, cq_entries, flags, features
        cp_sq_offsets sq_off
        cp_cq_offsets cq_off
    cdef struct cp_probe_op:
        uint16_t flags
    cdef struct cp_probe:
        unsigned char last_op
        cp_probe_op ops[256]
    int cp_uring_setup(uint32_t entries, cp_uring_params* params)
    int cp_uring_register(int fd, unsigned opcode, void* arg, unsigned count)
    int cp_uring_enter(int fd, unsigned submit, unsigned wanted, unsigned flags, int64_t timeout_ns)
    enum:
        CP_OP_NOP, CP_OP_READV, CP_OP_WRITEV, CP_OP_POLL_ADD, CP_OP_SENDMSG, CP_OP_RECVMSG
        CP_OP_ACCEPT, CP_OP_ASYNC_CANCEL, CP_OP_READ, CP_OP_WRITE, CP_OP_SEND, CP_OP_RECV
        CP_SETUP_CQSIZE, CP_SETUP_CLAMP, CP_SETUP_SUBMIT_ALL, CP_SETUP_COOP_TASKRUN
        CP_FEAT_NODROP, CP_FEAT_RW_CUR_POS, CP_FEAT_FAST_POLL, CP_FEAT_EXT_ARG, CP_FEAT_NO_IOWAIT
        CP_FEAT_SINGLE_MMAP
        CP_ENTER_GETEVENTS, CP_ENTER_NO_IOWAIT
        CP_REGISTER_PROBE
        CP_SQ_CQ_OVERFLOW, CP_CQE_F_BUFFER, CP_CQE_F_MORE, CP_SQE_BUFFER_SELECT
        CP_RECVSEND_POLL_FIRST, CP_RECV_MULTISHOT, CP_ACCEPT_MULTISHOT, CP_PROBE_SUPPORTED
    uint64_t CP_OFF_SQ_RING, CP_OFF_SQES

cdef extern from "sys/mman.h" nogil:
    enum:
        PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void* MAP_FAILED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, int64_t offset)
    int munmap(void* address, size_t size)

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN, EBUSY, ECANCELED, EINTR, EINVAL, ENOBUFS, ENOENT, ENOMEM, ENOSYS, EPERM, ETIME, ETIMEDOUT

cdef extern from "poll.h" nogil:
    enum:
        POLLIN, POLLOUT, POLLRDHUP

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_NOSIGNAL, MSG_WAITALL, SOCK_CLOEXEC

cdef extern from *:
    """
    enum { CP_NONE, CP_ACCEPT, CP_CONNECT, CP_RECV, CP_SEND, CP_READ, CP_WRITE, CP_DISCONNECT };
    """
    enum:
        CP_ACCEPT, CP_RECV, CP_SEND, CP_READ, CP_WRITE

cdef enum:
    SUBMISSION_ENTRIES = 1024
    SUBMIT_AT = 64
    COMPLETION_ENTRIES = 8192
    LARGEST_TRANSFER = 0x7ffff000
    # The low bits of a request's user_data say what its address points to; 0 is of no interest.
    TAG_OPERATION = 1
    TAG_INPUT = 2
    TAG_CANCEL = 3                # a channel
    TAG_MASK = 7

cdef struct Ring:
    Engine engine               # first
    int descriptor
    void* rings
    size_t rings_size
    size_t sqes_size
    unsigned wait_flags
    # Submission queue; the kernel moves *sq_head, we move *sq_tail: `sq_lock`.
    cp_mutex sq_lock
    uint32_t* sq_head
    uint32_t* sq_tail
    uint32_t* sq_flags
    uint32_t sq_mask
    uint32_t sq_entries
    uint32_t tail
    cp_sqe* sqes
    # Completion queue; the kernel moves *cq_tail, we move *cq_head: `cq_lock`.
    cp_mutex cq_lock
    uint32_t* cq_head
    uint32_t* cq_tail
    uint32_t cq_mask
    cp_cqe* cqes
    bint woken                  # a completion of `wake` was seen
    BufferPool pool


# -- submission -----------------------------------------------------------------------------------


cdef inline cp_sqe* next_entry(Ring* ring) noexcept nogil:
    """A free submission entry, zeroed. Submission lock."""
    cdef cp_sqe* sqe
    while ring.tail - cp_load_acquire(ring.sq_head) >= ring.sq_entries:
        cp_uring_enter(ring.descriptor, ring.sq_entries, 0, 0, -1)
    sqe = &ring.sqes[ring.tail & ring.sq_mask]
    memset(sqe, 0, sizeof(cp_sqe))
    return sqe


cdef inline void commit_entry(Ring* ring) noexcept nogil:
    ring.tail += 1
    cp_store_release(ring.sq_tail, ring.tail)


cdef inline uint32_t unsubmitted(Ring* ring) noexcept nogil:
    # Without the lock it may be out of date: the kernel takes no more than there are.
    return cp_load_acquire(ring.sq_tail) - cp_load_acquire(ring.sq_head)


cdef void submit(Engine* engine) noexcept nogil:
    cdef Ring* ring = <Ring*> engine
    cdef uint32_t count = unsubmitted(ring)
    cdef int result
    while count != 0:
        result = cp_uring_enter(ring.descriptor, count, 0, 0, -1)
        if result == -EBUSY or result == -EAGAIN:
            # The kernel holds completions back until there is room for them.
            reap(engine, False)
        elif result < 0 and result != -EINTR:
            return
        count = unsubmitted(ring)


cdef void wake(Engine* engine) noexcept nogil:
    cdef Ring* ring = <Ring*> engine
    cp_mutex_lock(&ring.sq_lock)
    next_entry(ring).opcode = CP_OP_NOP
    commit_entry(ring)
    cp_mutex_unlock(&ring.sq_lock)
    submit(engine)


cdef void ask_to_cancel(Ring* ring, Channel* channel, uint64_t user_data) noexcept nogil:
    """Have the kernel stop a request of this channel. Channel lock."""
    cdef cp_sqe* sqe
    cp_mutex_lock(&ring.sq_lock)
    sqe = next_entry(ring)
    sqe.opcode = CP_OP_ASYNC_CANCEL
    sqe.addr = user_data
    sqe.user_data = <uintptr_t> channel | TAG_CANCEL
    commit_entry(ring)
    cp_mutex_unlock(&ring.sq_lock)
    channel.in_kernel += 1
    channel_retain(channel)


cdef void cancel_completed(Ring* ring, Channel* channel, int32_t result) noexcept nogil:
    """A request that was just being tried again is not found (ENOENT): ask once more."""
    cdef Stream* stream = <Stream*> channel
    cp_mutex_lock(&channel.lock)
    if result == -ENOENT:
        ask_again(ring, channel, channel.input.head)
        ask_again(ring, channel, channel.output.head)
        if channel.owner != NULL and stream.armed and stream.stopping:
            ask_to_cancel(ring, channel, <uintptr_t> stream | TAG_INPUT)
    request_over(channel)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)


cdef void ask_again(Ring* ring, Channel* channel, Operation* operation) noexcept nogil:
    if operation != NULL and operation.in_kernel and operation.cancelled:
        ask_to_cancel(ring, channel, <uintptr_t> operation | TAG_OPERATION)


cdef inline void request_over(Channel* channel) noexcept nogil:
    """One request less. Channel lock, which the caller's reference keeps alive."""
    channel.in_kernel -= 1
    if channel.closing and channel.in_kernel == 0:
        let_go_if_idle(channel)
        if channel.owner != NULL:
            stream_schedule(<Stream*> channel, False)


# -- operations -----------------------------------------------------------------------------------


cdef bint is_native(Operation* operation) noexcept nogil:
    if operation.code == CP_READ or operation.code == CP_WRITE:
        return operation.channel.kind != SOCKET and not operation.probe_only
    return operation.code == CP_ACCEPT


cdef inline void describe(cp_sqe* sqe, Operation* operation) noexcept nogil:
    """Fill an entry for the data that is left to move."""
    cdef bint single = operation.vector_count == 1
    sqe.len = 1
    if operation.code == CP_ACCEPT:
        sqe.opcode = CP_OP_ACCEPT
        sqe.op_flags = SOCK_CLOEXEC
        sqe.len = 0
        return
    if single:
        sqe.addr = <uintptr_t> operation.vector.iov_base
        sqe.len = <uint32_t> min(operation.vector.iov_len, <size_t> LARGEST_TRANSFER)
    elif operation.channel.kind == SOCKET:
        operation.message.msg_iov = operation.vector
        operation.message.msg_iovlen = min(operation.vector_count, 1024)
        sqe.addr = <uintptr_t> &operation.message
    else:
        sqe.addr = <uintptr_t> operation.vector
        sqe.len = min(operation.vector_count, 1024)
    if operation.channel.kind != SOCKET:
        sqe.off = (
            <uint64_t> -1 if operation.offset < 0
            else <uint64_t> (operation.offset + operation.transferred)
        )
        if operation.code == CP_READ:
            sqe.opcode = CP_OP_READ if single else CP_OP_READV
        else:
            sqe.opcode = CP_OP_WRITE if single else CP_OP_WRITEV
    elif operation.code == CP_RECV or operation.code == CP_READ:
        sqe.opcode = CP_OP_RECV if single else CP_OP_RECVMSG
        sqe.op_flags = operation.flags
        # A handle's system call has just said that there is nothing; a stream's send was not tried.
        sqe.ioprio = CP_RECVSEND_POLL_FIRST
    else:
        sqe.opcode = CP_OP_SEND if single else CP_OP_SENDMSG
        sqe.op_flags = operation.flags | MSG_NOSIGNAL | MSG_WAITALL
        if operation.channel.owner == NULL:
            sqe.ioprio = CP_RECVSEND_POLL_FIRST


cdef void request(Operation* operation, bint readiness) noexcept nogil:
    """Give the operation to the kernel: to carry it out, or to wait until it can be."""
    cdef Ring* ring = <Ring*> operation.channel.engine
    cdef cp_sqe* sqe
    cp_mutex_lock(&ring.sq_lock)
    sqe = next_entry(ring)
    if readiness:
        sqe.opcode = CP_OP_POLL_ADD
        if queue_of(operation) == &operation.channel.input:
            sqe.op_flags = POLLIN | POLLRDHUP
        else:
            sqe.op_flags = POLLOUT
    else:
        describe(sqe, operation)
    sqe.fd = operation.channel.descriptor
    sqe.user_data = <uintptr_t> operation | TAG_OPERATION
    commit_entry(ring)
    cp_mutex_unlock(&ring.sq_lock)
    operation.in_kernel = True
    operation.waits_only = readiness
    operation.channel.in_kernel += 1
    if unsubmitted(ring) >= SUBMIT_AT:
        # So that the peers of the first can go on while the last are still being served.
        cp_uring_enter(ring.descriptor, unsubmitted(ring), 0, 0, -1)


cdef void start(Engine* engine, Operation* operation) noexcept nogil:
    cdef bint moves_data = is_native(operation) or (
        operation.channel.kind == SOCKET
        and operation.vector_count > 0
        and not operation.probe_only
    )
    request(operation, not moves_data)


cdef bint cancel(Engine* engine, Operation* operation) noexcept nogil:
    ask_to_cancel(<Ring*> engine, operation.channel, <uintptr_t> operation | TAG_OPERATION)
    return False


cdef void operation_completed(Operation* operation, int32_t result) noexcept nogil:
    cdef Channel* channel = channel_retain(operation.channel)
    cdef Progress progress
    cp_mutex_lock(&channel.lock)
    operation.in_kernel = False
    if result == -ECANCELED or result == -EINTR:
        # Unless `cancelled` says otherwise, the thread that submitted it has ended.
        progress = GO_ON
    elif operation.waits_only:
        progress = GO_ON
    else:
        progress = account(operation, result)
    if operation.cancelled and progress != FINISHED:
        abort_operation(operation)
        progress = FINISHED
    if progress == FINISHED:
        queue = queue_of(operation)
        pop_operation(queue)
        settle(operation, False)
        if not channel.closing:
            run_queue(channel, queue, False)
    elif progress == WAIT:
        request(operation, True)
    else:
        run_queue(channel, queue_of(operation), False)
    request_over(channel)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)


# -- streams --------------------------------------------------------------------------------------


cdef void start_input(Engine* engine, Stream* stream) noexcept nogil:
    cdef Ring* ring = <Ring*> engine
    cdef cp_sqe* sqe
    stream.wants_input = True
    if stream.armed or stream.channel.closing:
        return
    cp_mutex_lock(&ring.sq_lock)
    sqe = next_entry(ring)
    sqe.fd = stream.channel.descriptor
    sqe.user_data = <uintptr_t> stream | TAG_INPUT
    if stream.listens:
        sqe.opcode = CP_OP_ACCEPT
        sqe.op_flags = SOCK_CLOEXEC
        sqe.ioprio = 0 if stream.single else CP_ACCEPT_MULTISHOT
    else:
        sqe.opcode = CP_OP_RECV
        sqe.ioprio = CP_RECV_MULTISHOT
        sqe.flags = CP_SQE_BUFFER_SELECT
        sqe.buf_group = BUFFER_GROUP
    commit_entry(ring)
    cp_mutex_unlock(&ring.sq_lock)
    stream.armed = True
    stream.stopping = False
    stream.channel.in_kernel += 1
    channel_retain(&stream.channel)


cdef void stop_input(Engine* engine, Stream* stream) noexcept nogil:
    stream.wants_input = False
    if stream.armed and not stream.stopping:
        stream.stopping = True
        ask_to_cancel(<Ring*> engine, &stream.channel, <uintptr_t> stream | TAG_INPUT)


cdef inline void append_chunk(Stream* stream, Chunk* chunk) noexcept nogil:
    chunk.next = NULL
    if stream.first_chunk == NULL:
        stream.first_chunk = chunk
    else:
        stream.last_chunk.next = chunk
    stream.last_chunk = chunk


cdef void release_chunk(Ring* ring, Stream* stream, Chunk* chunk) noexcept nogil:
    if stream.listens:
        free(chunk)
    else:
        pool_release(&ring.pool, chunk)


cdef int64_t next_input(
    Engine* engine, Stream* stream, char* scratch, size_t scratch_size, char** data
) noexcept nogil:
    cdef Chunk* chunk = stream.first_chunk
    if chunk != NULL:
        data[0] = chunk.data
        if not stream.listens and <size_t> chunk.size > scratch_size:
            chunk.data += scratch_size
            chunk.size -= <int32_t> scratch_size
            return scratch_size
        stream.first_chunk = chunk.next
        stream.current = chunk
        return chunk.size
    if stream.error != 0:
        return -stream.error
    if stream.ended:
        return 0
    if stream.wants_input:
        start_input(engine, stream)
    return -EAGAIN


cdef void release_input(Engine* engine, Stream* stream) noexcept nogil:
    if stream.current != NULL:
        release_chunk(<Ring*> engine, stream, stream.current)
        stream.current = NULL


cdef void input_completed(Ring* ring, Stream* stream, int32_t result, uint32_t flags) noexcept nogil:
    cdef Channel* channel = &stream.channel
    cdef Chunk* chunk = NULL
    cdef bint ended = not flags & CP_CQE_F_MORE
    cp_mutex_lock(&channel.lock)
    if ended:
        stream.armed = False
        stream.stopping = False
    if stream.listens and result >= 0:
        chunk = <Chunk*> calloc(1, sizeof(Chunk))
        if chunk == NULL or channel.closing:
            free(chunk)
            close(result)
            chunk = NULL
        else:
            chunk.size = result
    elif flags & CP_CQE_F_BUFFER:
        chunk = pool_filled(&ring.pool, flags, max(result, 0))
        if chunk == NULL:
            stream.error = ENOMEM
            stream.wants_input = False
            stream_schedule(stream, False)
        elif channel.closing or result <= 0:
            pool_release(&ring.pool, chunk)
            chunk = NULL
    if chunk != NULL:
        append_chunk(stream, chunk)
        stream_schedule(stream, False)
    if result == 0 and not stream.listens:
        stream.ended = True
        stream.wants_input = False
        stream_schedule(stream, False)
    elif result == -ENOBUFS and not (stream.wants_input and pool_grow(&ring.pool)):
        # All buffers wait for workers. By the time one comes to this stream, the buffers of
        # those before it are free again: `next_input` then asks again.
        stream_schedule(stream, False)
    elif result < 0 and result != -ECANCELED and result != -EINTR and (
        result != -EAGAIN and result != -ENOBUFS
    ):
        stream.error = -result
        stream.wants_input = False
        stream_schedule(stream, False)
    elif ended and stream.wants_input and not (stream.listens and stream.single and result >= 0):
        start_input(&ring.engine, stream)
    if ended:
        request_over(channel)
    cp_mutex_unlock(&channel.lock)
    if ended:
        channel_release(channel)


# -- completion -----------------------------------------------------------------------------------


cdef bint reap_once(Ring* ring) noexcept nogil:
    """Handle the completions that are there; True when there were any."""
    cdef uint32_t head
    cdef uint32_t tail
    cdef cp_cqe cqe
    cdef bint some
    cp_mutex_lock(&ring.cq_lock)
    head = ring.cq_head[0]
    tail = cp_load_acquire(ring.cq_tail)
    some = head != tail
    while head != tail:
        cqe = ring.cqes[head & ring.cq_mask]
        head += 1
        cp_store_release(ring.cq_head, head)
        if cqe.user_data & TAG_MASK == TAG_INPUT:
            input_completed(ring, <Stream*> <uintptr_t> (cqe.user_data - TAG_INPUT), cqe.res, cqe.flags)
        elif cqe.user_data == 0:
            ring.woken = True
        elif cqe.user_data & TAG_MASK == TAG_CANCEL:
            cancel_completed(ring, <Channel*> <uintptr_t> (cqe.user_data - TAG_CANCEL), cqe.res)
        elif cqe.user_data & TAG_MASK == TAG_OPERATION:
            operation_completed(
                <Operation*> <uintptr_t> (cqe.user_data - TAG_OPERATION), cqe.res
            )
        if head == tail:
            tail = cp_load_acquire(ring.cq_tail)
    cp_mutex_unlock(&ring.cq_lock)
    return some


cdef bint collect(Ring* ring) noexcept nogil:
    """Handle all completions, those that did not fit into the ring too, and submit what followed."""
    cdef bint some = reap_once(ring)
    while cp_load_acquire(ring.sq_flags) & CP_SQ_CQ_OVERFLOW:
        cp_uring_enter(ring.descriptor, 0, 0, CP_ENTER_GETEVENTS, -1)
        if reap_once(ring):
            some = True
    return some


cdef void pass_wake_on(Ring* ring) noexcept nogil:
    """Not the leader, but it may have taken what was to wake the leader: wake it again."""
    cdef bint woken
    cp_mutex_lock(&ring.cq_lock)
    woken = ring.woken
    ring.woken = False
    cp_mutex_unlock(&ring.cq_lock)
    if woken and ring.engine.scheduler.leader != NULL:
        wake(&ring.engine)


cdef int wait(Engine* engine, int64_t deadline_ns) noexcept nogil:
    cdef Ring* ring = <Ring*> engine
    cdef int64_t timeout = -1
    cdef int result
    cdef bint some
    if deadline_ns != POLL and collect(ring):
        submit(engine)
        return 0
    if deadline_ns == POLL:
        result = cp_uring_enter(ring.descriptor, unsubmitted(ring), 0, CP_ENTER_GETEVENTS, -1)
    else:
        if deadline_ns > 0:
            timeout = max(deadline_ns - cp_now_ns(), 0)
        result = cp_uring_enter(
            ring.descriptor, unsubmitted(ring), 1, ring.wait_flags, timeout
        )
    some = collect(ring)
    if deadline_ns == POLL:
        pass_wake_on(ring)
    if some:
        if unsubmitted(ring):
            submit(engine)
        return 0
    if result == -ETIME:
        return ETIMEDOUT
    # A wait that a signal ended says so only when it had nothing to submit.
    return EINTR if result == -EINTR or result >= 0 else 0


cdef void reap(Engine* engine, bint pause) noexcept nogil:
    cdef Ring* ring = <Ring*> engine
    # Entering the kernel with GETEVENTS is also what finishes the requests of this thread.
    cp_uring_enter(
        ring.descriptor, unsubmitted(ring), 1 if pause else 0,
        ring.wait_flags if pause else CP_ENTER_GETEVENTS, 1000000 if pause else -1,
    )
    collect(ring)
    if unsubmitted(ring):
        cp_uring_enter(ring.descriptor, unsubmitted(ring), 0, 0, -1)
    pass_wake_on(ring)
    wake_threads(engine.scheduler)


# -- the ring's life ------------------------------------------------------------------------------


cdef int open_channel(Engine* engine, Channel* channel) noexcept nogil:
    return 0


cdef void close_channel(Engine* engine, Channel* channel) noexcept nogil:
    pass


cdef int provide_buffers(Engine* engine, size_t size) noexcept nogil:
    cdef Ring* ring = <Ring*> engine
    return pool_open(&ring.pool, ring.descriptor, size)


cdef void destroy(Engine* engine) noexcept nogil:
    """The ring goes before the buffers: what it still held would write to them."""
    cdef Ring* ring = <Ring*> engine
    if ring.sqes != NULL:
        munmap(ring.sqes, ring.sqes_size)
    if ring.rings != NULL:
        munmap(ring.rings, ring.rings_size)
    if ring.descriptor >= 0:
        close(ring.descriptor)
    pool_close(&ring.pool)
    free(ring)


cdef EngineType io_uring_type
io_uring_type.name = b"io_uring"
io_uring_type.batches_sends = True
io_uring_type.wait = wait
io_uring_type.wake = wake
io_uring_type.open_channel = open_channel
io_uring_type.close_channel = close_channel
io_uring_type.is_native = is_native
io_uring_type.start = start
io_uring_type.cancel = cancel
io_uring_type.start_input = start_input
io_uring_type.stop_input = stop_input
io_uring_type.next_input = next_input
io_uring_type.release_input = release_input
io_uring_type.submit = submit
io_uring_type.reap = reap
io_uring_type.provide_buffers = provide_buffers
io_uring_type.destroy = destroy


cdef int map_rings(Ring* ring, cp_uring_params* params) noexcept nogil:
    cdef size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t)
    cdef size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(cp_cqe)
    cdef char* base
    cdef uint32_t i
    ring.rings_size = max(sq_size, cq_size)
    ring.sqes_size = params.sq_entries * sizeof(cp_sqe)
    base = <char*> mmap(
        NULL, ring.rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
        ring.descriptor, CP_OFF_SQ_RING,
    )
    if base == MAP_FAILED:
        return errno
    ring.rings = base
    ring.sqes = <cp_sqe*> mmap(
        NULL, ring.sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
        ring.descriptor, CP_OFF_SQES,
    )
    if ring.sqes == MAP_FAILED:
        ring.sqes = NULL
        return errno
    ring.sq_head = <uint32_t*> (base + params.sq_off.head)
    ring.sq_tail = <uint32_t*> (base + params.sq_off.tail)
    ring.sq_flags = <uint32_t*> (base + params.sq_off.flags)
    ring.sq_mask = (<uint32_t*> (base + params.sq_off.ring_mask))[0]
    ring.sq_entries = params.sq_entries
    ring.cq_head = <uint32_t*> (base + params.cq_off.head)
    ring.cq_tail = <uint32_t*> (base + params.cq_off.tail)
    ring.cq_mask = (<uint32_t*> (base + params.cq_off.ring_mask))[0]
    ring.cqes = <cp_cqe*> (base + params.cq_off.cqes)
    # Entries are used in the order of the queue, so the indirection is set once.
    for i in range(params.sq_entries):
        (<uint32_t*> (base + params.sq_off.array))[i] = i
    return 0


cdef int new_ring(
    Scheduler* scheduler, uint32_t entries, uint32_t completions, Ring** result,
    cp_uring_params* params
) noexcept nogil:
    cdef Ring* ring = <Ring*> calloc(1, sizeof(Ring))
    cdef int error
    if ring == NULL:
        return ENOMEM
    memset(params, 0, sizeof(cp_uring_params))
    params.flags = CP_SETUP_CQSIZE | CP_SETUP_CLAMP | CP_SETUP_SUBMIT_ALL | CP_SETUP_COOP_TASKRUN
    params.cq_entries = completions
    ring.engine.type = &io_uring_type
    ring.engine.scheduler = scheduler
    ring.wait_flags = CP_ENTER_GETEVENTS
    ring.descriptor = cp_uring_setup(entries, params)
    error = 0 if ring.descriptor >= 0 else -ring.descriptor
    if error == 0:
        if params.features & CP_FEAT_NO_IOWAIT:
            ring.wait_flags |= CP_ENTER_NO_IOWAIT
        error = map_rings(ring, params)
    if error != 0:
        destroy(&ring.engine)
        return error
    result[0] = ring
    return 0


cdef int io_uring_new(Scheduler* scheduler, Engine** engine) noexcept nogil:
    cdef cp_uring_params params
    return new_ring(scheduler, SUBMISSION_ENTRIES, COMPLETION_ENTRIES, <Ring**> engine, &params)


# -- what this kernel has ---------------------------------------------------------------------------

cdef dict NEEDED_OPERATIONS = {
    "poll": CP_OP_POLL_ADD, "accept": CP_OP_ACCEPT, "cancel": CP_OP_ASYNC_CANCEL,
    "read": CP_OP_READ, "write": CP_OP_WRITE, "readv": CP_OP_READV, "writev": CP_OP_WRITEV,
    "send": CP_OP_SEND, "recv": CP_OP_RECV, "sendmsg": CP_OP_SENDMSG, "recvmsg": CP_OP_RECVMSG,
}

cdef str UPGRADE = "Use a kernel of 6.0 or later, or engine='epoll'"


def probe():
    """``(reason, remedy, features)``: an empty reason means that the engine runs here.

    Everything is asked of the kernel itself: the features of a ring, its list of operations,
    a provided-buffer ring, and a multishot receive on a pair of sockets.
    """
    cdef Ring* ring = NULL
    cdef cp_uring_params params
    cdef cp_probe known
    cdef int error = new_ring(NULL, 8, 16, &ring, &params)
    if error != 0:
        return (*refusal(error), {})
    try:
        memset(&known, 0, sizeof(known))
        cp_uring_register(ring.descriptor, CP_REGISTER_PROBE, &known, 256)
        features = {
            "timeouts (EXT_ARG)": bool(params.features & CP_FEAT_EXT_ARG),
            "no lost completions (NODROP)": bool(params.features & CP_FEAT_NODROP),
            "internal polling (FAST_POLL)": bool(params.features & CP_FEAT_FAST_POLL),
            "file position (RW_CUR_POS)": bool(params.features & CP_FEAT_RW_CUR_POS),
            "one mapping (SINGLE_MMAP)": bool(params.features & CP_FEAT_SINGLE_MMAP),
        }
        for name, code in NEEDED_OPERATIONS.items():
            features[name] = bool(known.ops[<int> code].flags & CP_PROBE_SUPPORTED)
        features["provided buffers"] = provide_buffers(&ring.engine, 64) == 0
        features["multishot receive"] = features["provided buffers"] and multishot_works(ring)
        missing = [name for name, there in features.items() if not there]
        features["buffers filled bit by bit (PBUF_RING_INC)"] = bool(ring.pool.incremental)
        features["idle is not iowait (NO_IOWAIT)"] = bool(params.features & CP_FEAT_NO_IOWAIT)
    finally:
        destroy(&ring.engine)
    if missing:
        return f"the kernel's io_uring is too old: it lacks {', '.join(missing)}", UPGRADE, features
    return "", "", features


cdef bint multishot_works(Ring* ring) except -1:
    import socket

    cdef cp_sqe* sqe
    cdef cp_cqe* cqe
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        cp_mutex_lock(&ring.sq_lock)
        sqe = next_entry(ring)
        sqe.opcode = CP_OP_RECV
        sqe.fd = near.fileno()
        sqe.ioprio = CP_RECV_MULTISHOT
        sqe.flags = CP_SQE_BUFFER_SELECT
        sqe.buf_group = BUFFER_GROUP
        commit_entry(ring)
        cp_mutex_unlock(&ring.sq_lock)
        if cp_uring_enter(ring.descriptor, 1, 1, CP_ENTER_GETEVENTS, 1000000000) < 0:
            return False
        cqe = &ring.cqes[ring.cq_head[0] & ring.cq_mask]
        return cqe.res == 1 and cqe.flags & CP_CQE_F_MORE != 0


cdef tuple refusal(int error):
    if error == ENOSYS:
        return "the kernel has no io_uring (ENOSYS)", UPGRADE
    if error == EINVAL:
        return "the kernel's io_uring does not know cooperative task running (EINVAL)", UPGRADE
    if error == ENOMEM:
        return (
            "the locked-memory limit is too low for a ring (ENOMEM)",
            "Raise it (ulimit -l), or use engine='epoll'",
        )
    if error == EPERM:
        try:
            with open("/proc/sys/kernel/io_uring_disabled") as file:
                setting = file.read().strip()
        except OSError:
            setting = "0"
        if setting != "0":
            return (
                f"the sysctl kernel.io_uring_disabled is {setting} (EPERM)",
                "Set it to 0 (sysctl kernel.io_uring_disabled=0), or use engine='epoll'",
            )
        return (
            "a seccomp filter forbids io_uring_setup (EPERM), as container runtimes do by default",
            "Allow io_uring in the container's seccomp profile, or use engine='epoll'",
        )
    return (
        f"io_uring_setup failed: {os.strerror(error)}",
        "Use engine='epoll'",
    )
