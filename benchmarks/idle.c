/* Clients that say nothing: connects N of them, prints a JSON line, holds them until its standard
 * input closes, then sends one byte on each and prints how many were lost.
 *
 *   idle N HOST PORT
 *
 * Exit status: 0 when all went well, 1 for a lost connection, 2 for wrong arguments.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#include "common.h"

#define EVENTS 1024

struct connection {
    int fd;
};

static struct connection *connections;
static int epoll;

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
    struct addrinfo *address = find_address(host, port, SOCK_STREAM);
    for (size_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = &connections[i]};
        connections[i].fd = connect_one(address);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event))
            die("epoll_ctl: %s", strerror(errno));
    }
    freeaddrinfo(address);
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

int main(int argc, char **argv)
{
    if (argc != 4) {
        fputs("usage: idle N HOST PORT\n", stderr);
        return 2;
    }
    size_t count = (size_t)number(argv[1], "N", 1);
    raise_limit(count);
    connections = calloc(count, sizeof *connections);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || epoll < 0)
        die("%s", strerror(errno));
    idle(count, argv[2], argv[3]);
    return 0;
}
