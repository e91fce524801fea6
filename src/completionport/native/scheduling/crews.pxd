"""Threads that wait together at a port, and are dismissed without a packet that says so."""

from .scheduler cimport Crew, Scheduler

cdef void crew_open(Scheduler* s, Crew* crew) noexcept nogil
cdef void crew_close(Scheduler* s, Crew* crew) noexcept nogil
cdef void dismiss(Scheduler* s, Crew* crew, int count) noexcept nogil
