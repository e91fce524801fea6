# cython: language_level=3, freethreading_compatible=True
"""The compiled completion port. `completionport.CompletionPort` documents the methods."""

import os
import sys
import threading
import warnings
import weakref

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, strlen

from ..channels.engine cimport CP_CALL
from ..pool.offload cimport offload_executes
from ..primitives.atomics cimport cp_add_fetch, cp_now_ns, cp_peek_int
from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from ..primitives.times cimport HISTOGRAM_BUCKETS, Times
from ..scheduling.crews cimport crew_close, crew_open, dismiss
from ..scheduling.keepers cimport dismiss_keepers, wait_until_stuck as stuck
from ..scheduling.scheduler cimport (
    FOREVER,
    POLL,
    TAKES_ALL,
    TAKES_PROGRAMS,
    TAKES_SERVED,
    TAKE_CLOSED,
    TAKE_DISMISSED,
    TAKE_INTERRUPTED,
    TAKE_NO_MEMORY,
    TAKE_PACKET,
    TAKE_STANDBY,
    TAKE_TIMEOUT,
    Crew as CCrew,
    Scheduler,
    Strand as CStrand,
    Taken,
    TakeStatus,
    enter,
    is_closed,
    leave,
    post,
    serve,
    serves,
    stand_in,
    take,
    take_ready,
    thread_is_back,
    wake_threads,
)
from ..scheduling.timer_heap cimport fire_if_due, timers_pending
from .core cimport Core, unborn_core
from .errands cimport (
    call_function,
    drop_operation,
    start_call,
    start_close,
    start_copy,
    start_lookup,
    start_open,
    start_stat,
)
from .completions cimport Completion, fill, give_back
from .strand cimport Blocking, Strand
from .timers cimport due_after, due_at, new_timer

from ...interface.errors import WHILE_WAITING, PortClosed
from ...interface.histogram import Histogram
from ...interface.port import check_engine, check_strand
from ...shared import reports
from ...shared.arguments import (
    LARGEST_DESCRIPTOR,
    LARGEST_OFFSET,
    LARGEST_POOL,
    check_callable,
    check_concurrency,
    check_count,
    check_lookup,
    check_open,
    path_bytes,
)
from ...shared.workers import default_concurrency
from ...watches.processes import is_process, watch_process



cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)

cdef int64_t deadline_of(object timeout) except? -2:
    cdef double seconds
    cdef int64_t now
    if timeout is None:
        return FOREVER
    if not isinstance(timeout, (int, float)):
        raise TypeError(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        )
    seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout must be 0 or more seconds, not {timeout}")
    if seconds == 0:
        return POLL
    now = cp_now_ns()
    # Beyond a hundred years it makes no difference, and the sum would not fit.
    return now + <int64_t> (min(seconds, 3.2e9) * 1e9) if seconds < 3.2e9 else FOREVER


# A module's names may be gone when the interpreter ends, its C variables are not.
cdef object warn = warnings.warn
cdef object resource_warning = ResourceWarning
cdef object O_RDONLY = os.O_RDONLY
cdef list ending = reports.ending


# The main thread, which alone handles signals, waits so long at a time: one that comes just before its
# wait, or that the system hands to another thread, does not end the wait.
cdef enum:
    SIGNAL_SLICE_NS = 1000000000
# Written by an import, and by the only thread of a fork's child.
cdef unsigned long main_thread = threading.main_thread().ident


def note_main_thread():
    """The thread that forked is the main one of the child, as `threading` has noted before."""
    global main_thread
    main_thread = threading.main_thread().ident


os.register_at_fork(after_in_child=note_main_thread)


cdef bytes bytes_of(object path):
    """`path_bytes`, quicker for what paths mostly are."""
    cdef bytes name
    if type(path) is str:
        name = PyUnicode_EncodeFSDefault(path)
        if strlen(name) == <size_t> len(name):
            return name
    return path_bytes(path)


cdef object histogram_of(Times* times):
    cdef int i
    return Histogram([times.counts[i] for i in range(HISTOGRAM_BUCKETS)], times.total_ns)


cdef enum Answer:
    TIME_IS_OVER
    IS_THERE
    ASK_AGAIN
    IS_DISMISSED


cdef Answer answer_of(TakeStatus status) except *:
    """What follows from a wait that has ended, with the GIL: `PortClosed`, a signal's exception."""
    if status == TAKE_PACKET:
        return IS_THERE
    if status == TAKE_TIMEOUT:
        return TIME_IS_OVER
    if status == TAKE_DISMISSED:
        return IS_DISMISSED
    if status == TAKE_CLOSED:
        raise PortClosed(WHILE_WAITING)
    if status == TAKE_NO_MEMORY:
        raise MemoryError
    PyErr_CheckSignals()
    return ASK_AGAIN


