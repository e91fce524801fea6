"""Completion: a packet as Python sees it."""

from ..scheduling.scheduler cimport Packet, Scheduler, Taken
from ..scheduling.timer_heap cimport TimedPacket

cdef class Completion:
    cdef readonly object transferred
    cdef readonly object key
    cdef readonly object overlapped
    cdef readonly object error

cdef int fill(Completion completion, Scheduler* scheduler, Taken* taken) except -1
cdef int give_back(Scheduler* scheduler, object completion) except -1
cdef int drop_packet(Packet* packet) except -1
cdef int release_values(TimedPacket* timed) except -1
