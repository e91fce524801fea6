/* What the steps of the scheduler and of the kernel cost on this machine, one JSON object.
 *
 *     measure_costs CORE OTHER_CORE
 *
 * measure_costs.py builds and calls this. Each figure is the median of many short measurements:
 * on a virtual machine the mean is mostly about the neighbours.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "atomics.h"
#include "uring_abi.h"

enum { PAIRS = 32, SIZE = 100, ENTRIES = 256, ROUNDS = 400, WAKES = 500 };

struct ring {
    int fd;
    cp_mutex lock;
    uint32_t *sq_tail, *cq_head, *cq_tail, sq_mask;
    struct cp_sqe *sqes;
};

struct side {
    int core, near[PAIRS], far[PAIRS];
    char data[PAIRS][SIZE];
    struct ring own, *ring;
};

static struct side sides[2];
static int cores[2];
static uint32_t turn, parked, woken_word;
static int64_t woken_at;
static int arrived, generation;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[count / 2];
}

static void report(const char *name, double ns)
{
    static const char *before = "{";
    printf("%s\"%s\": %.4f", before, name, ns / 1000);
    before = ", ";
}

/* -- locks and cache lines ---------------------------------------------------------------------- */

static double lock_alone(void)
{
    static cp_mutex mutex;
    double values[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        int64_t start = cp_now_ns();
        for (int i = 0; i < 1000; i++) {
            cp_mutex_lock(&mutex);
            cp_mutex_unlock(&mutex);
        }
        values[round] = (double)(cp_now_ns() - start) / 1000;
    }
    return median(values, ROUNDS);
}

static void *answer_turns(void *unused)
{
    (void)unused;
    pin(cores[1]);
    for (uint32_t i = 1; i < ROUNDS * 200; i += 2) {
        while (cp_load_acquire(&turn) != i)
            ;
        cp_store_release(&turn, i + 1);
    }
    return NULL;
}

/* One way: a line that was written on one core is read on another. */
static double line_transfer(void)
{
    double values[ROUNDS];
    pthread_t other;
    pthread_create(&other, NULL, answer_turns, NULL);
    for (int round = 0; round < ROUNDS; round++) {
        int64_t start = cp_now_ns();
        for (int i = 0; i < 100; i++) {
            uint32_t value = (uint32_t)(round * 200 + i * 2);
            cp_store_release(&turn, value + 1);
            while (cp_load_acquire(&turn) != value + 2)
                ;
        }
        values[round] = (double)(cp_now_ns() - start) / 200;
    }
    pthread_join(other, NULL);
    return median(values, ROUNDS);
}

/* -- waking ------------------------------------------------------------------------------------- */

static void *be_woken(void *unused)
{
    (void)unused;
    pin(cores[1]);
    for (uint32_t i = 0; i < WAKES; i++) {
        cp_store_release(&parked, i + 1);
        while (cp_load_acquire(&woken_word) == i)
            cp_futex_wait(&woken_word, i, -1);
        woken_at = cp_now_ns();
    }
    cp_store_release(&parked, WAKES + 1);
    return NULL;
}

/* The other thread has slept for `ns`: its core has gone idle by then, deeper the longer it is. */
static void wakes(int64_t ns, double *call, double *latency)
{
    double calls[WAKES], latencies[WAKES];
    pthread_t other;
    cp_store_release(&woken_word, 0);
    cp_store_release(&parked, 0);
    pthread_create(&other, NULL, be_woken, NULL);
    for (uint32_t i = 0; i < WAKES; i++) {
        while (cp_load_acquire(&parked) != i + 1)
            ;
        int64_t start, until = cp_now_ns() + ns;
        while ((start = cp_now_ns()) < until)
            cp_pause();
        cp_store_release(&woken_word, i + 1);
        cp_futex_wake(&woken_word, 1);
        calls[i] = (double)(cp_now_ns() - start);
        while (cp_load_acquire(&parked) != i + 2)
            ;
        latencies[i] = (double)(woken_at - start);
    }
    pthread_join(other, NULL);
    *call = median(calls, WAKES);
    *latency = median(latencies, WAKES);
}

