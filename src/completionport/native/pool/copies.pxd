"""Copying a file by its name: opened, copied, given its mode and times, closed, in one go."""

from libc.stdint cimport int64_t

from ..channels.engine cimport Operation

# 0, or minus an errno and nothing is left of the copy. The operation is the caller's, but for `cancelled`.
cdef int64_t copy_file(Operation* operation) noexcept nogil
