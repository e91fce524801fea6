/* A closed-loop load client: one thread, epoll, exactly one message in flight on each connection.
 *
 *   client HOST PORT CONNECTIONS SIZE SECONDS [WARMUP] [--server-pid PID]
 *   client --idle N HOST PORT
 *
 * The first form prints one JSON line. With --server-pid it also reads the server's CPU time at
 * the start and at the end of the measured time, so that connecting and warming up are left out.
 * The second form connects N clients, prints a line, holds them until its standard input closes,
 * then sends one byte on each and prints how many were lost.
 *
 * Exit status: 0 when all went well, 1 for any wrong or missing echo, 2 for wrong arguments.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 1024
#define CHUNK 65536
#define STALLED_NS 5000000000ull /* nothing at all came back for this long: the server hangs */

/* Latencies: 32 steps for each power of two, so a figure is within 3 % of the true one. */
#define STEP_BITS 5
#define STEPS (1 << STEP_BITS)
#define BUCKETS (64 * STEPS)

struct connection {
    int fd;
    uint32_t sequence; /* stamped into each message, so that an old echo is not taken for a new */
    size_t sent;
    size_t received;
    uint64_t started;
};

static struct connection *connections;
static size_t size;
static unsigned char *message; /* the bytes that every message has after its stamp */
static int epoll;
static uint64_t histogram[BUCKETS];

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("client: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned bucket_of(uint64_t value)
{
    if (value < STEPS)
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - STEP_BITS;
    return (shift + 1) * STEPS + (unsigned)((value >> shift) & (STEPS - 1));
}

/* The middle of a bucket. */
static double value_of(unsigned bucket)
{
    if (bucket < STEPS)
        return bucket;
    unsigned shift = bucket / STEPS - 1;
    return ((double)(STEPS + bucket % STEPS) + 0.5) * (double)(1ull << shift);
}

static double percentile(uint64_t count, double part)
{
    uint64_t wanted = (uint64_t)((double)count * part), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) > wanted)
            return value_of(i) / 1000.0;
    return 0;
}

/* CPU nanoseconds of all threads of a process. schedstat counts to the nanosecond; where the
 * kernel was built without it, utime and stime of the process are the next best. */
static uint64_t cpu_of(long pid)
{
    char path[64 + 256];
    uint64_t total = 0;
    int found = 0;
    snprintf(path, sizeof path, "/proc/%ld/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        die("no process %ld to measure: %s", pid, strerror(errno));
    for (struct dirent *task; (task = readdir(tasks));) {
        uint64_t nanoseconds;
        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%ld/task/%s/schedstat", pid, task->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            continue;
        if (fscanf(file, "%" SCNu64, &nanoseconds) == 1)
            total += nanoseconds, found = 1;
        fclose(file);
    }
    closedir(tasks);
    if (!found) {
        unsigned long user = 0, system = 0;
        snprintf(path, sizeof path, "/proc/%ld/stat", pid);
        FILE *file = fopen(path, "r");
        if (file) {
            /* The name in the second field may hold blanks, never a closing bracket at the end. */
            if (fscanf(file, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
                       &user, &system) != 2)
                user = system = 0;
            fclose(file);
        }
        total = (uint64_t)(user + system) * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
    }
    return total;
}

/* How busy this client is: near 1 it is the client that limits the rate, not the server. */
static uint64_t own_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void stamp(unsigned char *to, const struct connection *c)
{
    uint32_t marks[2] = {(uint32_t)(c - connections), c->sequence};
    memcpy(to, marks, size < sizeof marks ? size : sizeof marks);
}

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl: %s", strerror(errno));
}

/* Sends what the socket takes of the current message; the rest goes out when it is writable. */
static void send_some(struct connection *c)
{
    while (c->sent < size) {
        stamp(message, c);
        ssize_t n = send(c->fd, message + c->sent, size - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0)
            die("send: %s", strerror(errno));
        c->sent += (size_t)n;
    }
}

static void start_message(struct connection *c, uint64_t time)
{
    c->sequence++;
    c->sent = c->received = 0;
    c->started = time;
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
        size_t left = size - c->received;
        /* One byte more than is due is asked for, so that too long an echo is noticed as well. */
        asked = left + 1 < CHUNK ? left + 1 : CHUNK;
        n = recv(c->fd, chunk, asked, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            die("recv: %s", strerror(errno));
        if (n == 0)
            die("the server closed a connection");
        if ((size_t)n > left)
            die("more came back than was sent");
        if (c->received + (size_t)n > c->sent)
            die("an echo came before its message was sent");
        stamp(message, c);
        if (memcmp(chunk, message + c->received, (size_t)n))
            die("what came back is not what was sent");
        c->received += (size_t)n;
    } while (n < 0 || (size_t)n == asked);
    return c->received == size;
}