/* -- the kernel's part -------------------------------------------------------------------------- */

static void open_ring(struct ring *ring)
{
    struct cp_uring_params p = {
        .flags = CP_SETUP_CQSIZE | CP_SETUP_SUBMIT_ALL | CP_SETUP_COOP_TASKRUN,
        .cq_entries = 4 * ENTRIES};
    ring->fd = cp_uring_setup(ENTRIES, &p);
    if (ring->fd < 0)
        return;
    char *base = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct cp_cqe),
                      PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, CP_OFF_SQ_RING);
    ring->sqes = mmap(NULL, p.sq_entries * sizeof(struct cp_sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                      ring->fd, CP_OFF_SQES);
    if (base == MAP_FAILED || ring->sqes == MAP_FAILED)
        die("mmap");
    ring->sq_tail = (uint32_t *)(base + p.sq_off.tail);
    ring->cq_head = (uint32_t *)(base + p.cq_off.head);
    ring->cq_tail = (uint32_t *)(base + p.cq_off.tail);
    ring->sq_mask = p.sq_entries - 1;
    for (uint32_t i = 0; i < p.sq_entries; i++)
        ((uint32_t *)(base + p.sq_off.array))[i] = i;
}

static void submit(struct side *side, int opcode, int count)
{
    struct ring *ring = side->ring;
    cp_mutex_lock(&ring->lock);
    uint32_t tail = *ring->sq_tail;
    for (int i = 0; i < count; i++, tail++) {
        struct cp_sqe *sqe = &ring->sqes[tail & ring->sq_mask];
        memset(sqe, 0, sizeof *sqe);
        sqe->opcode = (uint8_t)opcode;
        sqe->fd = opcode == CP_OP_NOP ? -1 : side->near[i];
        if (opcode != CP_OP_NOP) {
            sqe->addr = (uintptr_t)side->data[i];
            sqe->len = SIZE;
        }
    }
    cp_store_release(ring->sq_tail, tail);
    cp_mutex_unlock(&ring->lock);
    cp_uring_enter(ring->fd, (unsigned)count, 0, CP_ENTER_GETEVENTS, -1);
}

static void forget_completions(struct ring *ring)
{
    cp_mutex_lock(&ring->lock);
    cp_store_release(ring->cq_head, cp_load_acquire(ring->cq_tail));
    cp_mutex_unlock(&ring->lock);
}

static double enter_with(int count)
{
    double values[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        int64_t start = cp_now_ns();
        submit(&sides[0], CP_OP_NOP, count);
        values[round] = (double)(cp_now_ns() - start);
        forget_completions(sides[0].ring);
    }
    return median(values, ROUNDS);
}

/* One call that finds `count` sockets readable. */
static double epoll_with(int count)
{
    double values[ROUNDS];
    struct epoll_event events[PAIRS], event = {.events = EPOLLIN};
    int epoll = epoll_create1(0), files[PAIRS];
    for (int i = 0; i < count; i++) {
        files[i] = eventfd(1, EFD_NONBLOCK);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, files[i], &event))
            die("epoll_ctl");
    }
    for (int round = 0; round < ROUNDS; round++) {
        int64_t start = cp_now_ns();
        if (epoll_wait(epoll, events, PAIRS, 0) != count)
            die("epoll_wait");
        values[round] = (double)(cp_now_ns() - start);
    }
    for (int i = 0; i < count; i++)
        close(files[i]);
    close(epoll);
    return median(values, ROUNDS);
}

