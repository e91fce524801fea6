/* A load client: one thread, epoll, at most one message in flight on each connection.
 *
 *   client HOST PORT CONNECTIONS SIZE SECONDS [WARMUP] [--server-pid PID]...
 *          [--slow-every N] [--rate R] [--udp] [--more N] [--reconnect]
 *
 * It prints one JSON line. It is a closed loop: each connection sends its next message when the
 * echo of the last one is there. With --server-pid, once for each process of the server,
 * it also reads the server's CPU time at the start and at the end of the measured time, so that
 * connecting and warming up are left out.
 *
 * --slow-every N marks every Nth message (counted over all connections) by 0xFF in byte 8, which
 * in the others is 0x38. It asks the server to block in its callback. The JSON then has the
 * latencies of the unmarked messages alone as well ("others_...").
 *
 * --rate R sends R messages a second in all, whatever the server does, each on the connection that
 * has been free for longest. Its latency counts from when it was due, also while all connections
 * were waiting: a server that stalls does not hold back the messages that would show it.
 * All that was due in the measured time is waited for, and counted.
 *
 * --udp sends each message as one datagram, from as many sockets as there would be connections. One
 * that is lost is noticed like any other echo that does not come.
 *
 * --more N expects N bytes of 0 behind each echo: an answer that is longer than its question.
 *
 * --reconnect closes each connection when its answer is there, and makes a new one for the next message,
 * whose latency counts from the connect.
 *
 * In both, what is in flight at the end is waited for, and 1 is the exit status when it does not
 * come. In the closed loop it counts for nothing but the longest latency.
 *
 * Exit status: 0 when all went well, 1 for any wrong or missing echo, 2 for wrong arguments.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"
#include "cpu_time.h"
#include "histogram.h"

#define EVENTS 1024
#define CHUNK 65536
#define STALLED_NS 5000000000ull /* nothing at all came back for this long: the server hangs */

#define MARK_AT 8 /* behind the stamp */
#define MARK 0xFF
#define SERVERS 64

struct connection {
    int fd;
    uint32_t sequence; /* stamped into each message, so that an old echo is not taken for a new */
    size_t sent;
    size_t received;
    uint64_t started; /* with --rate: when it was due */
    int waiting;      /* for the echo of its message */
    int slow;         /* its message is marked */
};

struct load {
    double seconds, warmup;
    uint64_t interval;   /* nanoseconds from one message to the next; 0 is the closed loop */
    long servers[SERVERS];
    int server_count;
};

static struct connection *connections;
static size_t size, answer;
static struct addrinfo *reconnect; /* NULL: connections are kept */
static unsigned char *message; /* the bytes that every message has after its stamp */
static int epoll;
static struct histogram all, others;
static uint64_t slow_every; /* 0: none is marked */
static uint64_t messages;   /* sent so far on all connections */
static int type = SOCK_STREAM;

/* Connections without a message in flight, the one that has been free for longest first. */
static struct {
    struct connection **ring;
    size_t size, first, count;
} unused;

static void stamp(unsigned char *to, const struct connection *c)
{
    uint32_t marks[2] = {(uint32_t)(c - connections), c->sequence};
    memcpy(to, marks, size < sizeof marks ? size : sizeof marks);
    if (slow_every)
        to[MARK_AT] = c->slow ? MARK : MARK_AT * 7;
}

/* Sends what the socket takes of the current message; the rest goes out when it is writable. */
static void send_some(struct connection *c)
{
    while (c->sent < size) {
        stamp(message, c);
        ssize_t n = send(c->fd, message + c->sent, size - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || (reconnect && errno == ENOTCONN)))
            return;
        if (n < 0)
            die("send: %s", strerror(errno));
        c->sent += (size_t)n;
    }
}

static void watch(struct connection *c)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl: %s", strerror(errno));
}

static void connect_again(struct connection *c)
{
    int on = 1;
    close(c->fd);
    c->fd = socket(reconnect->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, reconnect->ai_addr, reconnect->ai_addrlen) && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    watch(c);
}

static void start_message(struct connection *c, uint64_t time)
{
    if (reconnect && c->sequence)
        connect_again(c);
    c->sequence++;
    c->sent = c->received = 0;
    c->started = time;
    c->waiting = 1;
    c->slow = slow_every && ++messages % slow_every == 0;
    send_some(c);
}

/* True when the whole echo is there. Events are edge-triggered, which spares the kernel a second
 * look at each socket, so this reads until less came than was asked for. */
