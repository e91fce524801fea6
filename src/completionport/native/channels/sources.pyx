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
- fstatfs(2) asks a file's server, and waits for it; statmount(2) (Linux 6.8) knows the file system's type itself.
"""

from libc.stdlib cimport free, malloc

from .engine cimport DISTANT, TOLD, UNTOLD

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN
        ECANCELED
        EINTR

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    ssize_t pread(int descriptor, void* data, size_t size, int64_t offset)

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <sys/vfs.h>
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
    /* What statx(2) and statmount(2) take and give, as far as it is needed: linux/stat.h, linux/mount.h. */
    #define CP_STATX_MNT_ID_UNIQUE 0x4000
    #define CP_STATMOUNT_SB_BASIC 1
    #define CP_SYS_STATMOUNT 457
    static inline int cp_file_system(int descriptor, uint64_t *type)
    {
        union { uint64_t words[32]; struct statx status; } file;
        struct { uint32_t size, spare; uint64_t mount, wanted; } request = { 24, 0, 0, CP_STATMOUNT_SB_BASIC };
        struct { uint32_t size, options; uint64_t given; uint32_t major, minor; uint64_t magic, rest[60]; } mount;
        struct statfs system;
        if (statx(descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, CP_STATX_MNT_ID_UNIQUE, &file.status) == 0
            && file.status.stx_mask & CP_STATX_MNT_ID_UNIQUE) {
            request.mount = file.words[18];
            if (syscall(CP_SYS_STATMOUNT, &request, &mount, sizeof mount, 0) == 0
                && mount.given & CP_STATMOUNT_SB_BASIC) {
                *type = mount.magic;
                return 1;
            }
        }
        if (fstatfs(descriptor, &system) != 0)
            return 0;
        *type = (uint32_t)system.f_type;
        return 1;
    }
    /* linux/magic.h, and where it has none the file system's own source. */
    static inline int cp_is_distant(int descriptor)
    {
        uint64_t type;
        if (!cp_file_system(descriptor, &type))
            return 1;
        switch ((uint32_t)type) {
        case 0x65735546: /* FUSE */
        case 0x00006969: /* NFS */
        case 0x0000517B: /* SMB */
        case 0xFF534D42: /* CIFS */
        case 0xFE534D42: /* SMB 2 and later */
        case 0x01021997: /* 9p */
        case 0x00C36400: /* Ceph */
        case 0x5346414F: /* AFS */
        case 0x6B414653: /* AFS, the kernel's own */
        case 0x73757245: /* Coda */
        case 0x786F4256: /* VirtualBox' shared folders */
            return 1;
        }
        return 0;
    }
    """
    int cp_ask_page_cache(int descriptor, int64_t offset)
    bint cp_is_distant(int descriptor)
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
    return DISTANT if cp_is_distant(descriptor) else UNTOLD


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


cdef void close_source(Operation* operation) noexcept nogil:
    free(operation.control)
    operation.control = NULL
    if operation.source >= 0:
        close(operation.source)
        operation.source = -1
