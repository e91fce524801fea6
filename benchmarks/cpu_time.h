/* CPU time of other processes and of this one, in nanoseconds. */
#ifndef CPU_TIME_H
#define CPU_TIME_H

#include <dirent.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* All threads of a process, or -1 when there is no such process. schedstat counts to the
 * nanosecond; where the kernel was built without it, utime and stime are the next best. */
static inline int64_t cpu_of(long pid)
{
    char path[64 + 256];
    uint64_t total = 0;
    int found = 0;
    snprintf(path, sizeof path, "/proc/%ld/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        return -1;
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
    return (int64_t)total;
}

static inline uint64_t own_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
