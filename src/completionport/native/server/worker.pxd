"""What the worker threads of every server do."""

from libc.stdint cimport int64_t

from ..channels.engine cimport Stream
from ..port.core cimport Core

cdef class WorkingCore:
    # Constant after creation.
    cdef object port             # the completion port itself: the server's is a face of it
    cdef Core core
    cdef readonly object server
    cdef size_t scratch_size
    cdef int64_t next_tick       # atomic: FOREVER, or when `tick` has something to do
    cdef int64_t starved_ns      # atomic: when memory or descriptors last ran out, 0 for never

    cdef bint goes_in(self) except -1
    cdef void serve(self, Stream* stream, char* scratch, size_t room) noexcept
    cdef void serve_listener(self, Stream* listener) noexcept
    cdef int tick(self, int64_t due) except -1
    cdef void timer_came(self) noexcept
    cdef void tell_shortage(self, str message, int error) noexcept
    cdef void clear_garbage(self) noexcept

cdef object overridden(handler, type base, str name)
cdef void report(int level, str message, object subject, bint with_traceback) noexcept
cdef void surely(object function) noexcept
cdef void pause() noexcept
