# cython: language_level=3, freethreading_compatible=True
"""A worker thread of a server: it takes packets and has the server's core serve them."""

import os
from logging import ERROR, WARNING

from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

from ..channels.engine cimport Block, Stream
from ..channels.streams cimport has_garbage, stream_of, take_garbage
from ..port.core cimport unborn_core
from ..port.operations cimport drop_packet, drop_posted
from ..primitives.atomics cimport cp_now_ns, cp_peek_64, cp_set_64
from ..scheduling.scheduler cimport (
    FOREVER,
    PACKET_STREAM,
    PACKET_TIMER,
    TAKE_CLOSED,
    TAKE_NO_MEMORY,
    TAKE_PACKET,
    TAKE_STANDBY,
    Scheduler,
    Taken,
    TakeStatus,
    enter,
    leave,
    stand_in,
    take,
    take_ready,
    thread_is_back,
)

from ...interface.errors import PortForked
from ...shared.reports import tell

cdef extern from "unistd.h" nogil:
    int usleep(unsigned int microseconds)

cdef enum:
    POOR_SIZE = 4096           # of a worker's own memory, where there is no more
    SHORTAGE_US = 10000        # until what found no memory is tried again
    SHORTAGE_OVER_NS = 10000000000

cdef object STOP = object()


cdef void report(int level, str message, object subject, bint with_traceback) noexcept:
    """A line in the log. Whatever that raises goes to `sys.unraisablehook`."""
    tell(level, message, subject, error=with_traceback)


cdef void surely(object function) noexcept:
    """Call what has to be done, until there is memory for it."""
    while True:
        try:
            function()
            return
        except BaseException:
            pause()


cdef void pause() noexcept:
    with nogil:
        usleep(SHORTAGE_US)


cdef object overridden(handler, type base, str name):
    """The bound callback, or None when the class does nothing in it."""
    if getattr(type(handler), name, None) is getattr(base, name) and name not in getattr(
        handler, "__dict__", ()
    ):
        return None
    return getattr(handler, name)


cdef class WorkingCore:
    """What the cores of servers have in common."""

    def __cinit__(self):
        self.core = unborn_core()
        self.next_tick = FOREVER

    cdef bint goes_in(self) except -1:
        """`enter`, for the program; False when the port is closed. In a forked child it raises."""
        if enter(self.core.scheduler):
            return True
        if self.core.forked() and not self.core.unborn:
            raise PortForked
        return False

    # What these two do for the kernel and the queue is done whatever fails in them.
    cdef void serve(self, Stream* stream, char* scratch, size_t room) noexcept:
        """One worker's turn with a stream. Called inside `enter`, and leaves."""

    cdef void serve_listener(self, Stream* listener) noexcept:
        """One worker's turn with a listening socket."""

    cdef int tick(self, int64_t due) except -1:
        """What is done by the clock; `next_tick` was `due` when that had come."""
        raise NotImplementedError

    cdef void timer_came(self) noexcept:
        """A timer of the core's has come."""

    cdef void tell_shortage(self, str message, int error) noexcept:
        """A line in the log: once for a shortage, not for each that found its place in between."""
        cdef int64_t now = cp_now_ns()
        cdef int64_t before = cp_peek_64(&self.starved_ns)
        cp_set_64(&self.starved_ns, now)
        if before == 0 or now - before > <int64_t> SHORTAGE_OVER_NS:
            report(WARNING, message, os.strerror(error), False)

    def post_stop(self):
        self.port.post(0, STOP, None)

    def work(self):
        """The body of a worker thread: nothing but a stop packet and the port's end make it return."""
        cdef Scheduler* scheduler = self.core.scheduler
        cdef Taken taken
        cdef TakeStatus status
        cdef int64_t due
        cdef uint64_t arrival
        cdef char poor[POOR_SIZE]
        cdef char* scratch = NULL
        try:
            while enter(scheduler):
                if scratch == NULL:
                    scratch = <char*> malloc(self.scratch_size)
                status = TAKE_PACKET
                if not take_ready(scheduler, &taken, False):
                    arrival = 0
                    status = TAKE_STANDBY
                    while status == TAKE_STANDBY:
                        with nogil:
                            status = take(scheduler, cp_peek_64(&self.next_tick), &taken, &arrival)
                        thread_is_back(scheduler)
                        if status == TAKE_STANDBY and stand_in(scheduler, &taken):
                            status = TAKE_PACKET
                if (
                    status == TAKE_PACKET and taken.packet != NULL
                    and taken.packet.kind == PACKET_STREAM and not stream_of(taken.packet).listens
                ):
                    if scratch != NULL:
                        self.serve(stream_of(taken.packet), scratch, self.scratch_size)
                    else:
                        self.serve(
                            stream_of(taken.packet), poor, min(self.scratch_size, <size_t> POOR_SIZE)
                        )
                else:
                    leave(scheduler)
                    if status == TAKE_CLOSED:
                        return
                    if status == TAKE_NO_MEMORY:
                        pause()
                    elif status == TAKE_PACKET:
                        if taken.packet != NULL and taken.packet.kind == PACKET_STREAM:
                            self.serve_listener(stream_of(taken.packet))
                        elif taken.packet != NULL and taken.packet.kind == PACKET_TIMER:
                            drop_packet(taken.packet)
                            self.timer_came()
                        else:
                            # Nothing else is posted to a server's port.
                            drop_posted(&taken)
                            return
                if has_garbage(self.core.engine):
                    self.clear_garbage()
                due = cp_peek_64(&self.next_tick)
                if due != FOREVER and cp_now_ns() >= due:
                    try:
                        self.tick(due)
                    except BaseException:
                        report(ERROR, "completionport: error in %s, which goes on", self, True)
        finally:
            free(scratch)

    cdef void clear_garbage(self) noexcept:
        cdef Block* block
        cdef Block* following
        if not enter(self.core.scheduler):
            return
        block = take_garbage(self.core.engine)
        leave(self.core.scheduler)
        while block != NULL:
            following = block.next
            Py_DECREF(<object> block.object)
            free(block)
            block = following
