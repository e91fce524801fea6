/* Who waits for the GIL, seen from outside. */
#ifndef COMPLETIONPORT_GIL_H
#define COMPLETIONPORT_GIL_H

#include <Python.h>

#include "atomics.h"
#include "thread_clock.h"

#ifdef Py_GIL_DISABLED
enum { CP_HAS_GIL = 0 };
#else
enum { CP_HAS_GIL = 1 };
#endif

enum {
    /* The lock, its conditions and their mutexes are one structure, of some 200 bytes. */
    CP_GIL_SIZE = 256,
    /* On a machine with much to do the thread that asks may wait for a processor for long. */
    CP_GIL_PATIENCE_NS = 1000000000,
    CP_GIL_LOOK_US = 20,
    /* But one that sleeps in another way than for the GIL is seen to so often, at most. */
    CP_GIL_LOOKS = 1000,
    CP_GIL_STACK = 128 * 1024
};

typedef struct {
    uint32_t number; /* atomic: of the thread, 0 until it runs */
    uintptr_t stack;
} cp_gil_asker;

static void *cp_ask_for_gil(void *argument)
{
    cp_gil_asker *asker = argument;
    PyGILState_STATE state;
    asker->stack = (uintptr_t)&state;
    cp_store_release(&asker->number, (uint32_t)cp_own_number());
    state = PyGILState_Ensure();
    PyGILState_Release(state);
    return NULL;
}

/* The word on which threads sleep that wait for the GIL, which the caller holds; 0 where it can't be told.
 *
 * One thread waits for it, and is looked at. Nothing is assumed about the layout of the interpreter. What it
 * sleeps on may be its own (musl's conditions are on the stacks of those who wait), or another lock; and
 * a subinterpreter may have a GIL of its own, while the thread asks for that of the main one. */
static uintptr_t cp_find_gil(void)
{
    cp_gil_asker asker = {0, 0};
    uintptr_t word, before = 0, found = 0;
    int64_t until = cp_now_ns() + CP_GIL_PATIENCE_NS;
    pthread_t thread;
    sigset_t all, signals;
    int failed, timed = 0, in_vain = 0;
    if (PyInterpreterState_Get() != PyInterpreterState_Main())
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &signals);
    failed = pthread_create(&thread, NULL, cp_ask_for_gil, &asker);
    pthread_sigmask(SIG_SETMASK, &signals, NULL);
    if (failed)
        return 0;
    while (!found && timed >= 0 && in_vain < CP_GIL_LOOKS && cp_now_ns() < until) {
        usleep(CP_GIL_LOOK_US);
        word = 0;
        if (cp_load_acquire(&asker.number))
            in_vain += cp_sleeping_place((int)asker.number, &word, &timed) != 0;
        /* Twice, and it looks up now and then: so it is no other lock. */
        if (word && word == before && timed > 0)
            found = word;
        before = word;
    }
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    if (found + CP_GIL_STACK > asker.stack && found < asker.stack + CP_GIL_STACK)
        return 0;
    return found;
}

#endif
