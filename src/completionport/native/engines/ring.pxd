"""The two rings of an io_uring, mapped: io_uring(7)."""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from ..primitives.atomics cimport cp_load_acquire, cp_mutex, cp_passed_on, cp_store_release

cdef extern from "uring_abi.h" nogil:
    cdef struct cp_sqe:
        unsigned char opcode
        unsigned char flags
        uint16_t ioprio
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data
        uint16_t buf_group
    cdef struct cp_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags
    int cp_uring_enter(int fd, unsigned submit, unsigned wanted, unsigned flags, int64_t timeout_ns)

cdef extern from "ring_faults.h" nogil:
    void cp_fault_request(cp_sqe* sqe)
    void cp_fault_result(cp_cqe* cqe)

cdef struct Ring:
    int descriptor
    uint32_t features           # IORING_FEAT_...
    void* rings
    size_t rings_size
    size_t sqes_size
    # Submission queue; the kernel moves *sq_head, we move *sq_tail: `sq_lock`.
    cp_mutex sq_lock
    uint32_t* sq_head
    uint32_t* sq_tail
    uint32_t* sq_flags
    uint32_t sq_mask
    uint32_t sq_entries
    uint32_t tail
    cp_sqe* sqes
    # Completion queue; the kernel moves *cq_tail, we move *cq_head: `cq_lock`.
    cp_mutex cq_lock
    uint32_t* cq_head
    uint32_t* cq_tail
    uint32_t cq_mask
    cp_cqe* cqes

cdef int ring_open(Ring* ring, uint32_t submissions, uint32_t completions) noexcept nogil
cdef void ring_close(Ring* ring) noexcept nogil
# The opcodes below 64 that the kernel knows, a bit each.
cdef uint64_t known_opcodes(Ring* ring) noexcept nogil


cdef inline cp_sqe* next_entry(Ring* ring) noexcept nogil:
    """A free submission entry, zeroed. Submission lock."""
    cdef cp_sqe* sqe
    while ring.tail - cp_load_acquire(ring.sq_head) >= ring.sq_entries:
        cp_uring_enter(ring.descriptor, ring.sq_entries, 0, 0, -1)
    sqe = &ring.sqes[ring.tail & ring.sq_mask]
    memset(sqe, 0, sizeof(cp_sqe))
    return sqe


cdef inline void commit_entry(Ring* ring) noexcept nogil:
    cp_passed_on(<void*> <uintptr_t> ring.sqes[ring.tail & ring.sq_mask].user_data)
    cp_fault_request(&ring.sqes[ring.tail & ring.sq_mask])
    ring.tail += 1
    cp_store_release(ring.sq_tail, ring.tail)


cdef inline uint32_t unsubmitted(Ring* ring) noexcept nogil:
    # Without the lock it may be out of date: the kernel takes no more than there are.
    return cp_load_acquire(ring.sq_tail) - cp_load_acquire(ring.sq_head)