# The collector must not take the core away before __dealloc__ has used it.
@cython.no_gc_clear
cdef class Crew:
    """Threads that wait together, and can be dismissed."""

    cdef CCrew crew
    cdef Core core

    def __dealloc__(self):
        # In a child another thread of the parent's may have the lock.
        if self.core is not None and not self.core.forked():
            crew_close(self.core.scheduler, &self.crew)


cdef class Port:
    cdef Core core
    cdef PyObject* last_core     # the same: the collector may have cleared `core` at the end
    cdef object engine_name

    def __cinit__(self):
        # Of a subclass that does not call `__init__`, too: no method looks whether there is a core.
        self.core = unborn_core()

    def __init__(self, concurrency=0, *, engine=None, pool_threads=64):
        if not self.core.unborn:
            raise RuntimeError("a completion port is initialised once")
        check_engine(engine, self)
        concurrency = check_concurrency(concurrency)
        check_count("pool_threads", pool_threads, 1, LARGEST_POOL)
        self.engine_name = self._ENGINE
        self.core = Core(
            self.engine_name, concurrency or default_concurrency(), pool_threads, weakref.ref(self)
        )
        self.core.engine.offload.call = call_function
        self.core.engine.offload.drop = drop_operation
        Py_INCREF(self.core)
        self.last_core = <PyObject*> self.core

    def __dealloc__(self):
        if self.last_core != NULL:
            (<Core> self.last_core).close()
            Py_DECREF(<object> self.last_core)

    def __del__(self):
        if self.core is not None and not is_closed(self.core.scheduler) and not self.core.forked():
            warn(
                f"{self!r} was not closed: call close(), or use it in a with statement",
                resource_warning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self):
        if self.core.unborn:
            return "<CompletionPort, not initialised>"
        state = "closed" if self.closed else f"concurrency {self.concurrency}"
        return f"<CompletionPort {self.engine_name}, {state}>"

    cdef Core initialised(self):
        """The core, for what does not enter it."""
        if self.core.unborn:
            raise self.core.refusal()
        return self.core

    @property
    def _core(self):
        """The core, for the server that runs on this port."""
        return self.initialised()

    @property
    def concurrency(self):
        return self.initialised().scheduler.concurrency

    @property
    def engine(self):
        self.initialised()
        return self.engine_name

    @property
    def closed(self):
        return is_closed(self.initialised().scheduler)

    def associate(self, file, key, *, strand=None):
        if strand is not None:
            check_strand(strand, self)
        if not hasattr(file, "fileno") and is_process(file):
            return watch_process(self, file, key, strand)
        self.core.begin()
        try:
            return self._HANDLE(self.core, file, key, strand)
        finally:
            self.core.end()

    def _associate_skipping(self, file, key):
        self.core.begin()
        try:
            return self._HANDLE(self.core, file, key, None, True)
        finally:
            self.core.end()

    # `post` and `get` are method descriptors: Python calls them without a bound method in between.
    @cython.binding(False)
    @cython.embedsignature(True)
    @cython.embedsignature.format("clinic")
    def post(self, transferred=0, key=None, overlapped=None, *, strand=None):
        cdef bint posted
        cdef CStrand* bound = NULL
        if strand is not None:
            check_strand(strand, self)
            bound = (<Strand> strand).strand
        if self.core.forked():
            raise self.core.refusal()
        Py_INCREF(transferred)
        Py_INCREF(key)
        Py_INCREF(overlapped)
        posted = post(
            self.core.scheduler, <PyObject*> transferred, <PyObject*> key, <PyObject*> overlapped,
            bound,
        )
        if not posted:
            Py_DECREF(transferred)
            Py_DECREF(key)
            Py_DECREF(overlapped)
            if not is_closed(self.core.scheduler):
                raise MemoryError
            raise self.core.refusal()

    def post_after(self, seconds, transferred=0, key=None, overlapped=None, *, strand=None):
        if strand is not None:
            check_strand(strand, self)
        return new_timer(self.core, due_after(seconds), transferred, key, overlapped, strand)

    def post_at(self, when, transferred=0, key=None, overlapped=None, *, strand=None):
        if strand is not None:
            check_strand(strand, self)
        return new_timer(self.core, due_at(when), transferred, key, overlapped, strand)

    @cython.binding(False)
    @cython.embedsignature(True)
    @cython.embedsignature.format("clinic")
    def get(self, timeout=None):
        cdef Taken taken
        cdef int64_t deadline = deadline_of(timeout) if timeout is not None else FOREVER
        # Before anything is taken, since there may be no memory for it.
        cdef Completion completion = Completion.__new__(Completion)
        if self.next(deadline, TAKES_ALL, NULL, &taken) == TIME_IS_OVER:
            return None
        fill(completion, self.core.scheduler, &taken)
        return completion

    def get_many(self, max_count, timeout=None):
        cdef Taken taken
        cdef int64_t deadline = deadline_of(timeout)
        cdef Py_ssize_t count
        cdef Completion completion
        if not isinstance(max_count, int):
            raise TypeError(f"max_count must be an integer, not {type(max_count).__name__}")
        if max_count < 1:
            raise ValueError(f"max_count must be 1 or more, not {max_count}")
        count = min(max_count, sys.maxsize)
        completions = []
        # In the list before anything is taken, since there may be no memory for it.
        completions.append(Completion.__new__(Completion))
        if self.next(deadline, TAKES_ALL, NULL, &taken) == TIME_IS_OVER:
            completions.pop()
            return completions
        fill(completions[0], self.core.scheduler, &taken)
        while len(completions) < count:
            # What there is no memory for stays; the others are whole.
            try:
                completion = Completion.__new__(Completion)
                completions.append(completion)
            except MemoryError:
                break
            try:
                if take_ready(self.core.scheduler, TAKES_PROGRAMS, NULL, &taken, True):
                    fill(completion, self.core.scheduler, &taken)
                    continue
            except MemoryError:
                pass
            except BaseException:
                # A signal handler's, which goes to the caller in place of one packet, not of all.
                completions.pop()
                for completion in completions:
                    give_back(self.core.scheduler, completion)
                raise
            completions.pop()
            break
        return completions

    cdef Answer next(self, int64_t deadline, int takes, CCrew* crew, Taken* taken) except *:
        """The program's next packet. Those of consumers, which it takes meanwhile, are served here.

        ASK_AGAIN: a thread of a crew with a deadline has served one, so it was not idle.
        """
        cdef Scheduler* scheduler = self.core.scheduler
        cdef Answer answer
        cdef bint in_main
        if self.core.forked():
            raise self.core.refusal()
        while True:
            if not take_ready(scheduler, takes, crew, taken, False):
                answer = self.wait(deadline, takes, crew, taken)
                if answer != IS_THERE:
                    return answer
            if taken.packet == NULL or taken.packet.consumer == NULL:
                return IS_THERE
            in_main = crew == NULL and PyThread_get_thread_ident() == main_thread
            if in_main and ending:
                ending.clear()
            if crew != NULL and takes == TAKES_ALL:
                cp_add_fetch(&crew.serving, 1)
                serve(taken)
                cp_add_fetch(&crew.serving, -1)
            else:
                serve(taken)
            if self.core.forked():
                raise self.core.refusal()
            if in_main:
                # Nothing is in hand, so an exception of a signal's handler is the caller's.
                if ending:
                    raise ending.pop()
                PyErr_CheckSignals()
            if deadline == FOREVER:
                continue
            if crew != NULL:
                return ASK_AGAIN
            if deadline == POLL or cp_now_ns() >= deadline:
                # What is there of the program's is not passed by, however much there is of others'.
                deadline = POLL
                takes &= TAKES_PROGRAMS

    cdef Answer wait(self, int64_t deadline, int takes, CCrew* crew, Taken* taken) except *:
        """Take a packet, waiting for one if need be."""
        cdef TakeStatus status
        cdef Answer answer
        cdef Scheduler* scheduler = self.core.scheduler
        cdef bint slices = PyThread_get_thread_ident() == main_thread
        cdef int64_t until = deadline
        cdef uint64_t arrival = 0
        while True:
            self.core.begin()
            if slices:
                until = cp_now_ns() + SIGNAL_SLICE_NS
                if deadline != FOREVER:
                    until = min(deadline, until)
            with nogil:
                status = take(scheduler, takes, crew, until, taken, &arrival)
                leave(scheduler)
            thread_is_back(scheduler)
            if status == TAKE_STANDBY:
                if stand_in(scheduler, takes, crew, taken):
                    return IS_THERE
                if slices:
                    # A signal may have come meanwhile, whose handler may raise.
                    self.core.begin()
                    wake_threads(scheduler)
                    self.core.end()
            if status == TAKE_TIMEOUT and until != deadline:
                status = TAKE_INTERRUPTED
            answer = answer_of(status)
            if answer != ASK_AGAIN:
                return answer

    def _new_crew(self, takes_programs):
        cdef Crew made = Crew.__new__(Crew)
        if self.core.forked():
            raise self.core.refusal()
        made.crew.takes = TAKES_ALL if takes_programs else TAKES_SERVED
        made.core = self.initialised()
        crew_open(made.core.scheduler, &made.crew)
        return made

    def _take(self, Crew crew not None, timeout):
        cdef Taken taken
        cdef Answer answer = ASK_AGAIN
        cdef Completion completion = Completion.__new__(Completion)
        while answer == ASK_AGAIN:
            answer = self.next(deadline_of(timeout), crew.crew.takes, &crew.crew, &taken)
        if answer == IS_THERE:
            fill(completion, self.core.scheduler, &taken)
            return completion
        return False if answer == IS_DISMISSED else None

    def _serves(self):
        return serves()

    def _executes(self):
        return offload_executes(self.initialised().errands)

    def _serving(self, Crew crew not None):
        return cp_peek_int(&crew.crew.serving)

    def _dismiss(self, Crew crew not None, int count):
        if not self.core.forked():
            dismiss(self.core.scheduler, &crew.crew, count)

    def submit(self, function, /, *args, key=None, overlapped=None, strand=None):
        check_callable(function)
        if strand is not None:
            check_strand(strand, self)
        return start_call(self.core, CP_CALL, function, args, key, overlapped, strand)

    def getaddrinfo(
        self, host, service, family=0, type=0, proto=0, flags=0, *, key=None, overlapped=None,
        strand=None
    ):
        check_strand(strand, self)
        host, service = check_lookup(host, service, family, type, proto, flags)
        return start_lookup(
            self.core, host, service, family, type, proto, flags, key, overlapped, strand
        )

    def open(self, path, flags=O_RDONLY, mode=0o666, *, key=None, overlapped=None, strand=None):
        check_strand(strand, self)
        check_open(flags, mode)
        return start_open(self.core, bytes_of(path), flags, mode, key, overlapped, strand)

    def stat(self, path, *, follow_symlinks=True, key=None, overlapped=None, strand=None):
        check_strand(strand, self)
        return start_stat(self.core, bytes_of(path), bool(follow_symlinks), key, overlapped, strand)

    def copy_file(
        self, source, target, *, at_most=LARGEST_OFFSET, key=None, overlapped=None, strand=None
    ):
        check_strand(strand, self)
        check_count("at_most", at_most, 0, LARGEST_OFFSET)
        return start_copy(
            self.core, bytes_of(source), bytes_of(target), at_most, key, overlapped, strand
        )

    def close_descriptor(self, fd, *, key=None, overlapped=None, strand=None):
        check_strand(strand, self)
        check_count("fd", fd, 0, LARGEST_DESCRIPTOR)
        return start_close(self.core, fd, key, overlapped, strand)

    def stats(self):
        cdef Scheduler* s = self.initialised().scheduler
        cdef Scheduler copy
        handles, pending = self.core.census()
        zero_copy_sends, zero_copy_copied = self.core.zero_copy_counts()
        if not self.core.forked() and enter(s):
            # What is due counts as queued, though no thread has come by since.
            fire_if_due(s)
            leave(s)
        cp_light_mutex_lock(&s.lock)
        # What the lock guards, and not the lock itself, which others are writing to.
        memcpy(&copy.running, &s.running, <char*> (s + 1) - <char*> &s.running)
        cp_light_mutex_unlock(&s.lock)
        return {
            "engine": self.engine_name,
            "concurrency": s.concurrency,
            "queued": copy.queued + copy.held_back,
            "posted": copy.posted,
            "completed": copy.completed,
            "taken": copy.served.taken + copy.programs.taken,
            "pending": pending,
            "timers": timers_pending(s),
            "handles": handles,
            "waiting": copy.waiting + (copy.standby != NULL),
            "running": copy.running,
            "woken": copy.woken,
            "wakeups": copy.wakeups,
            "blocked": copy.blocked,
            "replaced": copy.replaced,
            "zero_copy_sends": zero_copy_sends,
            "zero_copy_copied": zero_copy_copied,
            "queue_time": histogram_of(&copy.queue_times),
            "work_time": histogram_of(&copy.work_times),
        }

    def blocking(self):
        return Blocking(self.initialised())

    def _check(self):
        self.core.begin()
        self.core.end()

    def _new_strand(self):
        self.core.begin()
        try:
            return self._STRAND(self.core)
        finally:
            self.core.end()

    def _dismiss_keepers(self):
        dismiss_keepers(self.initialised().scheduler)

    def _wait_until_stuck(self, timeout):
        cdef TakeStatus status
        cdef Answer answer
        cdef int64_t deadline = deadline_of(timeout)
        cdef Scheduler* scheduler = self.core.scheduler
        while True:
            self.core.begin()
            with nogil:
                status = stuck(scheduler, deadline)
                leave(scheduler)
            answer = answer_of(status)
            if answer != ASK_AGAIN:
                return answer == IS_THERE

    def close(self):
        self.initialised().close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
