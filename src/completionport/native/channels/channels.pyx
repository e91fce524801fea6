# cython: language_level=3, freethreading_compatible=True
"""Channels: a descriptor and its queues of operations.

The descriptor is a duplicate that nobody else knows. It is closed when the channel is closing and
the kernel has no request on it any more, so a request can't meet a number that was used again.
A close(2) that may take long is never made under a lock: by the caller of `channel_close` where that
waits, else by the port's pool.
"""

from libc.stdlib cimport calloc, free

from ..primitives.atomics cimport (
    cp_add_fetch,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_set,
    cp_set_int,
    cp_store_release,
)
from ..scheduling.scheduler cimport push, strand_release
from .engine cimport (
    CP_ACCEPT,
    CP_CONNECT,
    CP_FSYNC,
    CP_OPEN,
    CP_READ,
    CP_RECV,
    CP_RECVFROM,
    CP_RECVMSG,
    CP_SENDFILE,
    CP_STAT,
    DISTANT,
    DONE,
    ERRANDS,
    REGULAR,
    SOCKET,
    SideBySide,
)
from .messages cimport close_passed_descriptors
from .precedence cimport hides, is_in_turn, note_gone, note_queued, note_started
from .steps cimport FINISHED, WAIT, abort_connection, end_connecting, let_sources_go, step

cdef extern from "errno.h" nogil:
    enum:
        EBADF
        ECANCELED
        ENOMEM
        ENOTCONN

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from *:
    """
    #include <sys/socket.h>
    /* Whether close(2) of the last descriptor may wait until all is sent: SO_LINGER, and for how long. */
    static inline int cp_lingers(int descriptor)
    {
        struct linger linger = {0, 0};
        socklen_t size = sizeof(linger);
        getsockopt(descriptor, SOL_SOCKET, SO_LINGER, &linger, &size);
        return linger.l_onoff && linger.l_linger > 0;
    }
    """
    bint cp_lingers(int descriptor) nogil


# -- a channel's life ---------------------------------------------------------------------------


cdef void channel_init(Channel* channel, Engine* engine, int descriptor, ChannelKind kind) noexcept nogil:
    channel.references = 1
    channel.engine = engine
    channel.descriptor = descriptor
    channel.kind = kind
    channel.readable = True
    channel.writable = True


cdef Channel* channel_new(Engine* engine, int descriptor, ChannelKind kind) noexcept nogil:
    cdef Channel* channel = <Channel*> calloc(1, sizeof(Channel))
    if channel == NULL:
        return NULL
    channel_init(channel, engine, descriptor, kind)
    if (kind == REGULAR or kind == ERRANDS) and channel_runs_side_by_side(channel) != 0:
        free(channel)
        return NULL
    return channel


cdef int channel_runs_side_by_side(Channel* channel) noexcept nogil:
    channel.beside = <SideBySide*> calloc(1, sizeof(SideBySide))
    return 0 if channel.beside != NULL else ENOMEM


cdef Channel* channel_retain(Channel* channel) noexcept nogil:
    cp_add_fetch(&channel.references, 1)
    return channel


cdef void channel_release(Channel* channel) noexcept nogil:
    if cp_add_fetch(&channel.references, -1) == 0:
        if channel.strand != NULL:
            strand_release(channel.strand)
        free(channel.beside)
        free(channel)


cdef void let_go_if_idle(Channel* channel) noexcept nogil:
    """Close the descriptor of a closing channel once the kernel is done with it.

    Where that may take long the pool does it, which counts in `in_kernel` meanwhile.
    """
    if channel.closing and channel.in_kernel == 0 and channel.descriptor >= 0:
        channel.engine.type.close_channel(channel.engine, channel)
        if not closes_slowly(channel) or not channel.engine.offload.let_go(channel, -1):
            close(channel_take_descriptor(channel))


cdef inline bint closes_slowly(Channel* channel) noexcept nogil:
    """A file's server or disk, a terminal's output, what a socket has yet to send may be waited for."""
    if channel.kind == SOCKET:
        return cp_lingers(channel.descriptor)
    return channel.kind == REGULAR or channel.is_device


cdef int channel_take_descriptor(Channel* channel) noexcept nogil:
    """The descriptor, for the caller to close: the child of a fork closes those that are still there."""
    cdef int descriptor = channel.descriptor
    cp_set_int(&channel.descriptor, -1)
    return descriptor


