# cython: language_level=3, freethreading_compatible=True
"""Addresses between the kernel's form and Python's, without doing the work for each datagram anew.

To make the tuple of an address and to read one takes longer than a system call. A peer that sends
again is given the same tuple object again, and an answer to that object needs no look into it.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

cimport cython

from ..channels.messages cimport address_of

from ...shared.addresses import pack

cdef enum:
    ENTRIES = 2048                 # a power of two


cdef inline uint64_t mixed(uint64_t value) noexcept nogil:
    value *= <uint64_t> 0x9e3779b97f4a7c15
    return value ^ (value >> 32)


cdef inline uint64_t place_of_raw(const char* raw, unsigned int size) noexcept nogil:
    cdef uint64_t word
    cdef uint64_t sum = size
    cdef unsigned int at
    for at in range(0, size - 7, 8):
        memcpy(&word, raw + at, 8)
        sum = mixed(sum ^ word)
    memcpy(&word, raw + size - 8, 8)
    return mixed(sum ^ word) & (ENTRIES - 1)


cdef inline uint64_t place_of_tuple(object address) noexcept:
    return mixed(<uint64_t> <uintptr_t> <PyObject*> address) & (ENTRIES - 1)


cdef class AddressCache:
    def __cinit__(self, int family, int kind):
        self.family = family
        self.kind = kind
        self.by_raw = <Known*> calloc(ENTRIES, sizeof(Known))
        self.by_tuple = <Known*> calloc(ENTRIES, sizeof(Known))
        if self.by_raw == NULL or self.by_tuple == NULL:
            raise MemoryError
        self.tuples_by_raw = [None] * ENTRIES
        self.tuples_by_tuple = [None] * ENTRIES

    def __dealloc__(self):
        free(self.by_raw)
        free(self.by_tuple)

    cdef object find(self, const char* raw, unsigned int size):
        cdef object address
        cdef uint64_t place
        if size < 8 or size > CACHED_ADDRESS:
            return address_of(raw, size)
        place = place_of_raw(raw, size)
        with cython.critical_section(self):
            if self.by_raw[place].size == size and memcmp(self.by_raw[place].raw, raw, size) == 0:
                return self.tuples_by_raw[place]
        address = address_of(raw, size)
        with cython.critical_section(self):
            self.by_raw[place].size = size
            memcpy(self.by_raw[place].raw, raw, size)
            self.tuples_by_raw[place] = address
        self.remember(address, raw, size)
        return address

    cdef int remember(self, object address, const char* raw, unsigned int size) except -1:
        cdef uint64_t place = place_of_tuple(address)
        with cython.critical_section(self):
            self.by_tuple[place].size = size
            memcpy(self.by_tuple[place].raw, raw, size)
            self.tuples_by_tuple[place] = address
        return 0

    cdef unsigned int raw_of(self, object address, char* raw) except 0:
        cdef unsigned int size = 0
        cdef uint64_t place = place_of_tuple(address)
        cdef bytes packed
        with cython.critical_section(self):
            # The table holds the tuple, so no other object can have come to its address.
            if self.tuples_by_tuple[place] is address:
                size = self.by_tuple[place].size
                memcpy(raw, self.by_tuple[place].raw, size)
        if size != 0:
            return size
        packed = pack(self.family, self.kind, address)
        size = <unsigned int> len(packed)
        memcpy(raw, <const char*> packed, size)
        if type(address) is tuple and 8 <= size <= CACHED_ADDRESS and is_number(address):
            self.remember(address, raw, size)
        return size


cdef bint is_number(tuple address) noexcept:
    """Whether the host is not a name, which may come to mean another address."""
    cdef object host = address[0]
    return type(host) is str and len(host) > 0 and (host[0].isdigit() or ":" in host)
