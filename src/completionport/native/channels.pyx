# cython: language_level=3, freethreading_compatible=True
"""Channels: a descriptor, its two queues of operations, and how an operation gets on.

The descriptor is a duplicate that nobody else knows. It is closed when the channel is closing and
the kernel has no request on it any more, so a request can't meet a number that was used again.
"""

from libc.stdlib cimport calloc, free

from .atomics cimport (
    cp_add_fetch,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_set,
    cp_set_int,
    cp_store_release,
)
from .engine cimport DONE, POLLABLE, REGULAR, SOCKET, iovec, msghdr
from .scheduler cimport push, strand_release

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN
        EBADF
        ECANCELED
        EINPROGRESS
        EINTR
        EIO
        EWOULDBLOCK

cdef extern from "fcntl.h" nogil:
    enum:
        F_GETFL
        F_SETFL
        O_NONBLOCK
    int fcntl(int descriptor, int command, ...)

cdef extern from "poll.h" nogil:
    enum:
        POLLIN
        POLLOUT
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* descriptors, unsigned long count, int timeout)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from "sys/uio.h" nogil:
    ssize_t readv(int descriptor, const iovec* vector, int count)
    ssize_t writev(int descriptor, const iovec* vector, int count)
    ssize_t preadv(int descriptor, const iovec* vector, int count, int64_t offset)
    ssize_t pwritev(int descriptor, const iovec* vector, int count, int64_t offset)

cdef extern from * nogil:
    """
    #include <sys/socket.h>
    static inline int cp_accept(int descriptor)
    {
        return accept4(descriptor, NULL, NULL, SOCK_CLOEXEC);
    }
    static inline int cp_socket_error(int descriptor)
    {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
            error = errno;
        return error;
    }
    """
    int cp_accept(int descriptor)
    int cp_socket_error(int descriptor)
    int connect(int descriptor, const void* address, unsigned int size)
    int shutdown(int descriptor, int how)
    ssize_t recv(int descriptor, void* data, size_t size, int flags)
    ssize_t send(int descriptor, const void* data, size_t size, int flags)
    ssize_t recvmsg(int descriptor, msghdr* message, int flags)
    ssize_t sendmsg(int descriptor, const msghdr* message, int flags)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_PEEK
        SHUT_RDWR

cdef extern from *:
    """
    enum { CP_NONE, CP_ACCEPT, CP_CONNECT, CP_RECV, CP_SEND, CP_READ, CP_WRITE, CP_DISCONNECT };
    """
    enum:
        CP_ACCEPT
        CP_CONNECT
        CP_RECV
        CP_SEND
        CP_READ
        CP_WRITE
        CP_DISCONNECT

cdef enum:
    IOV_MAX = 1024   # what one system call takes: limits.h


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
    if channel != NULL:
        channel_init(channel, engine, descriptor, kind)
    return channel


cdef Channel* channel_retain(Channel* channel) noexcept nogil:
    cp_add_fetch(&channel.references, 1)
    return channel


cdef void channel_release(Channel* channel) noexcept nogil:
    if cp_add_fetch(&channel.references, -1) == 0:
        if channel.strand != NULL:
            strand_release(channel.strand)
        free(channel)


cdef void let_go_if_idle(Channel* channel) noexcept nogil:
    """Close the descriptor of a closing channel once the kernel is done with it."""
    if channel.closing and channel.in_kernel == 0 and channel.descriptor >= 0:
        channel.engine.type.close_channel(channel.engine, channel)
        close(channel.descriptor)
        cp_set_int(&channel.descriptor, -1)


cdef void channel_close(Channel* channel) noexcept nogil:
    """End every operation as cancelled and let the descriptor go. Takes the lock."""
    cp_mutex_lock(&channel.lock)
    if not channel.closing:
        cp_set(&channel.closing, True)
        stop_all(channel, &channel.input)
        stop_all(channel, &channel.output)
        if channel.owner != NULL:
            channel.owner.closing(channel)
        let_go_if_idle(channel)
    cp_mutex_unlock(&channel.lock)
    channel.engine.type.submit(channel.engine)


# -- queues -------------------------------------------------------------------------------------


cdef OperationQueue* queue_of(Operation* operation) noexcept nogil:
    if operation.code == CP_ACCEPT or operation.code == CP_RECV or operation.code == CP_READ:
        return &operation.channel.input
    return &operation.channel.output


cdef void append_operation(OperationQueue* queue, Operation* operation) noexcept nogil:
    operation.next = NULL
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
    return operation


cdef void remove_operation(OperationQueue* queue, Operation* operation) noexcept nogil:
    cdef Operation* before = queue.head
    if before == operation:
        pop_operation(queue)
        return
    while before.next != operation:
        before = before.next
    before.next = operation.next
    if queue.tail == operation:
        queue.tail = before


