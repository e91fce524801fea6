"""Opening a file by name, by a thread that may be left behind with it."""

from ..channels.engine cimport Opening, Operation

# The owner of the operation calls it; NULL without memory.
cdef Opening* opening_new(Operation* operation) noexcept nogil
# Open the file: `result` is its descriptor, or minus an errno.
cdef void opening_run(Opening* opening) noexcept nogil
cdef void opening_free(Opening* opening) noexcept nogil
# It was left behind: nobody wants the descriptor.
cdef void opening_drop(Opening* opening) noexcept nogil