static void connect_pairs(struct side *side)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, size) || listen(listener, PAIRS) ||
        getsockname(listener, (void *)&address, &size))
        die("listen");
    for (int i = 0; i < PAIRS; i++) {
        side->far[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(side->far[i], (void *)&address, size))
            die("connect");
        side->near[i] = accept(listener, NULL, NULL);
        setsockopt(side->far[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(side->near[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    close(listener);
}

static void barrier(int threads)
{
    int now = cp_load_acquire(&generation);
    if (cp_add_fetch(&arrived, 1) == threads) {
        cp_store_release(&arrived, 0);
        cp_store_release(&generation, now + 1);
    } else {
        while (cp_load_acquire(&generation) == now)
            cp_pause();
    }
}

enum kind { CALLS, RING };
struct job {
    struct side *side;
    enum kind kind;
    int sends, threads;
    double values[ROUNDS];
};

static void move(int *files, char (*data)[SIZE], int sends)
{
    for (int i = 0; i < PAIRS; i++)
        if ((sends ? send(files[i], data[i], SIZE, MSG_NOSIGNAL)
                   : recv(files[i], data[i], SIZE, MSG_DONTWAIT)) != SIZE)
            die(sends ? "send" : "recv");
}

/* Receives or sends on all sockets at the same time as the other thread, if there is one. */
static void *transfer(void *argument)
{
    struct job *job = argument;
    struct side *side = job->side;
    pin(side->core);
    for (int round = 0; round < ROUNDS; round++) {
        if (!job->sends)
            move(side->far, side->data, 1);
        barrier(job->threads);
        int64_t start = cp_now_ns();
        if (job->kind == RING)
            submit(side, job->sends ? CP_OP_SEND : CP_OP_RECV, PAIRS);
        else
            move(side->near, side->data, job->sends);
        barrier(job->threads);
        job->values[round] = (double)(cp_now_ns() - start) / (PAIRS * job->threads);
        if (job->kind == RING)
            forget_completions(side->ring);
        if (job->sends)
            move(side->far, side->data, 0);
    }
    return NULL;
}

/* Time for each of all requests together: half as long with two threads, if they don't wait. */
static double transfers(enum kind kind, int sends, int threads, int one_ring)
{
    static struct job jobs[2];
    pthread_t other;
    for (int i = 0; i < 2; i++) {
        sides[i].ring = one_ring ? &sides[0].own : &sides[i].own;
        jobs[i].side = &sides[i];
        jobs[i].kind = kind;
        jobs[i].sends = sends;
        jobs[i].threads = threads;
    }
    if (threads == 2)
        pthread_create(&other, NULL, transfer, &jobs[1]);
    transfer(&jobs[0]);
    if (threads == 2)
        pthread_join(other, NULL);
    return median(jobs[0].values, ROUNDS);
}

int main(int argc, char **argv)
{
    double call, latency, one;
    if (argc != 3) {
        fputs("usage: measure_costs CORE OTHER_CORE\n", stderr);
        return 2;
    }
    for (int i = 0; i < 2; i++) {
        sides[i].core = cores[i] = atoi(argv[i + 1]);
        connect_pairs(&sides[i]);
        open_ring(&sides[i].own);
        sides[i].ring = &sides[i].own;
    }
    pin(cores[0]);
    report("lock", lock_alone());
    report("line_transfer", line_transfer());
    wakes(30000, &call, &latency);
    report("wake_call", call);
    report("wake_latency", latency);
    wakes(500000, &call, &latency);
    report("wake_call_after_500_us", call);
    report("wake_latency_after_500_us", latency);
    one = epoll_with(1);
    report("epoll_wait", one);
    report("epoll_event", (epoll_with(PAIRS) - one) / (PAIRS - 1));
    report("receive", transfers(CALLS, 0, 1, 0));
    report("send", transfers(CALLS, 1, 1, 0));
    report("receive_two_threads", transfers(CALLS, 0, 2, 0));
    report("send_two_threads", transfers(CALLS, 1, 2, 0));
    if (sides[0].own.fd >= 0 && sides[1].own.fd >= 0) {
        one = enter_with(1);
        report("ring_enter", one);
        report("ring_request", (enter_with(PAIRS) - one) / (PAIRS - 1));
        report("ring_receive", transfers(RING, 0, 1, 0));
        report("ring_send", transfers(RING, 1, 1, 0));
        report("ring_receive_shared", transfers(RING, 0, 2, 1));
        report("ring_send_shared", transfers(RING, 1, 2, 1));
        report("ring_receive_two_rings", transfers(RING, 0, 2, 0));
        report("ring_send_two_rings", transfers(RING, 1, 2, 0));
    }
    puts("}");
    return 0;
}
