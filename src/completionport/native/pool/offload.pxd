"""The port's pool of threads, for what the kernel can't do without one.

Operations go in under their channel's lock and come out complete. The threads are not the program's:
they never wait for packets, so they count for nobody's concurrency.
"""

from ..channels.engine cimport Channel, Offload, Operation
from ..scheduling.scheduler cimport Scheduler

# NULL without memory. `limit`: the most threads. `processors`: how many threads can run Python at a time.
cdef Offload* offload_new(Scheduler* scheduler, int limit, int processors) noexcept nogil
# Dismiss the threads, which end in their own time, and give the port's reference back.
# Nothing is in line any more.
cdef void offload_close(Offload* pool) noexcept nogil
# Channel lock for the next two. Carry the operation out; its packet tells.
cdef void offload_start(Operation* operation) noexcept nogil
# Take it out of the line: True. False: it is being executed and its completion will tell.
cdef bint offload_cancel(Operation* operation) noexcept nogil
# The calling thread is one of the pool's and runs a function for this channel: from now on nobody waits
# for that function, and its packet is dropped. Takes the channel's lock.
cdef void offload_disown(Channel* channel) noexcept nogil
# Whether the calling thread is at an operation of this channel.
cdef bint offload_executes(Channel* channel) noexcept nogil
# For who closes the port, and is the only one inside: close the descriptors that are in line for that.
# True: a thread is still at one.
cdef bint offload_lets_go(Offload* pool) noexcept nogil

# -- for `shortage`

ctypedef enum Summons:
    NOTHING
    WAKE
    START        # a thread that is on its way to the line
    START_WATCH

# Pool's lock:
cdef Summons summon(Offload* pool) noexcept nogil
cdef void unlink(Offload* pool, Operation* operation) noexcept nogil
# Channel lock:
cdef void back_from_pool(Operation* operation) noexcept nogil
# No lock:
cdef int obey(Offload* pool, Summons summons) noexcept nogil
cdef void close_descriptor(Offload* pool, Operation* operation) noexcept nogil
cdef void execute_here(Offload* pool, Operation* operation) noexcept nogil
