"""What the cores of servers have in common."""

from libc.stdint cimport int64_t

from ..channels.engine cimport Stream
from ..port.core cimport Core
from ..primitives.atomics cimport cp_mutex
from ..scheduling.timer_heap cimport TimedPacket

cdef enum:
    POOR_SIZE = 4096           # of a thread's own memory, where there is no more

cdef class CommonCore:
    # Constant after creation.
    cdef object port             # the completion port itself: a server that made it shows a face of it
    cdef Core core
    cdef readonly object server
    cdef int64_t starved_ns      # atomic: when memory or descriptors last ran out, 0 for never
    # The clock: a timed packet of the core's own. While it is set it has a reference to the core.
    cdef TimedPacket clock
    cdef cp_mutex clock_lock     # before those of the timers
    cdef bint clock_set          # clock_lock: in the heap, or in the packet queue
    cdef int64_t clock_ns        # clock_lock: when `clock_came` is wanted, NO_TIMER: not

    cdef bint goes_in(self) except -1
    cdef void leave(self) noexcept
    cdef void forsake(self, Stream* stream) noexcept
    cdef void call_at(self, int64_t when_ns) noexcept
    cdef bint set_clock(self, int64_t when_ns) noexcept
    cdef bint start_clock(self, int64_t when_ns) noexcept
    cdef void stop_clock(self) noexcept
    cdef int64_t clock_came(self, int64_t now) except? -2
    cdef void tell_shortage(self, str message, int error) noexcept

cdef object overridden(handler, type base, str name)
cdef void report(int level, str message, object subject, bint with_traceback) noexcept
cdef void acquire(object lock) noexcept
cdef bint comes_free(object lock, object timeout) except -1
cdef void let_go(Stream* stream, int descriptor) noexcept
