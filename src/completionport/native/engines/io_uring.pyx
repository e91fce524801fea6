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
  ended because all provided buffers are in use. It looks for a buffer before it looks for data, unless
  it is told to wait for data first (IORING_RECVSEND_POLL_FIRST).
- A zero-copy send gives two completions: with the first one (IORING_CQE_F_MORE, also where it failed) the
  bytes are taken, with the second one (IORING_CQE_F_NOTIF) the kernel has let go of their pages. In
  between it counts as a request of its channel's. io_uring_enter(2).
- A request holds the open file, not its number; but the number is read when the request is
  submitted, so a descriptor is closed only when nothing of its channel is in the ring.

- The kernel carries out a ring's receives and sends while it holds the ring's lock, TCP included. And
  it finishes a request in the thread that submitted it, which it wakes for that, also where another
  one waits for the ring. `ring_receives` says what follows.

Every request counts in its channel's `in_kernel` and holds a reference to the channel.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free

from ..channels.channels cimport (
    abort_operation,
    channel_release,
    channel_retain,
    finish_notification,
    finish_operation,
    queue_of,
    run_queue,
    side_by_side,
)
from ..channels.engine cimport CP_CLOSE, Channel, EngineType, Operation, Stream
from ..channels.sources cimport give_source_up, prepare_source, source_came
from ..channels.steps cimport FINISHED, GO_ON, WAIT, Progress, account
from ..channels.streams cimport told_by_readiness
from ..pool.offload cimport offload_cancel, offload_start
from ..primitives.atomics cimport (
    cp_load_acquire,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek,
    cp_peek_64,
    cp_received,
    cp_set,
    cp_set_64,
    cp_store_release,
)
from ..primitives.times cimport add_to_shared_stats
from ..scheduling.scheduler cimport POLL, Scheduler, own_number, somebody_leads, wake_threads
from ..scheduling.timer_heap cimport wait_no_longer
from .buffers cimport pool_close, pool_open
from .readiness cimport (
    readiness_add,
    readiness_close,
    readiness_open,
    readiness_remove,
    readiness_wait,
)
from .ring cimport (
    commit_entry,
    cp_cqe,
    cp_fault_result,
    cp_sqe,
    cp_uring_enter,
    known_opcodes,
    next_entry,
    ring_close,
    ring_open,
    unsubmitted,
)
from .uring cimport (
    TAG_CANCEL,
    TAG_INPUT,
    TAG_MASK,
    TAG_OPERATION,
    TAG_WATCH,
    Uring,
    ask_to_cancel,
    request_over,
)
from .uring_requests cimport describe, is_native, moves_data, opcode_of
from .uring_streams cimport (
    input_completed,
    next_input,
    release_input,
    start_input,
    stop_input,
    watch,
    watch_completed,
)

cdef extern from "uring_abi.h" nogil:
    enum:
        CP_OP_NOP, CP_OP_POLL_ADD
        CP_FEAT_NO_IOWAIT, CP_ENTER_GETEVENTS, CP_ENTER_NO_IOWAIT
        CP_OP_READ_MULTISHOT, CP_CQE_F_NOTIF, CP_NOTIF_USAGE_COPIED
        CP_SQ_CQ_OVERFLOW, CP_CQE_F_MORE

cdef extern from "errno.h" nogil:
    enum:
        EAGAIN, EBUSY, ECANCELED, EINTR, ENOENT, ENOMEM, ETIME, ETIMEDOUT

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from "poll.h" nogil:
    enum:
        POLLIN, POLLOUT, POLLRDHUP

cdef enum:
    SHORT_NS = 1000000000
    SUBMISSION_ENTRIES = 1024
    SUBMIT_AT = 64
    COMPLETION_ENTRIES = 8192
    # Of the kernel's linux/errno.h, which is not for programs.
    ERESTARTSYS = 512
    ERESTARTNOINTR = 513
    ERESTARTNOHAND = 514
    ERESTART_RESTARTBLOCK = 516


# -- submission -----------------------------------------------------------------------------------


cdef void submit(Engine* engine) noexcept nogil:
    cdef Uring* uring = <Uring*> engine
    cdef uint32_t count = unsubmitted(&uring.ring)
    cdef int result
    while count != 0:
        result = cp_uring_enter(uring.ring.descriptor, count, 0, 0, -1)
        if result == -EBUSY or result == -EAGAIN:
            # The kernel holds completions back until there is room for them.
            reap(engine, False)
        elif result < 0 and result != -EINTR:
            return
        count = unsubmitted(&uring.ring)


