/* What the guard needs of the system: a fence that costs nothing where it is passed often. */
#ifndef COMPLETIONPORT_GUARD_H
#define COMPLETIONPORT_GUARD_H

#include <linux/membarrier.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Written before there are threads that pass the fence, and in a forked child. */
static int cp_fences_are_paired;

/* membarrier(2): then only the rare side pays for the order of the two. */
static inline void cp_pair_fences(void)
{
    cp_fences_are_paired =
        syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

static inline void cp_often_fence(void)
{
    if (__builtin_expect(cp_fences_are_paired, 1))
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
    else
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void cp_rare_fence(void)
{
    if (!cp_fences_are_paired || syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0))
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#endif
