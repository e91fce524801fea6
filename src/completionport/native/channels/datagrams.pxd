"""A datagram socket of a server, below Python: a Stream with `datagrams`. Channel lock, but where said."""

from libc.stdint cimport int64_t

from ..scheduling.scheduler cimport Consumer
from .engine cimport Engine, Stream

# A stream for datagrams of up to `size` bytes; NULL without memory. No lock.
cdef Stream* datagrams_new(
    Engine* engine, int descriptor, const Consumer* consumer, size_t size
) noexcept nogil
# What `datagrams_new` made besides the stream; nothing of it is in the kernel. No lock.
cdef void datagrams_free(Stream* stream) noexcept nogil
# What `EngineType.next_input` and `release_input` do, on every engine.
cdef int64_t datagrams_receive(Stream* stream, char** data) noexcept nogil
cdef void datagrams_release(Stream* stream) noexcept nogil
# Send one now, with the lock let go meanwhile: 0 or an errno, EAGAIN where it may be queued,
# ENOBUFS where it is lost.
cdef int datagrams_try_send(
    Stream* stream, const char* data, size_t size, const char* address, unsigned int address_size
) noexcept nogil
# Queue a copy of one, to be sent when the socket has room; 0 or ENOMEM.
cdef int datagrams_queue(
    Stream* stream, const char* data, size_t size, const char* address, unsigned int address_size
) noexcept nogil
