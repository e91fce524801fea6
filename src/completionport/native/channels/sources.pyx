# cython: language_level=3, freethreading_compatible=True
"""The file of a `sendfile`: what can be sent of it without waiting for a disk, and reading the rest.

sendfile(2) has no way of saying that it would have to read from a disk: it reads. So the page cache is
asked first, and what is not there is read by a thread that nobody waits for (as nginx has it, `sendfile`
with `aio threads`): on io_uring the kernel's, since a thread of the pool would own what it submits behind
that, and sleep where it can't be told of its completion; else the pool's. How the system behaves, as far as
the code below leans on it:

- A read of one byte with RWF_NOWAIT (preadv2(2)) says EAGAIN where the page is not in the cache. File
  systems that can't tell say EOPNOTSUPP: those without a disk (tmpfs), those on top of others, and
  most file servers' (which may keep nothing in the cache at all).
- The kernel reads at least as much as `PIECE` ahead of who reads on and on (VM_READAHEAD_PAGES). So where
  the first byte and the last of a piece are there, the piece is.
- What is in the cache may be taken out again before it is sent. Then sendfile(2) reads it after all.
- sendfile(2) and splice(2) wait where the socket is in blocking mode, whatever they are told, and the mode is the program's
  and others' too. A send(2) from a mapping of the file does not wait, and costs no more where it was measured.
"""

from libc.stdlib cimport free, malloc

