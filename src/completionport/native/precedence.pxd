"""Which operations on a file wait for which, where what is independent runs side by side."""

from .engine cimport Operation

# Channel lock. Whether nothing that has to come first is in its queue before it.
cdef bint is_in_turn(Operation* operation) noexcept nogil
