"""Who is inside: what a guard stands before is not taken away while a thread is in there."""

from libc.stdint cimport int64_t, uint32_t

cdef struct Guard:
    uint32_t closed     # atomic: set once; in the child of a fork from the start
    uint32_t left       # atomic, futex word: counts those who leave a closed guard
    int nested          # atomic: threads that came from inside another guard

cdef bint guard_open(Guard* guard) noexcept nogil
cdef void guard_dispose(Guard* guard) noexcept nogil
cdef bint guard_enter(Guard* guard) noexcept nogil
cdef void guard_leave(Guard* guard) noexcept nogil
cdef bint guard_wait_until_alone(Guard* guard, int64_t deadline_ns) noexcept nogil