cdef void channel_close(Channel* channel, bint waits) noexcept nogil:
    """End every operation as cancelled and let the descriptor go. Takes the lock.

    ``waits``: where nothing is under way the descriptor is closed when this returns.
    """
    cdef int descriptor = -1
    cp_mutex_lock(&channel.lock)
    if not channel.closing:
        cp_set(&channel.closing, True)
        stop_all(channel, &channel.input)
        stop_all(channel, &channel.output)
        if channel.owner != NULL:
            channel.owner.closing(channel)
        abort_if_unacknowledged(channel)
        if waits and channel.in_kernel == 0 and channel.descriptor >= 0:
            channel.engine.type.close_channel(channel.engine, channel)
            descriptor = channel_take_descriptor(channel)
        else:
            let_go_if_idle(channel)
    cp_mutex_unlock(&channel.lock)
    if descriptor >= 0:
        close(descriptor)
    channel.engine.type.submit(channel.engine)


cdef void abort_if_unacknowledged(Channel* channel) noexcept nogil:
    """Of a closing channel: have the kernel let go of what it has not sent, or whose receipt is open.

    It would keep the pages, and what they belong to, for as long as the peer likes.
    """
    if channel.unacknowledged.head != NULL and not channel.keeps_messages:
        channel.was_reset = abort_connection(channel) or channel.was_reset


# -- queues -------------------------------------------------------------------------------------


cdef inline bint brings_data(Operation* operation) noexcept nogil:
    return (
        operation.code == CP_RECV or operation.code == CP_READ or operation.code == CP_ACCEPT
        or operation.code == CP_RECVFROM or operation.code == CP_RECVMSG
    )


cdef OperationQueue* queue_of(Operation* operation) noexcept nogil:
    cdef bint input = brings_data(operation)
    if side_by_side(operation.channel):
        # What `precedence` has to compare is in one queue.
        input = operation.code == CP_STAT or (input and operation.offset >= 0)
    return &operation.channel.input if input else &operation.channel.output


cdef void append_operation(OperationQueue* queue, Operation* operation) noexcept nogil:
    operation.next = NULL
    operation.previous = queue.tail
    if queue.tail == NULL:
        queue.head = operation
    else:
        queue.tail.next = operation
    queue.tail = operation


cdef Operation* pop_operation(OperationQueue* queue) noexcept nogil:
    cdef Operation* operation = queue.head
    queue.head = operation.next
    if queue.head == NULL:
        queue.tail = NULL
    else:
        queue.head.previous = NULL
    return operation


cdef void remove_operation(OperationQueue* queue, Operation* operation) noexcept nogil:
    if side_by_side(operation.channel):
        note_gone(operation)
    if queue.head == operation:
        pop_operation(queue)
        return
    operation.previous.next = operation.next
    if operation.next == NULL:
        queue.tail = operation.previous
    else:
        operation.next.previous = operation.previous


cdef void drop_result(Operation* operation) noexcept nogil:
    """Close the descriptors that a successful operation has brought: nobody will take them."""
    if operation.code == CP_ACCEPT or operation.code == CP_OPEN:
        close(<int> operation.transferred)
    elif operation.code == CP_RECVMSG:
        close_passed_descriptors(&operation.message)


cdef void let_all_sources_go(Channel* channel, Operation* operation) noexcept nogil:
    """The close of a file on a file server is the pool's: it may take long."""
    if (
        operation.code == CP_SENDFILE and operation.source_kind == DISTANT and operation.source >= 0
        and channel.engine.offload.let_go(channel, operation.source)
    ):
        operation.source = -1
    let_sources_go(operation)


cdef void settle(Operation* operation, bint wake) noexcept nogil:
    """The operation is over: its packet goes to the queue.

    The channel's lock is still held, so packets of one channel are queued in the order in which
    its operations were carried out.
    """
    cdef Channel* channel = operation.channel
    let_all_sources_go(channel, operation)
    if channel.closing and (
        operation.error == 0 or operation.error == ECANCELED or channel.was_reset
    ):
        # What was pending when the handle was closed is aborted, however far it had got.
        if operation.error == 0:
            drop_result(operation)
        operation.error = ECANCELED
        if brings_data(operation):
            operation.transferred = 0
    if channel.owner != NULL:
        channel.owner.settled(channel, wake)
    else:
        cp_store_release(&operation.state, DONE)
        push(channel.engine.scheduler, &operation.packet, wake)


cdef void retire(Operation* operation, bint wake) noexcept nogil:
    """The operation is over, and out of its queue. Its packet does not overtake those in front of it."""
    cdef Channel* channel = operation.channel
    if operation.notifications == 0 and (
        channel.unacknowledged.head == NULL or operation.cancelled or brings_data(operation)
    ):
        settle(operation, wake)
        return
    append_operation(&channel.unacknowledged, operation)
    if channel.closing:
        abort_if_unacknowledged(channel)


