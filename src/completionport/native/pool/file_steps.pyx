# cython: language_level=3, freethreading_compatible=True
"""One operation on files as system calls that may wait for a disk."""

from libc.stdint cimport int64_t

from ..channels.engine cimport (
    CP_ALLOCATE,
    CP_CLOSE,
    CP_COPY,
    CP_FSYNC,
    CP_READ,
    CP_SENDFILE,
    CP_STAT,
    CP_WRITE,
    ERRANDS,
    Operation,
    iovec,
)
from ..channels.sources cimport read_source
from ..channels.steps cimport GO_ON, IOV_MAX, WAIT, Progress, account
from .copies cimport copy_file

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN
        EINVAL

cdef extern from "sys/uio.h" nogil:
    ssize_t readv(int descriptor, const iovec* vector, int count)
    ssize_t writev(int descriptor, const iovec* vector, int count)
    ssize_t preadv(int descriptor, const iovec* vector, int count, int64_t offset)
    ssize_t pwritev(int descriptor, const iovec* vector, int count, int64_t offset)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    int fsync(int descriptor)
    int fdatasync(int descriptor)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    static inline int cp_statx(int descriptor, const char *path, int flags, void *status)
    {
        return statx(descriptor, path, flags, STATX_BASIC_STATS, (struct statx *)status);
    }
    """
    int cp_statx(int descriptor, const char* path, int flags, void* status)
    int fallocate(int descriptor, int mode, int64_t offset, int64_t size)
    enum:
        AT_FDCWD


cdef int64_t move_data(Operation* operation) noexcept nogil:
    cdef int descriptor = operation.channel.descriptor
    cdef int count = min(operation.vector_count, IOV_MAX)
    cdef int64_t at = operation.offset + operation.transferred
    if operation.code == CP_READ:
        if operation.offset < 0:
            return readv(descriptor, operation.vector, count)
        return preadv(descriptor, operation.vector, count, at)
    if operation.offset < 0:
        return writev(descriptor, operation.vector, count)
    return pwritev(descriptor, operation.vector, count, at)


cdef int64_t call(Operation* operation) noexcept nogil:
    """One system call: its result, or minus its errno."""
    cdef int descriptor = operation.channel.descriptor
    cdef int64_t result
    if operation.code == CP_READ or operation.code == CP_WRITE:
        result = move_data(operation)
    elif operation.code == CP_FSYNC:
        result = fdatasync(descriptor) if operation.flags else fsync(descriptor)
    elif operation.code == CP_ALLOCATE:
        result = fallocate(descriptor, 0, operation.offset, operation.extent)
    elif operation.code == CP_STAT:
        if operation.channel.kind == ERRANDS:
            descriptor = AT_FDCWD
        result = cp_statx(
            descriptor, <const char*> operation.address, operation.flags, operation.control
        )
    elif operation.code == CP_CLOSE:
        result = close(<int> operation.offset)
    elif operation.code == CP_COPY:
        return copy_file(operation)
    else:
        return -EINVAL
    return result if result >= 0 else -errno


cdef void carry_out(Operation* operation) noexcept nogil:
    cdef Progress progress = GO_ON
    if operation.code == CP_SENDFILE:
        read_source(operation)
        return
    while progress == GO_ON:
        progress = account(operation, call(operation))
    if progress == WAIT:
        # A file that says so and can't be waited for.
        operation.error = EAGAIN
