/* Faults of the ring, for tests: a build with COMPLETIONPORT_FAULTS lets requests fail or come back short, as
 * the kernel may at any time. In any other build nothing is left of it.
 *
 * Results must be true: what is told to have failed may not have moved a byte. So a request is chosen before the
 * kernel has it. One that is to fail becomes a no-operation whose error is in the unused high bits of
 * `user_data`; where the result is read, it is put there. One that is to come back short asks for less, and
 * one that would give many results for one.
 */
#ifndef COMPLETIONPORT_RING_FAULTS_H
#define COMPLETIONPORT_RING_FAULTS_H

#ifndef COMPLETIONPORT_FAULTS
#define cp_fault_request(sqe) ((void)0)
#define cp_fault_result(cqe) ((void)0)
#else

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include "uring_abi.h"

enum { CP_FAULT_SHIFT = 48, CP_FAULT_KINDS = 64 };
/* Atomic. `told`: by the opcode of what was chosen. */
static uint64_t cp_fault_decisions, cp_fault_seed;
static int cp_fault_one_in, cp_fault_only_passing, cp_fault_told[CP_FAULT_KINDS];

/* From now on about one in so many requests; 0: none. */
__attribute__((visibility("default"))) void faults_begin(uint64_t seed, int rate)
{
    __atomic_store_n(&cp_fault_seed, seed, __ATOMIC_RELAXED);
    __atomic_store_n(&cp_fault_one_in, rate, __ATOMIC_RELEASE);
}

/* Only what an engine gets over without anybody being told. */
__attribute__((visibility("default"))) void faults_only_passing(int only)
{
    __atomic_store_n(&cp_fault_only_passing, only, __ATOMIC_RELAXED);
}

/* How many requests of an opcode were chosen so far. */
__attribute__((visibility("default"))) int faults_told(int opcode)
{
    return __atomic_load_n(&cp_fault_told[opcode], __ATOMIC_RELAXED);
}

static inline uint64_t cp_fault_number(void)
{
    uint64_t x = __atomic_load_n(&cp_fault_seed, __ATOMIC_RELAXED) * 0x9e3779b97f4a7c15u
                 + __atomic_add_fetch(&cp_fault_decisions, 1, __ATOMIC_RELAXED);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static inline int cp_fault_is_stream(int descriptor)
{
    int type = 0;
    socklen_t size = sizeof type;
    return getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

/* Less of the same, where the kernel could stop there too: whether there is such a thing. */
static inline int cp_fault_shorten(struct cp_sqe *sqe, uint64_t number)
{
    if (sqe->opcode == CP_OP_RECV && sqe->ioprio & CP_RECV_MULTISHOT)
        sqe->ioprio &= (uint16_t)~CP_RECV_MULTISHOT;
    else if (sqe->opcode == CP_OP_ACCEPT && sqe->ioprio & CP_ACCEPT_MULTISHOT)
        sqe->ioprio &= (uint16_t)~CP_ACCEPT_MULTISHOT;
    else if (sqe->len > 1
             && (sqe->opcode == CP_OP_READ || sqe->opcode == CP_OP_WRITE
                 || ((sqe->opcode == CP_OP_SEND || sqe->opcode == CP_OP_SEND_ZC || sqe->opcode == CP_OP_RECV)
                     && cp_fault_is_stream(sqe->fd))))
        sqe->len = 1 + (uint32_t)(number % (sqe->len - 1));
    else
        return 0;
    return 1;
}

#define CP_ONE_OF(number, ...) \
    ((const int[]){__VA_ARGS__}[(number) % (sizeof((const int[]){__VA_ARGS__}) / sizeof(int))])

/* An error that the kernel could give before it has done anything; 0: none. */
static inline int cp_fault_error(const struct cp_sqe *sqe, uint64_t number)
{
    int passing = number % 2 || __atomic_load_n(&cp_fault_only_passing, __ATOMIC_RELAXED);
    number /= 2;
    switch (sqe->opcode) {
    case CP_OP_RECV:
        if (passing && sqe->flags & CP_SQE_BUFFER_SELECT)
            return CP_ONE_OF(number, EINTR, EAGAIN, ECANCELED, ENOBUFS);
        /* fall through */
    case CP_OP_RECVMSG:
        return passing ? CP_ONE_OF(number, EINTR, EAGAIN, ECANCELED) : CP_ONE_OF(number, ENOMEM, ECONNRESET);
    case CP_OP_SEND:
    case CP_OP_SENDMSG:
        return passing ? CP_ONE_OF(number, EINTR, EAGAIN, ECANCELED)
                       : CP_ONE_OF(number, ENOMEM, ENOBUFS, ECONNRESET, EPIPE);
    case CP_OP_SEND_ZC:
    case CP_OP_SENDMSG_ZC:
        return passing ? CP_ONE_OF(number, EINTR, EAGAIN, ECANCELED, ENOMEM, ENOBUFS) : ECONNRESET;
    case CP_OP_ACCEPT:
        return passing ? CP_ONE_OF(number, EINTR, EAGAIN, ECANCELED)
                       : CP_ONE_OF(number, EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED);
    case CP_OP_READ:
    case CP_OP_READV:
    case CP_OP_WRITE:
    case CP_OP_WRITEV:
        return passing ? CP_ONE_OF(number, EINTR, EAGAIN, ECANCELED) : CP_ONE_OF(number, ENOMEM, EIO);
    case CP_OP_FSYNC:
    case CP_OP_FALLOCATE:
    case CP_OP_STATX:
        return passing ? CP_ONE_OF(number, EINTR, ECANCELED) : ENOMEM;
    case CP_OP_CLOSE:
        return ECANCELED;
    case CP_OP_POLL_ADD:
        return CP_ONE_OF(number, ECANCELED, ENOMEM);
    case CP_OP_ASYNC_CANCEL:
        /* What is just being tried again is not found. */
        return ENOENT;
    default:
        return 0;
    }
}

/* Before the kernel sees it. Submission lock. */
static inline void cp_fault_request(struct cp_sqe *sqe)
{
    int rate = __atomic_load_n(&cp_fault_one_in, __ATOMIC_ACQUIRE), error;
    uint64_t number, user_data = sqe->user_data;
    if (rate == 0 || (number = cp_fault_number()) % (uint64_t)rate != 0)
        return;
    number /= (uint64_t)rate;
    if (number % 2 && cp_fault_shorten(sqe, number / 2)) {
        __atomic_fetch_add(&cp_fault_told[sqe->opcode], 1, __ATOMIC_RELAXED);
    } else if ((error = cp_fault_error(sqe, number / 2)) != 0) {
        __atomic_fetch_add(&cp_fault_told[sqe->opcode], 1, __ATOMIC_RELAXED);
        memset(sqe, 0, sizeof *sqe);
        sqe->opcode = CP_OP_NOP;
        sqe->user_data = user_data | (uint64_t)error << CP_FAULT_SHIFT;
    }
}

/* A completion that was read. */
static inline void cp_fault_result(struct cp_cqe *cqe)
{
    int error = (int)(cqe->user_data >> CP_FAULT_SHIFT);
    if (error == 0)
        return;
    cqe->user_data &= ((uint64_t)1 << CP_FAULT_SHIFT) - 1;
    cqe->res = -error;
}

#endif
#endif
