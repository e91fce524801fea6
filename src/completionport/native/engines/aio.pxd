"""Reads past the page cache by the kernel's asynchronous I/O, io_submit(2): no thread waits for them."""

from libc.stdint cimport uint32_t

from ..channels.engine cimport Operation
from ..primitives.atomics cimport cp_mutex

cdef struct Aio:
    # `lock` while it is opened; constant once `state` says so, which is atomic.
    uint32_t state           # AioState
    unsigned long context    # the kernel's
    int descriptor           # an eventfd, which counts completions
    cp_mutex lock

ctypedef enum AioState:
    UNTRIED
    OPEN
    REFUSED     # the system has none, or no more of them: the pool does it all

# True when completions may come from now on, of which events of `epoll` for `tag` tell. Any thread.
cdef bint aio_open(Aio* aio, int epoll, unsigned tag) noexcept nogil
# Nothing is under way any more.
cdef void aio_close(Aio* aio) noexcept nogil
# Channel lock. False: not an operation that the kernel does by itself, and nothing was done.
cdef bint aio_start(Aio* aio, Operation* operation) noexcept nogil
# Bring what has completed to the packet queue, without waking anybody. No lock.
cdef void aio_collect(Aio* aio) noexcept nogil