cdef void wake(Engine* engine) noexcept nogil:
    cdef Uring* uring = <Uring*> engine
    cdef uint32_t count
    cdef int result
    cp_mutex_lock(&uring.ring.sq_lock)
    next_entry(&uring.ring).opcode = CP_OP_NOP
    commit_entry(&uring.ring)
    cp_mutex_unlock(&uring.ring.sq_lock)
    # The caller may hold a channel's lock, so nothing may be reaped here as `submit` does. -EBUSY: there
    # are completions for which there is no room, so who leads is awake. -EAGAIN: no memory for it yet.
    count = unsubmitted(&uring.ring)
    while count != 0:
        result = cp_uring_enter(uring.ring.descriptor, count, 0, 0, -1)
        if result == -EAGAIN:
            sched_yield()
        elif result < 0 and result != -EINTR:
            return
        count = unsubmitted(&uring.ring)


cdef void cancel_completed(Uring* uring, Channel* channel, int32_t result) noexcept nogil:
    """A request that was just being tried again is not found (ENOENT): ask once more."""
    cdef Stream* stream = <Stream*> channel
    cp_mutex_lock(&channel.lock)
    # On files and names a request ends by itself.
    if result == -ENOENT and not side_by_side(channel):
        ask_again(uring, channel, channel.input.head)
        ask_again(uring, channel, channel.output.head)
        if channel.owner != NULL and stream.armed and stream.stopping:
            ask_to_cancel(uring, channel, <uintptr_t> stream | TAG_INPUT)
        if channel.owner != NULL and stream.watched and channel.closing:
            ask_to_cancel(uring, channel, <uintptr_t> stream | TAG_WATCH)
    request_over(channel)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)


cdef void ask_again(Uring* uring, Channel* channel, Operation* operation) noexcept nogil:
    if operation != NULL and operation.in_kernel and operation.cancelled:
        ask_to_cancel(uring, channel, <uintptr_t> operation | TAG_OPERATION)


# -- operations -----------------------------------------------------------------------------------


cdef void request(Operation* operation, bint readiness) noexcept nogil:
    """Give the operation to the kernel: to carry it out, or to wait until it can be."""
    cdef Uring* uring = <Uring*> operation.channel.engine
    cdef cp_sqe* sqe
    cp_mutex_lock(&uring.ring.sq_lock)
    sqe = next_entry(&uring.ring)
    if readiness:
        sqe.opcode = CP_OP_POLL_ADD
        sqe.fd = operation.channel.descriptor
        if queue_of(operation) == &operation.channel.input:
            sqe.op_flags = POLLIN | POLLRDHUP
        else:
            sqe.op_flags = POLLOUT
    else:
        describe(sqe, operation)
    sqe.user_data = <uintptr_t> operation | TAG_OPERATION
    commit_entry(&uring.ring)
    cp_mutex_unlock(&uring.ring.sq_lock)
    operation.in_kernel = True
    operation.waits_only = readiness
    operation.channel.in_kernel += 1
    if unsubmitted(&uring.ring) >= SUBMIT_AT:
        # So that the peers of the first can go on while the last are still being served.
        cp_uring_enter(uring.ring.descriptor, unsubmitted(&uring.ring), 0, 0, -1)


cdef inline bint is_known(Uring* uring, int opcode) noexcept nogil:
    return opcode >= 0 and uring.known >> opcode & 1 != 0


cdef inline bint is_short(Uring* uring) noexcept nogil:
    cdef int64_t until_ns = cp_peek_64(&uring.short_until_ns)
    return until_ns != 0 and cp_now_ns() < until_ns


cdef void start(Engine* engine, Operation* operation) noexcept nogil:
    if side_by_side(operation.channel):
        if is_known(<Uring*> engine, opcode_of(operation)) and not is_short(<Uring*> engine):
            request(operation, False)
        else:
            offload_start(operation)
    elif operation.wants_source and prepare_source(operation):
        request(operation, False)
    # What a stream could not send is carried on when the socket is ready for it.
    elif not told_by_readiness(operation.channel):
        if operation.wants_source:
            give_source_up(operation)
        request(operation, not moves_data(operation))


