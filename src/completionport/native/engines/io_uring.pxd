from ..channels.engine cimport Engine
from ..scheduling.scheduler cimport Scheduler

cdef int io_uring_new(Scheduler* scheduler, Engine** engine) noexcept nogil