cdef inline bint is_connecting(Channel* channel) noexcept nogil:
    """Receives wait for that as sends do, so that what the kernel says of it is told by the connect."""
    return (
        channel.output.head != NULL and channel.output.head.code == CP_CONNECT
        and channel.output.head.connecting
    )


cdef void retire_head(Operation* operation, bint wake) noexcept nogil:
    """`retire`, for what may be a connect: what stood behind one goes on, or fails with it."""
    cdef Channel* channel = operation.channel
    cdef Operation* following = operation.next
    cdef bint was_connecting = operation.connecting
    cdef bint failed = operation.error != 0
    if operation.code != CP_CONNECT:
        retire(operation, wake)
        return
    retire(operation, wake)
    if channel.closing:
        return
    if failed:
        fail_unconnected(channel, following, was_connecting, wake)
    elif was_connecting:
        run_queue(channel, &channel.input, wake)


cdef void fail_unconnected(
    Channel* channel, Operation* following, bint was_connecting, bint wake
) noexcept nogil:
    """A connect has failed, or was cancelled: what is for its connection must not reach another.

    ``following``: what stood behind it. That fails up to another connect, which has a try of its own. So do
    the receives, where there is no connection any more.
    """
    cdef Operation* operation = following
    while operation != NULL and operation.code != CP_CONNECT:
        following = operation.next
        # A datagram may have an address of its own.
        if not channel.keeps_messages or operation.address == NULL:
            fail_queued(&channel.output, operation, wake)
        operation = following
    operation = channel.input.head if was_connecting else NULL
    while operation != NULL:
        following = operation.next
        fail_queued(&channel.input, operation, wake)
        operation = following


cdef void fail_queued(OperationQueue* queue, Operation* operation, bint wake) noexcept nogil:
    if not operation.cancelled:
        operation.error = ENOTCONN
        stop(operation.channel, queue, operation, wake)


cdef void finish_notification(Operation* operation) noexcept nogil:
    """The kernel has let go of the pages that one request of a zero-copy send was given."""
    cdef OperationQueue* queue = &operation.channel.unacknowledged
    operation.notifications -= 1
    # Those of several sends come in any order.
    while queue.head != NULL and queue.head.notifications == 0:
        settle(pop_operation(queue), False)


cdef void run_queue(Channel* channel, OperationQueue* queue, bint wake) noexcept nogil:
    """Carry on with the head of the queue, and with the next when it is done."""
    cdef Operation* operation = queue.head
    if side_by_side(channel):
        if queue == &channel.output:
            start_waiting(channel, NULL)
        return
    if queue == &channel.input and is_connecting(channel):
        return
    while operation != NULL and not operation.in_kernel:
        if step(operation) == WAIT:
            channel.engine.type.start(channel.engine, operation)
            return
        pop_operation(queue)
        retire_head(operation, wake)
        operation = queue.head


cdef void count_waiting(Operation* operation, int change) noexcept nogil:
    cdef SideBySide* beside = operation.channel.beside
    beside.waiting += change
    if operation.code == CP_FSYNC:
        beside.waiting_syncs += change
    if change > 0 and beside.first_waiting == NULL:
        beside.first_waiting = operation
    while beside.first_waiting != NULL and (
        beside.first_waiting.in_kernel or (change < 0 and beside.first_waiting == operation)
    ):
        beside.first_waiting = beside.first_waiting.next


cdef void start_waiting(Channel* channel, Operation* gone) noexcept nogil:
    """Start what has nothing to wait for any more; ``gone``: the one that is over, if it is one only."""
    cdef Operation* operation = channel.beside.first_waiting
    cdef Operation* following
    cdef bint hidden
    cdef int under_way
    while operation != NULL and channel.beside.waiting > 0:
        following = operation.next
        if not operation.in_kernel:
            hidden = gone != NULL and hides(operation, gone)
            if is_in_turn(operation):
                count_waiting(operation, -1)
                under_way = channel.in_kernel
                start_now(channel, operation)
                if channel.in_kernel == under_way:
                    # It is over already: no thread was to be had.
                    gone = NULL
                    hidden = False
            if hidden:
                return
        operation = following


cdef void start_now(Channel* channel, Operation* operation) noexcept nogil:
    note_started(operation)
    channel.engine.type.start(channel.engine, operation)


cdef void finish_operation(Operation* operation, bint wake) noexcept nogil:
    """An operation that was started is over: its packet goes out, and what waited for it goes on."""
    cdef Channel* channel = operation.channel
    cdef OperationQueue* queue = queue_of(operation)
    remove_operation(queue, operation)
    if side_by_side(channel):
        # Before its packet is out, with which it may be used again.
        if not channel.closing and queue == &channel.output:
            start_waiting(channel, operation)
        settle(operation, wake)
        return
    retire_head(operation, wake)
    if not channel.closing:
        run_queue(channel, queue, wake)


