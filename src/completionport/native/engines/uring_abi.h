/* The kernel's io_uring interface, io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
 * Written out here because the headers of a distribution are often older than its kernel;
 * what the running kernel knows is asked for at run time. */
#ifndef COMPLETIONPORT_URING_ABI_H
#define COMPLETIONPORT_URING_ABI_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

struct cp_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags; /* msg_flags, poll32_events, accept_flags, open_flags and so on */
    uint64_t user_data;
    uint16_t buf_group;
    uint16_t personality;
    uint32_t file_index;
    uint64_t addr3;
    uint64_t reserved;
};

struct cp_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct cp_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct cp_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct cp_uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    uint32_t resv[3];
    struct cp_sq_offsets sq_off;
    struct cp_cq_offsets cq_off;
};

struct cp_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};

struct cp_kernel_timespec {
    int64_t tv_sec;
    int64_t tv_nsec;
};

struct cp_probe_op {
    uint8_t op, resv;
    uint16_t flags;
    uint32_t resv2;
};

struct cp_probe {
    uint8_t last_op, ops_len;
    uint16_t resv;
    uint32_t resv2[3];
    struct cp_probe_op ops[256];
};

/* One provided buffer. The tail of the ring lies over `resv` of the first one. */
struct cp_uring_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t resv;
};

struct cp_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid;
    uint16_t flags;
    uint64_t resv[3];
};

enum {
    CP_OP_FSYNC = 3,
    CP_OP_POLL_ADD = 6,
    CP_OP_SENDMSG = 9,
    CP_OP_RECVMSG = 10,
    CP_OP_ACCEPT = 13,
    CP_OP_ASYNC_CANCEL = 14,
    CP_OP_FALLOCATE = 17,
    CP_OP_CLOSE = 19,
    CP_OP_STATX = 21,
    CP_OP_READ = 22,
    CP_OP_WRITE = 23,
    CP_OP_SEND = 26,
    CP_OP_RECV = 27,
    CP_OP_SEND_ZC = 47,
    CP_OP_SENDMSG_ZC = 48,
    CP_OP_READ_MULTISHOT = 49,
    CP_OP_READV = 1,
    CP_OP_WRITEV = 2,
    CP_OP_NOP = 0,

    CP_SETUP_CQSIZE = 1 << 3,
    CP_SETUP_CLAMP = 1 << 4,
    CP_SETUP_SUBMIT_ALL = 1 << 7,
    CP_SETUP_COOP_TASKRUN = 1 << 8,

    CP_FEAT_SINGLE_MMAP = 1 << 0,
    CP_FEAT_NODROP = 1 << 1,
    CP_FEAT_RW_CUR_POS = 1 << 3,
    CP_FEAT_FAST_POLL = 1 << 5,
    CP_FEAT_EXT_ARG = 1 << 8,
    CP_FEAT_NO_IOWAIT = 1 << 17,

    CP_ENTER_GETEVENTS = 1 << 0,
    CP_ENTER_EXT_ARG = 1 << 3,
    CP_ENTER_NO_IOWAIT = 1 << 7,

    CP_REGISTER_PROBE = 8,
    CP_REGISTER_PBUF_RING = 22,

    CP_SQ_CQ_OVERFLOW = 1 << 1,

    CP_CQE_F_BUFFER = 1 << 0,
    CP_CQE_F_MORE = 1 << 1,
    CP_CQE_F_NOTIF = 1 << 3,
    CP_CQE_F_BUF_MORE = 1 << 4,

    CP_PBUF_RING_INC = 2,

    CP_SQE_ASYNC = 1 << 4,
    CP_SQE_BUFFER_SELECT = 1 << 5,

    CP_RECVSEND_POLL_FIRST = 1 << 0,
    CP_RECV_MULTISHOT = 1 << 1,
    CP_ACCEPT_MULTISHOT = 1 << 0,
    CP_POLL_ADD_MULTI = 1 << 0,
    CP_SEND_ZC_REPORT_USAGE = 1 << 3,

    CP_PROBE_SUPPORTED = 1 << 0,

    CP_FSYNC_DATASYNC = 1 << 0,
};

/* The result of a notification: the kernel copied after all. */
#define CP_NOTIF_USAGE_COPIED (1u << 31)

#define CP_OFF_SQ_RING 0ULL
#define CP_OFF_CQ_RING 0x8000000ULL
#define CP_OFF_SQES 0x10000000ULL

static inline int cp_uring_setup(uint32_t entries, struct cp_uring_params *params)
{
    int fd = (int)syscall(__NR_io_uring_setup, entries, params);
    return fd < 0 ? -errno : fd;
}

static inline int cp_uring_register(int fd, unsigned opcode, void *arg, unsigned count)
{
    int result = (int)syscall(__NR_io_uring_register, fd, opcode, arg, count);
    return result < 0 ? -errno : result;
}

/* timeout_ns < 0 waits without end. Needs IORING_FEAT_EXT_ARG for any other. */
static inline int cp_uring_enter(int fd, unsigned submit, unsigned wanted, unsigned flags,
                                 int64_t timeout_ns)
{
    struct cp_kernel_timespec limit;
    struct cp_getevents_arg arg;
    void *extra = NULL;
    size_t size = 0;
    if (timeout_ns >= 0) {
        limit.tv_sec = timeout_ns / 1000000000;
        limit.tv_nsec = timeout_ns % 1000000000;
        memset(&arg, 0, sizeof arg);
        arg.ts = (uint64_t)(uintptr_t)&limit;
        extra = &arg;
        size = sizeof arg;
        flags |= CP_ENTER_EXT_ARG;
    }
    int result = (int)syscall(__NR_io_uring_enter, fd, submit, wanted, flags, extra, size);
    return result < 0 ? -errno : result;
}

#endif
