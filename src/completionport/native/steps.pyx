# cython: language_level=3, freethreading_compatible=True
"""One operation as system calls that do not wait, and what their results mean.

`step` is what every engine begins with; `account` is for what the kernel did by itself too.
"""

from libc.stdint cimport int64_t

from .engine cimport (
    CP_ACCEPT,
    CP_CONNECT,
    CP_DISCONNECT,
    CP_READ,
    CP_RECV,
    CP_SEND,
    CP_WRITE,
    POLLABLE,
    REGULAR,
    SOCKET,
    Channel,
    Operation,
    iovec,
    msghdr,
)

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN
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

cdef enum:
    IOV_MAX = 1024   # what one system call takes: limits.h


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