from .engine cimport DISTANT, TOLD, UNTOLD
from .file_systems cimport is_distant

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN
        ECANCELED
        EINTR
        ENOMEM

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    ssize_t pread(int descriptor, void* data, size_t size, int64_t offset)

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    #define CP_ABSENT 0
    #define CP_PRESENT 1
    #define CP_NOT_TOLD 2
    static inline int cp_ask_page_cache(int descriptor, int64_t offset)
    {
        char byte;
        struct iovec room = { &byte, 1 };
        /* Two halves of the offset, of which the second one counts on 32-bit systems only. */
        if (syscall(SYS_preadv2, descriptor, &room, 1, (long)offset, (long)(offset >> 32),
                    RWF_NOWAIT) >= 0)
            return CP_PRESENT;
        if (errno == EAGAIN)
            return CP_ABSENT;
        return errno == EOPNOTSUPP ? CP_NOT_TOLD : CP_PRESENT;
    }
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #define CP_NOT_MAPPED INT64_MIN
    /* How much was sent, 0 behind the end of the file, CP_NOT_MAPPED, or minus an errno. */
    static inline int64_t cp_send_mapped(int to, int source, int64_t offset, size_t size, int flags)
    {
        size_t before = (size_t)(offset & (getpagesize() - 1));
        struct stat64 now;
        int64_t sent;
        char *map;
        if (fstat64(source, &now) != 0)
            return -errno;
        /* The rest of the last page would be zeros. */
        if (now.st_size <= offset)
            return 0;
        if (now.st_size - offset < (int64_t)size)
            size = (size_t)(now.st_size - offset);
        map = mmap64(NULL, before + size, PROT_READ, MAP_SHARED, source, offset - (int64_t)before);
        if (map == MAP_FAILED)
            /* EACCES: it is not open for reading, as a read says it. */
            return errno == ENOMEM ? -ENOMEM : errno == EACCES ? -EBADF : CP_NOT_MAPPED;
        sent = send(to, map + before, size, flags);
        if (sent < 0)
            sent = -errno;
        munmap(map, before + size);
        if (sent == -EFAULT)
            /* It has become shorter just now, or can't be read. */
            sent = fstat64(source, &now) == 0 && now.st_size <= offset ? 0 : -EIO;
        return sent;
    }
    """
    int64_t CP_NOT_MAPPED
    int64_t cp_send_mapped(int to, int source, int64_t offset, size_t size, int flags)
    int cp_ask_page_cache(int descriptor, int64_t offset)
    enum:
        CP_ABSENT
        CP_NOT_TOLD

cdef enum:
    # What the page cache is asked for, and is read, in one go, bytes.
    PIECE = 131072
    # So much is sent before the page cache is asked again, bytes: a quarter of a turn.
    LOOK_AHEAD = 1048576


cdef SourceKind source_kind(int descriptor, int64_t offset) noexcept nogil:
    if cp_ask_page_cache(descriptor, offset) != CP_NOT_TOLD:
        return TOLD
    return DISTANT if is_distant(descriptor) else UNTOLD


cdef int64_t sendable(Operation* operation) noexcept nogil:
    cdef int64_t most = min(operation.source_left, <int64_t> LOOK_AHEAD)
    if operation.source_kind == UNTOLD:
        return most
    if operation.source_ready <= operation.offset:
        operation.source_ready = operation.offset
        if operation.source_kind == TOLD:
            find_in_page_cache(operation, operation.offset + most)
    return min(operation.source_ready - operation.offset, most)


cdef void find_in_page_cache(Operation* operation, int64_t end) noexcept nogil:
    """Set `source_ready`, which is at the offset, as far up to the end as the page cache goes."""
    cdef int64_t following
    if cp_ask_page_cache(operation.source, operation.offset) == CP_ABSENT:
        return
    while operation.source_ready < end:
        following = min(operation.source_ready + PIECE, end)
        if cp_ask_page_cache(operation.source, following - 1) == CP_ABSENT:
            return
        operation.source_ready = following


cdef bint prepare_source(Operation* operation) noexcept nogil:
    operation.control_size = <size_t> min(operation.source_left, <int64_t> PIECE)
    operation.control = malloc(operation.control_size)
    return operation.control != NULL


cdef void read_source(Operation* operation) noexcept nogil:
    cdef ssize_t count = pread(
        operation.source, operation.control, operation.control_size, operation.offset
    )
    source_came(operation, count if count >= 0 else -errno)


cdef void source_came(Operation* operation, int64_t result) noexcept nogil:
    operation.wants_source = False
    if result > 0:
        operation.source_ready = operation.offset + result
        if operation.source_kind == DISTANT:
            operation.control_size = <size_t> result
            return
        # Else it is in the page cache now.
    elif result == 0:
        # The file has become shorter than it was.
        operation.source_left = 0
    elif result != -EINTR and result != -ECANCELED and result != -EAGAIN:
        operation.error = <int> -result
    free(operation.control)
    operation.control = NULL


cdef void give_source_up(Operation* operation) noexcept nogil:
    operation.wants_source = False
    operation.source_kind = UNTOLD
    free(operation.control)
    operation.control = NULL


cdef char* read_bytes(Operation* operation, size_t* size) noexcept nogil:
    size[0] = <size_t> (operation.source_ready - operation.offset)
    return <char*> operation.control + operation.control_size - size[0]


cdef void sent_of_read(Operation* operation, int64_t size) noexcept nogil:
    operation.offset += size
    if operation.offset == operation.source_ready:
        free(operation.control)
        operation.control = NULL


cdef int64_t send_mapped(Operation* operation, size_t size, int flags) noexcept nogil:
    cdef int64_t sent = cp_send_mapped(
        operation.channel.descriptor, operation.source, operation.offset, size, flags
    )
    if sent != CP_NOT_MAPPED:
        if sent > 0:
            operation.offset += sent
        return sent
    # The file system has no such thing, and nothing that would have to be waited for: all of it is read first.
    operation.source_kind = DISTANT
    operation.source_ready = operation.offset
    if not prepare_source(operation):
        return -ENOMEM
    read_source(operation)
    return -operation.error if operation.error != 0 else -EINTR


cdef void close_source(Operation* operation) noexcept nogil:
    free(operation.control)
    operation.control = NULL
    if operation.source >= 0:
        close(operation.source)
        operation.source = -1
