"""The ring's receives and accepts. The channel's lock is held where a stream alone is named."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from ..channels.engine cimport Engine, Stream
from .uring cimport Uring

cdef void start_input(Engine* engine, Stream* stream) noexcept nogil
cdef void stop_input(Engine* engine, Stream* stream) noexcept nogil
cdef void watch(Engine* engine, Stream* stream) noexcept nogil
cdef int64_t next_input(
    Engine* engine, Stream* stream, char* scratch, size_t scratch_size, char** data
) noexcept nogil
cdef void release_input(Engine* engine, Stream* stream) noexcept nogil
# Completions of what is armed and of `watch`; these take the lock.
cdef void input_completed(Uring* uring, Stream* stream, int32_t result, uint32_t flags) noexcept nogil
cdef void watch_completed(Uring* uring, Stream* stream, int32_t result, uint32_t flags) noexcept nogil
