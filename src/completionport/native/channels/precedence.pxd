"""Which operations on a file wait for which, where what is independent runs side by side."""

from .engine cimport Operation

# Channel lock for all of these. Whether nothing that has to come first is in its queue before it.
cdef bint is_in_turn(Operation* operation) noexcept nogil
# All that had to wait for a change that is over has to wait for this pending one too.
cdef bint hides(Operation* pending, Operation* gone) noexcept nogil
# To be told of each operation: it was put behind the others, it is about to be started, it leaves the queue.
cdef void note_queued(Operation* operation) noexcept nogil
cdef void note_started(Operation* operation) noexcept nogil
cdef void note_gone(Operation* operation) noexcept nogil
