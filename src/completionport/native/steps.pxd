"""Carrying an operation on without waiting. The channel's lock is held in all of this."""

from libc.stdint cimport int64_t

from .engine cimport Operation

ctypedef enum Progress:
    FINISHED     # `error` and `transferred` say how
    GO_ON        # more can be done at once
    WAIT         # nothing to be done before the descriptor is ready

cdef Progress account(Operation* operation, int64_t result) noexcept nogil
cdef Progress step(Operation* operation) noexcept nogil
