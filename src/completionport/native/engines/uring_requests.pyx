# cython: language_level=3, freethreading_compatible=True
"""Which operations io_uring carries out by itself, and the submission entry for each."""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from ..channels.engine cimport (
    CP_ACCEPT,
    CP_ALLOCATE,
    CP_CLOSE,
    CP_FSYNC,
    CP_READ,
    CP_RECV,
    CP_RECVFROM,
    CP_RECVMSG,
    CP_SENDFILE,
    CP_SENDMSG,
    CP_SENDTO,
    CP_STAT,
    CP_WRITE,
    ERRANDS,
    REGULAR,
    SOCKET,
    Operation,
)
from ..channels.steps cimport IOV_MAX, prepare_message, takes_bytes
from .ring cimport cp_sqe

cdef extern from "uring_abi.h" nogil:
    enum:
        CP_OP_SEND_ZC, CP_OP_SENDMSG_ZC, CP_SEND_ZC_REPORT_USAGE
        CP_OP_ACCEPT, CP_OP_READ, CP_OP_READV, CP_OP_RECV, CP_OP_RECVMSG, CP_OP_SEND, CP_OP_SENDMSG
        CP_OP_WRITE, CP_OP_WRITEV, CP_RECVSEND_POLL_FIRST
        CP_OP_FSYNC, CP_OP_FALLOCATE, CP_OP_CLOSE, CP_OP_STATX, CP_FSYNC_DATASYNC
        CP_SQE_ASYNC

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, MSG_WAITALL, SOCK_CLOEXEC

cdef extern from "fcntl.h" nogil:
    enum:
        AT_FDCWD

cdef extern from "sys/stat.h" nogil:
    enum:
        STATX_BASIC_STATS

cdef enum:
    LARGEST_TRANSFER = 0x7ffff000
    # Bytes that a zero-copy send asks for at a time. A request is charged as a whole against
    # RLIMIT_MEMLOCK, of which a user often has no more than 8 MiB.
    LARGEST_ZERO_COPY = 2097152


cdef bint is_native(Operation* operation) noexcept nogil:
    if operation.code == CP_READ or operation.code == CP_WRITE:
        # The thread that submits a request for a terminal may have to wait in it, with the ring's lock:
        # the kernel asks whether the terminal is ready and makes a call that waits. It writes until
        # all is written; and what there was to read, or O_NONBLOCK, may be gone by then.
        # And for what is neither file nor pipe it waits until that is ready, also where it can't be read, or
        # written, at all and never will be: an epoll instance, a process, a ring.
        # A write to a pipe without readers would send that thread SIGPIPE.
        return not operation.probe_only and (
            operation.channel.kind == REGULAR or (
                operation.channel.is_pipe and operation.code == CP_READ
                and not operation.channel.own_open
            )
        )
    return operation.code == CP_ACCEPT or operation.zero_copy


