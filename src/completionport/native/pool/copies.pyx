# cython: language_level=3, freethreading_compatible=True
"""Copying a file by its name: opened, copied, given its mode and times, closed, in one go.

Each of these steps as an operation of its own would cost more in Python than the kernel takes for all
of a small file. The data goes by copy_file_range(2), which shares the blocks of a file where the file
system can, and where the kernel does not copy between these two files by read(2) and write(2).

A file that has fewer blocks than bytes is copied from data to data (lseek(2), SEEK_DATA), and what lies between
takes no room in the copy either, as with cp(1).

What counts is the size that the file has when it is opened: what is written behind that is not copied. One that
says it has none (those of /proc) is read to its end, and so is one of /sys that is longer than wanted: it tells
a page whatever it has.
"""

from libc.stdint cimport int64_t

from ..channels.engine cimport Operation
from ..primitives.atomics cimport cp_peek

cdef extern from "errno.h" nogil:
    int errno
    enum:
        ECANCELED, EFBIG, EINTR, EINVAL, EISDIR, ENOSYS, EOPNOTSUPP, EPERM, EXDEV

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    int ftruncate(int descriptor, int64_t size)
    ssize_t pread(int descriptor, void* data, size_t size, int64_t offset)
    ssize_t pwrite(int descriptor, const void* data, size_t size, int64_t offset)
    ssize_t read(int descriptor, void* data, size_t size)
    ssize_t write(int descriptor, const void* data, size_t size)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/vfs.h>
    #include <unistd.h>
    #include <errno.h>

    /* Neither a terminal nor a named pipe that has come into the file's place keeps the thread. */
    static inline int cp_open_source(const char *path)
    {
        return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    }
    static inline int cp_create_target(const char *path, mode_t mode)
    {
        return open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    }
    static inline ssize_t cp_copy_range(int source, int target, size_t size)
    {
        return copy_file_range(source, NULL, target, NULL, size, 0);
    }
    static inline ssize_t cp_copy_range_at(int source, int target, int64_t offset, size_t size)
    {
        off_t from = offset, to = offset;
        return copy_file_range(source, &from, target, &to, size, 0);
    }
    static inline int cp_has_holes(const struct stat *status)
    {
        return (int64_t)status->st_blocks * 512 < (int64_t)status->st_size;
    }
    /* Where data begins, at or behind the offset, and how far it goes; the end of the file where there is none.
     * A file system that can't tell says that all of it is data. */
    static inline int64_t cp_next_data(int descriptor, int64_t offset, int64_t size, int64_t *end)
    {
        int64_t data = lseek(descriptor, offset, SEEK_DATA);
        *end = size;
        if (data < 0 && errno == ENXIO) {
            data = lseek(descriptor, 0, SEEK_END);   /* it may have become shorter */
            return data < size ? data : size;
        }
        if (data < 0)
            return offset;
        if (data >= size)
            return size;
        int64_t hole = lseek(descriptor, data, SEEK_HOLE);
        if (hole > data && hole < size)
            *end = hole;
        return data;
    }
    /* Of /sys: a size that says nothing. */
    static inline int cp_tells_a_page(int descriptor)
    {
        struct statfs about;
        return fstatfs(descriptor, &about) == 0 && about.f_type == 0x62656572;
    }
    static inline int cp_keep_mode(int descriptor, const struct stat *made, mode_t mode)
    {
        return (made->st_mode & 0777) == mode ? 0 : fchmod(descriptor, mode);
    }
    /* Whoever has put another file into its place meanwhile keeps it. */
    static inline void cp_take_away(const char *path, const struct stat *made)
    {
        struct stat there;
        if (lstat(path, &there) == 0 && there.st_dev == made->st_dev && there.st_ino == made->st_ino)
            unlink(path);
    }
    static inline int cp_keep_times(int descriptor, const struct stat *status)
    {
        const struct timespec times[2] = {status->st_atim, status->st_mtim};
        return futimens(descriptor, times);
    }
    """
    ctypedef unsigned mode_t
    cdef struct stat_t "stat":
        mode_t st_mode
        int64_t st_size
    int stat "stat" (const char* path, stat_t* status)
    int fstat(int descriptor, stat_t* status)
    bint S_ISREG(mode_t mode)
    bint S_ISDIR(mode_t mode)
    int cp_open_source(const char* path)
    int cp_create_target(const char* path, mode_t mode)
    ssize_t cp_copy_range(int source, int target, size_t size)
    ssize_t cp_copy_range_at(int source, int target, int64_t offset, size_t size)
    bint cp_has_holes(const stat_t* status)
    int64_t cp_next_data(int descriptor, int64_t offset, int64_t size, int64_t* end)
    bint cp_tells_a_page(int descriptor)
    int cp_keep_mode(int descriptor, const stat_t* made, mode_t mode)
    int cp_keep_times(int descriptor, const stat_t* status)
    void cp_take_away(const char* path, const stat_t* made)

cdef enum:
    PIECE = 8 * 1024 * 1024   # bytes between two looks whether to go on: some milliseconds
    BLOCK = 64 * 1024         # bytes read and written at a time, on the thread's stack


cdef int refusal(const stat_t* status) noexcept nogil:
    """Why what has this status is not copied, or 0."""
    if S_ISREG(status.st_mode):
        return 0
    return EISDIR if S_ISDIR(status.st_mode) else EINVAL


cdef int write_all(int target, const char* data, ssize_t size, int64_t offset) noexcept nogil:
    """At an offset, or with -1 where the target is at."""
    cdef ssize_t count
    while size > 0:
        count = write(target, data, size) if offset < 0 else pwrite(target, data, size, offset)
        if count >= 0:
            data += count
            size -= count
            if offset >= 0:
                offset += count
        elif errno != EINTR:
            return errno
    return 0


cdef int copy_blocks(Operation* operation, int source, int target, int64_t size) noexcept nogil:
    """Copy the rest of so many bytes, or -1 for all there is, through memory: 0 or an errno."""
    cdef char[BLOCK] block
    cdef ssize_t count
    cdef size_t wanted = BLOCK
    cdef int error
    while size < 0 or operation.transferred < size:
        if cp_peek(&operation.cancelled):
            return ECANCELED
        if size >= 0:
            wanted = <size_t> min(<int64_t> BLOCK, size - operation.transferred)
        count = read(source, block, wanted)
        if count == 0:
            return 0
        if count < 0:
            if errno != EINTR:
                return errno
            continue
        if count > operation.extent - operation.transferred:
            return EFBIG
        error = write_all(target, block, count, -1)
        if error != 0:
            return error
        operation.transferred += count
    return 0


cdef bint can_not_copy(int error) noexcept nogil:
    """Whether the kernel does not copy between these two files, which can be read and written all the same."""
    return (
        error == EXDEV or error == EINVAL or error == EOPNOTSUPP or error == ENOSYS or error == EPERM
    )


cdef int copy_data(Operation* operation, int source, int target, int64_t size) noexcept nogil:
    """Copy a file that had this size when it was opened: 0 or an errno."""
    cdef ssize_t count
    while operation.transferred < size:
        if cp_peek(&operation.cancelled):
            return ECANCELED
        count = cp_copy_range(
            source, target, <size_t> min(<int64_t> PIECE, size - operation.transferred)
        )
        if count > 0:
            operation.transferred += count
        elif count < 0 and errno == EINTR:
            continue
        elif count < 0 and not can_not_copy(errno):
            return errno
        else:
            return copy_blocks(operation, source, target, size)
    # A file of /proc has no size and something in it.
    return copy_blocks(operation, source, target, -1) if size == 0 else 0


cdef ssize_t copy_at(int source, int target, int64_t offset, size_t size, bint* by_range) noexcept nogil:
    """Copy a part of a file: how much of it, 0 at the end of the file, or minus an errno."""
    cdef char[BLOCK] block
    cdef ssize_t count
    cdef int error
    if by_range[0]:
        count = cp_copy_range_at(source, target, offset, size)
        if count > 0:
            return count
        if count < 0 and not can_not_copy(errno):
            return -errno
        by_range[0] = False
    count = pread(source, block, min(size, <size_t> BLOCK), offset)
    if count < 0:
        return -errno
    error = write_all(target, block, count, offset)
    return count if error == 0 else -error


cdef int copy_with_holes(Operation* operation, int source, int target, int64_t size) noexcept nogil:
    """Copy what there is of data: 0 or an errno."""
    cdef int64_t end = 0
    cdef int64_t data
    cdef ssize_t count
    cdef bint by_range = True
    while operation.transferred < size:
        if cp_peek(&operation.cancelled):
            return ECANCELED
        if operation.transferred >= end:
            data = cp_next_data(source, operation.transferred, size, &end)
            if data > operation.transferred:
                operation.transferred = data
                # The file system may be told of the hole, and has to know it where it is the end.
                if ftruncate(target, data) != 0:
                    return errno
                continue
        count = copy_at(
            source, target, operation.transferred,
            <size_t> min(<int64_t> PIECE, end - operation.transferred), &by_range,
        )
        if count == 0:
            return 0   # it has become shorter
        if count > 0:
            operation.transferred += count
        elif count != -EINTR:
            return <int> -count
    return 0


cdef int fill(
    Operation* operation, int source, int target, const stat_t* status, const stat_t* made
) noexcept nogil:
    """Make of the new file that was made a copy; 0 or an errno."""
    cdef int error
    if operation.flags:   # it is read to its end, whatever size it tells
        error = copy_blocks(operation, source, target, -1)
    elif cp_has_holes(status):
        error = copy_with_holes(operation, source, target, status.st_size)
    else:
        error = copy_data(operation, source, target, status.st_size)
    if error != 0:
        return error
    if (
        cp_keep_mode(target, made, status.st_mode & 0o777) != 0
        or cp_keep_times(target, status) != 0
    ):
        return errno
    return ECANCELED if cp_peek(&operation.cancelled) else 0


cdef int copy_opened(Operation* operation, int source, const stat_t* status) noexcept nogil:
    cdef const char* name = <const char*> operation.control
    # Nobody who may not read the source may read this, at no time.
    cdef int target = cp_create_target(name, status.st_mode & 0o777)
    cdef stat_t made
    cdef bint is_known
    cdef int error
    if target < 0:
        return errno
    is_known = fstat(target, &made) == 0
    error = fill(operation, source, target, status, &made) if is_known else errno
    # Some file systems say only here that there was no room.
    if close(target) != 0 and error == 0 and errno != EINTR:
        error = errno
    if error != 0 and is_known:
        cp_take_away(name, &made)
    return error


cdef int64_t copy_file(Operation* operation) noexcept nogil:
    cdef const char* name = <const char*> operation.address
    cdef stat_t status
    cdef int source
    cdef int error
    operation.transferred = 0
    # To open a named pipe would let go of a writer that waits for a reader.
    if stat(name, &status) != 0:
        return -errno
    error = refusal(&status)
    if error != 0:
        return -error
    source = cp_open_source(name)
    if source < 0:
        return -errno
    if fstat(source, &status) != 0:
        error = errno
    else:
        error = refusal(&status)
        operation.flags = cp_tells_a_page(source) if status.st_size > operation.extent else 0
        if error == 0 and status.st_size > operation.extent and not operation.flags:
            error = EFBIG
    if error == 0:
        error = copy_opened(operation, source, &status)
    close(source)
    if error != 0:
        operation.transferred = 0
    return -error
