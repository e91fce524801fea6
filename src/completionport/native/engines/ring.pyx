# cython: language_level=3, freethreading_compatible=True
"""Making the rings of an io_uring and letting them go, by the kernel's own interface."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from "uring_abi.h" nogil:
    cdef struct cp_sq_offsets:
        uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array
    cdef struct cp_cq_offsets:
        uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags
    cdef struct cp_uring_params:
        uint32_t sq_entries, cq_entries, flags, features
        cp_sq_offsets sq_off
        cp_cq_offsets cq_off
    cdef struct cp_probe_op:
        uint16_t flags
    cdef struct cp_probe:
        cp_probe_op ops[256]
    int cp_uring_register(int fd, unsigned opcode, void* arg, unsigned count)
    int cp_uring_setup(uint32_t entries, cp_uring_params* params)
    enum:
        CP_REGISTER_PROBE, CP_PROBE_SUPPORTED
        CP_SETUP_CQSIZE, CP_SETUP_CLAMP, CP_SETUP_SUBMIT_ALL, CP_SETUP_COOP_TASKRUN
    uint64_t CP_OFF_SQ_RING, CP_OFF_SQES

cdef extern from "sys/mman.h" nogil:
    enum:
        PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void* MAP_FAILED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, int64_t offset)
    int munmap(void* address, size_t size)

cdef extern from "errno.h" nogil:
    int errno

cdef extern from "unistd.h" nogil:
    int close(int descriptor)


cdef int ring_open(Ring* ring, uint32_t submissions, uint32_t completions) noexcept nogil:
    """Fill ``ring`` for so many entries; 0 or an errno, then nothing is left of it."""
    cdef cp_uring_params params
    cdef int error
    memset(ring, 0, sizeof(Ring))
    memset(&params, 0, sizeof(params))
    params.flags = CP_SETUP_CQSIZE | CP_SETUP_CLAMP | CP_SETUP_SUBMIT_ALL | CP_SETUP_COOP_TASKRUN
    params.cq_entries = completions
    ring.descriptor = cp_uring_setup(submissions, &params)
    if ring.descriptor < 0:
        return -ring.descriptor
    ring.features = params.features
    error = map_rings(ring, &params)
    if error != 0:
        ring_close(ring)
    return error


cdef void ring_close(Ring* ring) noexcept nogil:
    if ring.sqes != NULL:
        munmap(ring.sqes, ring.sqes_size)
    if ring.rings != NULL:
        munmap(ring.rings, ring.rings_size)
    close(ring.descriptor)


cdef uint64_t known_opcodes(Ring* ring) noexcept nogil:
    cdef cp_probe probe
    cdef uint64_t known = 0
    cdef int code
    memset(&probe, 0, sizeof(probe))
    if cp_uring_register(ring.descriptor, CP_REGISTER_PROBE, &probe, 256) == 0:
        for code in range(64):
            if probe.ops[code].flags & CP_PROBE_SUPPORTED:
                known |= (<uint64_t> 1) << code
    return known


cdef int map_rings(Ring* ring, const cp_uring_params* params) noexcept nogil:
    cdef size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t)
    cdef size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(cp_cqe)
    cdef char* base
    cdef uint32_t i
    ring.rings_size = max(sq_size, cq_size)
    ring.sqes_size = params.sq_entries * sizeof(cp_sqe)
    base = <char*> mmap(
        NULL, ring.rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
        ring.descriptor, CP_OFF_SQ_RING,
    )
    if base == MAP_FAILED:
        return errno
    ring.rings = base
    ring.sqes = <cp_sqe*> mmap(
        NULL, ring.sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
        ring.descriptor, CP_OFF_SQES,
    )
    if ring.sqes == MAP_FAILED:
        ring.sqes = NULL
        return errno
    ring.sq_head = <uint32_t*> (base + params.sq_off.head)
    ring.sq_tail = <uint32_t*> (base + params.sq_off.tail)
    ring.sq_flags = <uint32_t*> (base + params.sq_off.flags)
    ring.sq_mask = (<uint32_t*> (base + params.sq_off.ring_mask))[0]
    ring.sq_entries = params.sq_entries
    ring.cq_head = <uint32_t*> (base + params.cq_off.head)
    ring.cq_tail = <uint32_t*> (base + params.cq_off.tail)
    ring.cq_mask = (<uint32_t*> (base + params.cq_off.ring_mask))[0]
    ring.cqes = <cp_cqe*> (base + params.cq_off.cqes)
    # Entries are used in the order of the queue, so the indirection is set once.
    for i in range(params.sq_entries):
        (<uint32_t*> (base + params.sq_off.array))[i] = i
    return 0
