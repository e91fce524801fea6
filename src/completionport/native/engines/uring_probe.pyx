# cython: language_level=3, freethreading_compatible=True
"""What this kernel's io_uring has, and why it can't be used where it can't."""

import os

from libc.stdint cimport uint64_t
from libc.string cimport memset

from ..primitives.atomics cimport cp_mutex_lock, cp_mutex_unlock
from .buffers cimport BUFFER_GROUP, BufferPool, pool_close, pool_open
from .ring cimport (
    Ring,
    commit_entry,
    cp_cqe,
    cp_sqe,
    cp_uring_enter,
    known_opcodes,
    next_entry,
    ring_close,
    ring_open,
)

cdef extern from "uring_abi.h" nogil:
    enum:
        CP_OP_READV, CP_OP_WRITEV, CP_OP_POLL_ADD, CP_OP_SENDMSG, CP_OP_RECVMSG
        CP_OP_ACCEPT, CP_OP_ASYNC_CANCEL, CP_OP_READ, CP_OP_WRITE, CP_OP_SEND, CP_OP_RECV
        CP_OP_FSYNC, CP_OP_FALLOCATE, CP_OP_STATX, CP_OP_CLOSE
        CP_FEAT_NODROP, CP_FEAT_RW_CUR_POS, CP_FEAT_FAST_POLL, CP_FEAT_EXT_ARG, CP_FEAT_NO_IOWAIT
        CP_FEAT_SINGLE_MMAP
        CP_ENTER_GETEVENTS, CP_CQE_F_MORE, CP_SQE_BUFFER_SELECT, CP_RECV_MULTISHOT

cdef extern from "errno.h" nogil:
    enum:
        EINVAL, ENOMEM, ENOSYS, EPERM

cdef dict NEEDED_OPERATIONS = {
    "poll": CP_OP_POLL_ADD, "accept": CP_OP_ACCEPT, "cancel": CP_OP_ASYNC_CANCEL,
    "read": CP_OP_READ, "write": CP_OP_WRITE, "readv": CP_OP_READV, "writev": CP_OP_WRITEV,
    "send": CP_OP_SEND, "recv": CP_OP_RECV, "sendmsg": CP_OP_SENDMSG, "recvmsg": CP_OP_RECVMSG,
}

# Where one is missing the port's pool of threads does it.
cdef dict FILE_OPERATIONS = {
    "fsync": CP_OP_FSYNC, "allocate": CP_OP_FALLOCATE, "stat": CP_OP_STATX,
    "close": CP_OP_CLOSE,
}

cdef str UPGRADE = "Use a kernel of 6.0 or later, or engine='epoll'"


def probe(bint thorough):
    """``(reason, remedy, features)``: an empty reason means that the engine runs here.

    Everything is asked of the kernel itself: the features of a ring, its list of operations,
    a provided-buffer ring, and a multishot receive on a pair of sockets. That takes some hundred
    microseconds, so it is done whether ``thorough`` or not.
    """
    cdef Ring ring
    cdef BufferPool pool
    cdef uint64_t known
    cdef int error = ring_open(&ring, 8, 16)
    memset(&pool, 0, sizeof(pool))
    if error != 0:
        return (*refusal(error), {})
    try:
        known = known_opcodes(&ring)
        features = {
            "timeouts (EXT_ARG)": bool(ring.features & CP_FEAT_EXT_ARG),
            "no lost completions (NODROP)": bool(ring.features & CP_FEAT_NODROP),
            "internal polling (FAST_POLL)": bool(ring.features & CP_FEAT_FAST_POLL),
            "file position (RW_CUR_POS)": bool(ring.features & CP_FEAT_RW_CUR_POS),
            "one mapping (SINGLE_MMAP)": bool(ring.features & CP_FEAT_SINGLE_MMAP),
        }
        for name, code in NEEDED_OPERATIONS.items():
            features[name] = bool(known >> <int> code & 1)
        features["provided buffers"] = pool_open(&pool, ring.descriptor, 64) == 0
        features["multishot receive"] = features["provided buffers"] and multishot_works(&ring)
        missing = [name for name, there in features.items() if not there]
        for name, code in FILE_OPERATIONS.items():
            features[name] = bool(known >> <int> code & 1)
        features["buffers filled bit by bit (PBUF_RING_INC)"] = bool(pool.incremental)
        features["idle is not iowait (NO_IOWAIT)"] = bool(ring.features & CP_FEAT_NO_IOWAIT)
    finally:
        ring_close(&ring)
        pool_close(&pool)
    if missing:
        return f"the kernel's io_uring is too old: it lacks {', '.join(missing)}", UPGRADE, features
    return "", "", features


cdef bint multishot_works(Ring* ring) except -1:
    import socket

    cdef cp_sqe* sqe
    cdef cp_cqe* cqe
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        cp_mutex_lock(&ring.sq_lock)
        sqe = next_entry(ring)
        sqe.opcode = CP_OP_RECV
        sqe.fd = near.fileno()
        sqe.ioprio = CP_RECV_MULTISHOT
        sqe.flags = CP_SQE_BUFFER_SELECT
        sqe.buf_group = BUFFER_GROUP
        commit_entry(ring)
        cp_mutex_unlock(&ring.sq_lock)
        if cp_uring_enter(ring.descriptor, 1, 1, CP_ENTER_GETEVENTS, 1000000000) < 0:
            return False
        cqe = &ring.cqes[ring.cq_head[0] & ring.cq_mask]
        return cqe.res == 1 and cqe.flags & CP_CQE_F_MORE != 0


cdef tuple refusal(int error):
    if error == ENOSYS:
        return "the kernel has no io_uring (ENOSYS)", UPGRADE
    if error == EINVAL:
        return "the kernel's io_uring does not know cooperative task running (EINVAL)", UPGRADE
    if error == ENOMEM:
        return (
            "the locked-memory limit is too low for a ring (ENOMEM)",
            "Raise it (ulimit -l), or use engine='epoll'",
        )
    if error == EPERM:
        try:
            with open("/proc/sys/kernel/io_uring_disabled") as file:
                setting = file.read().strip()
        except OSError:
            setting = "0"
        if setting != "0":
            return (
                f"the sysctl kernel.io_uring_disabled is {setting} (EPERM)",
                "Set it to 0 (sysctl kernel.io_uring_disabled=0), or use engine='epoll'",
            )
        return (
            "a seccomp filter forbids io_uring_setup (EPERM), as container runtimes do by default",
            "Allow io_uring in the container's seccomp profile, or use engine='epoll'",
        )
    return (
        f"io_uring_setup failed: {os.strerror(error)}",
        "Use engine='epoll'",
    )
