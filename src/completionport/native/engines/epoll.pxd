from ..channels.engine cimport Engine
from ..scheduling.scheduler cimport Scheduler

cdef int epoll_new(Scheduler* scheduler, Engine** engine) noexcept nogil
