"""Lookups of names: getaddrinfo(3)."""

cdef extern from "netdb.h" nogil:
    cdef struct addrinfo:
        int ai_flags
        int ai_family
        int ai_socktype
        int ai_protocol
        unsigned int ai_addrlen
        void* ai_addr
        char* ai_canonname
        addrinfo* ai_next

ctypedef enum LookupState:
    AT_REST
    RUNNING
    LEFT_BEHIND

cdef struct Lookup:
    # It owns all its memory: whoever has it may be left behind by everybody else. The state is the
    # pool's lock's, the rest its owner's: the operation, and from RUNNING on the pool's thread.
    int state               # LookupState
    char* host              # or NULL
    char* service           # or NULL
    addrinfo hints
    addrinfo* found
    int failure             # as getaddrinfo(3) returned it
    int error               # errno with it

# Raises MemoryError.
cdef Lookup* lookup_new(bytes host, bytes service, int family, int type, int protocol, int flags) except NULL
cdef void lookup_free(Lookup* lookup) noexcept nogil
cdef void lookup_run(Lookup* lookup) noexcept nogil
# What socket.getaddrinfo() would return, or raise.
cdef object lookup_result(Lookup* lookup)
cdef object lookup_error(Lookup* lookup)
