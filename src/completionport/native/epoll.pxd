from .engine cimport Engine
from .scheduler cimport Scheduler

cdef int epoll_new(Scheduler* scheduler, Engine** engine) noexcept nogil
