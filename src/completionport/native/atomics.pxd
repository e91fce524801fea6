from libc.stdint cimport int64_t, uint32_t

cdef extern from "atomics.h" nogil:
    ctypedef uint32_t cp_mutex
    void cp_mutex_lock(cp_mutex *mutex) noexcept
    void cp_mutex_unlock(cp_mutex *mutex) noexcept
    bint cp_swap_if(uint32_t *word, uint32_t expected, uint32_t wanted) noexcept
    uint32_t cp_load_acquire(const uint32_t *word) noexcept
    uint32_t cp_load_relaxed(const uint32_t *word) noexcept
    void cp_store_release(uint32_t *word, uint32_t value) noexcept
    int cp_add_fetch(int *word, int amount) noexcept
    int cp_load_int "cp_load_acquire"(const int *word) noexcept
    void cp_count(int64_t *counter, int64_t amount) noexcept
    int64_t cp_now_ns() noexcept
    int cp_futex_wait(uint32_t *word, uint32_t value, int64_t deadline_ns) noexcept
    void cp_futex_wake(uint32_t *word, int count) noexcept