static int connect_one(const struct sockaddr *address, socklen_t length)
{
    int one = 1, fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (connect(fd, address, length))
        die("connect: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void connect_all(size_t count, const char *host, const char *port, uint32_t events)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(host, port, &hints, &found);
    if (error)
        die("%s port %s: %s", host, port, gai_strerror(error));
    for (size_t i = 0; i < count; i++) {
        connections[i].fd = connect_one(found->ai_addr, found->ai_addrlen);
        watch(&connections[i], events);
    }
    freeaddrinfo(found);
}

static void load(size_t count, double seconds, double warmup, long server, double connect_seconds)
{
    static struct epoll_event events[EVENTS];
    uint64_t requests = 0, worst = 0, cpu = 0, own = 0, time = now(), last = time;
    uint64_t begin = time + (uint64_t)(warmup * 1e9), end = begin + (uint64_t)(seconds * 1e9);
    int measuring = 0;
    for (size_t i = 0; i < count; i++)
        start_message(&connections[i], now());
    while (time < end) {
        int n = epoll_wait(epoll, events, EVENTS, 1000);
        if (n < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        time = now();
        if (n > 0)
            last = time;
        else if (time - last > STALLED_NS)
            die("the server does not answer any more");
        if (!measuring && time >= begin) {
            if (server)
                cpu = cpu_of(server);
            own = own_cpu();
            begin = time = now();
            end = begin + (uint64_t)(seconds * 1e9);
            measuring = 1;
        }
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            send_some(c);
            if (!(events[i].events & ~(uint32_t)EPOLLOUT) || !receive_some(c))
                continue;
            time = now();
            if (measuring) {
                uint64_t took = time - c->started;
                histogram[bucket_of(took)]++;
                worst = took > worst ? took : worst;
                requests++;
            }
            start_message(c, time);
        }
    }
    if (server)
        cpu = cpu_of(server) - cpu;
    own = own_cpu() - own;
    if (!requests)
        die("no echo came in the measured time");
    double took = (double)(time - begin) / 1e9;
    printf("{\"connections\": %zu, \"size\": %zu, \"requests\": %" PRIu64 ", \"seconds\": %.6f, "
           "\"rate\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
           "\"connect_seconds\": %.6f, \"client_load\": %.3f",
           count, size, requests, took, (double)requests / took, percentile(requests, 0.5),
           percentile(requests, 0.99), (double)worst / 1000.0, connect_seconds, (double)own / 1e9 / took);
    if (server)
        printf(", \"server_cpu_us\": %.4f", (double)cpu / 1e3 / (double)requests);
    puts("}");
}

/* One byte there and back on a connection; 0 when it does not come within five seconds. */
static int answers(struct connection *c)
{
    unsigned char out = (unsigned char)(c - connections), back = (unsigned char)~out;
    struct timeval limit = {.tv_sec = 5};
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return send(c->fd, &out, 1, MSG_NOSIGNAL) == 1 && recv(c->fd, &back, 1, 0) == 1 && out == back;
}

static void idle(size_t count, const char *host, const char *port)
{
    static struct epoll_event events[EVENTS];
    size_t lost = 0;
    uint64_t start = now();
    connect_all(count, host, port, EPOLLIN | EPOLLRDHUP);
    /* connect() returns before the server has accepted. Connections are accepted in the order
     * they came, so an answer on the last one says that the server has all of them. */
    double connected = (double)(now() - start) / 1e9;
    int served = answers(&connections[count - 1]);
    printf("{\"connections\": %zu, \"connect_seconds\": %.6f, \"served_seconds\": %.6f, "
           "\"served\": %s}\n",
           count, connected, (double)(now() - start) / 1e9, served ? "true" : "false");
    fflush(stdout);

    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event))
        die("the standard input must be a pipe or a terminal: %s", strerror(errno));
    for (int holding = 1; holding;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            char line[256];
            if (!c) {
                if (read(STDIN_FILENO, line, sizeof line) <= 0)
                    holding = 0;
                continue;
            }
            /* Nothing was asked, so whatever this is (a byte, the end, a reset) is a loss. */
            epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
            close(c->fd);
            c->fd = -1;
            lost++;
        }
    }
    size_t closed = lost;
    for (size_t i = 0; i < count; i++)
        if (connections[i].fd >= 0 && !answers(&connections[i])) {
            /* A server that is gone altogether should not cost five seconds for each of them. */
            if (++lost - closed >= 3) {
                lost += count - i - 1;
                break;
            }
        }
    printf("{\"connections\": %zu, \"lost\": %zu}\n", count, lost);
    if (lost)
        exit(1);
}

static double number(const char *text, const char *name, double least)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= least)) {
        fprintf(stderr, "client: %s must be a number of at least %g, not '%s'\n", name, least, text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    const char *plain[7];
    int plains = 0;
    long server = 0;
    size_t idlers = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--idle") && i + 1 < argc)
            idlers = (size_t)number(argv[++i], "--idle", 1);
        else if (!strcmp(argv[i], "--server-pid") && i + 1 < argc)
            server = (long)number(argv[++i], "--server-pid", 1);
        else if (plains < 6 && argv[i][0] != '-')
            plain[plains++] = argv[i];
        else
            plains = 7, i = argc;
    }
    if (idlers ? plains != 2 : plains != 5 && plains != 6) {
        fputs("usage: client HOST PORT CONNECTIONS SIZE SECONDS [WARMUP] [--server-pid PID]\n"
              "       client --idle N HOST PORT\n", stderr);
        return 2;
    }

    size_t count = idlers ? idlers : (size_t)number(plain[2], "CONNECTIONS", 1);
    size = idlers ? 1 : (size_t)number(plain[3], "SIZE", 1);
    double seconds = idlers ? 0 : number(plain[4], "SECONDS", 0.001);
    double warmup = plains == 6 ? number(plain[5], "WARMUP", 0) : 0;

    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        if (count + 16 > limit.rlim_cur)
            die("%zu connections need more descriptors than the limit of %ju", count,
                (uintmax_t)limit.rlim_cur);
    }
    connections = calloc(count, sizeof *connections);
    message = malloc(size);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !message || epoll < 0)
        die("%s", strerror(errno));
    for (size_t i = 0; i < size; i++)
        message[i] = (unsigned char)(i * 7 + i / 251);

    if (idlers) {
        idle(count, plain[0], plain[1]);
        return 0;
    }
    uint64_t start = now();
    connect_all(count, plain[0], plain[1], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    load(count, seconds, warmup, server, (double)(now() - start) / 1e9);
    return 0;
}