static int receive_some(struct connection *c)
{
    static unsigned char chunk[CHUNK];
    size_t asked;
    ssize_t n;
    do {
        size_t left = answer - c->received;
        /* One byte more than is due is asked for, so that too long an echo is noticed as well. */
        asked = left + 1 < CHUNK ? left + 1 : CHUNK;
        n = recv(c->fd, chunk, asked, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || (reconnect && errno == ENOTCONN)))
            break;
        if (n < 0)
            die("recv: %s", strerror(errno));
        if (n == 0)
            die("the server closed a connection");
        if ((size_t)n > left)
            die("more came back than was sent");
        if (c->received + (size_t)n > c->sent + answer - size)
            die("an echo came before its message was sent");
        stamp(message, c);
        if (memcmp(chunk, message + c->received, (size_t)n))
            die("what came back is not what was sent");
        c->received += (size_t)n;
    } while (n < 0 || (size_t)n == asked);
    return c->received == answer;
}

static void connect_all(size_t count, const char *host, const char *port)
{
    struct addrinfo *address = find_address(host, port, type);
    for (size_t i = 0; i < count; i++) {
        connections[i].fd = connect_one(address);
        watch(&connections[i]);
    }
    if (reconnect)
        reconnect = address;
    else
        freeaddrinfo(address);
}

static void set_free(struct connection *c)
{
    c->sent = size; /* nothing left to send */
    unused.ring[(unused.first + unused.count++) % unused.size] = c;
}

static struct connection *take_free(void)
{
    struct connection *c = unused.ring[unused.first];
    unused.first = (unused.first + 1) % unused.size;
    unused.count--;
    return c;
}

/* Waits for events, not longer than until `due`. */
static int wait_events(struct epoll_event *events, uint64_t due)
{
    int n;
    if (due) {
        /* epoll_wait counts in milliseconds: too coarse for some thousands a second. */
        uint64_t time = now(), left = due > time ? due - time : 0;
        struct timespec limit = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        struct pollfd readable = {.fd = epoll, .events = POLLIN};
        ppoll(&readable, 1, &limit, NULL);
        n = epoll_wait(epoll, events, EVENTS, 0);
    } else
        n = epoll_wait(epoll, events, EVENTS, 1000);
    if (n < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    return n;
}

static uint64_t servers_cpu(const struct load *l)
{
    uint64_t total = 0;
    for (int i = 0; i < l->server_count; i++) {
        int64_t cpu = cpu_of(l->servers[i]);
        if (cpu < 0)
            die("no process %ld to measure: %s", l->servers[i], strerror(errno));
        total += (uint64_t)cpu;
    }
    return total;
}

static void print_latencies(const char *prefix, const struct histogram *h)
{
    printf(", \"%sp50_us\": %.1f, \"%sp99_us\": %.1f, \"%smax_us\": %.1f", prefix,
           percentile(h, 0.5), prefix, percentile(h, 0.99), prefix, (double)h->most / 1000.0);
}

struct figures {
    uint64_t requests, slow, cpu, own;
    double seconds;
};

/* What was spent since `begin`, and how much was done. */
static struct figures figures_at(const struct load *l, uint64_t time, uint64_t begin)
{
    return (struct figures){all.count, all.count - others.count, servers_cpu(l), own_cpu(),
                            (double)(time - begin) / 1e9};
}

static void echoed(struct connection *c, uint64_t time, int over)
{
    uint64_t took = time - c->started;
    struct histogram *counted[] = {&all, c->slow ? NULL : &others};
    for (int i = 0; i < 2; i++)
        if (counted[i] && over)
            longest(counted[i], took);
        else if (counted[i])
            count_latency(counted[i], took);
}

static void load(const struct load *l, size_t count, double connect_seconds)
{
    static struct epoll_event events[EVENTS];
    const uint64_t interval = l->interval;
    uint64_t time = now(), last = time, due = time;
    uint64_t begin = time + (uint64_t)(l->warmup * 1e9), end = begin + (uint64_t)(l->seconds * 1e9);
    struct figures before = {0}, after = {0};
    int measuring = 0, over = 0;
    for (size_t i = 0; i < count; i++)
        if (interval)
            set_free(&connections[i]);
        else
            start_message(&connections[i], now());
    /* What is in flight at the end is waited for: a message that the server has lost, or a
     * connection that it forgets over the others, does not go unseen. */
    while (time < end || unused.count < count || (interval && due < end)) {
        int sending = interval && due < end && unused.count;
        int n = wait_events(events, sending ? due : 0);
        time = now();
        if (n > 0 || unused.count == count)
            last = time;
        else if (time - last > STALLED_NS)
            die("the server does not answer any more: %zu messages of %zu connections",
                count - unused.count, count);
        if (!measuring && time >= begin) {
            before = figures_at(l, 0, 0);
            begin = time = now();
            end = begin + (uint64_t)(l->seconds * 1e9);
            measuring = 1;
        }
        if (!interval && !over && time >= end) {
            after = figures_at(l, time, begin);
            over = 1;
        }
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            send_some(c);
            if (!(events[i].events & ~(uint32_t)EPOLLOUT) || !receive_some(c) || !c->waiting)
                continue;
            time = now();
            c->waiting = 0;
            if (measuring && !(interval && c->started < begin))
                echoed(c, time, over);
            if (interval || over)
                set_free(c);
            else
                start_message(c, time);
        }
        for (; interval && unused.count && due <= time && due < end; due += interval)
            start_message(take_free(), due);
    }
    if (!over)
        after = figures_at(l, time, begin);
    if (!after.requests)
        die("no echo came in the measured time");
    double own = (double)(after.own - before.own) / 1e9;
    printf("{\"connections\": %zu, \"size\": %zu, \"requests\": %" PRIu64 ", \"seconds\": %.6f, "
           "\"rate\": %.1f, \"connect_seconds\": %.6f, \"client_load\": %.3f",
           count, size, after.requests, after.seconds, (double)after.requests / after.seconds,
           connect_seconds, own / after.seconds);
    print_latencies("", &all);
    if (slow_every) {
        printf(", \"slow\": %" PRIu64, after.slow);
        print_latencies("others_", &others);
    }
    if (l->server_count)
        printf(", \"server_cpu_us\": %.4f",
               (double)(after.cpu - before.cpu) / 1e3 / (double)after.requests);
    puts("}");
}