cdef bint cancel(Engine* engine, Operation* operation) noexcept nogil:
    if operation.offloaded:
        return offload_cancel(operation)
    ask_to_cancel(<Uring*> engine, operation.channel, <uintptr_t> operation | TAG_OPERATION)
    return False


cdef inline bint was_interrupted(int32_t result) noexcept nogil:
    """By a signal, of which the ring's threads get one when what they are at is cancelled.

    Reads and accepts say EINTR then. Others, as an open that waits for a lease, pass on what the kernel
    says to itself for the way back from a system call.
    """
    return (
        result == -EINTR or result == -ERESTARTSYS or result == -ERESTARTNOINTR
        or result == -ERESTARTNOHAND or result == -ERESTART_RESTARTBLOCK
    )


cdef void operation_completed(Operation* operation, int32_t result, uint32_t flags) noexcept nogil:
    cdef Channel* channel = channel_retain(operation.channel)
    cdef Progress progress
    cp_mutex_lock(&channel.lock)
    operation.in_kernel = False
    if flags & CP_CQE_F_MORE:
        note_pages_given(operation, result)
    if was_interrupted(result):
        result = -EINTR
    if operation.wants_source:
        if result == -ECANCELED and is_given_up(operation):
            # Then whoever sends it reads it too.
            give_source_up(operation)
        source_came(operation, result)
        progress = GO_ON if operation.error == 0 else FINISHED
    elif result == -ECANCELED or (result == -EINTR and operation.code != CP_CLOSE):
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
        finish_operation(operation, False)
    elif side_by_side(channel):
        if progress == GO_ON and not (result == -ECANCELED and is_given_up(operation)):
            start(channel.engine, operation)
        else:
            # A file that does not do without waiting what it was asked to; or the kernel has no thread for it.
            offload_start(operation)
    elif progress == WAIT:
        request(operation, True)
    else:
        run_queue(channel, queue_of(operation), False)
    if not flags & CP_CQE_F_MORE:
        request_over(channel)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)


cdef bint is_given_up(Operation* operation) noexcept nogil:
    """The kernel cancelled it unasked: once, when the thread that submitted it has ended; again and again
    where it can't start the thread that it would need."""
    if operation.given_back:
        # It takes the kernel some 50 ms to find that out.
        cp_set_64(&(<Uring*> operation.channel.engine).short_until_ns, cp_now_ns() + SHORT_NS)
        return True
    operation.given_back = True
    return False


cdef void note_pages_given(Operation* operation, int32_t result) noexcept nogil:
    """A zero-copy send has its result, and the kernel the pages, until a notification comes."""
    cdef Engine* engine = operation.channel.engine
    operation.notifications += 1
    if result > 0:
        add_to_shared_stats(&engine.zero_copy_sends, 1)
    else:
        # Its notification will say that the kernel copied.
        add_to_shared_stats(&engine.zero_copy_copied, -1)


cdef void pages_returned(Operation* operation, int32_t usage) noexcept nogil:
    """The notification. The request counted as being in the kernel until now."""
    cdef Channel* channel = channel_retain(operation.channel)
    cp_mutex_lock(&channel.lock)
    if <uint32_t> usage & CP_NOTIF_USAGE_COPIED:
        add_to_shared_stats(&channel.engine.zero_copy_copied, 1)
    finish_notification(operation)
    request_over(channel)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)


# -- completion -----------------------------------------------------------------------------------


