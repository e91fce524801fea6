# cython: language_level=3, freethreading_compatible=True
"""One operation as system calls that do not wait, and what their results mean.

`step` is what every engine begins with; `account` is for what the kernel did by itself too.
"""

from libc.stdint cimport int64_t

from ..primitives.atomics cimport cp_mutex, cp_mutex_lock, cp_mutex_unlock
from .engine cimport (
    CP_ACCEPT,
    CP_CLOSE,
    CP_CONNECT,
    CP_DISCONNECT,
    CP_OPEN,
    CP_READ,
    CP_RECV,
    CP_RECVFROM,
    CP_RECVMSG,
    CP_SEND,
    CP_SENDFILE,
    CP_SENDMSG,
    CP_SENDTO,
    CP_SHUTDOWN,
    CP_WRITE,
    POLLABLE,
    SOCKET,
    Channel,
    Operation,
    iovec,
    msghdr,
)
from .messages cimport close_passed_descriptors, send_message
from .sources cimport close_source, read_bytes, send_mapped, sendable, sent_of_read

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN
        ECONNABORTED
        EINPROGRESS
        EINTR
        EIO
        ENOBUFS
        ENOMEM
        ENOSYS
        EOPNOTSUPP
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

cdef extern from * nogil:
    """
    #include <linux/sockios.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    static inline int cp_accept(int descriptor)
    {
        return accept4(descriptor, NULL, NULL, SOCK_CLOEXEC);
    }
    /* Whoever else has the socket: its connection is reset, and what it was to send is dropped. */
    static inline int cp_abort_connection(int descriptor)
    {
        struct sockaddr nobody = { .sa_family = AF_UNSPEC };
        int left = 1, at_once = 1;
        if (ioctl(descriptor, SIOCOUTQ, &left) == 0 && left == 0)
            return 0;
        if (connect(descriptor, &nobody, sizeof nobody) != 0)
            setsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &at_once, sizeof at_once);
        return 1;
    }
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    /* SIGPIPE of a call that has no MSG_NOSIGNAL, as sendfile(2) and a write to a pipe: unless the process ignores
     * it, the signal is held back in this thread and taken, so that the call's error is all that comes of it. One that
     * was pending before stays. A call that has moved a part may have raised it too. */
    struct cp_quiet { int masked, pending; sigset_t before; };
    static inline void cp_be_quiet(struct cp_quiet *quiet)
    {
        struct sigaction now;
        sigset_t set;
        quiet->masked = 0;
        if (sigaction(SIGPIPE, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO)
            && now.sa_handler == SIG_IGN)
            return;
        quiet->pending = sigpending(&set) == 0 && sigismember(&set, SIGPIPE) == 1;
        sigemptyset(&set);
        sigaddset(&set, SIGPIPE);
        quiet->masked = pthread_sigmask(SIG_BLOCK, &set, &quiet->before) == 0;
    }
    static inline void cp_end_quiet(struct cp_quiet *quiet)
    {
        struct timespec at_once = {0, 0};
        sigset_t set;
        if (!quiet->masked)
            return;
        sigemptyset(&set);
        sigaddset(&set, SIGPIPE);
        if (!quiet->pending)
            while (sigtimedwait(&set, NULL, &at_once) < 0 && errno == EINTR)
                ;
        pthread_sigmask(SIG_SETMASK, &quiet->before, NULL);
    }
    /* A read or write that does not wait whatever the mode of the file: anonymous pipes (Linux 6.4), eventfd and
     * others know RWF_NOWAIT. All else says EOPNOTSUPP. */
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    static inline ssize_t cp_move_now(int writes, int descriptor, const struct iovec *vector, int count)
    {
        return syscall(writes ? SYS_pwritev2 : SYS_preadv2, descriptor, vector, count, -1L, -1L, RWF_NOWAIT);
    }
    /* A connect that was given up, or has failed: the next one begins anew. While the kernel has not told a
     * connect(2) of it, it answers ECONNABORTED, and one that is under way goes on. SO_ERROR is taken, since
     * the socket would count as ready for as long as it is there. */
    static inline void cp_end_connecting(int descriptor)
    {
        struct sockaddr nobody = { .sa_family = AF_UNSPEC };
        int error;
        socklen_t size = sizeof error;
        connect(descriptor, &nobody, sizeof nobody);
        getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    static inline int cp_takes_datagrams(int descriptor)
    {
        int type = 0;
        socklen_t size = sizeof type;
        getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size);
        return type == SOCK_DGRAM;
    }
    static inline int cp_has_peer(int descriptor)
    {
        struct sockaddr_storage name;
        socklen_t size = sizeof name;
        return getpeername(descriptor, (struct sockaddr *)&name, &size) == 0 || errno != ENOTCONN;
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
    cdef struct cp_quiet:
        pass
    void cp_be_quiet(cp_quiet* quiet)
    void cp_end_quiet(cp_quiet* quiet)
    ssize_t cp_move_now(bint writes, int descriptor, const iovec* vector, int count)
    int cp_accept(int descriptor)
    void cp_end_connecting(int descriptor)
    bint cp_takes_datagrams(int descriptor)
    bint cp_has_peer(int descriptor)
    int cp_socket_error(int descriptor)
    int connect(int descriptor, const void* address, unsigned int size)
    bint cp_abort_connection(int descriptor)
    int shutdown(int descriptor, int how)
    ssize_t recv(int descriptor, void* data, size_t size, int flags)
    ssize_t send(int descriptor, const void* data, size_t size, int flags)
    ssize_t recvmsg(int descriptor, msghdr* message, int flags)
    enum:
        MSG_CMSG_CLOEXEC
        MSG_DONTWAIT
        MSG_ERRQUEUE
        MSG_MORE
        MSG_NOSIGNAL
        MSG_OOB
        MSG_PEEK
        SHUT_RDWR

cdef extern from "sys/sendfile.h" nogil:
    ssize_t sendfile64(int to, int source, int64_t* offset, size_t count)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

cdef enum:
    # What is sent of a file in one go, bytes: to a peer that keeps up the socket is never full, and others
    # are to have their turn. It takes about two milliseconds; a quarter of it made a file 1 % slower.
    TURN = 4194304


cdef int64_t move_without_waiting(Operation* operation) noexcept nogil:
    """Read or write what is no socket.

    Others may have the open file, as a terminal or a pipe that another process writes to as well: they are not to
    see that it does not wait. So the channel has one of its own where it can; or the call says so itself.
    """
    cdef cp_quiet quiet
    cdef Channel* channel = operation.channel
    cdef int count = min(operation.vector_count, IOV_MAX)
    cdef bint writes = operation.code == CP_WRITE
    cdef int64_t result
    if writes:
        cp_be_quiet(&quiet)
    if not channel.own_open:
        result = cp_move_now(writes, channel.descriptor, operation.vector, count)
        result = result if result >= 0 else -errno
        if result == -EOPNOTSUPP or result == -ENOSYS:
            result = blocking_switched_off(operation)
    else:
        if writes:
            result = writev(channel.descriptor, operation.vector, count)
        else:
            result = readv(channel.descriptor, operation.vector, count)
        result = result if result >= 0 else -errno
    if writes:
        cp_end_quiet(&quiet)
    return result


# Guards O_NONBLOCK of what is no socket, in all ports of the process.
cdef cp_mutex flags_lock


cdef int64_t blocking_switched_off(Operation* operation) noexcept nogil:
    """A call that has no flag of its own for not waiting, and can't be done without one.

    That is an accept, where somebody is there to be accepted (another process may be quicker), and the connect of a
    stream, on which all else fails meanwhile.

    O_NONBLOCK belongs to the open file, which the program shares: it is set for the call only. Two
    handles may have the same open file, unless it is a socket (a terminal's input and output are one):
    if one put the flag back while the other is on its way to the call, that would wait.
    """
    cdef int descriptor = operation.channel.descriptor
    cdef bint shared = operation.channel.kind != SOCKET
    cdef int flags
    cdef bint change
    cdef int64_t result = -1
    cdef int error
    if shared:
        cp_mutex_lock(&flags_lock)
    flags = fcntl(descriptor, F_GETFL)
    change = flags >= 0 and not flags & O_NONBLOCK
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
    if shared:
        cp_mutex_unlock(&flags_lock)
    return result if result >= 0 else -error


cdef void in_child() noexcept nogil:
    """The thread that held it is not in the child."""
    global flags_lock
    flags_lock = 0


if pthread_atfork(NULL, NULL, in_child) != 0:
    raise MemoryError("pthread_atfork failed")


cdef bint is_ready(Operation* operation, short events) noexcept nogil:
    cdef pollfd ready
    ready.fd = operation.channel.descriptor
    ready.events = events
    return poll(&ready, 1, 0) > 0


cdef void prepare_message(Operation* operation) noexcept nogil:
    cdef msghdr* message = &operation.message
    message.msg_name = operation.address
    message.msg_namelen = operation.address_size
    message.msg_iov = operation.vector
    message.msg_iovlen = operation.vector_count
    if not operation.channel.keeps_messages:
        # Of a stream the rest has its turn later. A message of more parts than the kernel takes
        # must fail.
        message.msg_iovlen = min(operation.vector_count, IOV_MAX)
    message.msg_control = operation.control
    message.msg_controllen = operation.control_size
    message.msg_flags = 0


cdef bint takes_bytes(Operation* operation) noexcept nogil:
    """A receive from a stream socket that goes over an urgent byte."""
    return (
        (
            operation.code == CP_RECV or operation.code == CP_READ
            or operation.code == CP_RECVFROM or operation.code == CP_RECVMSG
        )
        and operation.channel.kind == SOCKET and not operation.channel.keeps_messages
        and not operation.probe_only and not operation.flags & (MSG_OOB | MSG_PEEK | MSG_ERRQUEUE)
    )


cdef int64_t receive(Operation* operation) noexcept nogil:
    cdef bint takes = takes_bytes(operation)
    cdef int64_t result
    if takes and operation.channel.stopped_short and not is_ready(operation, POLLIN):
        return -EAGAIN
    result = receive_now(operation, operation.flags | MSG_DONTWAIT)
    if result < 0:
        result = -errno
    if takes:
        operation.channel.stopped_short = (
            operation.vector_count != 1 or result < <int64_t> operation.vector.iov_len
        )
    return result


cdef ssize_t receive_now(Operation* operation, int flags) noexcept nogil:
    cdef int descriptor = operation.channel.descriptor
    cdef char byte
    cdef iovec room
    if operation.code == CP_RECVFROM or operation.code == CP_RECVMSG:
        prepare_message(operation)
        if operation.probe_only:
            room.iov_base = &byte
            room.iov_len = 1
            operation.message.msg_iov = &room
            operation.message.msg_iovlen = 1
            operation.message.msg_controllen = 0
            flags |= MSG_PEEK
        return recvmsg(descriptor, &operation.message, flags | MSG_CMSG_CLOEXEC)
    if operation.probe_only:
        return recv(descriptor, &byte, 1, flags | MSG_PEEK)
    if operation.vector_count == 1:
        return recv(descriptor, operation.vector.iov_base, operation.vector.iov_len, flags)
    prepare_message(operation)
    return recvmsg(descriptor, &operation.message, flags)


cdef int64_t transmit(Operation* operation, int flags) noexcept nogil:
    cdef int descriptor = operation.channel.descriptor
    cdef ssize_t sent
    flags |= MSG_DONTWAIT | MSG_NOSIGNAL
    if operation.vector_count == 1 and operation.address == NULL and operation.control == NULL:
        sent = send(descriptor, operation.vector.iov_base, operation.vector.iov_len, flags)
        return sent if sent >= 0 else -errno
    prepare_message(operation)
    return send_message(descriptor, &operation.message, flags)


cdef int64_t send_file(Operation* operation) noexcept nogil:
    """The head, then the file, then the tail."""
    cdef int descriptor = operation.channel.descriptor
    cdef cp_quiet quiet
    cdef int64_t sent
    cdef size_t size
    if operation.vector_count > 0:
        # MSG_MORE is in `flags` where something follows the head.
        return transmit(operation, operation.flags if operation.source_left >= 0 else 0)
    if operation.source_left == 0:
        return 0
    if operation.control != NULL:
        return send_read(operation)
    size = <size_t> sendable(operation)
    if size == 0:
        # For a socket that is full it need not be read yet.
        operation.wants_source = is_ready(operation, POLLOUT)
        return -EAGAIN
    if not fcntl(descriptor, F_GETFL) & O_NONBLOCK:
        # sendfile(2) would wait, whatever it is told.
        return send_mapped(operation, size, send_flags(operation, size))
    cp_be_quiet(&quiet)
    sent = sendfile64(descriptor, operation.source, &operation.offset, size)
    sent = sent if sent >= 0 else -errno
    cp_end_quiet(&quiet)
    return sent


cdef inline int send_flags(Operation* operation, size_t size) noexcept nogil:
    """For so much of the file. Before more is read it may take long: no part of it is kept back."""
    cdef bint more = <int64_t> size == operation.source_left and operation.vector.iov_len > 0
    return MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_MORE if more else 0)


cdef int64_t send_read(Operation* operation) noexcept nogil:
    """What was read of the file."""
    cdef size_t size
    cdef char* data = read_bytes(operation, &size)
    cdef ssize_t sent = send(
        operation.channel.descriptor, data, size, send_flags(operation, size)
    )
    if sent < 0:
        return -errno
    sent_of_read(operation, sent)
    return sent


cdef void let_sources_go(Operation* operation) noexcept nogil:
    if operation.code == CP_SENDFILE:
        close_source(operation)
    elif operation.code == CP_SENDMSG and operation.owns_control:
        # One that was refused at the call has no channel yet.
        operation.message.msg_control = operation.control
        operation.message.msg_controllen = operation.control_size
        close_passed_descriptors(&operation.message)
        operation.owns_control = False


cdef bint abort_connection(Channel* channel) noexcept nogil:
    """Reset it, and have the kernel drop what is to be sent: connect(2) of AF_UNSPEC.

    A close(2) with SO_LINGER would do so only if nobody else had the socket. False: the peer has
    acknowledged all, and nothing was done. Where the reset is refused (a sandbox, TLS in the kernel)
    the connection ends when the peer lets a millisecond pass without an acknowledgement.
    """
    return cp_abort_connection(channel.descriptor)


cdef int64_t finish_connecting(Operation* operation) noexcept nogil:
    # A socket that was never connected is "ready" too, and that event may come late:
    # only what poll(2) says now counts.
    cdef int error
    if not is_ready(operation, POLLOUT):
        return -EAGAIN
    error = cp_socket_error(operation.channel.descriptor)
    if error == 0 and not cp_has_peer(operation.channel.descriptor):
        error = ECONNABORTED  # somebody else was told why
    if error != 0:
        end_connecting(operation)
    return -error


cdef void end_connecting(Operation* operation) noexcept nogil:
    """Nothing is left of a connect that was begun, and the socket can be connected anew."""
    if operation.code == CP_CONNECT and operation.connecting:
        cp_end_connecting(operation.channel.descriptor)


cdef int64_t system_call(Operation* operation) noexcept nogil:
    """Try it without waiting: the call's result, or minus its errno."""
    cdef Channel* channel = operation.channel
    cdef int64_t result = -1
    if operation.code == CP_RECV or (operation.code == CP_READ and channel.kind == SOCKET):
        return receive(operation)
    elif operation.code == CP_SEND or (operation.code == CP_WRITE and channel.kind == SOCKET):
        return transmit(operation, operation.flags)
    elif operation.code == CP_RECVFROM or operation.code == CP_RECVMSG:
        return receive(operation)
    elif operation.code == CP_SENDTO or operation.code == CP_SENDMSG:
        return transmit(operation, operation.flags)
    elif operation.code == CP_CONNECT and operation.connecting:
        return finish_connecting(operation)
    elif operation.code == CP_CONNECT:
        if channel.keeps_messages and cp_takes_datagrams(channel.descriptor):
            # It never waits, and others may be receiving.
            result = connect(channel.descriptor, operation.address, operation.address_size)
            return result if result >= 0 else -errno
        result = blocking_switched_off(operation)
        if result == -EINPROGRESS or result == -EINTR:
            operation.connecting = True
            return -EAGAIN
        # A Unix socket whose listener is full says EAGAIN, and nothing would tell of a change.
        operation.error = EAGAIN if result == -EAGAIN else 0
        return result
    elif operation.code == CP_SENDFILE:
        return send_file(operation)
    elif operation.code == CP_DISCONNECT:
        result = shutdown(channel.descriptor, SHUT_RDWR)
    elif operation.code == CP_SHUTDOWN:
        # IORING_OP_SHUTDOWN would have one of the ring's threads make the same call, which
        # never waits.
        result = shutdown(channel.descriptor, operation.flags)
    elif operation.probe_only and channel.kind == POLLABLE:
        return 0 if is_ready(operation, POLLIN) else -EAGAIN
    elif operation.code == CP_ACCEPT:
        return blocking_switched_off(operation) if is_ready(operation, POLLIN) else -EAGAIN
    else:
        return move_without_waiting(operation)
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
            # A close(2) that was interrupted has closed: only the last write's fate is open.
            return GO_ON if operation.code != CP_CLOSE else FINISHED
        if (result == -EAGAIN or result == -EWOULDBLOCK) and operation.error == 0:
            return WAIT
        if operation.zero_copy and (
            result == -EOPNOTSUPP or result == -ENOMEM or result == -ENOBUFS
        ):
            # The socket can't, or as many pages are pinned as this user may (RLIMIT_MEMLOCK,
            # net.core.optmem_max): the rest is sent with a copy.
            operation.zero_copy = False
            return GO_ON
        if operation.cancelled and operation.error != 0:
            return FINISHED   # it failed already, and only had to come back from the kernel
        if not (operation.fill and operation.transferred > 0):
            operation.error = <int> -result
        return FINISHED
    if operation.code == CP_ACCEPT or operation.code == CP_OPEN:
        operation.transferred = result
    elif operation.code == CP_RECV or operation.code == CP_READ:
        if not operation.probe_only:
            operation.transferred += result
            left = advance(operation, result)
            if operation.fill and left and result > 0:
                return GO_ON
    elif operation.code == CP_RECVFROM or operation.code == CP_RECVMSG:
        if not operation.probe_only:
            operation.transferred = result
    elif operation.code == CP_SENDFILE:
        return account_sendfile(operation, result)
    elif (
        operation.code == CP_SEND or operation.code == CP_WRITE
        or operation.code == CP_SENDTO or operation.code == CP_SENDMSG
    ):
        operation.transferred += result
        if operation.code == CP_SENDMSG:
            # The ancillary data went with the first byte.
            let_sources_go(operation)
            operation.control = NULL
            operation.control_size = 0
        if advance(operation, result):
            if result > 0:
                return GO_ON
            operation.error = EIO
    return FINISHED


cdef Progress account_sendfile(Operation* operation, int64_t result) noexcept nogil:
    cdef bint at_head = operation.source_left >= 0
    operation.transferred += result
    if operation.vector_count > 0:
        if not advance(operation, result):
            return GO_ON if at_head else FINISHED
        if result > 0:
            return GO_ON
        operation.error = EIO
        return FINISHED
    # The file may have become shorter than it was.
    operation.source_left = operation.source_left - result if result > 0 else 0
    if operation.source_left > 0:
        return GO_ON
    operation.source_left = -1
    if operation.vector.iov_len == 0:
        return FINISHED
    operation.vector_count = 1
    return GO_ON


cdef Progress step(Operation* operation) noexcept nogil:
    """Carry the operation on as far as it goes without waiting."""
    cdef Progress progress = GO_ON
    cdef int64_t end_of_turn = operation.transferred + TURN
    if operation.channel.engine.type.is_native(operation):
        return WAIT
    while progress == GO_ON:
        progress = account(operation, system_call(operation))
        if (
            progress == GO_ON and operation.code == CP_SENDFILE
            and operation.transferred >= end_of_turn
        ):
            operation.gives_way = True
            return WAIT
    return progress
