from libc.stdint cimport int64_t, uint32_t

cdef extern from "atomics.h" nogil:
    ctypedef uint32_t cp_mutex
    void cp_mutex_lock(cp_mutex *mutex) noexcept
    bint cp_mutex_lock_until(cp_mutex *mutex, int64_t deadline_ns) noexcept
    void cp_mutex_unlock(cp_mutex *mutex) noexcept
    bint cp_swap_if(uint32_t *word, uint32_t expected, uint32_t wanted) noexcept
    uint32_t cp_load_acquire(const uint32_t *word) noexcept
    uint32_t cp_load_relaxed(const uint32_t *word) noexcept
    void cp_store_release(uint32_t *word, uint32_t value) noexcept
    int cp_add_fetch(int *word, int amount) noexcept
    int cp_load_int "cp_load_acquire"(const int *word) noexcept
    void cp_count(int64_t *counter, int64_t amount) noexcept
    bint cp_swap_if_64(int64_t *word, int64_t expected, int64_t wanted) noexcept
    # Fields that are written under a lock and read without it, where an old value does no harm.
    # Relaxed: the same machine code as without, but no read or write is torn, left out or repeated.
    bint cp_peek "cp_load_relaxed"(const bint *field) noexcept
    void cp_set "cp_store_relaxed"(bint *field, bint value) noexcept
    int cp_peek_int "cp_load_relaxed"(const int *field) noexcept
    void cp_set_int "cp_store_relaxed"(int *field, int value) noexcept
    int64_t cp_peek_64 "cp_load_relaxed"(const int64_t *field) noexcept
    void cp_set_64 "cp_store_relaxed"(int64_t *field, int64_t value) noexcept
    void cp_release_64 "cp_store_release"(int64_t *field, int64_t value) noexcept
    size_t cp_peek_size "cp_load_relaxed"(const size_t *field) noexcept
    void cp_count_locked(int64_t *counter, int64_t amount) noexcept
    void cp_count_size "cp_count_locked"(size_t *counter, size_t amount) noexcept
    void cp_passed_on(const void *object) noexcept
    void cp_received(const void *object) noexcept
    int64_t cp_now_ns() noexcept
    int cp_futex_wait(uint32_t *word, uint32_t value, int64_t deadline_ns) noexcept
    void cp_futex_wake(uint32_t *word, int count) noexcept