cdef bint reap_once(Uring* uring) noexcept nogil:
    """Handle the completions that are there; True when there were any."""
    cdef uint32_t head
    cdef uint32_t tail
    cdef cp_cqe cqe
    cdef bint some
    cp_mutex_lock(&uring.ring.cq_lock)
    head = uring.ring.cq_head[0]
    tail = cp_load_acquire(uring.ring.cq_tail)
    some = head != tail
    if some:
        uring.reaper = <uint16_t> own_number()
    while head != tail:
        cqe = uring.ring.cqes[head & uring.ring.cq_mask]
        head += 1
        cp_store_release(uring.ring.cq_head, head)
        cp_fault_result(&cqe)
        cp_received(<void*> <uintptr_t> cqe.user_data)
        if cqe.user_data & TAG_MASK == TAG_INPUT:
            input_completed(uring, <Stream*> <uintptr_t> (cqe.user_data - TAG_INPUT), cqe.res, cqe.flags)
        elif cqe.user_data == 0:
            uring.woken = True
        elif cqe.user_data & TAG_MASK == TAG_WATCH:
            watch_completed(uring, <Stream*> <uintptr_t> (cqe.user_data - TAG_WATCH), cqe.res, cqe.flags)
        elif cqe.user_data & TAG_MASK == TAG_CANCEL:
            cancel_completed(uring, <Channel*> <uintptr_t> (cqe.user_data - TAG_CANCEL), cqe.res)
        elif cqe.user_data & TAG_MASK == TAG_OPERATION and cqe.flags & CP_CQE_F_NOTIF:
            pages_returned(<Operation*> <uintptr_t> (cqe.user_data - TAG_OPERATION), cqe.res)
        elif cqe.user_data & TAG_MASK == TAG_OPERATION:
            operation_completed(
                <Operation*> <uintptr_t> (cqe.user_data - TAG_OPERATION), cqe.res, cqe.flags
            )
        if head == tail:
            tail = cp_load_acquire(uring.ring.cq_tail)
    cp_mutex_unlock(&uring.ring.cq_lock)
    return some


cdef bint collect(Uring* uring) noexcept nogil:
    """Handle all completions, those that did not fit into the ring too; whether there were any."""
    cdef bint some = reap_once(uring)
    while cp_load_acquire(uring.ring.sq_flags) & CP_SQ_CQ_OVERFLOW:
        cp_uring_enter(uring.ring.descriptor, 0, 0, CP_ENTER_GETEVENTS, -1)
        if reap_once(uring):
            some = True
    return some


cdef void pass_wake_on(Uring* uring) noexcept nogil:
    """Not the leader, but it may have taken what was to wake the leader: wake it again."""
    cdef bint woken
    cp_mutex_lock(&uring.ring.cq_lock)
    woken = uring.woken
    uring.woken = False
    cp_mutex_unlock(&uring.ring.cq_lock)
    if woken and somebody_leads(uring.engine.scheduler):
        wake(&uring.engine)


cdef int wait(Engine* engine, int64_t deadline_ns) noexcept nogil:
    cdef Uring* uring = <Uring*> engine
    cdef int result
    cdef bint some
    cdef bint told
    if deadline_ns != POLL and collect(uring):
        submit(engine)
        return 0
    if cp_peek(&uring.tells_readiness):
        submit(engine)
        # Whatever it tells of the ring: the wait itself may have finished requests of this thread.
        result = readiness_wait(&uring.readiness, deadline_ns, &told)
    else:
        result = wait_for_ring(uring, deadline_ns)
    some = collect(uring)
    if deadline_ns == POLL:
        pass_wake_on(uring)
    if some:
        submit(engine)
        return 0
    return result


cdef int wait_for_ring(Uring* uring, int64_t deadline_ns) noexcept nogil:
    cdef int64_t timeout = -1
    cdef int result
    if deadline_ns == POLL:
        result = cp_uring_enter(
            uring.ring.descriptor, unsubmitted(&uring.ring), 0, CP_ENTER_GETEVENTS, -1
        )
    else:
        if deadline_ns > 0:
            timeout = max(deadline_ns - cp_now_ns(), 0)
        result = cp_uring_enter(
            uring.ring.descriptor, unsubmitted(&uring.ring), 1, uring.wait_flags, timeout
        )
    if result == -ETIME:
        return ETIMEDOUT
    # A wait that a signal ended says so only when it had nothing to submit.
    return EINTR if result == -EINTR or result >= 0 else 0


cdef void reap(Engine* engine, bint pause) noexcept nogil:
    cdef Uring* uring = <Uring*> engine
    # Entering the kernel with GETEVENTS is also what finishes the requests of this thread.
    cp_uring_enter(
        uring.ring.descriptor, unsubmitted(&uring.ring), 1 if pause else 0,
        uring.wait_flags if pause else CP_ENTER_GETEVENTS, 1000000 if pause else -1,
    )
    collect(uring)
    if unsubmitted(&uring.ring):
        cp_uring_enter(uring.ring.descriptor, unsubmitted(&uring.ring), 0, 0, -1)
    pass_wake_on(uring)
    wake_threads(engine.scheduler)


# -- the ring's life ------------------------------------------------------------------------------


