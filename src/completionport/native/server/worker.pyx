# cython: language_level=3, freethreading_compatible=True
"""A worker thread of a server: it takes packets and has the server's core serve them."""

from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

from ..channels.engine cimport Block, Stream
from ..channels.streams cimport has_garbage, stream_of, take_garbage
from ..port.core cimport unborn_core
from ..port.operations cimport completion_of
from ..primitives.atomics cimport cp_now_ns, cp_peek_64
from ..scheduling.scheduler cimport (
    FOREVER,
    PACKET_STREAM,
    TAKE_CLOSED,
    TAKE_PACKET,
    Scheduler,
    Taken,
    TakeStatus,
    enter,
    leave,
    take,
    take_ready,
    thread_is_back,
)

from ...interface.errors import PortForked

cdef object STOP = object()


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

    cdef int serve(self, Stream* stream, char* scratch) except -1:
        """One worker's turn with a stream. Called inside `enter`, and leaves."""
        raise NotImplementedError

    cdef int serve_listener(self, Stream* listener) except -1:
        """One worker's turn with a listening socket."""
        raise NotImplementedError

    cdef int tick(self, int64_t due) except -1:
        """What is done by the clock; `next_tick` was `due` when that had come."""
        raise NotImplementedError

    def post_stop(self):
        self.port.post(0, STOP, None)

    def work(self):
        cdef Scheduler* scheduler = self.core.scheduler
        cdef Taken taken
        cdef TakeStatus status
        cdef int64_t due
        cdef uint64_t arrival
        cdef char* scratch = <char*> malloc(self.scratch_size)
        if scratch == NULL:
            raise MemoryError
        try:
            while enter(scheduler):
                status = TAKE_PACKET
                if not take_ready(scheduler, &taken, False):
                    arrival = 0
                    with nogil:
                        status = take(scheduler, cp_peek_64(&self.next_tick), &taken, &arrival)
                    thread_is_back()
                if (
                    status == TAKE_PACKET and taken.packet != NULL
                    and taken.packet.kind == PACKET_STREAM and not stream_of(taken.packet).listens
                ):
                    self.serve(stream_of(taken.packet), scratch)
                else:
                    leave(scheduler)
                    if status == TAKE_CLOSED:
                        return
                    if status == TAKE_PACKET:
                        if taken.packet != NULL and taken.packet.kind == PACKET_STREAM:
                            self.serve_listener(stream_of(taken.packet))
                        elif completion_of(&taken).key is STOP:
                            return
                if has_garbage(self.core.engine):
                    self.clear_garbage()
                due = cp_peek_64(&self.next_tick)
                if due != FOREVER and cp_now_ns() >= due:
                    self.tick(due)
        finally:
            free(scratch)

    cdef int clear_garbage(self) except -1:
        cdef Block* block
        cdef Block* following
        if not enter(self.core.scheduler):
            return 0
        block = take_garbage(self.core.engine)
        leave(self.core.scheduler)
        while block != NULL:
            following = block.next
            Py_DECREF(<object> block.object)
            free(block)
            block = following
        return 0
