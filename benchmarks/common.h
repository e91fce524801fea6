/* What the clients share: failing, the time, connecting, arguments. */
#ifndef COMMON_H
#define COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static inline uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* `type`: SOCK_STREAM or SOCK_DGRAM. */
static inline struct addrinfo *find_address(const char *host, const char *port, int type)
{
    struct addrinfo hints = {.ai_socktype = type}, *found;
    int error = getaddrinfo(host, port, &hints, &found);
    if (error)
        die("%s port %s: %s", host, port, gai_strerror(error));
    return found;
}

static inline int connect_one(const struct addrinfo *address)
{
    int one = 1, fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (connect(fd, address->ai_addr, address->ai_addrlen))
        die("connect: %s", strerror(errno));
    if (address->ai_socktype == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* Room for so many descriptors, or the end. */
static inline void raise_limit(size_t count)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (count + 16 > limit.rlim_cur)
        die("%zu connections need more descriptors than the limit of %ju", count,
            (uintmax_t)limit.rlim_cur);
}

static inline double number(const char *text, const char *name, double least)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= least)) {
        fprintf(stderr, "%s: %s must be a number of at least %g, not '%s'\n",
                program_invocation_short_name, name, least, text);
        exit(2);
    }
    return value;
}

#endif
