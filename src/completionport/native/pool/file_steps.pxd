"""One operation on files as system calls that may wait for a disk: the pool's threads make them."""

from ..channels.engine cimport Operation

# The operation is the caller's: it is started, and the channel's lock is not held.
cdef void carry_out(Operation* operation) noexcept nogil
