"""Overlapped: an operation as Python sees it."""

from libc.stdint cimport int64_t

from ..channels.engine cimport CP_ACCEPT, CP_OPEN, Operation
from ..primitives.atomics cimport cp_peek_int

cdef class OverlappedBase:
    cdef Operation operation_
    # Written by `claim`, in a critical section, and then until the operation is idle again by its
    # owner alone. Who reads them asks for the state in the same critical section.
    cdef object handle_
    cdef object error_
    cdef object value_
    cdef bytes received       # the target of recv(int)
    cdef Py_buffer single     # pinned buffers, until the packet is taken
    cdef Py_buffer* many
    cdef int pinned
    cdef object vectors       # memory of the iovec array
    cdef object envelope      # memory of addresses, ancillary data, paths; a function and its outcome
    cdef object meaning       # of a read: an interface.handle.Meaning, or None; as `handle_`
    cdef Py_ssize_t skipped   # bytes of `received` before the first aligned one
    cdef object __weakref__

    cdef int claim(self, object handle, int code) except -1
    cdef int pin_input(self, object size_or_buffers, str caller) except -1
    cdef int64_t pin_output(self, object data_or_buffers, str caller) except -1
    cdef int pin_one(self, object buffer, bint writable, str caller) except -1
    cdef int64_t pin_list(self, object buffers, bint writable, str caller) except -1
    cdef int set_address(self, bytes address) except -1
    cdef int set_ancillary(self, object ancillary) except -1
    cdef int make_envelope(self, Py_ssize_t ancillary_size) except -1
    cdef int set_source(self, object file, object offset, object count) except -1
    cdef int set_path(self, bytes path, bint wants_status) except -1
    cdef int set_paths(self, bytes source, bytes target) except -1
    cdef int align(self, Py_ssize_t boundary) except -1
    cdef object failed_with(self, int error)
    cdef object failure(self)
    cdef object envelope_of(self, object data)
    cdef void unpin(self) noexcept
    cdef int withdraw(self) except -1
    cdef object conclude(self, bint stays)
    cdef void shrink_received(self, Py_ssize_t size) noexcept
    cdef object outcome(self)
    cdef void lay_down(self) noexcept
    cdef void set_idle(self) noexcept
    cdef object code(self)
    cdef void mean(self, object meaning) noexcept
    cdef bint is_pending(self) noexcept

cdef class HandleBase:
    cdef readonly object key

cdef int get_buffer(object buffer, Py_buffer* view, bint writable, str caller) except -1


cdef inline bint brings_descriptor(Operation* operation) noexcept:
    cdef int code = cp_peek_int(&operation.code)
    return code == CP_ACCEPT or code == CP_OPEN
