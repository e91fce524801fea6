/* What one thread can learn of another: how much it has run, and whether it wants to. */
#ifndef COMPLETIONPORT_THREAD_CLOCK_H
#define COMPLETIONPORT_THREAD_CLOCK_H

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline int cp_own_clock(void)
{
    clockid_t clock;
    return pthread_getcpuclockid(pthread_self(), &clock) == 0 ? (int)clock : -1;
}

static inline int cp_own_number(void)
{
    return (int)syscall(SYS_gettid);
}

/* Nanoseconds on a processor so far, -1 when it can't be told. */
static inline int64_t cp_clock_ns(int clock)
{
    struct timespec now;
    if (clock_gettime((clockid_t)clock, &now) != 0)
        return -1;
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Reads a file of a thread of this process into `text`, ended by a 0; false when it can't be read. */
static inline int cp_read_of_thread(int number, const char *file, char *text, size_t size)
{
    char path[64];
    ssize_t count;
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", number, file);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return 0;
    count = read(descriptor, text, size - 1);
    close(descriptor);
    if (count <= 0)
        return 0;
    text[count] = 0;
    return 1;
}

/* False for a thread that runs or waits for a processor; true when it sleeps, or when it can't be
 * told. The state is the field behind the name, which may hold any character: proc_pid_stat(5). */
static inline int cp_thread_sleeps(int number)
{
    char text[512], *end;
    if (!cp_read_of_thread(number, "stat", text, sizeof text))
        return 1;
    end = strrchr(text, ')');
    return !end || end[1] != ' ' || end[2] != 'R';
}

/* Where a thread sleeps: its stack and its instruction, mixed to one number. 0 when it does not sleep
 * or when it can't be told (proc_pid_syscall(5); a thread may always ask about those of its process).
 * `futex`: the word that it sleeps on, 0 where that is none; `timed`: whether for a limited time, -1 when
 * nothing can be told. */
static inline uint64_t cp_sleeping_place(int number, uintptr_t *futex, int *timed)
{
    char text[256], *after, *instruction, *stack;
    long call;
    *futex = 0;
    *timed = -1;
    if (!cp_read_of_thread(number, "syscall", text, sizeof text))
        return 0;
    *timed = 0;
    /* The last two: the number of the system call becomes another when a signal interrupts it. */
    instruction = strrchr(text, ' ');
    if (!instruction)
        return 0;
    *instruction = 0;
    stack = strrchr(text, ' ');
    if (!stack)
        return 0;
    call = strtol(text, &after, 10);
    /* What io_uring finishes in a thread interrupts a wait for a limited time, which then goes on under
     * another number, with what the registers held: restart_syscall(2). */
    if (call == SYS_futex || call == SYS_restart_syscall) {
        *futex = (uintptr_t)strtoull(after, &after, 16);
        strtoull(after, &after, 16);
        strtoull(after, &after, 16);
        *timed = strtoull(after, NULL, 16) != 0;
    }
    return strtoull(stack + 1, NULL, 16) * 31 + strtoull(instruction + 1, NULL, 16);
}

/* How often a thread went to sleep (proc_pid_status(5)), -2 when it can't be told. */
static inline int64_t cp_times_slept(int number)
{
    static const char name[] = "\nvoluntary_ctxt_switches:";
    char text[4096], *found;
    if (!cp_read_of_thread(number, "status", text, sizeof text))
        return -2;
    found = strstr(text, name);
    return found ? strtoll(found + sizeof name - 1, NULL, 10) : -2;
}

/* Whether a thread of this process, other than the calling one, runs or waits for a processor. */
static inline int cp_another_thread_runs(void)
{
    int own = cp_own_number(), number, runs = 0;
    struct dirent *entry;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks)
        return 0;
    while (!runs && (entry = readdir(tasks))) {
        number = atoi(entry->d_name);
        runs = number > 0 && number != own && !cp_thread_sleeps(number);
    }
    closedir(tasks);
    return runs;
}

/* A thread that never ends, takes no signals and touches no Python object. */
static inline int cp_start_thread(void *(*body)(void *))
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    int error;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, body, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error == 0)
        pthread_setname_np(thread, "cp-monitor");
    return error;
}

#endif
