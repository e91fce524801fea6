/* For tests/test_injected_faults.py, by LD_PRELOAD: calls that the library's own modules make fail now and
 * then, or come back short, as the system's may at any time. Calls of the interpreter and of the tests do not.
 *
 * Each decision is a number made of the seed and of how many were made before, so that a run can be
 * repeated as far as its threads come in the same order.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __NR_epoll_pwait2
#define __NR_epoll_pwait2 441
#endif

enum { MOST_RANGES = 512 };
/* Written by `faults_find`, before there are faults. */
static struct { uintptr_t begin, end; } ranges[MOST_RANGES];
static int range_count;
/* Atomic. */
static uint64_t decisions, seed;
static int one_in, told[16];

enum { MEMORY, MAP, SEND, RECV, ACCEPT, ENTER, WAIT, READ, WRITE, THREAD };

static int note_range(struct dl_phdr_info *info, size_t size, void *part)
{
    int i;
    (void)size;
    if (!info->dlpi_name || !strstr(info->dlpi_name, part))
        return 0;
    for (i = 0; i < info->dlpi_phnum && range_count < MOST_RANGES; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            ranges[range_count].begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            ranges[range_count].end = ranges[range_count].begin + info->dlpi_phdr[i].p_memsz;
            range_count++;
        }
    return 0;
}

/* Find the modules whose path has `part` in it: how many pieces of code. */
int faults_find(const char *part)
{
    range_count = 0;
    dl_iterate_phdr(note_range, (void *)part);
    return range_count;
}

/* From now on about one in so many calls fails; 0: none. */
void faults_begin(uint64_t with_seed, int rate)
{
    __atomic_store_n(&seed, with_seed, __ATOMIC_RELAXED);
    __atomic_store_n(&one_in, rate, __ATOMIC_RELEASE);
}

/* How many calls of a kind have failed so far. */
int faults_told(int kind) { return __atomic_load_n(&told[kind], __ATOMIC_RELAXED); }

static uint64_t mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* 0, or a number to choose the fault by. `rarer`: so many times more seldom than the rate says. */
static uint64_t fault(int kind, void *caller, int rarer)
{
    int rate = __atomic_load_n(&one_in, __ATOMIC_ACQUIRE), i;
    uint64_t number;
    if (rate == 0)
        return 0;
    for (i = 0; i < range_count; i++)
        if ((uintptr_t)caller - ranges[i].begin < ranges[i].end - ranges[i].begin)
            break;
    if (i == range_count)
        return 0;
    number = mixed(seed ^ mixed(__atomic_fetch_add(&decisions, 1, __ATOMIC_RELAXED)));
    if (number % ((uint64_t)rate * rarer) != 0)
        return 0;
    __atomic_fetch_add(&told[kind], 1, __ATOMIC_RELAXED);
    return number / ((uint64_t)rate * rarer) | 1ull << 40;
}

#define FAULT(kind, rarer) fault(kind, __builtin_return_address(0), rarer)
#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static long refuse(const int *errors, int count, uint64_t number)
{
    errno = errors[number % count];
    return -1;
}

#define REFUSE(number, ...) \
    refuse((const int[]){__VA_ARGS__}, sizeof((int[]){__VA_ARGS__}) / sizeof(int), number)

/* dlsym itself may allocate, so that memory goes to the C library by its other names. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

void *malloc(size_t size)
{
    if (FAULT(MEMORY, 1)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    if (FAULT(MEMORY, 1)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    if (FAULT(MEMORY, 1)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(block, size);
}

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
{
    REAL(mmap);
    if (FAULT(MAP, 1)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(address, size, protection, flags, descriptor, offset);
}

ssize_t send(int descriptor, const void *data, size_t size, int flags)
{
    REAL(send);
    uint64_t number = FAULT(SEND, 1);
    if (number && number % 3 == 0)
        return REFUSE(number / 3, EINTR, EINTR, ENOBUFS, ENOMEM);
    if (number && size > 1)
        size = 1 + number / 3 % (size - 1);
    return real(descriptor, data, size, flags);
}

ssize_t recv(int descriptor, void *data, size_t size, int flags)
{
    REAL(recv);
    uint64_t number = FAULT(RECV, 1);
    if (number && number % 3 == 0)
        return REFUSE(number / 3, EINTR, EINTR, EINTR, ENOMEM);
    if (number && size > 1)
        size = 1 + number / 3 % (size - 1);
    return real(descriptor, data, size, flags);
}

int accept4(int descriptor, struct sockaddr *address, socklen_t *size, int flags)
{
    REAL(accept4);
    uint64_t number = FAULT(ACCEPT, 1);
    if (number)
        return (int)REFUSE(number, EINTR, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM);
    return real(descriptor, address, size, flags);
}

ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    uint64_t number = FAULT(SEND, 1);
    if (number)
        return REFUSE(number, EINTR, EINTR, ENOBUFS, ENOMEM);
    return real(descriptor, message, flags);
}

int recvmmsg(
    int descriptor, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    REAL(recvmmsg);
    uint64_t number = FAULT(RECV, 1);
    if (number && number % 2)
        return (int)REFUSE(number / 2, EINTR, EINTR, ENOBUFS, ENOMEM);
    return real(descriptor, messages, number && count > 1 ? 1 : count, flags, timeout);
}

int epoll_ctl(int epoll, int command, int descriptor, struct epoll_event *event)
{
    REAL(epoll_ctl);
    uint64_t number = command == EPOLL_CTL_ADD ? FAULT(MAP, 1) : 0;
    if (number)
        return (int)REFUSE(number, ENOMEM, ENOSPC);
    return real(epoll, command, descriptor, event);
}

int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout)
{
    REAL(epoll_wait);
    uint64_t number = FAULT(WAIT, 1);
    if (number && number % 2)
        return (int)REFUSE(number, EINTR);
    return real(epoll, events, number && count > 1 ? 1 : count, timeout);
}

ssize_t read(int descriptor, void *data, size_t size)
{
    REAL(read);
    uint64_t number = FAULT(READ, 1);
    if (number && number % 3 == 0)
        return REFUSE(number, EINTR);
    return real(descriptor, data, number && size > 8 ? 1 + number % (size - 1) : size);
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    REAL(write);
    uint64_t number = FAULT(WRITE, 1);
    if (number && number % 3 == 0)
        return REFUSE(number, EINTR);
    return real(descriptor, data, number && size > 8 ? 1 + number % (size - 1) : size);
}

int pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument)
{
    REAL(pthread_create);
    if (FAULT(THREAD, 1))
        return EAGAIN;
    return real(thread, attributes, body, argument);
}

long syscall(long call, ...)
{
    long a[6];
    int i;
    va_list list;
    REAL(syscall);
    uint64_t number = 0;
    va_start(list, call);
    for (i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (call == __NR_io_uring_enter && (number = FAULT(ENTER, 1)) != 0) {
        if (number % 2)
            return REFUSE(number / 2, EINTR, EAGAIN, EBUSY, ENOMEM);
        if (a[1] > 1)
            a[1] = 1 + number / 2 % (a[1] - 1);
    } else if (call == __NR_epoll_pwait2 && (number = FAULT(WAIT, 1)) != 0) {
        if (number % 2)
            return REFUSE(number, EINTR);
        a[2] = 1;
    }
    return real(call, a[0], a[1], a[2], a[3], a[4], a[5]);
}
