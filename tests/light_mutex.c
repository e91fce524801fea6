/* Threads that count under the light mutex, and now and then hold it for so long that others go to sleep. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "guard.h"

static int slept, yielded;
#define cp_futex_wait(word, value, until) (cp_add_fetch(&slept, 1), cp_futex_wait(word, value, until))
#define sched_yield() (cp_add_fetch(&yielded, 1), sched_yield())
#include "light_mutex.h"

enum { THREADS = 4, ROUNDS = 20000, LONG_EVERY = 64, LONG_NS = 50000 };

static cp_light_mutex mutex;
static long counted; /* mutex; not atomic, so that two holders at a time would lose some */

static void *work(void *unused)
{
    for (int round = 0; round < ROUNDS; round++) {
        cp_light_mutex_lock(&mutex);
        long before = counted;
        if (round % LONG_EVERY == 0)
            for (int64_t end = cp_now_ns() + LONG_NS; cp_now_ns() < end;)
                cp_pause();
        counted = before + 1;
        cp_light_mutex_unlock(&mutex);
    }
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    if (count != 2)
        return 2;
    if (strcmp(arguments[1], "membarrier") == 0)
        cp_pair_fences();
    cp_light_mutex_open(&mutex);
    if (strcmp(arguments[1], "forbidden later") == 0)
        /* As if it had been allowed when the mutex was opened: this process has not registered. */
        mutex.sleepers = 0;
    printf("%s ", mutex.sleepers == 0 ? "paired" : "alone");
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, NULL))
            return 2;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("%ld %d %d\n", THREADS * (long)ROUNDS - counted, slept, yielded);
    return 0;
}
