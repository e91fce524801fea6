# cython: language_level=3, freethreading_compatible=True
"""What statx(2) tells, as Python has it."""

import os

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef STATX_DIOALIGN
    #define STATX_DIOALIGN 0x2000U
    #endif
    /* Bytes 0x98 and 0x9c of struct statx, which an older C library does not name (Linux 6.1). */
    static int cp_direct_alignment(int descriptor)
    {
        union { struct statx status; uint32_t words[64]; } all = {0};
        uint32_t alignment = 0;
        if (syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &all.status) == 0
            && all.status.stx_mask & STATX_DIOALIGN) {
            alignment = all.words[0x9c / 4];
            if (all.words[0x98 / 4] > alignment)
                alignment = all.words[0x98 / 4];
        }
        return alignment ? (int)alignment : 4096;
    }
    """
    cdef struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec
    cdef struct statx:
        uint32_t stx_blksize
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint32_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        statx_timestamp stx_atime
        statx_timestamp stx_mtime
        statx_timestamp stx_ctime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor
    int cp_direct_alignment(int descriptor)


cdef int alignment_of(int descriptor) noexcept:
    return cp_direct_alignment(descriptor)


cdef object status_of(const char* memory):
    """An `os.stat_result`: ten integers, then the times as floats and in nanoseconds, then the rest."""
    cdef const statx* s = <const statx*> memory
    times = [
        (s.stx_atime.tv_sec, s.stx_atime.tv_nsec),
        (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec),
        (s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec),
    ]
    return os.stat_result((
        s.stx_mode, s.stx_ino, os.makedev(s.stx_dev_major, s.stx_dev_minor), s.stx_nlink,
        s.stx_uid, s.stx_gid, s.stx_size,
        *(seconds for seconds, _ in times),
        *(seconds + 1e-9 * nanoseconds for seconds, nanoseconds in times),
        *(seconds * 1000000000 + nanoseconds for seconds, nanoseconds in times),
        s.stx_blksize, s.stx_blocks, os.makedev(s.stx_rdev_major, s.stx_rdev_minor),
    ))
