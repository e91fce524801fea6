# cython: language_level=3, freethreading_compatible=True
"""Provided buffers: memory that the kernel fills when data is there, not when a receive is started.

Where the kernel can (6.12 and later) it fills large buffers bit by bit, so that what many
connections receive lies close together; else each receive takes a whole buffer. A buffer goes back
to the kernel when it is full and no worker looks at any part of it, or is set aside where the kernel
has enough: then the system gets its memory back.
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
        PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTNEED
    void* MAP_FAILED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t size)
    int madvise(void* address, size_t size, int advice)

cdef extern from "unistd.h" nogil:
    enum:
        _SC_PAGESIZE
    long sysconf(int name)

cdef extern from "errno.h" nogil:
    enum:
        EINVAL, ENOMEM

cdef extern from *:
    """
    #define cp_store_tail(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
    """
    void cp_store_tail(uint16_t* word, uint16_t value) nogil

cdef extern from "atomics.h" nogil:
    Chunk* cp_exchange_pointer(Chunk** list, Chunk* value) nogil
    void cp_push_pointer(Chunk** list, Chunk* chunk) nogil

cdef enum:
    POOL_MEMORY = 16777216        # what all buffers together may take, bytes
    SMALLEST_SHARED = 65536       # of a buffer for many receives, bytes
    SMALLEST_SINGLE = 16384       # and for one
    LEAST_SHARED = 16
    # A connection that finds no buffer has its request ended, so of buffers for one receive each
    # there must be as many as connections are ready at once.
    LEAST_SINGLE = 256
    MOST_SINGLE = 4096
    FEWEST = 16


cdef void* map_memory(size_t size) noexcept nogil:
    cdef void* memory = mmap(
        NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    return NULL if memory == MAP_FAILED else memory


cdef int pool_open(BufferPool* pool, int ring, size_t largest) noexcept nogil:
    """Register a pool for receives of up to ``largest`` bytes with a ring; 0 or an errno.

    There is one for all servers of a port, of the size that the first one asks for; `next_input` cuts what it
    brings to the size that a server asks for. One call at a time.
    """
    cdef int error
    if pool.memory != NULL:
        return 0
    pool.ring = ring
    error = try_to_open(pool, largest, True)
    if error == EINVAL:
        error = try_to_open(pool, largest, False)
    return error


cdef size_t buffer_size(size_t largest, bint incremental) noexcept nogil:
    return max(largest, <size_t> (SMALLEST_SHARED if incremental else SMALLEST_SINGLE))


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
    pool.page = <size_t> sysconf(_SC_PAGESIZE)
    pool.count = count
    pool.least = min(count, <uint32_t> (LEAST_SHARED if incremental else LEAST_SINGLE))
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
        pool.buffers[i].next = &pool.buffers[i + 1] if i + 1 < count else NULL
    pool.aside = pool.buffers
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
    """Lock."""
    cdef cp_uring_buf* entry = &pool.entries[pool.tail & (pool.count - 1)]
    buffer.used = 0
    buffer.users = 1
    entry.addr = <uintptr_t> buffer.memory
    entry.len = <uint32_t> pool.size
    entry.bid = buffer.number
    pool.tail += 1
    pool.with_kernel += 1
    # The tail lies over `resv` of the first entry: io_uring_register_buf_ring(3).
    cp_passed_on(buffer)
    cp_store_tail(&pool.entries[0].resv, pool.tail)


cdef bint pool_grow(BufferPool* pool) noexcept nogil:
    cdef Buffer* buffer
    cdef uint32_t count = 0
    cp_mutex_lock(&pool.lock)
    while pool.aside != NULL and count < pool.least:
        buffer = pool.aside
        pool.aside = buffer.next
        give_to_kernel(pool, buffer)
        count += 1
    cp_mutex_unlock(&pool.lock)
    return count != 0


cdef void give_memory_back(BufferPool* pool, Buffer* buffer) noexcept nogil:
    """To the system: the pages that no other buffer has a part of."""
    cdef uintptr_t first = (<uintptr_t> buffer.memory + pool.page - 1) // pool.page * pool.page
    cdef uintptr_t end = (<uintptr_t> buffer.memory + pool.size) // pool.page * pool.page
    if first < end:
        madvise(<void*> first, end - first, MADV_DONTNEED)


cdef void unused(BufferPool* pool, Buffer* buffer) noexcept nogil:
    """Nobody looks at it any more: the kernel may have it again."""
    cdef bint wanted
    cp_mutex_lock(&pool.lock)
    wanted = pool.with_kernel < pool.least
    if wanted:
        give_to_kernel(pool, buffer)
    cp_mutex_unlock(&pool.lock)
    if not wanted:
        give_memory_back(pool, buffer)
        cp_mutex_lock(&pool.lock)
        buffer.next = pool.aside
        pool.aside = buffer
        cp_mutex_unlock(&pool.lock)


cdef inline void drop_user(BufferPool* pool, Buffer* buffer) noexcept nogil:
    if cp_add_fetch(&buffer.users, -1) == 0:
        unused(pool, buffer)


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
        cp_mutex_lock(&pool.lock)
        pool.with_kernel -= 1
        cp_mutex_unlock(&pool.lock)
        drop_user(pool, buffer)
    return chunk


cdef void pool_release(BufferPool* pool, Chunk* chunk) noexcept nogil:
    """The bytes of a chunk are not needed any more. Any thread, no lock."""
    cdef Buffer* buffer = <Buffer*> chunk.buffer
    cp_push_pointer(&pool.released, chunk)
    drop_user(pool, buffer)
