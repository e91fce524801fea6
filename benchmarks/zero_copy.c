/* Whether zero-copy sends are worth it here: IORING_OP_SEND and IORING_OP_SEND_ZC in turn.
 *
 *   zero_copy SIZE [ROUNDS]
 *
 * It sends 512 MiB over loopback in pieces of SIZE bytes, one at a time, to a reader on another core,
 * and prints one JSON line: MiB a second and CPU for each MiB of both, medians of the rounds.
 * A zero-copy send counts as done with its notification: only then the buffer is free again.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "../src/completionport/native/engines/uring_abi.h"
#include "common.h"
#include "cpu_time.h"

#define TOTAL (512u << 20)
#define MOST_ROUNDS 99

enum { OP_SEND_ZC = 47, CQE_F_NOTIF = 1 << 3 };

static struct {
    int fd;
    char *rings;
    struct cp_sqe *sqes;
    struct cp_uring_params params;
} ring;

static uint32_t *word(uint32_t offset)
{
    return (uint32_t *)(ring.rings + offset);
}

static void open_ring(void)
{
    ring.params.flags = CP_SETUP_COOP_TASKRUN;
    ring.fd = cp_uring_setup(8, &ring.params);
    if (ring.fd < 0)
        die("io_uring_setup: %s", strerror(-ring.fd));
    size_t size = ring.params.cq_off.cqes + ring.params.cq_entries * sizeof(struct cp_cqe);
    ring.rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, CP_OFF_SQ_RING);
    ring.sqes = mmap(NULL, ring.params.sq_entries * sizeof(struct cp_sqe), PROT_READ | PROT_WRITE,
                     MAP_SHARED, ring.fd, CP_OFF_SQES);
    if (ring.rings == MAP_FAILED || ring.sqes == MAP_FAILED)
        die("mmap: %s", strerror(errno));
    for (uint32_t i = 0; i < ring.params.sq_entries; i++)
        word(ring.params.sq_off.array)[i] = i;
}

/* Waits for a completion and takes it. */
static struct cp_cqe next_completion(void)
{
    uint32_t *head = word(ring.params.cq_off.head), *tail = word(ring.params.cq_off.tail);
    while (*head == __atomic_load_n(tail, __ATOMIC_ACQUIRE)) {
        int result = cp_uring_enter(ring.fd, 0, 1, CP_ENTER_GETEVENTS, -1);
        if (result < 0 && result != -EINTR)
            die("io_uring_enter: %s", strerror(-result));
    }
    struct cp_cqe *cqes = (struct cp_cqe *)(ring.rings + ring.params.cq_off.cqes);
    struct cp_cqe found = cqes[*head & (ring.params.cq_entries - 1)];
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return found;
}

static void send_piece(int fd, const char *data, size_t size, int zero_copy)
{
    uint32_t *tail = word(ring.params.sq_off.tail);
    struct cp_sqe *sqe = &ring.sqes[*tail & (ring.params.sq_entries - 1)];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = zero_copy ? OP_SEND_ZC : CP_OP_SEND;
    sqe->fd = fd;
    sqe->addr = (uintptr_t)data;
    sqe->len = (uint32_t)size;
    sqe->op_flags = MSG_WAITALL | MSG_NOSIGNAL;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    int result = cp_uring_enter(ring.fd, 1, 1, CP_ENTER_GETEVENTS, -1);
    if (result < 0 && result != -EINTR)
        die("io_uring_enter: %s", strerror(-result));
    struct cp_cqe cqe = next_completion();
    if (cqe.res != (int32_t)size)
        die("send: %s", cqe.res < 0 ? strerror(-cqe.res) : "not all was taken");
    while (cqe.flags & CP_CQE_F_MORE)
        cqe = next_completion();
}

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set); /* with one processor it has no effect */
}

static void *drain(void *listener)
{
    static char space[1 << 20];
    pin(1);
    for (;;) {
        int fd = accept(*(int *)listener, NULL, NULL);
        while (recv(fd, space, sizeof space, 0) > 0)
            ;
        if (write(fd, ".", 1) != 1)
            die("write: %s", strerror(errno));
        close(fd);
    }
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_size);
    return values[count / 2];
}

static double thread_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fputs("usage: zero_copy SIZE [ROUNDS]\n", stderr);
        return 2;
    }
    size_t size = (size_t)number(argv[1], "SIZE", 1);
    int rounds = argc > 2 ? (int)number(argv[2], "ROUNDS", 1) : 5;
    if (rounds > MOST_ROUNDS)
        rounds = MOST_ROUNDS;
    double rate[2][MOST_ROUNDS], cpu[2][MOST_ROUNDS];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pthread_t reader;
    char *data = malloc(size);
    if (listener < 0 || !data || bind(listener, (struct sockaddr *)&address, sizeof address) ||
        listen(listener, 8) || getsockname(listener, (struct sockaddr *)&address, &length) ||
        pthread_create(&reader, NULL, drain, &listener))
        die("%s", strerror(errno));
    memset(data, 'x', size);
    open_ring();
    pin(0);
    for (int i = 0; i < 2 * rounds; i++) {
        int zero_copy = (i + i / 2) % 2, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char answer;
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
            die("connect: %s", strerror(errno));
        uint64_t start = now();
        double spent = thread_cpu();
        for (size_t sent = 0; sent < TOTAL; sent += size)
            send_piece(fd, data, size, zero_copy);
        shutdown(fd, SHUT_WR);
        if (recv(fd, &answer, 1, 0) != 1)
            die("the reader did not answer");
        double mebibytes = (double)TOTAL / (1 << 20);
        rate[zero_copy][i / 2] = mebibytes / ((double)(now() - start) / 1e9);
        cpu[zero_copy][i / 2] = (thread_cpu() - spent) * 1e6 / mebibytes;
        close(fd);
    }
    printf("{\"size\": %zu, \"send_rate\": %.0f, \"zero_copy_rate\": %.0f, "
           "\"send_cpu_us\": %.1f, \"zero_copy_cpu_us\": %.1f}\n",
           size, median(rate[0], rounds), median(rate[1], rounds), median(cpu[0], rounds),
           median(cpu[1], rounds));
    return 0;
}
