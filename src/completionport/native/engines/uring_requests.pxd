"""What becomes of an operation on io_uring. The channel's lock is held in all of this."""

from ..channels.engine cimport Operation
from .ring cimport cp_sqe

# True for an operation that the kernel completes by itself, without a first try by system call.
cdef bint is_native(Operation* operation) noexcept nogil
# Whether a request moves the data; else it waits until the operation can be tried again.
cdef bint moves_data(Operation* operation) noexcept nogil
# The ring's opcode for an operation on files, -1 where there is none.
cdef int opcode_of(Operation* operation) noexcept nogil
# Fill an entry for the data that is left to move, or for what else is asked; the caller sets `user_data`.
cdef void describe(cp_sqe* sqe, Operation* operation) noexcept nogil