cdef void settle(Operation* operation, bint wake) noexcept nogil:
    """The operation is over: its packet goes to the queue.

    The channel's lock is still held, so packets of one channel are queued in the order in which
    its operations were carried out.
    """
    cdef Channel* channel = operation.channel
    if channel.closing and (operation.error == 0 or operation.error == ECANCELED):
        # What was pending when the handle was closed is aborted, however far it had got.
        if operation.code == CP_ACCEPT and operation.error == 0:
            close(<int> operation.transferred)
        operation.error = ECANCELED
        if queue_of(operation) == &channel.input:
            operation.transferred = 0
    if channel.owner != NULL:
        channel.owner.settled(channel, wake)
    else:
        cp_store_release(&operation.state, DONE)
        push(channel.engine.scheduler, &operation.packet, wake)


cdef void run_queue(Channel* channel, OperationQueue* queue, bint wake) noexcept nogil:
    """Carry on with the head of the queue, and with the next when it is done."""
    cdef Operation* operation = queue.head
    while operation != NULL and not operation.in_kernel:
        if step(operation) == WAIT:
            channel.engine.type.start(channel.engine, operation)
            return
        pop_operation(queue)
        settle(operation, wake)
        operation = queue.head


cdef int submit_operation(Channel* channel, Operation* operation) noexcept nogil:
    """Start a claimed operation, or queue it behind others. Takes the lock.

    Returns 0 when a packet will come (or is there), else the errno with which it failed at once.
    The caller holds a reference to the Overlapped for the operation and is inside the scheduler.
    """
    cdef OperationQueue* queue
    cdef int error = 0
    cp_mutex_lock(&channel.lock)
    if channel.closing:
        cp_mutex_unlock(&channel.lock)
        return EBADF
    operation.channel = channel
    operation.packet.strand = channel.strand
    queue = queue_of(operation)
    if queue.head != NULL:
        channel_retain(channel)
        append_operation(queue, operation)
    elif step(operation) == FINISHED:
        error = operation.error
        if error == 0:
            channel_retain(channel)
            settle(operation, True)
    else:
        channel_retain(channel)
        append_operation(queue, operation)
        channel.engine.type.start(channel.engine, operation)
    cp_mutex_unlock(&channel.lock)
    channel.engine.type.submit(channel.engine)
    return error


cdef void abort_operation(Operation* operation) noexcept nogil:
    """Cancelled; but a receive that was to be filled keeps what it has, so that no byte is lost."""
    if not (operation.fill and operation.transferred > 0):
        operation.error = ECANCELED


cdef bint stop(Channel* channel, OperationQueue* queue, Operation* operation, bint wake) noexcept nogil:
    """Cancel a queued operation; False when that was asked for before."""
    if operation.cancelled:
        return False
    operation.cancelled = True
    if operation.in_kernel and not channel.engine.type.cancel(channel.engine, operation):
        return True
    remove_operation(queue, operation)
    abort_operation(operation)
    settle(operation, wake)
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
    while operation != NULL and operation != wanted:
        operation = operation.next
    if operation == NULL:
        return False
    count[0] = stop(channel, queue, operation, True)
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


# -- one operation ------------------------------------------------------------------------------


cdef int64_t blocking_switched_off(Operation* operation) noexcept nogil:
    """A call that has no flag of its own for not waiting.

    O_NONBLOCK belongs to the open file, which the program shares: it is set for the call only.
    """
    cdef int descriptor = operation.channel.descriptor
    cdef int flags = fcntl(descriptor, F_GETFL)
    cdef bint change = flags >= 0 and not flags & O_NONBLOCK
    cdef int64_t result = -1
    cdef int error
    if change:
        fcntl(descriptor, F_SETFL, flags | O_NONBLOCK)
    if operation.code == CP_ACCEPT:
        result = cp_accept(descriptor)
    elif operation.code == CP_CONNECT:
        result = connect(descriptor, operation.address, operation.address_size)
    elif operation.code == CP_READ:
        result = readv(descriptor, operation.vector, min(operation.vector_count, IOV_MAX))
    else:
        result = writev(descriptor, operation.vector, min(operation.vector_count, IOV_MAX))
    error = errno
    if change:
        fcntl(descriptor, F_SETFL, flags)
    return result if result >= 0 else -error


cdef int64_t receive(Operation* operation, int flags) noexcept nogil:
    cdef int descriptor = operation.channel.descriptor
    cdef char byte
    if operation.probe_only:
        return recv(descriptor, &byte, 1, flags | MSG_DONTWAIT | MSG_PEEK)
    if operation.vector_count == 1:
        return recv(
            descriptor, operation.vector.iov_base, operation.vector.iov_len, flags | MSG_DONTWAIT
        )
    operation.message.msg_iov = operation.vector
    operation.message.msg_iovlen = min(operation.vector_count, IOV_MAX)
    return recvmsg(descriptor, &operation.message, flags | MSG_DONTWAIT)


