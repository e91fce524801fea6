"""Carrying an operation on without waiting. The channel's lock is held in all of this."""

from libc.stdint cimport int64_t

from .engine cimport Channel, Operation

ctypedef enum Progress:
    FINISHED     # `error` and `transferred` say how
    GO_ON        # more can be done at once
    WAIT         # nothing to be done before the descriptor is ready

cdef enum:
    IOV_MAX = 1024   # buffers that one system call or request takes: limits.h

# Set `message` for the kernel: where the bytes, the address and the ancillary data lie.
cdef bint takes_bytes(Operation* operation) noexcept nogil
cdef void prepare_message(Operation* operation) noexcept nogil
# Close the duplicates that a sendfile or a sendmsg works on. The operation's owner, no lock needed.
cdef void let_sources_go(Operation* operation) noexcept nogil
# Of a stream socket, whoever has it besides: what it was to send is dropped. False: that was nothing.
cdef bint abort_connection(Channel* channel) noexcept nogil
# Nothing is left of a connect that was begun: its socket can be connected anew.
cdef void end_connecting(Operation* operation) noexcept nogil
cdef Progress account(Operation* operation, int64_t result) noexcept nogil
cdef Progress step(Operation* operation) noexcept nogil
