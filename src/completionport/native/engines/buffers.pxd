"""Buffers that the kernel chooses from: io_uring_register_buf_ring(3)."""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

from ..channels.engine cimport Chunk
from ..primitives.atomics cimport cp_mutex

cdef struct Buffer:
    char* memory
    # Bytes that the kernel has filled: completion lock, or who gives it back to the kernel, which then
    # is the only one that knows it.
    uint32_t used
    Buffer* next            # of those set aside: the pool's lock
    uint16_t number
    # Atomic: one for the kernel while it may fill the rest, one for each chunk that lies in it.
    int users

cdef extern from "uring_abi.h" nogil:
    cdef struct cp_uring_buf:
        uint64_t addr
        uint32_t len
        uint16_t bid
        uint16_t resv

cdef struct BufferPool:
    int ring                # descriptor of the io_uring
    bint incremental        # the kernel puts one receive behind the other into a buffer
    size_t size             # of one buffer
    size_t page             # of the system's memory
    uint32_t count          # entries of the kernel's list
    uint32_t least          # so many are kept with the kernel, and so many come at a time: constant
    Buffer* buffers
    char* memory
    size_t memory_size
    Chunk* spare            # completion lock
    Chunk* released         # atomic: a stack, taken as a whole
    # All below: lock. The kernel takes from the head, we move the tail.
    cp_mutex lock
    uint32_t with_kernel    # buffers that it may fill
    Buffer* aside           # those that are in nobody's use; the system has their memory back
    cp_uring_buf* entries
    size_t entries_size
    uint16_t tail

cdef enum:
    BUFFER_GROUP = 1

cdef int pool_open(BufferPool* pool, int ring, size_t largest) noexcept nogil
cdef void pool_close(BufferPool* pool) noexcept nogil
# More buffers for the kernel, up to all; False: all are in use.
cdef bint pool_grow(BufferPool* pool) noexcept nogil
cdef Chunk* pool_filled(BufferPool* pool, uint32_t flags, int32_t size) noexcept nogil
cdef void pool_release(BufferPool* pool, Chunk* chunk) noexcept nogil