cdef bint ring_receives(Uring* uring, Stream* stream) noexcept nogil:
    """Whether the ring itself accepts and receives for a socket of a server: the one place where that is chosen.

    - Where several threads run at a time it does not. The kernel carries out its receives and sends under one
      lock, and in the thread that asked, so the threads would wait for each other. Sockets wait in an epoll
      instance, which belongs to no thread, and each thread receives and sends by system calls, side by side.
    - A socket of datagrams does not: `datagrams` says why.
    - Else it does, in fewer calls, unless something waits in the epoll instance already: then each wait is there,
      and the ring's own completions would come by way of it.

    It is chosen for each socket when that is opened, so a server can come to a port at any time. `opening_lock`.
    """
    return (
        uring.engine.scheduler.concurrency == 1 and stream.datagrams == NULL
        and not uring.tells_readiness and uring.pool.memory != NULL
    )


cdef int open_channel(Engine* engine, Channel* channel) noexcept nogil:
    cdef Uring* uring = <Uring*> engine
    cdef int error = 0
    cdef bint first = False
    if channel.owner == NULL:
        return 0
    cp_mutex_lock(&uring.opening_lock)
    if ring_receives(uring, <Stream*> channel):
        cp_mutex_unlock(&uring.opening_lock)
        return 0
    if not uring.tells_readiness:
        # Level-triggered: told as long as completions are there.
        error = readiness_open(&uring.readiness, engine, uring.ring.descriptor, 0)
        first = error == 0
        cp_set(&uring.tells_readiness, first)
    cp_mutex_unlock(&uring.opening_lock)
    if first:
        # Who waits for the ring alone looks again.
        wait_no_longer(engine.scheduler, 0)
    return error if error != 0 else readiness_add(&uring.readiness, channel)


cdef void close_channel(Engine* engine, Channel* channel) noexcept nogil:
    if told_by_readiness(channel):
        readiness_remove(&(<Uring*> engine).readiness, channel)


cdef int provide_buffers(Engine* engine, size_t size) noexcept nogil:
    cdef Uring* uring = <Uring*> engine
    cdef int error = 0
    if engine.scheduler.concurrency == 1:
        cp_mutex_lock(&uring.opening_lock)
        error = pool_open(&uring.pool, uring.ring.descriptor, size)
        cp_mutex_unlock(&uring.opening_lock)
    return error


cdef void destroy(Engine* engine) noexcept nogil:
    """The ring goes before the buffers: what it still held would write to them."""
    cdef Uring* uring = <Uring*> engine
    if uring.tells_readiness:
        readiness_close(&uring.readiness)
    ring_close(&uring.ring)
    pool_close(&uring.pool)
    free(uring)


cdef EngineType io_uring_type
io_uring_type.wait = wait
io_uring_type.wake = wake
io_uring_type.open_channel = open_channel
io_uring_type.close_channel = close_channel
io_uring_type.is_native = is_native
io_uring_type.start = start
io_uring_type.cancel = cancel
io_uring_type.start_input = start_input
io_uring_type.stop_input = stop_input
io_uring_type.watch = watch
io_uring_type.next_input = next_input
io_uring_type.release_input = release_input
io_uring_type.submit = submit
io_uring_type.reap = reap
io_uring_type.provide_buffers = provide_buffers
io_uring_type.destroy = destroy


cdef int io_uring_new(Scheduler* scheduler, Engine** engine) noexcept nogil:
    cdef Uring* uring = <Uring*> calloc(1, sizeof(Uring))
    cdef int error
    if uring == NULL:
        return ENOMEM
    error = ring_open(&uring.ring, SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
    if error != 0:
        free(uring)
        return error
    uring.known = known_opcodes(&uring.ring)
    uring.engine.type = &io_uring_type
    uring.engine.scheduler = scheduler
    uring.engine.batches_sends = scheduler.concurrency == 1
    # Linux 6.7, which has all of it: it also reports what was copied after all.
    uring.engine.sends_zero_copy = is_known(uring, CP_OP_READ_MULTISHOT)
    uring.wait_flags = CP_ENTER_GETEVENTS
    if uring.ring.features & CP_FEAT_NO_IOWAIT:
        uring.wait_flags |= CP_ENTER_NO_IOWAIT
    engine[0] = &uring.engine
    return 0
