# cython: language_level=3, freethreading_compatible=True
"""getaddrinfo(3) without Python, and its result as `socket.getaddrinfo` gives it."""

import os
import socket

from libc.stdlib cimport calloc, free
from libc.string cimport strdup

from .messages cimport address_of

from ...interface.error_codes import add_codes
from ...interface.errors import system_error

cdef extern from "netdb.h" nogil:
    int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** found)
    void freeaddrinfo(addrinfo* found)
    const char* gai_strerror(int failure)
    enum:
        EAI_SYSTEM

cdef extern from "errno.h" nogil:
    int errno


cdef Lookup* lookup_new(
    bytes host, bytes service, int family, int type, int protocol, int flags
) except NULL:
    cdef Lookup* lookup = <Lookup*> calloc(1, sizeof(Lookup))
    if lookup == NULL:
        raise MemoryError
    if host is not None:
        lookup.host = strdup(host)
    if service is not None:
        lookup.service = strdup(service)
    if (host is not None and lookup.host == NULL) or (
        service is not None and lookup.service == NULL
    ):
        lookup_free(lookup)
        raise MemoryError
    lookup.hints.ai_family = family
    lookup.hints.ai_socktype = type
    lookup.hints.ai_protocol = protocol
    lookup.hints.ai_flags = flags
    return lookup


cdef void lookup_free(Lookup* lookup) noexcept nogil:
    if lookup.found != NULL:
        freeaddrinfo(lookup.found)
    free(lookup.host)
    free(lookup.service)
    free(lookup)


cdef void lookup_run(Lookup* lookup) noexcept nogil:
    lookup.failure = getaddrinfo(lookup.host, lookup.service, &lookup.hints, &lookup.found)
    lookup.error = errno


cdef object lookup_error(Lookup* lookup):
    if lookup.failure == 0:
        return None
    if lookup.failure == EAI_SYSTEM:
        return system_error(lookup.error)
    text = gai_strerror(lookup.failure).decode("utf-8", "replace")
    return add_codes(socket.gaierror(lookup.failure, text))


cdef object lookup_result(Lookup* lookup):
    cdef addrinfo* entry = lookup.found
    cdef list found = []
    while entry != NULL:
        found.append((
            member(socket.AddressFamily, entry.ai_family),
            member(socket.SocketKind, entry.ai_socktype),
            entry.ai_protocol,
            os.fsdecode(entry.ai_canonname) if entry.ai_canonname != NULL else "",
            address_of(<const char*> entry.ai_addr, entry.ai_addrlen),
        ))
        entry = entry.ai_next
    return found


cdef object member(object kind, int value):
    try:
        return kind(value)
    except ValueError:
        return value
