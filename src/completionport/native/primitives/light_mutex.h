/* A mutex that is let go without a locked instruction, for what is locked with each packet.
 *
 * The word that tells whether it is held and the number of those who sleep for it are apart. Who lets go
 * writes the one, then reads the other; who goes to sleep counts himself, then reads the word: with a
 * fence between, one of them sees the other. As in guard.h, membarrier(2) makes the rare side pay for both
 * fences. The price is that the memory has to stay until `cp_light_mutex_unlock` has returned, so it is
 * none for a lock in what another thread may free as soon as it is let go: that is cp_mutex.
 *
 * A leaf as cp_mutex is: its holder never waits for the GIL. */
#ifndef COMPLETIONPORT_LIGHT_MUTEX_H
#define COMPLETIONPORT_LIGHT_MUTEX_H

#include <linux/membarrier.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomics.h"

/* In `sleepers`, constant: there is no membarrier(2) here, so both sides have a fence of their own. */
#define CP_FENCES_OF_THEIR_OWN 0x80000000u

typedef struct {
    uint32_t held;     /* atomic, futex word: 1 while it is held */
    uint32_t sleepers; /* atomic: how many may sleep, or are about to */
} cp_light_mutex;

/* guard.pyx has told the kernel that this process uses membarrier(2); if not it fails here. */
static inline void cp_light_mutex_open(cp_light_mutex *mutex)
{
    mutex->held = 0;
    mutex->sleepers =
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) ? CP_FENCES_OF_THEIR_OWN : 0;
}

static __attribute__((noinline)) void cp_light_mutex_wait(cp_light_mutex *mutex)
{
    int fenced = 1;
    for (int spin = 0; spin < 100; spin++) {
        cp_pause();
        if (cp_load_relaxed(&mutex->held) == 0 && cp_swap_if(&mutex->held, 0, 1))
            return;
    }
    if (__atomic_fetch_add(&mutex->sleepers, 1, __ATOMIC_SEQ_CST) & CP_FENCES_OF_THEIR_OWN)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    else
        fenced = syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0;
    while (!cp_swap_if(&mutex->held, 0, 1)) {
        if (fenced)
            cp_futex_wait(&mutex->held, 1, -1);
        else
            /* Forbidden since it was opened (seccomp): its holder may not see that somebody sleeps. */
            sched_yield();
    }
    __atomic_fetch_sub(&mutex->sleepers, 1, __ATOMIC_RELAXED);
}

static __attribute__((noinline)) void cp_light_mutex_wake(cp_light_mutex *mutex)
{
    if (cp_load_relaxed(&mutex->sleepers) & CP_FENCES_OF_THEIR_OWN) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (cp_load_relaxed(&mutex->sleepers) == CP_FENCES_OF_THEIR_OWN)
            return;
    }
    cp_futex_wake(&mutex->held, 1);
}

static inline void cp_light_mutex_lock(cp_light_mutex *mutex)
{
    if (__builtin_expect(!cp_swap_if(&mutex->held, 0, 1), 0))
        cp_light_mutex_wait(mutex);
}

static inline void cp_light_mutex_unlock(cp_light_mutex *mutex)
{
    cp_store_release(&mutex->held, 0);
    /* The compiler keeps the order here, membarrier(2) the processor. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (__builtin_expect(cp_load_relaxed(&mutex->sleepers) != 0, 0))
        cp_light_mutex_wake(mutex);
}

#endif