int main(int argc, char **argv)
{
    const char *plain[7];
    int plains = 0;
    struct load l = {0};
    static struct addrinfo unknown; /* until `connect_all` */
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--server-pid") && i + 1 < argc && l.server_count < SERVERS)
            l.servers[l.server_count++] = (long)number(argv[++i], "--server-pid", 1);
        else if (!strcmp(argv[i], "--slow-every") && i + 1 < argc)
            slow_every = (uint64_t)number(argv[++i], "--slow-every", 1);
        else if (!strcmp(argv[i], "--rate") && i + 1 < argc)
            l.interval = (uint64_t)(1e9 / number(argv[++i], "--rate", 1));
        else if (!strcmp(argv[i], "--udp"))
            type = SOCK_DGRAM;
        else if (!strcmp(argv[i], "--more") && i + 1 < argc)
            answer = (size_t)number(argv[++i], "--more", 0);
        else if (!strcmp(argv[i], "--reconnect"))
            reconnect = &unknown;
        else if (plains < 6 && argv[i][0] != '-')
            plain[plains++] = argv[i];
        else
            plains = 7, i = argc;
    }
    if (plains != 5 && plains != 6) {
        fputs("usage: client HOST PORT CONNECTIONS SIZE SECONDS [WARMUP] [--server-pid PID]...\n"
              "              [--slow-every N] [--rate R] [--udp] [--more N] [--reconnect]\n",
              stderr);
        return 2;
    }

    size_t count = (size_t)number(plain[2], "CONNECTIONS", 1);
    size = (size_t)number(plain[3], "SIZE", slow_every ? MARK_AT + 1 : 1);
    answer += size;
    l.seconds = number(plain[4], "SECONDS", 0.001);
    l.warmup = plains == 6 ? number(plain[5], "WARMUP", 0) : 0;

    raise_limit(count);
    connections = calloc(count, sizeof *connections);
    unused.ring = calloc(count, sizeof *unused.ring);
    unused.size = count;
    message = calloc(1, answer);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !unused.ring || !message || epoll < 0)
        die("%s", strerror(errno));
    for (size_t i = 0; i < size; i++)
        message[i] = (unsigned char)(i * 7 + i / 251);

    prctl(PR_SET_TIMERSLACK, 1ul); /* the kernel's default is 50 us late */
    uint64_t start = now();
    connect_all(count, plain[0], plain[1]);
    load(&l, count, (double)(now() - start) / 1e9);
    return 0;
}
