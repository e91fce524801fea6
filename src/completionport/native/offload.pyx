# cython: language_level=3, freethreading_compatible=True
"""Threads that carry out what would block the caller: file operations and Python functions.

A thread is started when something is in line and nobody idle is left for it, and ends after some
seconds without work, or when the port is closed. An operation that a thread has taken is
its own until the channel's lock is held again, so the buffers' owner is the thread as it would be the
kernel; `in_kernel` of operation and channel says so. That is also what keeps engine and scheduler
alive for the thread: a port is not closed before its channels' `in_kernel` is 0.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from .atomics cimport (
    cp_add_fetch,
    cp_futex_wait,
    cp_futex_wake,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_passed_on,
    cp_received,
)
from .channels cimport (
    channel_release,
    channel_retain,
    finish_operation,
    let_go_if_idle,
    queue_of,
    remove_operation,
    settle,
)
from .engine cimport CP_CALL, CP_RESOLVE, Channel, Offload, Operation
from .file_steps cimport carry_out
from .lookups cimport AT_REST, LEFT_BEHIND, RUNNING, Lookup, lookup_free, lookup_run
from .scheduler cimport is_closed

cdef extern from "errno.h" nogil:
    enum:
        ETIMEDOUT

cdef extern from *:
    """
    #include <pthread.h>
    #include <signal.h>
    #include <sys/prctl.h>

    /* The operation whose function this thread runs, and whether its port has given it up. */
    static __thread void *cp_executing;
    static __thread int cp_disowned;

    /* Signals are the program's threads' business: one taken here would not end their wait. */
    static int cp_start_thread(void *(*function)(void *), void *argument)
    {
        sigset_t all, before;
        pthread_attr_t attributes;
        pthread_t thread;
        int error;
        sigfillset(&all);
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&thread, &attributes, function, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        return error;
    }
    static void cp_name_thread(void) { prctl(PR_SET_NAME, "cp-offload"); }

    /* The thread's state lasts as long as the thread, so that what a function keeps in a
     * threading.local is there for the next one. */
    struct cp_python {
        int attached;
        PyGILState_STATE state;
        PyThreadState *saved;
    };
    static void cp_prepare_python(struct cp_python *python)
    {
        if (!python->attached) {
            python->state = PyGILState_Ensure();
            python->saved = PyEval_SaveThread();
            python->attached = 1;
        }
    }
    static void cp_leave_python(struct cp_python *python)
    {
        if (python->attached) {
            PyEval_RestoreThread(python->saved);
            PyGILState_Release(python->state);
        }
    }
    """
    cdef struct cp_python:
        int attached
    void* cp_executing
    bint cp_disowned
    int cp_start_thread(void* (*function)(void*) noexcept nogil, void* argument) nogil
    void cp_name_thread() nogil
    void cp_prepare_python(cp_python* python) nogil
    void cp_leave_python(cp_python* python) nogil

cdef int64_t IDLE_NS = 5000000000


cdef Offload* offload_new(int limit) noexcept nogil:
    cdef Offload* pool = <Offload*> calloc(1, sizeof(Offload))
    if pool != NULL:
        pool.references = 1
        pool.limit = limit
    return pool


cdef void release(Offload* pool) noexcept nogil:
    if cp_add_fetch(&pool.references, -1) == 0:
        free(pool)


cdef void offload_close(Offload* pool) noexcept nogil:
    cp_mutex_lock(&pool.lock)
    pool.closed = True
    pool.signal += 1
    cp_mutex_unlock(&pool.lock)
    cp_futex_wake(&pool.signal, 0x7fffffff)
    release(pool)


cdef int offload_threads(Offload* pool) noexcept nogil:
    cdef int threads
    cp_mutex_lock(&pool.lock)
    threads = pool.threads
    cp_mutex_unlock(&pool.lock)
    return threads


# -- the line: the pool's lock ------------------------------------------------------------------


cdef void unlink(Offload* pool, Operation* operation) noexcept nogil:
    if operation.previous_in_line == NULL:
        pool.first = operation.next_in_line
    else:
        operation.previous_in_line.next_in_line = operation.next_in_line
    if operation.next_in_line == NULL:
        pool.last = operation.previous_in_line
    else:
        operation.next_in_line.previous_in_line = operation.previous_in_line
    operation.in_line = False
    pool.in_line -= 1


cdef void append(Offload* pool, Operation* operation) noexcept nogil:
    operation.next_in_line = NULL
    operation.previous_in_line = pool.last
    if pool.last == NULL:
        pool.first = operation
    else:
        pool.last.next_in_line = operation
    pool.last = operation
    operation.in_line = True
    pool.in_line += 1


# -- what channels and engines call -------------------------------------------------------------


cdef void offload_start(Operation* operation) noexcept nogil:
    cdef Offload* pool = operation.channel.engine.offload
    cdef bint wake
    cdef bint starts
    cdef int error
    operation.in_kernel = True
    operation.offloaded = True
    operation.channel.in_kernel += 1
    cp_mutex_lock(&pool.lock)
    append(pool, operation)
    cp_passed_on(operation)
    wake = pool.idle > 0
    # Those that were woken and are not back yet have something in line each.
    starts = pool.in_line > pool.idle and pool.threads < pool.limit
    if starts:
        pool.threads += 1
        cp_add_fetch(&pool.references, 1)
    pool.signal += 1
    cp_mutex_unlock(&pool.lock)
    if starts:
        error = cp_start_thread(run, pool)
        if error != 0:
            start_failed(pool, operation, error)
    elif wake:
        cp_futex_wake(&pool.signal, 1)


cdef void start_failed(Offload* pool, Operation* operation, int error) noexcept nogil:
    """No more threads are to be had. With none at all the operation fails."""
    cdef bint taken = False
    cp_mutex_lock(&pool.lock)
    pool.threads -= 1
    if pool.threads == 0 and operation.in_line:
        unlink(pool, operation)
        taken = True
    cp_mutex_unlock(&pool.lock)
    release(pool)
    if taken:
        back_from_pool(operation)
        operation.error = error
        # What waits for it is looked at by whoever started it.
        remove_operation(queue_of(operation), operation)
        settle(operation, True)


cdef bint offload_cancel(Operation* operation) noexcept nogil:
    cdef Offload* pool = operation.channel.engine.offload
    cdef bint taken = False
    cdef bint starts = False
    cp_mutex_lock(&pool.lock)
    if operation.in_line:
        unlink(pool, operation)
        taken = True
    elif operation.code == CP_RESOLVE and operation.lookup.state == RUNNING:
        # Nobody can interrupt it: its thread is left behind, and owns it alone from now on.
        operation.lookup.state = LEFT_BEHIND
        operation.lookup = NULL
        taken = True
        # Another thread takes its place for what is in line.
        starts = pool.in_line > pool.idle
        if starts:
            cp_add_fetch(&pool.references, 1)
        else:
            pool.threads -= 1
    cp_mutex_unlock(&pool.lock)
    if starts and cp_start_thread(run, pool) != 0:
        cp_mutex_lock(&pool.lock)
        pool.threads -= 1
        cp_mutex_unlock(&pool.lock)
        release(pool)
    if taken:
        back_from_pool(operation)
    return taken


cdef void back_from_pool(Operation* operation) noexcept nogil:
    operation.in_kernel = False
    operation.offloaded = False
    operation.channel.in_kernel -= 1


cdef void offload_disown(Channel* channel) noexcept nogil:
    cdef Operation* operation = <Operation*> cp_executing
    global cp_disowned
    if operation == NULL or operation.channel != channel or cp_disowned:
        return
    cp_mutex_lock(&channel.lock)
    remove_operation(queue_of(operation), operation)
    back_from_pool(operation)
    cp_mutex_unlock(&channel.lock)
    cp_disowned = True


# -- the threads --------------------------------------------------------------------------------


cdef void* run(void* argument) noexcept nogil:
    cdef Offload* pool = <Offload*> argument
    cdef Operation* operation
    cdef Lookup* lookup
    cdef cp_python python
    cdef uint32_t seen
    cdef int outcome = 0
    python.attached = False
    cp_name_thread()
    cp_mutex_lock(&pool.lock)
    while True:
        operation = pool.first
        if operation != NULL:
            unlink(pool, operation)
            lookup = operation.lookup if operation.code == CP_RESOLVE else NULL
            if lookup != NULL:
                # From here on the operation may be taken out, and be gone: see `resolve`.
                lookup.state = RUNNING
            cp_mutex_unlock(&pool.lock)
            if lookup == NULL:
                cp_received(operation)
                execute(pool, operation, &python)
            elif not resolve(pool, operation, lookup):
                release(pool)
                cp_leave_python(&python)
                return NULL
            outcome = 0
            cp_mutex_lock(&pool.lock)
            continue
        if pool.closed or outcome == ETIMEDOUT:
            break
        pool.idle += 1
        seen = pool.signal
        cp_mutex_unlock(&pool.lock)
        outcome = cp_futex_wait(&pool.signal, seen, cp_now_ns() + IDLE_NS)
        cp_mutex_lock(&pool.lock)
        pool.idle -= 1
    pool.threads -= 1
    cp_mutex_unlock(&pool.lock)
    release(pool)
    cp_leave_python(&python)
    return NULL


cdef bint resolve(Offload* pool, Operation* operation, Lookup* lookup) noexcept nogil:
    """Look a name up; False when the thread was left behind: then it counts no more, and ends.

    Until it is known that it was not, only the lookup is the thread's.
    """
    cdef bint left_behind
    lookup_run(lookup)
    cp_mutex_lock(&pool.lock)
    left_behind = lookup.state == LEFT_BEHIND
    lookup.state = AT_REST
    cp_mutex_unlock(&pool.lock)
    if left_behind:
        lookup_free(lookup)
        return False
    cp_received(operation)
    execute(pool, operation, NULL)
    return True


cdef void execute(Offload* pool, Operation* operation, cp_python* python) noexcept nogil:
    cdef Channel* channel = channel_retain(operation.channel)
    global cp_executing, cp_disowned
    if operation.code == CP_CALL:
        cp_prepare_python(python)
        cp_executing = operation
        cp_disowned = False
        pool.call(operation)
        cp_executing = NULL
        if cp_disowned:
            # The function closed its own port: nobody else knows of the operation any more.
            pool.drop(operation)
            channel_release(channel)
            return
    elif operation.code != CP_RESOLVE:
        carry_out(operation)
    cp_mutex_lock(&channel.lock)
    back_from_pool(operation)
    finish_operation(operation, True)
    let_go_if_idle(channel)
    if is_closed(channel.engine.scheduler):
        # Who closes the port waits for this. The lock keeps the engine: it is taken to see `in_kernel`.
        channel.engine.type.wake(channel.engine)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)