cdef void carry_on(Operation* operation, bint wake) noexcept nogil:
    """What the operation waited for is there, or was not to be had: `error`."""
    if operation.cancelled:
        abort_operation(operation)
    if operation.error != 0:
        finish_operation(operation, wake)
    else:
        run_queue(operation.channel, queue_of(operation), wake)


cdef int submit_operation(Channel* channel, Operation* operation) noexcept nogil:
    """Start a claimed operation, or queue it behind others. Takes the lock.

    Returns 0 when a packet will come (or is there), NO_PACKET when the operation is done and the
    caller's again, else the errno with which it failed at once. The caller holds a reference to the
    Overlapped for the operation and is inside the scheduler.
    """
    cdef OperationQueue* queue
    cdef int error = 0
    cp_mutex_lock(&channel.lock)
    if channel.closing:
        cp_mutex_unlock(&channel.lock)
        return EBADF
    operation.channel = channel
    if channel.kind != ERRANDS:
        operation.packet.strand = channel.strand
    queue = queue_of(operation)
    if side_by_side(channel):
        channel_retain(channel)
        append_operation(queue, operation)
        note_queued(operation)
        if is_in_turn(operation):
            start_now(channel, operation)
        else:
            count_waiting(operation, 1)
    elif queue.head != NULL or (queue == &channel.input and is_connecting(channel)):
        channel_retain(channel)
        append_operation(queue, operation)
    elif step(operation) == FINISHED:
        error = operation.error
        if error == 0:
            channel_retain(channel)
            if channel.skips_on_success:
                let_all_sources_go(channel, operation)
                error = NO_PACKET
            else:
                retire(operation, True)
        else:
            let_all_sources_go(channel, operation)
    else:
        channel_retain(channel)
        append_operation(queue, operation)
        channel.engine.type.start(channel.engine, operation)
    cp_mutex_unlock(&channel.lock)
    channel.engine.type.submit(channel.engine)
    return error


cdef void abort_operation(Operation* operation) noexcept nogil:
    """Cancelled, or it failed while the kernel had it; but a receive that was to be filled keeps what it has, so
    that no byte is lost."""
    end_connecting(operation)
    if operation.fill and operation.transferred > 0:
        operation.error = 0
    elif operation.error == 0:
        operation.error = ECANCELED


cdef bint stop(Channel* channel, OperationQueue* queue, Operation* operation, bint wake) noexcept nogil:
    """Cancel a queued operation; False when that was asked for before."""
    if operation.cancelled:
        return False
    # The pool looks at it without the lock, between the pieces of a copy.
    cp_set(&operation.cancelled, True)
    if operation.in_kernel:
        if not channel.engine.type.cancel(channel.engine, operation):
            return True
    elif side_by_side(channel):
        count_waiting(operation, -1)
    remove_operation(queue, operation)
    abort_operation(operation)
    retire(operation, wake)
    return True


cdef int stop_all(Channel* channel, OperationQueue* queue) noexcept nogil:
    cdef Operation* operation = queue.head
    cdef Operation* following
    cdef int count = 0
    while operation != NULL:
        following = operation.next
        count += stop(channel, queue, operation, True)
        operation = following
    return count


cdef bint stop_one(
    Channel* channel, OperationQueue* queue, Operation* wanted, int* count
) noexcept nogil:
    cdef Operation* operation = queue.head
    cdef Operation* following
    cdef bint failed
    cdef bint was_connecting
    while operation != NULL and operation != wanted:
        operation = operation.next
    if operation == NULL:
        return False
    following = operation.next
    # Of one that the kernel has its completion tells.
    failed = operation.code == CP_CONNECT and not operation.in_kernel and not operation.cancelled
    was_connecting = operation.connecting
    count[0] = stop(channel, queue, operation, True)
    if failed and not channel.closing:
        fail_unconnected(channel, following, was_connecting, True)
    if not channel.closing:
        run_queue(channel, queue, True)
    return True


cdef int cancel_operations(Channel* channel, Operation* only) noexcept nogil:
    """Cancel one operation (or, with NULL, all); how many were asked to stop. Takes the lock."""
    cdef int count = 0
    cp_mutex_lock(&channel.lock)
    if only == NULL:
        count = stop_all(channel, &channel.input) + stop_all(channel, &channel.output)
    elif not stop_one(channel, &channel.input, only, &count):
        stop_one(channel, &channel.output, only, &count)
    cp_mutex_unlock(&channel.lock)
    channel.engine.type.submit(channel.engine)
    return count
