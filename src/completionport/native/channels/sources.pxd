"""The file of a `sendfile`: what can be sent of it without waiting for a disk, and reading the rest."""

from libc.stdint cimport int64_t

from .engine cimport Operation, SourceKind

# The owner's, without a lock: it may wait for a file server.
cdef SourceKind source_kind(int descriptor, int64_t offset) noexcept nogil
# On the pool, whose the operation is: have the next bytes ready.
cdef void read_source(Operation* operation) noexcept nogil
# The channel's lock for the next three. How many bytes to ask sendfile(2) for; 0: the pool is to read.
cdef int64_t sendable(Operation* operation) noexcept nogil
# What the pool has read of a distant file and nobody has sent yet.
cdef char* read_bytes(Operation* operation, size_t* size) noexcept nogil
cdef void sent_of_read(Operation* operation, int64_t size) noexcept nogil
# The operation's owner, no lock needed.
cdef void close_source(Operation* operation) noexcept nogil
