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

    cdef bint goes_in(self) except -1
    cdef int serve(self, Stream* stream, char* scratch) except -1
    cdef int serve_listener(self, Stream* listener) except -1
    cdef int tick(self, int64_t due) except -1
    cdef int clear_garbage(self) except -1

cdef object overridden(handler, type base, str name)