cdef int64_t transmit(Operation* operation, int flags) noexcept nogil:
    cdef int descriptor = operation.channel.descriptor
    flags |= MSG_DONTWAIT | MSG_NOSIGNAL
    if operation.vector_count == 1:
        return send(descriptor, operation.vector.iov_base, operation.vector.iov_len, flags)
    operation.message.msg_iov = operation.vector
    operation.message.msg_iovlen = min(operation.vector_count, IOV_MAX)
    return sendmsg(descriptor, &operation.message, flags)


cdef int64_t finish_connecting(Operation* operation) noexcept nogil:
    cdef pollfd ready
    ready.fd = operation.channel.descriptor
    ready.events = POLLOUT
    # A socket that was never connected is "ready" too, and that event may come late:
    # only what poll(2) says now counts.
    if poll(&ready, 1, 0) == 0:
        return -EAGAIN
    return -cp_socket_error(operation.channel.descriptor)


cdef int64_t is_readable(Operation* operation) noexcept nogil:
    cdef pollfd ready
    ready.fd = operation.channel.descriptor
    ready.events = POLLIN
    return 0 if poll(&ready, 1, 0) > 0 else -EAGAIN


cdef int64_t system_call(Operation* operation) noexcept nogil:
    """Try it without waiting: the call's result, or minus its errno."""
    cdef Channel* channel = operation.channel
    cdef int64_t result = -1
    cdef int64_t at
    cdef int count = min(operation.vector_count, IOV_MAX)
    if operation.code == CP_RECV or (operation.code == CP_READ and channel.kind == SOCKET):
        result = receive(operation, operation.flags)
    elif operation.code == CP_SEND or (operation.code == CP_WRITE and channel.kind == SOCKET):
        result = transmit(operation, operation.flags)
    elif operation.code == CP_CONNECT and operation.connecting:
        return finish_connecting(operation)
    elif operation.code == CP_CONNECT:
        result = blocking_switched_off(operation)
        if result == -EINPROGRESS or result == -EINTR:
            operation.connecting = True
            return -EAGAIN
        # A Unix socket whose listener is full says EAGAIN, and nothing would tell of a change.
        operation.error = EAGAIN if result == -EAGAIN else 0
        return result
    elif operation.code == CP_DISCONNECT:
        result = shutdown(channel.descriptor, SHUT_RDWR)
    elif operation.probe_only and channel.kind == POLLABLE:
        return is_readable(operation)
    elif channel.kind != REGULAR:
        return blocking_switched_off(operation)
    elif operation.code == CP_READ:
        at = operation.offset + operation.transferred
        result = (
            readv(channel.descriptor, operation.vector, count) if operation.offset < 0
            else preadv(channel.descriptor, operation.vector, count, at)
        )
    else:
        at = operation.offset + operation.transferred
        result = (
            writev(channel.descriptor, operation.vector, count) if operation.offset < 0
            else pwritev(channel.descriptor, operation.vector, count, at)
        )
    return result if result >= 0 else -errno


cdef bint advance(Operation* operation, int64_t size) noexcept nogil:
    """Move the vector on by what was transferred; True when something is left."""
    cdef iovec* entry
    while operation.vector_count > 0:
        entry = operation.vector
        if size < <int64_t> entry.iov_len:
            entry.iov_base = <char*> entry.iov_base + size
            entry.iov_len -= size
            return True
        size -= entry.iov_len
        operation.vector += 1
        operation.vector_count -= 1
    return False


cdef Progress account(Operation* operation, int64_t result) noexcept nogil:
    """What the result of a system call or of a kernel request means for the operation."""
    cdef bint left
    if result < 0:
        if result == -EINTR:
            return GO_ON
        if (result == -EAGAIN or result == -EWOULDBLOCK) and operation.error == 0:
            return WAIT
        if not (operation.fill and operation.transferred > 0):
            operation.error = <int> -result
        return FINISHED
    if operation.code == CP_ACCEPT:
        operation.transferred = result
    elif operation.code == CP_RECV or operation.code == CP_READ:
        if not operation.probe_only:
            operation.transferred += result
            left = advance(operation, result)
            if operation.fill and left and result > 0:
                return GO_ON
    elif operation.code == CP_SEND or operation.code == CP_WRITE:
        operation.transferred += result
        if advance(operation, result):
            if result > 0:
                return GO_ON
            operation.error = EIO
    return FINISHED


cdef Progress step(Operation* operation) noexcept nogil:
    """Carry the operation on as far as it goes without waiting."""
    cdef Progress progress = GO_ON
    if operation.channel.engine.type.is_native(operation):
        return WAIT
    while progress == GO_ON:
        progress = account(operation, system_call(operation))
    return progress
