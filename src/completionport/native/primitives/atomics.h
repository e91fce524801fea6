/* Atomic words, a futex mutex and waiting on a futex: what Cython can't say itself. */
#ifndef COMPLETIONPORT_ATOMICS_H
#define COMPLETIONPORT_ATOMICS_H

#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define cp_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define cp_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define cp_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define cp_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define cp_add_fetch(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
#define cp_exchange_pointer(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
/* Put an item, which has a `next`, before those of a list that others push to as well. They are taken all
 * at once, by cp_exchange_pointer. */
#define cp_push_pointer(list, item)                                                                \
    do {                                                                                           \
        (item)->next = __atomic_load_n((list), __ATOMIC_RELAXED);                                  \
    } while (!__atomic_compare_exchange_n((list), &(item)->next, (item), 1, __ATOMIC_RELEASE,      \
                                          __ATOMIC_RELAXED))
#define cp_count(p, v) ((void)__atomic_fetch_add((p), (v), __ATOMIC_RELAXED))
/* For a counter that only the holder of a lock changes, and that others read without the lock. */
#define cp_count_locked(p, v) cp_store_relaxed((p), *(p) + (v))

/* An order that ThreadSanitizer can't see, since what makes it is not compiled with it: `object` went
 * through the kernel or through Python's allocator. Nothing in any other build. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define cp_passed_on(object) ((object) ? __tsan_release((void *)(object)) : (void)0)
#define cp_received(object) ((object) ? __tsan_acquire((void *)(object)) : (void)0)
#else
#define cp_passed_on(object) ((void)0)
#define cp_received(object) ((void)0)
#endif

static inline int cp_swap_if(uint32_t *word, uint32_t expected, uint32_t wanted)
{
    return __atomic_compare_exchange_n(word, &expected, wanted, 0, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE);
}

static inline int cp_swap_if_64(int64_t *word, int64_t expected, int64_t wanted)
{
    return __atomic_compare_exchange_n(word, &expected, wanted, 0, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE);
}

static inline int64_t cp_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleep while *word is `value`, until `deadline_ns` on CLOCK_MONOTONIC (negative: without end).
 * Returns 0 when woken or when the word has another value, else ETIMEDOUT or EINTR. */
static inline int cp_futex_wait(uint32_t *word, uint32_t value, int64_t deadline_ns)
{
    struct timespec until, *limit = NULL;
    if (deadline_ns >= 0) {
        until.tv_sec = deadline_ns / 1000000000;
        until.tv_nsec = deadline_ns % 1000000000;
        limit = &until;
    }
    /* FUTEX_WAIT_BITSET takes an absolute time, FUTEX_WAIT a relative one: futex(2). */
    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, value, limit, NULL,
                FUTEX_BITSET_MATCH_ANY) == 0 || errno == EAGAIN)
        return 0;
    return errno;
}

static inline void cp_futex_wake(uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, NULL, NULL, 0);
}

static inline void cp_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* A mutex of one word: 0 free, 1 held, 2 held and somebody sleeps for it.
 * It is a leaf: its holder never waits for the GIL, so taking it with the GIL held can't deadlock. */
typedef uint32_t cp_mutex;

static inline void cp_mutex_lock(cp_mutex *mutex)
{
    if (__builtin_expect(cp_swap_if(mutex, 0, 1), 1))
        return;
    for (int spin = 0; spin < 100; spin++) {
        cp_pause();
        if (cp_load_relaxed(mutex) == 0 && cp_swap_if(mutex, 0, 1))
            return;
    }
    while (__atomic_exchange_n(mutex, 2, __ATOMIC_ACQUIRE) != 0)
        cp_futex_wait(mutex, 2, -1);
}

/* 0 when it could not be had until then (negative: without end). */
static inline int cp_mutex_lock_until(cp_mutex *mutex, int64_t deadline_ns)
{
    while (__atomic_exchange_n(mutex, 2, __ATOMIC_ACQUIRE) != 0)
        if (cp_futex_wait(mutex, 2, deadline_ns) == ETIMEDOUT)
            return 0;
    return 1;
}

static inline void cp_mutex_unlock(cp_mutex *mutex)
{
    if (__builtin_expect(__atomic_exchange_n(mutex, 0, __ATOMIC_RELEASE) == 2, 0))
        cp_futex_wake(mutex, 1);
}

#endif
