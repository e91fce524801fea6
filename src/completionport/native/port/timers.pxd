from libc.stdint cimport int64_t

from .core cimport Core

cdef int64_t due_after(object seconds) except -1
cdef int64_t due_at(object when) except -1
cdef object new_timer(
    Core core, int64_t when_ns, object transferred, object key, object overlapped, object strand
)
