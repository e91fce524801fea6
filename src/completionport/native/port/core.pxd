"""What a port consists of below its Python face."""

from libc.stdint cimport int64_t

from ..channels.engine cimport Block, Channel, Engine
from ..primitives.atomics cimport cp_mutex
from ..scheduling.scheduler cimport Scheduler

cdef class Core:
    cdef Scheduler* scheduler
    cdef Engine* engine
    cdef Channel* errands                 # of operations that belong to no handle
    cdef readonly object port_reference   # weak: a port that is dropped closes itself
    cdef Channel* channels                # all of this port: `channels_lock`
    cdef set tokens                       # of the files associated here; one call at a time each
    cdef cp_mutex channels_lock
    cdef cp_mutex close_lock
    cdef int fork_generation
    cdef bint destroyed                   # `close_lock`
    cdef bint unborn                      # constant
    # What an engine that is gone has counted: atomic.
    cdef int64_t zero_copy_sends
    cdef int64_t zero_copy_copied

    cdef object refusal(self)
    cdef int begin(self) except -1
    cdef int end(self) except -1
    cdef int adopt(self, Channel* channel) except -1
    cdef void forget(self, Channel* channel) noexcept
    cdef bint forked(self) noexcept
    cdef int close(self) except -1
    cdef void settle_closing(self, Channel* channel) noexcept nogil
    cdef tuple census(self)
    cdef tuple zero_copy_counts(self)
    cdef int close_in_child(self) except -1

# What stands for the core of a port, or of what belongs to one, that was not initialised: one that is
# closed, so that whatever needs a port finds out where it would see that anyway.
cdef Core unborn_core()
cdef void free_garbage(Block* block) noexcept
