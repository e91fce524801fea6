"""Streams: the server's connections and listening sockets, below Python.

A stream is a strand: it is in the packet queue at most once, and at most one thread is at it.
"""

from libc.stdint cimport int64_t

from ..scheduling.scheduler cimport Consumer, Packet
from .engine cimport Block, Channel, Chunk, Engine, Stream

cdef inline Stream* stream_of(Packet* packet) noexcept nogil:
    """The stream that this packet is a part of."""
    return <Stream*> (<char*> packet - <size_t> &(<Stream*> NULL).packet)


cdef inline bint told_by_readiness(Channel* channel) noexcept nogil:
    """It waits in an epoll instance. Constant once the channel is open."""
    return channel.generation != 0


cdef inline void append_chunk(Stream* stream, Chunk* chunk) noexcept nogil:
    """Of what has come and nobody has taken. Channel lock."""
    chunk.next = NULL
    if stream.first_chunk == NULL:
        stream.first_chunk = chunk
    else:
        stream.last_chunk.next = chunk
    stream.last_chunk = chunk


cdef extern from "atomics.h" nogil:
    Block* cp_exchange_pointer(Block** list, Block* value) nogil
    Block* cp_peek_block "cp_load_relaxed"(Block** list) nogil


cdef inline Block* take_garbage(Engine* engine) noexcept nogil:
    """The blocks whose objects the caller has to let go, with the GIL; then it frees them."""
    return NULL if cp_peek_block(&engine.garbage) == NULL else cp_exchange_pointer(&engine.garbage, NULL)


cdef enum:
    DOUBT_NS = 100000000

cdef Stream* stream_new(Engine* engine, int descriptor, const Consumer* consumer) noexcept nogil
# With the channel's lock:
cdef void stream_schedule(Stream* stream, bint wake) noexcept nogil
cdef int stream_append(Stream* stream, const char* data, size_t size, void* object) noexcept nogil
cdef int64_t stream_try_send(Stream* stream, const char* data, size_t size) noexcept nogil
cdef int64_t stream_input_if_ready(Stream* stream, char* scratch, size_t size) noexcept nogil
cdef void stream_ready(Stream* stream, bint at_end, bint failed) noexcept nogil
cdef void stream_failed(Stream* stream) noexcept nogil
cdef void stream_ask_for_failure(Stream* stream) noexcept nogil
cdef bint stream_linger(Stream* stream, bint at_it) noexcept nogil
cdef void stream_start_output(Stream* stream) noexcept nogil
cdef void stream_append_block(Stream* stream, Block* block) noexcept nogil
cdef void stream_block_done(Stream* stream) noexcept nogil
cdef void stream_closing(Channel* channel) noexcept nogil
