"""Operations of a port that belong to no handle."""

from libc.stdint cimport int64_t

from ..channels.engine cimport Operation
from .core cimport Core

cdef object start_call(Core core, int code, function, tuple args, key, overlapped, strand)
cdef object start_lookup(
    Core core, bytes host, bytes service, int family, int type, int proto, int flags, key, overlapped,
    strand
)
cdef object start_open(Core core, bytes path, int flags, unsigned mode, key, overlapped, strand)
cdef object start_stat(Core core, bytes path, bint follow_symlinks, key, overlapped, strand)
cdef object start_copy(
    Core core, bytes source, bytes target, int64_t at_most, key, overlapped, strand
)
cdef object start_close(Core core, int descriptor, key, overlapped, strand)
# For the pool: run the function of an operation, with a thread state; drop an operation nobody waits for.
cdef void call_function(Operation* operation) noexcept nogil
cdef void drop_operation(Operation* operation) noexcept nogil
