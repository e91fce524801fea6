# cython: language_level=3, freethreading_compatible=True
"""Which file system a file lies on, as far as it decides who may wait for it.

fstatfs(2) asks a file's server, and waits for it; statmount(2) (Linux 6.8) knows the type itself.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>
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
    #define CP_FUSE 0x65735546
    static inline int cp_is_distant(int descriptor)
    {
        uint64_t type;
        if (!cp_file_system(descriptor, &type))
            return 1;
        switch ((uint32_t)type) {
        case CP_FUSE:
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
    bint cp_file_system(int descriptor, uint64_t* type)
    bint cp_is_distant(int descriptor)
    enum:
        CP_FUSE



cdef bint is_distant(int descriptor) noexcept nogil:
    return cp_is_distant(descriptor)


cdef bint is_on_fuse(int descriptor) noexcept nogil:
    cdef uint64_t type
    # Where not even the type is told, the worst is taken for granted.
    return not cp_file_system(descriptor, &type) or <uint32_t> type == CP_FUSE
