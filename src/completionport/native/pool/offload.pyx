# cython: language_level=3, freethreading_compatible=True
"""Threads that carry out what would block the caller: file operations and Python functions.

How many work at a time is `width`. Up to `base` threads are called, or started, as soon as something is in line.
More are let work only where that helps, because those at work block in the kernel:

- a thread that has come back from an operation that put it to sleep lets another one work, while more is in
  line than a few;
- where nothing was taken out of the line for `WATCH_NS`, the thread that watches it takes the next operation
  itself. It is one of those that have nothing to do, and there is one whenever something is in line that nobody
  may take.

The page cache makes nobody sleep, so what is read from there stays with `base` threads; and where operations go
through without sleep the width goes down again. A thread without work ends after some seconds, or when the port is
closed.

An operation that a thread has taken is its own until the channel's lock is held again, so the buffers' owner is the thread as it would be the
kernel; `in_kernel` of operation and channel says so. That is also what keeps engine and scheduler
alive for the thread: a port is not closed before its channels' `in_kernel` is 0.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from ..channels.channels cimport (
    carry_on,
    channel_release,
    channel_retain,
    channel_take_descriptor,
    finish_operation,
    let_go_if_idle,
    queue_of,
    remove_operation,
)
from ..channels.engine cimport (
    CP_ALLOCATE,
    CP_CALL,
    CP_COPY,
    CP_LET_GO,
    CP_OPEN,
    CP_RESOLVE,
    CP_SENDFILE,
    CP_WRITE,
    Channel,
    Offload,
    Opening,
    Operation,
    Stream,
)
from ..channels.lookups cimport AT_REST, LEFT_BEHIND, RUNNING, Lookup, lookup_free, lookup_run
from ..channels.steps cimport account
from ..channels.streams cimport stream_schedule
from ..primitives.atomics cimport (
    cp_add_fetch,
    cp_futex_wait,
    cp_futex_wake,
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_passed_on,
    cp_received,
    cp_set_64,
)
from ..scheduling.scheduler cimport (
    Scheduler,
    enter,
    is_closed,
    leave,
    scheduler_release,
    wake_threads,
)
from ..scheduling.timer_heap cimport wait_no_longer
from .file_steps cimport carry_out
from .openings cimport opening_drop, opening_free, opening_new, opening_run

cdef extern from "errno.h" nogil:
    enum:
        ENOMEM
        ETIMEDOUT

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    int getpid()
    void _exit(int status)

cdef extern from *:
    """
    #include <pthread.h>
    #include <signal.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <time.h>

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
    /* How often the calling thread went to sleep: preempted does not count. */
    static long cp_sleeps(void)
    {
        struct rusage usage;
        return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nvcsw : 0;
    }
    static int64_t cp_process_ns(void)
    {
        struct timespec used;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
        return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
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
    long cp_sleeps() nogil
    int64_t cp_process_ns() nogil
    void cp_prepare_python(cp_python* python) nogil
    void cp_leave_python(cp_python* python) nogil

cdef enum:
    BASE = 4         # threads, where the limit allows them
    CROWD = 16       # up to this width everything in line is worth another thread
    NARROWER = 64    # operations without sleep after which one thread less works

cdef int64_t IDLE_NS = 5000000000
cdef int64_t WATCH_NS = 5000000
# So long the line may stand still where no more threads can be had.
cdef int64_t SHORT_NS = 500000000
# An operation that takes less has met no disk: what it would cost to ask is saved.
cdef int64_t SUSPECT_NS = 20000

ctypedef enum Watch:
    NOBODY
    ASKED        # a thread that is asleep was woken, or one started, to watch
    WATCHING

ctypedef enum Course:
    UNKNOWN      # it says nothing about whether more threads would help
    QUICK
    SLEPT

cdef struct Worker:
    # What a thread of the pool keeps for itself.
    cp_python python
    bint suspects    # its last operation took long: the next one is measured


cdef Offload* offload_new(Scheduler* scheduler, int limit, int processors) noexcept nogil:
    cdef Offload* pool = <Offload*> calloc(1, sizeof(Offload))
    if pool != NULL:
        pool.references = 1
        cp_add_fetch(&scheduler.references, 1)
        pool.scheduler = scheduler
        pool.limit = limit
        pool.base = min(limit, <int> BASE)
        pool.width = pool.base
        pool.processors = processors
        pool.let_go = let_go
    return pool


cdef void release(Offload* pool) noexcept nogil:
    if cp_add_fetch(&pool.references, -1) == 0:
        scheduler_release(pool.scheduler)
        free(pool)


cdef void offload_close(Offload* pool) noexcept nogil:
    cp_mutex_lock(&pool.lock)
    pool.closed = True
    pool.signal += 1
    cp_mutex_unlock(&pool.lock)
    cp_futex_wake(&pool.signal, 0x7fffffff)
    release(pool)


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


# -- who works: the pool's lock but for `obey` ----------------------------------------------------


cdef inline int at_work(Offload* pool) noexcept nogil:
    return pool.threads - pool.asleep


cdef Summons summon(Offload* pool) noexcept nogil:
    """Who is needed for what is in line: counted as if there already, and the caller's to `obey`."""
    if pool.in_line <= pool.called:
        return NOTHING   # each of those on their way has something in line
    if at_work(pool) < pool.width:
        pool.called += 1
        if pool.asleep > 0:
            pool.asleep -= 1
            pool.signal += 1
            return WAKE
        pool.threads += 1
        cp_add_fetch(&pool.references, 1)
        return START
    if pool.watch != NOBODY or pool.width >= pool.limit:
        return NOTHING
    if pool.asleep > 0:
        pool.watch = ASKED
        pool.signal += 1
        return WAKE
    if pool.threads >= pool.limit:
        return NOTHING   # the next one that comes back is one too many at work, and watches
    pool.watch = ASKED
    pool.threads += 1
    pool.asleep += 1
    cp_add_fetch(&pool.references, 1)
    return START_WATCH


cdef int obey(Offload* pool, Summons summons) noexcept nogil:
    """Wake or start the thread, without the lock; 0 or an errno, and then `rescue` sees to the line."""
    cdef int error
    cdef int64_t when
    if summons == WAKE:
        cp_futex_wake(&pool.signal, 1)
    elif summons != NOTHING:
        error = cp_start_thread(run, pool)
        if error != 0:
            cp_mutex_lock(&pool.lock)
            pool.threads -= 1
            # Which thread a call was meant for makes no difference: another may have taken this one's.
            if summons == START and pool.called > 0:
                pool.called -= 1
            else:
                pool.asleep -= 1
                if pool.watch == ASKED:
                    pool.watch = NOBODY
            when = note_shortage(pool)
            cp_mutex_unlock(&pool.lock)
            if enter(pool.scheduler):
                wait_no_longer(pool.scheduler, when)
                leave(pool.scheduler)
            release(pool)
            return error
        if summons != WAKE:
            cp_mutex_lock(&pool.lock)
            pool.short_since_ns = 0
            cp_mutex_unlock(&pool.lock)
    return 0


cdef int64_t note_shortage(Offload* pool) noexcept nogil:
    """No thread could be started: when the thread that takes packets has to see to the line."""
    cdef int64_t when = cp_now_ns()
    if pool.threads != 0:
        # As long as something leaves the line, it is as if the pool were no larger.
        if pool.short_since_ns == 0 or pool.taken != pool.short_taken:
            pool.short_since_ns = when
            pool.short_taken = pool.taken
        when = pool.short_since_ns + SHORT_NS
    cp_set_64(&pool.scheduler.rescue_ns, when)
    return when


cdef Summons learn(Offload* pool, Course course) noexcept nogil:
    """What an operation that is over says about how many threads should work."""
    if course == SLEPT:
        pool.quick = 0
        if (
            pool.width < pool.limit and pool.in_line > pool.called
            and pool.in_line > pool.width - CROWD
            # Functions that block show by a line that stands still.
            and pool.first.code != CP_CALL
        ):
            pool.width += 1
            return summon(pool)
    elif course == QUICK and pool.width > pool.base:
        pool.quick += 1
        if pool.quick >= NARROWER:
            pool.quick = 0
            pool.width -= 1
    return NOTHING


cdef bint arrive(Offload* pool) noexcept nogil:
    """Wait to be called; False: the thread is to end, and counts no more."""
    cdef bint timed_out = False
    cdef bint watches
    cdef uint32_t seen
    cdef uint32_t taken
    cdef int64_t used
    cdef int outcome
    while pool.called == 0:
        watches = pool.watch == ASKED or (
            pool.watch == NOBODY and pool.first != NULL and pool.width < pool.limit
        )
        if pool.watch == ASKED:
            pool.watch = NOBODY
        if pool.first == NULL:
            watches = False
            if pool.closed or timed_out:
                pool.asleep -= 1
                pool.threads -= 1
                pool.width = max(pool.base, min(pool.width, pool.threads))
                return False
        if watches:
            pool.watch = WATCHING
            used = cp_process_ns()
        taken = pool.taken
        seen = pool.signal
        cp_mutex_unlock(&pool.lock)
        outcome = cp_futex_wait(&pool.signal, seen, cp_now_ns() + (WATCH_NS if watches else IDLE_NS))
        cp_mutex_lock(&pool.lock)
        timed_out = outcome == ETIMEDOUT and not watches
        if watches:
            pool.watch = NOBODY
            if outcome == ETIMEDOUT and pool.called == 0 and stands_still(pool, taken, used):
                pool.width += 1
                pool.asleep -= 1
                pool.called = 1
    pool.called -= 1
    if pool.watch == ASKED:
        # It may have been this one that was woken for it; who takes the next operation asks again.
        pool.watch = NOBODY
    return True


cdef bint stands_still(Offload* pool, uint32_t taken, int64_t used) noexcept nogil:
    """Whether another thread would help, after `WATCH_NS` in which `taken` did not change."""
    if pool.first == NULL or pool.taken != taken or pool.width >= pool.limit:
        return False
    # Functions that compute, or wait for the GIL, are no quicker on more threads.
    return pool.first.code != CP_CALL or cp_process_ns() - used < WATCH_NS * pool.processors // 2


# -- what channels and engines call -------------------------------------------------------------


cdef void offload_start(Operation* operation) noexcept nogil:
    cdef Offload* pool = operation.channel.engine.offload
    cdef Summons summons
    operation.in_kernel = True
    operation.offloaded = True
    operation.channel.in_kernel += 1
    cp_mutex_lock(&pool.lock)
    append(pool, operation)
    cp_passed_on(operation)
    summons = summon(pool)
    cp_mutex_unlock(&pool.lock)
    obey(pool, summons)


cdef bint taken_from_nobody(Offload* pool, Operation* operation) noexcept nogil:
    """Take it out of the line of a pool that has no threads at all."""
    cdef bint taken = False
    cp_mutex_lock(&pool.lock)
    if pool.threads == 0 and operation.in_line:
        unlink(pool, operation)
        taken = True
    cp_mutex_unlock(&pool.lock)
    return taken


cdef bint offload_cancel(Operation* operation) noexcept nogil:
    cdef Offload* pool = operation.channel.engine.offload
    cdef bint taken = False
    cdef Summons summons = NOTHING
    cp_mutex_lock(&pool.lock)
    if operation.in_line:
        unlink(pool, operation)
        taken = True
    elif leave_behind(operation):
        taken = True
        # Another thread takes its place for what is in line.
        pool.threads -= 1
        summons = summon(pool)
    cp_mutex_unlock(&pool.lock)
    obey(pool, summons)
    if taken:
        back_from_pool(operation)
    return taken


cdef bint leave_behind(Operation* operation) noexcept nogil:
    """Nobody can interrupt it: its thread is left behind, and owns it alone from now on. Pool's lock."""
    if operation.code == CP_RESOLVE and operation.lookup.state == RUNNING:
        operation.lookup.state = LEFT_BEHIND
        operation.lookup = NULL
        return True
    if operation.code == CP_OPEN and operation.opening != NULL:
        operation.opening.state = LEFT_BEHIND
        operation.opening = NULL
        return True
    return False


cdef void back_from_pool(Operation* operation) noexcept nogil:
    operation.in_kernel = False
    operation.offloaded = False
    operation.channel.in_kernel -= 1


cdef bint offload_executes(Channel* channel) noexcept nogil:
    return cp_executing != NULL and (<Operation*> cp_executing).channel == channel


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


# -- descriptors ----------------------------------------------------------------------------------


cdef bint let_go(Channel* channel, int source) noexcept nogil:
    """What `Offload.let_go` says. Channel lock."""
    cdef Offload* pool = channel.engine.offload
    cdef Operation* operation = <Operation*> calloc(1, sizeof(Operation))
    cdef Summons summons = NOTHING
    if operation == NULL:
        return False
    operation.code = CP_LET_GO
    operation.channel = channel_retain(channel)
    operation.source = source
    if source < 0:
        # Another's file keeps nobody from closing this channel: `letting_go` keeps the port.
        channel.in_kernel += 1
    cp_mutex_lock(&pool.lock)
    append(pool, operation)
    pool.letting_go += 1
    cp_passed_on(operation)
    if not is_closed(pool.scheduler):
        # Else whoever closes the port does it, and starts no thread for that.
        summons = summon(pool)
    cp_mutex_unlock(&pool.lock)
    if obey(pool, summons) == 0 or not taken_from_nobody(pool, operation):
        return True
    closed(pool)
    if source < 0:
        channel.in_kernel -= 1
    channel_release(channel)
    free(operation)
    return False


cdef void closed(Offload* pool) noexcept nogil:
    """One descriptor less to wait for."""
    cp_mutex_lock(&pool.lock)
    pool.letting_go -= 1
    cp_mutex_unlock(&pool.lock)


cdef void close_descriptor(Offload* pool, Operation* operation) noexcept nogil:
    """Carry out and free what `let_go` has put into the line."""
    cdef Channel* channel = operation.channel
    cdef int descriptor = operation.source
    cdef bint own = descriptor < 0
    cdef bint inside
    free(operation)
    if own:
        cp_mutex_lock(&channel.lock)
        descriptor = channel_take_descriptor(channel)
        cp_mutex_unlock(&channel.lock)
    close(descriptor)
    cp_mutex_lock(&channel.lock)
    inside = enter(pool.scheduler)
    if own:
        channel.in_kernel -= 1
    if channel.owner != NULL:
        stream_schedule(<Stream*> channel, not inside)
    if not inside:
        channel.engine.type.wake(channel.engine)
    cp_mutex_unlock(&channel.lock)
    channel_release(channel)
    # Who closes the port goes by this: the channel may be in no list any more, its handle gone.
    closed(pool)
    if inside:
        wake_threads(pool.scheduler)
        leave(pool.scheduler)


cdef bint offload_lets_go(Offload* pool) noexcept nogil:
    cdef Operation* operation
    cdef bint busy
    cp_mutex_lock(&pool.lock)
    operation = pool.first
    while operation != NULL:
        if operation.code == CP_LET_GO:
            unlink(pool, operation)
            cp_mutex_unlock(&pool.lock)
            close_descriptor(pool, operation)
            cp_mutex_lock(&pool.lock)
            operation = pool.first
        else:
            operation = operation.next_in_line
    busy = pool.letting_go != 0
    cp_mutex_unlock(&pool.lock)
    return busy


# -- the threads --------------------------------------------------------------------------------


cdef void* run(void* argument) noexcept nogil:
    cdef Offload* pool = <Offload*> argument
    cdef Worker worker
    cdef bint stays = True
    worker.python.attached = False
    worker.suspects = False
    cp_name_thread()
    cp_mutex_lock(&pool.lock)
    while stays and arrive(pool):
        stays = serve(pool, &worker)
    cp_mutex_unlock(&pool.lock)
    release(pool)
    cp_leave_python(&worker.python)
    return NULL


cdef bint serve(Offload* pool, Worker* worker) noexcept nogil:
    """Carry out what is in line, with the pool's lock before and after; False: left behind."""
    cdef Operation* operation
    cdef Summons summons
    cdef Course course
    cdef Lookup* lookup = NULL
    cdef Opening* opening = NULL
    cdef int code
    while pool.first != NULL and at_work(pool) <= pool.width:
        operation = pool.first
        unlink(pool, operation)
        pool.taken += 1
        code = operation.code
        # Without the lock such an operation may be taken out at any time, and belong to others.
        if code == CP_RESOLVE:
            lookup = operation.lookup
            lookup.state = RUNNING
        elif code == CP_OPEN:
            opening = operation.opening = opening_new(operation)
        summons = summon(pool)
        cp_mutex_unlock(&pool.lock)
        obey(pool, summons)
        if code == CP_LET_GO:
            cp_received(operation)
            close_descriptor(pool, operation)
            course = UNKNOWN
        elif code != CP_RESOLVE and code != CP_OPEN:
            cp_received(operation)
            course = execute(pool, operation, worker)
        elif (
            resolve(pool, operation, lookup) if code == CP_RESOLVE
            else open_name(pool, operation, opening)
        ):
            course = UNKNOWN
        else:
            # It counts no more, whatever is in line.
            cp_mutex_lock(&pool.lock)
            return False
        cp_mutex_lock(&pool.lock)
        summons = learn(pool, course)
        if summons != NOTHING:
            cp_mutex_unlock(&pool.lock)
            obey(pool, summons)
            cp_mutex_lock(&pool.lock)
    pool.asleep += 1
    return True


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


cdef bint open_name(Offload* pool, Operation* operation, Opening* opening) noexcept nogil:
    """Open a file; False as from `resolve`. NULL: there was no memory for it."""
    cdef bint left_behind
    if opening == NULL:
        cp_received(operation)
        operation.error = ENOMEM
        execute(pool, operation, NULL)
        return True
    opening_run(opening)
    cp_mutex_lock(&pool.lock)
    left_behind = opening.state == LEFT_BEHIND
    if not left_behind:
        operation.opening = NULL
    cp_mutex_unlock(&pool.lock)
    if left_behind:
        opening_drop(opening)
        return False
    cp_received(operation)
    account(operation, opening.result)
    opening_free(opening)
    execute(pool, operation, NULL)
    return True


cdef Course measured(Operation* operation, Worker* worker) noexcept nogil:
    """Carry the operation out, and see whether the thread had to sleep for it."""
    # What changes a file in the page cache sleeps for the file's lock, or until the disk has taken what is
    # there already: more threads make neither any quicker.
    cdef bint tells = operation.channel.direct or not (
        operation.code == CP_WRITE or operation.code == CP_ALLOCATE or operation.code == CP_COPY
    )
    cdef bint counts = tells and worker.suspects
    cdef long sleeps = cp_sleeps() if counts else 0
    cdef int64_t begun = cp_now_ns()
    carry_out(operation)
    worker.suspects = cp_now_ns() - begun >= SUSPECT_NS
    if not tells or (worker.suspects and not counts):
        return UNKNOWN
    return SLEPT if worker.suspects and cp_sleeps() != sleeps else QUICK


cdef void execute_here(Offload* pool, Operation* operation) noexcept nogil:
    cdef Worker worker
    worker.suspects = False
    execute(pool, operation, &worker)


cdef Course execute(Offload* pool, Operation* operation, Worker* worker) noexcept nogil:
    cdef Channel* channel = channel_retain(operation.channel)
    cdef Scheduler* scheduler = pool.scheduler
    cdef Course course = UNKNOWN
    cdef bint inside
    cdef int process
    global cp_executing, cp_disowned
    if operation.code == CP_CALL:
        cp_prepare_python(&worker.python)
        cp_executing = operation
        cp_disowned = False
        process = getpid()
        pool.call(operation)
        if getpid() != process:
            # The function has forked, and this is the child, where the program left it to return: all else
            # here is the parent's.
            _exit(0)
        cp_executing = NULL
        if cp_disowned:
            # The function closed its own port: nobody else knows of the operation any more.
            pool.drop(operation)
            channel_release(channel)
            return UNKNOWN
    elif operation.code != CP_RESOLVE and operation.code != CP_OPEN:
        course = measured(operation, worker)
    cp_mutex_lock(&channel.lock)
    # Inside, it keeps the scheduler when it has given the operation away.
    inside = enter(scheduler)
    back_from_pool(operation)
    if operation.code == CP_SENDFILE:
        # It was only read for.
        carry_on(operation, not inside)
    else:
        finish_operation(operation, not inside)
    let_go_if_idle(channel)
    if not inside:
        # Who closes the port waits for this. The lock keeps the engine: it is taken to see `in_kernel`.
        channel.engine.type.wake(channel.engine)
    cp_mutex_unlock(&channel.lock)
    if inside:
        # Whoever is woken often runs at once, in the place of this thread, and starts the next operation:
        # it must not find the lock taken.
        wake_threads(scheduler)
        # Who closes the port may go on, and let the port go, before this is done: the pool has a reference.
        leave(scheduler)
    channel_release(channel)
    return course
