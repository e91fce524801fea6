from .engine cimport Engine
from .scheduler cimport Scheduler

cdef int io_uring_new(Scheduler* scheduler, Engine** engine) noexcept nogil
