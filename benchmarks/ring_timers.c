/* What timers would cost as requests of io_uring (IORING_OP_TIMEOUT), one JSON object.
 *
 *     ring_timers COUNT CANCELLED
 *
 * timers.py builds and calls this. COUNT timers are set and fired; then as many are set again, and
 * CANCELLED of them, spread evenly, are cancelled while the others are pending.
 */
#define _GNU_SOURCE 1
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../src/completionport/native/engines/uring_abi.h"

enum { BATCH = 1024, OP_TIMEOUT = 11, OP_TIMEOUT_REMOVE = 12 };

struct timespec64 {
    int64_t seconds, nanoseconds;
};

static int ring;
static uint32_t *sq_tail, *cq_head, *cq_tail, sq_mask;
static struct cp_sqe *sqes;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void open_ring(void)
{
    struct cp_uring_params p = {.flags = CP_SETUP_CQSIZE, .cq_entries = 32768};
    ring = cp_uring_setup(BATCH, &p);
    if (ring < 0)
        die("io_uring_setup");
    size_t size = p.cq_off.cqes + p.cq_entries * sizeof(struct cp_cqe);
    char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, CP_OFF_SQ_RING);
    sqes = mmap(NULL, p.sq_entries * sizeof(struct cp_sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                ring, CP_OFF_SQES);
    if (base == MAP_FAILED || sqes == MAP_FAILED)
        die("mmap");
    sq_tail = (uint32_t *)(base + p.sq_off.tail);
    cq_head = (uint32_t *)(base + p.cq_off.head);
    cq_tail = (uint32_t *)(base + p.cq_off.tail);
    sq_mask = p.sq_entries - 1;
    for (uint32_t i = 0; i < p.sq_entries; i++)
        ((uint32_t *)(base + p.sq_off.array))[i] = i;
}

static void add(int opcode, uint64_t name, const struct timespec64 *when)
{
    struct cp_sqe *sqe = &sqes[*sq_tail & sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)opcode;
    sqe->fd = -1;
    sqe->user_data = name;
    if (opcode == OP_TIMEOUT) {
        sqe->addr = (uint64_t)(uintptr_t)when;
        sqe->len = 1;
    } else {
        sqe->addr = name;
    }
    __atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
}

static uint32_t reap(void)
{
    uint32_t tail = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE), found = tail - *cq_head;
    __atomic_store_n(cq_head, tail, __ATOMIC_RELEASE);
    return found;
}

/* Seconds from now that a timer waits: spread over half a second, in no order. */
static struct timespec64 delay(uint32_t i, double ahead)
{
    double seconds = ahead + (double)(i * 2654435761u % 1000003) / 1000003 / 2;
    struct timespec64 when = {(int64_t)seconds, (int64_t)((seconds - (double)(int64_t)seconds) * 1e9)};
    return when;
}

static void enter(unsigned submit, unsigned wanted)
{
    if (cp_uring_enter(ring, submit, wanted, CP_ENTER_GETEVENTS, -1) < 0)
        die("io_uring_enter");
}

static void set_all(uint32_t count, double ahead)
{
    static struct timespec64 times[BATCH];
    for (uint32_t i = 0; i < count; i += BATCH) {
        uint32_t batch = count - i < BATCH ? count - i : BATCH;
        for (uint32_t j = 0; j < batch; j++) {
            times[j] = delay(i + j, ahead);
            add(OP_TIMEOUT, i + j + 1, &times[j]);
        }
        enter(batch, 0);
    }
}

static double kernel_memory(void)
{
    char line[128];
    double kilobytes = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file))
        sscanf(line, "Slab: %lf", &kilobytes);
    if (file)
        fclose(file);
    return kilobytes * 1024;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    uint32_t count = (uint32_t)atol(argv[1]), cancelled = (uint32_t)atol(argv[2]), found = 0;
    open_ring();
    double memory = kernel_memory(), start = now();
    set_all(count, 5);
    double set = now() - start;
    memory = kernel_memory() - memory;
    /* Each timer is an interrupt of its own: what counts is the processor's time. */
    struct timespec used[2];
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used[0]);
    while (found < count) {
        enter(0, 1);
        found += reap();
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used[1]);
    double fired = (double)(used[1].tv_sec - used[0].tv_sec) +
                   (double)(used[1].tv_nsec - used[0].tv_nsec) * 1e-9;
    set_all(count, 3600);
    start = now();
    for (uint32_t i = 0; i < cancelled; i++) {
        add(OP_TIMEOUT_REMOVE, (uint64_t)i * (count / cancelled) + 1, NULL);
        enter(1, 1);
        reap();
    }
    printf("{\"set_ns\": %.0f, \"fire_ns\": %.0f, \"cancel_ns\": %.0f, \"bytes_each\": %.0f}\n",
           set / count * 1e9, fired / count * 1e9, (now() - start) / cancelled * 1e9, memory / count);
    return 0;
}
