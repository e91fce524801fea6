# cython: language_level=3, freethreading_compatible=True
"""Threads that wait together at a port, and are dismissed without a packet that says so."""

from ..primitives.light_mutex cimport cp_light_mutex_lock, cp_light_mutex_unlock
from .scheduler cimport TAKES_ALL, Crew, Scheduler, unlock_and_wake_from_outside


cdef void crew_open(Scheduler* s, Crew* crew) noexcept nogil:
    cp_light_mutex_lock(&s.lock)
    s.choosy += crew.takes != TAKES_ALL
    cp_light_mutex_unlock(&s.lock)


cdef void crew_close(Scheduler* s, Crew* crew) noexcept nogil:
    """No thread waits as one of it any more."""
    cp_light_mutex_lock(&s.lock)
    s.choosy -= crew.takes != TAKES_ALL
    s.dismissed -= crew.leaving
    crew.leaving = 0
    cp_light_mutex_unlock(&s.lock)


cdef void dismiss(Scheduler* s, Crew* crew, int count) noexcept nogil:
    """Have so many threads of the crew leave it: with their next `take`, those that wait at once.

    Where they take the program's packets, those that are queued now are taken before. The caller need not be
    inside.
    """
    cp_light_mutex_lock(&s.lock)
    crew.leaving += count
    crew.until = s.programs.taken + s.programs.queued + s.held_back
    s.dismissed += count
    unlock_and_wake_from_outside(s)
