# cython: language_level=3, freethreading_compatible=True
"""Provided buffers: memory that the kernel fills when data is there, not when a receive is started.

Where the kernel can (6.12 and later) it fills large buffers bit by bit, so that what many
connections receive lies close together; else each receive takes a whole buffer. A buffer goes back
to the kernel when it is full and no worker looks at any part of it.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ..channels.engine cimport Chunk
from ..primitives.atomics cimport cp_add_fetch, cp_mutex_lock, cp_mutex_unlock, cp_passed_on, cp_received

cdef extern from "uring_abi.h" nogil:
    cdef struct cp_buf_reg:
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid
        uint16_t flags
    int cp_uring_register(int fd, unsigned opcode, void* arg, unsigned count)
    enum:
        CP_REGISTER_PBUF_RING, CP_PBUF_RING_INC, CP_CQE_F_BUF_MORE

cdef extern from "sys/mman.h" nogil:
    enum:
        PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void* MAP_FAILED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t size)

cdef extern from "errno.h" nogil:
    enum:
        EBUSY, EINVAL, ENOMEM

cdef extern from *:
    """
    #define cp_store_tail(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
    """
    void cp_store_tail(uint16_t* word, uint16_t value) nogil

cdef extern from "atomics.h" nogil:
    Chunk* cp_exchange_pointer(Chunk** list, Chunk* value) nogil
    void cp_push_pointer(Chunk** list, Chunk* chunk) nogil

cdef enum:
    POOL_MEMORY = 67108864        # what all buffers together may take, bytes
    SMALLEST_SHARED = 65536       # of a buffer for many receives, bytes
    FIRST_SHARED = 16
    # A connection that finds no buffer has its request ended, so of buffers for one receive each
    # there must be as many as connections are ready at once.
    FIRST_SINGLE = 256
    MOST_SINGLE = 4096
    FEWEST = 16


cdef void* map_memory(size_t size) noexcept nogil:
    cdef void* memory = mmap(
        NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    return NULL if memory == MAP_FAILED else memory


cdef int pool_open(BufferPool* pool, int ring, size_t largest) noexcept nogil:
    """Register a pool for receives of up to ``largest`` bytes with a ring; 0 or an errno.

    A second call succeeds if it asks for the same.
    """
    cdef int error
    if pool.memory != NULL:
        return 0 if pool.size == buffer_size(largest, pool.incremental) else EBUSY
    pool.ring = ring
    error = try_to_open(pool, largest, True)
    if error == EINVAL:
        error = try_to_open(pool, largest, False)
    return error


cdef size_t buffer_size(size_t largest, bint incremental) noexcept nogil:
    return max(largest, <size_t> SMALLEST_SHARED) if incremental else largest


cdef int try_to_open(BufferPool* pool, size_t largest, bint incremental) noexcept nogil:
    cdef cp_buf_reg registration
    cdef size_t size = buffer_size(largest, incremental)
    cdef uint32_t count = MOST_SINGLE
    cdef uint32_t i
    cdef int error
    while count > FEWEST and count * size > POOL_MEMORY:
        count //= 2
    pool.incremental = incremental
    pool.size = size
    pool.count = count
    pool.entries_size = count * sizeof(cp_uring_buf)
    pool.memory_size = count * size
    pool.entries = <cp_uring_buf*> map_memory(pool.entries_size)
    pool.memory = <char*> map_memory(pool.memory_size)
    pool.buffers = <Buffer*> calloc(count, sizeof(Buffer))
    if pool.entries == NULL or pool.memory == NULL or pool.buffers == NULL:
        pool_close(pool)
        return ENOMEM
    for i in range(count):
        pool.buffers[i].number = <uint16_t> i
        pool.buffers[i].memory = pool.memory + i * size
    memset(&registration, 0, sizeof(registration))
    registration.ring_addr = <uintptr_t> pool.entries
    registration.ring_entries = count
    registration.bgid = BUFFER_GROUP
    registration.flags = CP_PBUF_RING_INC if incremental else 0
    error = cp_uring_register(pool.ring, CP_REGISTER_PBUF_RING, &registration, 1)
    if error < 0:
        pool_close(pool)
        return -error
    pool_grow(pool)
    return 0


cdef void pool_close(BufferPool* pool) noexcept nogil:
    """Let the memory go; the ring, which writes to it, is gone or never knew of it."""
    if pool.entries != NULL:
        munmap(pool.entries, pool.entries_size)
    if pool.memory != NULL:
        munmap(pool.memory, pool.memory_size)
    free(pool.buffers)
    free_chunks(pool.spare)
    free_chunks(cp_exchange_pointer(&pool.released, NULL))
    memset(pool, 0, sizeof(BufferPool))


cdef void free_chunks(Chunk* chunk) noexcept nogil:
    cdef Chunk* following
    while chunk != NULL:
        following = chunk.next
        free(chunk)
        chunk = following


cdef void give_to_kernel(BufferPool* pool, Buffer* buffer) noexcept nogil:
    cdef cp_uring_buf* entry
    buffer.used = 0
    buffer.users = 1
    cp_mutex_lock(&pool.lock)
    entry = &pool.entries[pool.tail & (pool.count - 1)]
    entry.addr = <uintptr_t> buffer.memory
    entry.len = <uint32_t> pool.size
    entry.bid = buffer.number
    pool.tail += 1
    # The tail lies over `resv` of the first entry: io_uring_register_buf_ring(3).
    cp_passed_on(buffer)
    cp_store_tail(&pool.entries[0].resv, pool.tail)
    cp_mutex_unlock(&pool.lock)


cdef bint pool_grow(BufferPool* pool) noexcept nogil:
    """Double the number of buffers; False when all are provided. Completion lock."""
    cdef uint32_t first = pool.provided
    cdef uint32_t least = FIRST_SHARED if pool.incremental else FIRST_SINGLE
    cdef uint32_t i
    pool.provided = min(max(2 * first, least), pool.count)
    for i in range(first, pool.provided):
        give_to_kernel(pool, &pool.buffers[i])
    return first != pool.provided


cdef inline void drop_user(BufferPool* pool, Buffer* buffer) noexcept nogil:
    if cp_add_fetch(&buffer.users, -1) == 0:
        give_to_kernel(pool, buffer)


cdef Chunk* pool_filled(BufferPool* pool, uint32_t flags, int32_t size) noexcept nogil:
    """What a completion with IORING_CQE_F_BUFFER brought; NULL without memory. Completion lock.

    The kernel fills a buffer in the order of the completions that name it.
    """
    cdef Buffer* buffer = &pool.buffers[flags >> 16]
    cdef Chunk* chunk = pool.spare
    cp_received(buffer)
    if chunk == NULL:
        chunk = cp_exchange_pointer(&pool.released, NULL)
    if chunk == NULL:
        chunk = <Chunk*> malloc(sizeof(Chunk))
        if chunk != NULL:
            chunk.next = NULL
    if chunk != NULL:
        pool.spare = chunk.next
        chunk.buffer = buffer
        chunk.data = buffer.memory + buffer.used
        chunk.size = size
        cp_add_fetch(&buffer.users, 1)
    buffer.used += size
    if not flags & CP_CQE_F_BUF_MORE:
        drop_user(pool, buffer)
    return chunk


cdef void pool_release(BufferPool* pool, Chunk* chunk) noexcept nogil:
    """The bytes of a chunk are not needed any more. Any thread, no lock."""
    cdef Buffer* buffer = <Buffer*> chunk.buffer
    cp_push_pointer(&pool.released, chunk)
    drop_user(pool, buffer)
