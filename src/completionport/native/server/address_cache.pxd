"""The addresses that a datagram server sees again and again."""

from libc.stdint cimport uint64_t

cdef enum:
    CACHED_ADDRESS = 28            # sockaddr_in6; a longer one is not kept
    LONGEST_ADDRESS = 128          # sockaddr_storage

cdef struct Known:
    unsigned int size
    char raw[CACHED_ADDRESS]

cdef class AddressCache:
    # Both tables are written in a critical section of this object. An entry is what `raw` in the
    # one, or the tuple at that place in the other, stands for; a later one takes its place.
    cdef Known* by_raw
    cdef Known* by_tuple
    cdef list tuples_by_raw
    cdef list tuples_by_tuple
    cdef int family
    cdef int kind

    # Python's form of the kernel's.
    cdef object find(self, const char* raw, unsigned int size)
    cdef int remember(self, object address, const char* raw, unsigned int size) except -1
    # The kernel's form of Python's, written to `raw`, with room for LONGEST_ADDRESS: its size.
    cdef unsigned int raw_of(self, object address, char* raw) except 0
