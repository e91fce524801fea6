# cython: language_level=3, freethreading_compatible=True
"""Timers of the compiled ports. `completionport.Timer` documents the methods."""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport ceil
from libc.stdint cimport int64_t

from ..primitives.atomics cimport cp_now_ns, cp_passed_on, cp_peek_size, cp_received
from ..scheduling.scheduler cimport PACKET_TIMER, strand_release, strand_retain
from ..scheduling.timer_heap cimport TimedPacket, timer_cancel, timer_set
from .core cimport Core
from .completions cimport release_values
from .strand cimport Strand

from ...interface.errors import PortClosed
from ...interface.unique import refuse_copy
from ...shared.arguments import LONGEST_DELAY, check_delay, check_when

cdef double LONGEST = LONGEST_DELAY


cdef int64_t due_after(object seconds) except -1:
    """When a timer that is to wait so long is due, ns of CLOCK_MONOTONIC."""
    cdef double delay = 0
    if type(seconds) is float:
        delay = seconds
    if not 0 < delay <= LONGEST:
        # Slower, and it says what is wrong.
        check_delay(seconds)
        delay = seconds
    return cp_now_ns() + <int64_t> ceil(delay * 1e9)


cdef int64_t due_at(object when) except -1:
    cdef double moment = 0
    cdef double now = cp_now_ns() / 1e9
    if type(when) is float:
        moment = when
    if not 0 < moment <= now + LONGEST:
        check_when(when, now)
        # What lies before the clock's start is as good as its start.
        moment = max(<double> when, 0)
    return <int64_t> ceil(moment * 1e9)


# Neither collector nor a weak reference: while it is pending its port holds it, and afterwards it
# refers to nothing but the core.
@cython.no_gc
@cython.final
@cython.freelist(256)
cdef class Timer:
    cdef TimedPacket timed
    cdef Core core

    def __init__(self):
        raise TypeError("a timer is made by CompletionPort.post_after() or post_at()")

    def __dealloc__(self):
        # Not in the heap, and its packet is taken: else there would be a reference.
        cp_passed_on(<void*> self)

    @property
    def when(self):
        return self.timed.when_ns / 1e9

    @property
    def pending(self):
        return cp_peek_size(&self.timed.place) != 0

    def cancel(self):
        if self.core is None:
            return False  # no port has made it
        try:
            self.core.begin()
        except PortClosed:
            return False
        cdef bint stopped = timer_cancel(self.core.scheduler, &self.timed)
        self.core.end()
        if stopped:
            if self.timed.packet.strand != NULL:
                strand_release(self.timed.packet.strand)
            release_values(&self.timed)
            cp_passed_on(<void*> self)
            Py_DECREF(self)
        return stopped

    def __reduce__(self):
        refuse_copy(self)

    def __repr__(self):
        state = "pending" if self.pending else "over"
        return f"<Timer at {self.when:.6f}, {state}>"


cdef object new_timer(
    Core core, int64_t when_ns, object transferred, object key, object overlapped, object strand
):
    cdef Timer timer = Timer.__new__(Timer)
    cdef TimedPacket* timed = &timer.timed
    cdef bint is_set
    cp_received(<void*> timer)
    timer.core = core
    timed.packet.kind = PACKET_TIMER
    timed.when_ns = when_ns
    core.begin()
    timed.timer = <void*> timer
    timed.transferred = <void*> transferred
    timed.key = <void*> key
    timed.overlapped = <void*> overlapped
    Py_INCREF(timer)
    Py_INCREF(transferred)
    Py_INCREF(key)
    Py_INCREF(overlapped)
    if strand is not None:
        timed.packet.strand = (<Strand> strand).strand
        strand_retain(timed.packet.strand)
    is_set = timer_set(core.scheduler, timed)
    core.end()
    if not is_set:
        if timed.packet.strand != NULL:
            strand_release(timed.packet.strand)
        release_values(timed)
        Py_DECREF(timer)
        raise MemoryError
    return timer
