"""The file of a `sendfile`: what can be sent of it without waiting for a disk, and reading the rest."""

from libc.stdint cimport int64_t

from .engine cimport Operation, SourceKind

# The owner's, without a lock.
cdef SourceKind source_kind(int descriptor, int64_t offset) noexcept nogil
# The channel's lock for all below, but for `read_source`: it is for a thread whose the operation is.
# How many bytes to ask sendfile(2) for; 0: the file is to be read.
cdef int64_t sendable(Operation* operation) noexcept nogil
# Make room for what is to be read: `control`, from `offset` on. False: there is no memory.
cdef bint prepare_source(Operation* operation) noexcept nogil
cdef void read_source(Operation* operation) noexcept nogil
# What the read into that room has brought: a number of bytes, or minus an errno.
cdef void source_came(Operation* operation, int64_t result) noexcept nogil
# It can't be read beforehand: let sendfile(2) do it.
cdef void give_source_up(Operation* operation) noexcept nogil
# Send so much, which need not be waited for, by send(2) with these flags: its result or minus an errno. EINTR: there is more
# to send by now, what was read.
cdef int64_t send_mapped(Operation* operation, size_t size, int flags) noexcept nogil
# What was read of a distant file and nobody has sent yet.
cdef char* read_bytes(Operation* operation, size_t* size) noexcept nogil
cdef void sent_of_read(Operation* operation, int64_t size) noexcept nogil
# The operation's owner, no lock needed.
cdef void close_source(Operation* operation) noexcept nogil