cdef void describe(cp_sqe* sqe, Operation* operation) noexcept nogil:
    """Fill an entry for the data that is left to move."""
    cdef bint is_message = (
        operation.code == CP_RECVFROM or operation.code == CP_RECVMSG
        or operation.code == CP_SENDTO or operation.code == CP_SENDMSG
    )
    cdef int count = buffers_at_a_time(operation)
    cdef bint single = count == 1 and not is_message
    if operation.wants_source:
        # The thread that submits would start to read ahead, which may wait too.
        sqe.flags = CP_SQE_ASYNC
        sqe.opcode = CP_OP_READ
        sqe.fd = operation.source
        sqe.off = operation.offset
        sqe.addr = <uintptr_t> operation.control
        sqe.len = <uint32_t> operation.control_size
        return
    if describe_file(sqe, operation):
        return
    sqe.len = 1
    sqe.fd = operation.channel.descriptor
    if operation.code == CP_ACCEPT:
        sqe.opcode = CP_OP_ACCEPT
        sqe.op_flags = SOCK_CLOEXEC
        sqe.len = 0
        return
    if single:
        sqe.addr = <uintptr_t> operation.vector.iov_base
        sqe.len = <uint32_t> min(operation.vector.iov_len, <size_t> LARGEST_TRANSFER)
    elif operation.channel.kind == SOCKET:
        prepare_message(operation)
        if operation.zero_copy:
            operation.message.msg_iovlen = count
        sqe.addr = <uintptr_t> &operation.message
    else:
        sqe.addr = <uintptr_t> operation.vector
        sqe.len = min(operation.vector_count, IOV_MAX)
    if operation.channel.kind != SOCKET:
        sqe.off = (
            <uint64_t> -1 if operation.offset < 0
            else <uint64_t> (operation.offset + operation.transferred)
        )
        if operation.code == CP_READ:
            sqe.opcode = CP_OP_READ if single else CP_OP_READV
        else:
            sqe.opcode = CP_OP_WRITE if single else CP_OP_WRITEV
        if operation.channel.on_fuse:
            # Since such a file can be polled, the kernel takes it for one that never waits, and would
            # have the thread that submits wait for its server.
            sqe.flags = CP_SQE_ASYNC
    elif operation.code == CP_RECV or operation.code == CP_READ or (
        operation.code == CP_RECVFROM or operation.code == CP_RECVMSG
    ):
        sqe.opcode = CP_OP_RECV if single else CP_OP_RECVMSG
        sqe.op_flags = operation.flags | MSG_CMSG_CLOEXEC if is_message else operation.flags
        # A handle's system call has just said that there is nothing; a stream's send was not tried.
        sqe.ioprio = CP_RECVSEND_POLL_FIRST
    elif operation.zero_copy:
        # With MSG_WAITALL the kernel goes on by itself until all is taken, and one notification comes.
        sqe.opcode = CP_OP_SEND_ZC if single else CP_OP_SENDMSG_ZC
        sqe.op_flags = operation.flags | MSG_NOSIGNAL | MSG_WAITALL
        sqe.ioprio = CP_SEND_ZC_REPORT_USAGE
        if single:
            sqe.len = min(sqe.len, <uint32_t> LARGEST_ZERO_COPY)
    else:
        sqe.opcode = CP_OP_SEND if single else CP_OP_SENDMSG
        sqe.op_flags = operation.flags | MSG_NOSIGNAL | MSG_WAITALL
        if operation.channel.owner == NULL:
            sqe.ioprio = CP_RECVSEND_POLL_FIRST


cdef int buffers_at_a_time(Operation* operation) noexcept nogil:
    """How many of the operation's buffers the request is for."""
    cdef size_t total = 0
    cdef int count = 0
    if not operation.zero_copy or operation.channel.keeps_messages:
        return operation.vector_count
    while count < operation.vector_count and count < IOV_MAX:
        total += operation.vector[count].iov_len
        count += 1
        if total > LARGEST_ZERO_COPY:
            # The one that goes beyond has a request of its own, unless all before it are empty.
            return count - 1 if total > operation.vector[count - 1].iov_len else count
    return count


cdef bint describe_file(cp_sqe* sqe, Operation* operation) noexcept nogil:
    """What is asked of a file or a name, but for reads and writes; False for all else."""
    sqe.fd = operation.channel.descriptor
    if operation.code == CP_FSYNC:
        sqe.opcode = CP_OP_FSYNC
        sqe.op_flags = CP_FSYNC_DATASYNC if operation.flags else 0
    elif operation.code == CP_ALLOCATE:
        sqe.opcode = CP_OP_FALLOCATE
        sqe.off = operation.offset
        sqe.addr = operation.extent
    elif operation.code == CP_STAT:
        sqe.opcode = CP_OP_STATX
        if operation.channel.kind == ERRANDS:
            sqe.fd = AT_FDCWD
        sqe.addr = <uintptr_t> operation.address
        sqe.off = <uintptr_t> operation.control
        sqe.op_flags = operation.flags
        sqe.len = STATX_BASIC_STATS
    elif operation.code == CP_CLOSE:
        sqe.opcode = CP_OP_CLOSE
        # The last descriptor of a file that has no name any more gives its space back, and the kernel
        # would do that in the thread that submits.
        sqe.flags = CP_SQE_ASYNC
        sqe.fd = <int> operation.offset
    else:
        return False
    return True


cdef int opcode_of(Operation* operation) noexcept nogil:
    if operation.code == CP_READ or operation.code == CP_WRITE:
        return CP_OP_READ
    if operation.code == CP_FSYNC:
        return CP_OP_FSYNC
    if operation.code == CP_ALLOCATE:
        return CP_OP_FALLOCATE
    if operation.code == CP_STAT:
        return CP_OP_STATX
    if operation.code == CP_CLOSE:
        return CP_OP_CLOSE
    return -1


cdef bint moves_data(Operation* operation) noexcept nogil:
    """False: the kernel is only to tell when it can be tried again."""
    return is_native(operation) or (
        operation.channel.kind == SOCKET
        and operation.vector_count > 0
        and not operation.probe_only and operation.code != CP_SENDFILE
        # The kernel's own receive tries when an urgent byte has come, and throws it away.
        and not takes_bytes(operation)
    )
