from libc.stdint cimport int64_t

from .scheduler cimport Scheduler, TakeStatus

cdef void dismiss_keepers(Scheduler* s) noexcept nogil
cdef TakeStatus wait_until_stuck(Scheduler* s, int64_t deadline_ns) noexcept nogil
