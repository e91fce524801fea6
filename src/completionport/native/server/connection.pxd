"""One client of a server, and what it needs of the server's core."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from ..channels.engine cimport Stream
from .common cimport CommonCore

cdef enum:
    ADDRESS_SIZE = 28          # sockaddr_in6


cdef class ServerBase(CommonCore):
    # Constant after creation.
    cdef readonly object address
    cdef object on_drained
    cdef object on_stopping      # None: a connection is closed when the server stops
    cdef size_t send_limit
    cdef bint keeps_time


cdef class Connection:
    cdef ServerBase core
    cdef Stream* stream
    cdef object state_           # critical section
    cdef object failure          # why it ended, once set: critical section
    cdef list held               # received while paused or throttled: own worker only
    # Channel lock, and written as atomics, for the worker that asks in between:
    cdef bint paused
    cdef bint throttled          # more is queued than `send_limit`
    cdef bint retiring           # channel lock: it ends with the callback that is at work
    cdef bint stopping_due       # channel lock: its handler is to be asked what becomes of it
    cdef int64_t taken_before    # channel lock: what the peer had taken, see `made_progress`
    cdef bint end_told           # own worker only
    cdef bint linger_noted       # own worker only: the core sees to it that its lingering ends
    cdef unsigned char peer_size
    cdef char peer[ADDRESS_SIZE]
    cdef object __weakref__

    cdef int send_bytes(self, const char* data, size_t size, PyObject* whole) except -1
    cdef int append(self, const char* data, size_t size, PyObject* whole) noexcept
    cdef void want_input(self) noexcept
    cdef int retire(self) except -1
    cdef void fail(self, error) noexcept
    cdef bint made_progress(self) noexcept
    cdef int expire(self, double seconds) except -1
