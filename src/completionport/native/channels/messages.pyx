# cython: language_level=3, freethreading_compatible=True
"""Addresses and ancillary data between Python's form and the kernel's."""

import os
from operator import index

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint16_t
from libc.string cimport memcpy, memset

from .engine cimport sockaddr

from ...interface.errors import system_error
from ...shared.addresses import unpack
from ...shared import arguments

cdef extern from "sys/socket.h" nogil:
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    cmsghdr* CMSG_NXTHDR(msghdr* message, cmsghdr* header)
    unsigned char* CMSG_DATA(cmsghdr* header)
    size_t CMSG_SPACE(size_t size)
    size_t CMSG_LEN(size_t size)
    ssize_t sendmsg(int descriptor, const msghdr* message, int flags)
    enum:
        AF_INET, AF_UNIX, SOL_SOCKET, SCM_RIGHTS

cdef extern from "arpa/inet.h" nogil:
    const char* inet_ntop(int family, const void* address, char* text, unsigned int size)
    uint16_t ntohs(uint16_t number)

cdef extern from "fcntl.h" nogil:
    enum:
        F_DUPFD_CLOEXEC
    int fcntl(int descriptor, int command, ...)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from "poll.h" nogil:
    enum:
        POLLOUT
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* descriptors, unsigned long count, int timeout)

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN, ENOBUFS

cdef enum:
    TRIES = 4

cdef int LARGEST_ANCILLARY = arguments.LARGEST_ANCILLARY


cdef object address_of(const char* address, unsigned int size):
    cdef char text[16]
    cdef uint16_t family = 0
    cdef uint16_t port
    if size >= 8:
        memcpy(&family, address, sizeof(family))
    if family != AF_INET:
        return unpack(address[:size])
    memcpy(&port, address + 2, sizeof(port))
    inet_ntop(AF_INET, address + 4, text, sizeof(text))
    return text.decode("ascii"), ntohs(port)


# -- sending --------------------------------------------------------------------------------------


cdef int64_t send_message(int descriptor, const msghdr* message, int flags) noexcept nogil:
    cdef pollfd ready
    cdef ssize_t sent
    cdef int tries
    for tries in range(TRIES):
        sent = sendmsg(descriptor, message, flags)
        if sent >= 0:
            return sent
        if (
            errno != EAGAIN or message.msg_name == NULL
            or (<sockaddr*> message.msg_name).sa_family != AF_UNIX
        ):
            return -errno
        ready.fd = descriptor
        ready.events = POLLOUT
        if poll(&ready, 1, 0) == 0:
            return -EAGAIN
        # This socket has room. Either it got it just now, or it is the receiver's queue that is full,
        # and of that nothing would tell when it changes: a few more tries say which.
    return -ENOBUFS


# -- ancillary data -------------------------------------------------------------------------------


cdef bytes pack_ancillary(object ancillary):
    cdef list items = []
    cdef Py_ssize_t size = 0
    cdef bytes memory
    cdef msghdr message
    cdef cmsghdr* header
    cdef Py_buffer view
    cdef bint rights
    cdef int error
    try:
        for level, kind, data in ancillary:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                items.append((
                    <int> index(level), <int> index(kind),
                    PyBytes_FromStringAndSize(<char*> view.buf, view.len),
                ))
                size += CMSG_SPACE(view.len)
            finally:
                PyBuffer_Release(&view)
    except (TypeError, ValueError, OverflowError, BufferError) as reason:
        raise TypeError(
            f"ancillary data is a sequence of (level, type, bytes-like data) tuples: {reason}"
        ) from None
    if size > LARGEST_ANCILLARY:
        raise ValueError(f"ancillary data has at most {LARGEST_ANCILLARY} bytes, not {size}")
    if size == 0:
        return b""
    memory = PyBytes_FromStringAndSize(NULL, size)
    memset(PyBytes_AS_STRING(memory), 0, size)
    memset(&message, 0, sizeof(message))
    message.msg_control = PyBytes_AS_STRING(memory)
    message.msg_controllen = size
    header = CMSG_FIRSTHDR(&message)
    # Until all descriptors are duplicates, what lies in the memory is counted by this.
    message.msg_controllen = 0
    for level, kind, data in items:
        header.cmsg_level = level
        header.cmsg_type = kind
        header.cmsg_len = CMSG_LEN(len(data))
        memcpy(CMSG_DATA(header), PyBytes_AS_STRING(data), len(data))
        rights = level == SOL_SOCKET and kind == SCM_RIGHTS
        error = duplicate_in_place(header) if rights else 0
        if error != 0:
            close_passed_descriptors(&message)
            raise system_error(error, f"{os.strerror(error)}: a descriptor in the ancillary data")
        message.msg_controllen += CMSG_SPACE(len(data))
        header = <cmsghdr*> (PyBytes_AS_STRING(memory) + message.msg_controllen)
    return memory


cdef int duplicate_in_place(cmsghdr* header) noexcept nogil:
    """Put duplicates into the place of the descriptors; 0, or an errno and none is left."""
    cdef int* descriptors = <int*> CMSG_DATA(header)
    cdef size_t count = (header.cmsg_len - CMSG_LEN(0)) // sizeof(int)
    cdef size_t i
    cdef int duplicate
    cdef int error
    for i in range(count):
        duplicate = fcntl(descriptors[i], F_DUPFD_CLOEXEC, 0)
        if duplicate < 0:
            error = errno
            while i > 0:
                i -= 1
                close(descriptors[i])
            return error
        descriptors[i] = duplicate
    return 0


cdef size_t data_size(msghdr* message, cmsghdr* header) noexcept nogil:
    # The last one may say that it is longer than the room that there was: MSG_CTRUNC.
    cdef unsigned char* end = <unsigned char*> message.msg_control + message.msg_controllen
    return min(header.cmsg_len - CMSG_LEN(0), <size_t> (end - CMSG_DATA(header)))


cdef list unpack_ancillary(msghdr* message):
    cdef list items = []
    cdef cmsghdr* header
    header = CMSG_FIRSTHDR(message)
    while header != NULL:
        items.append((
            header.cmsg_level, header.cmsg_type,
            PyBytes_FromStringAndSize(<char*> CMSG_DATA(header), data_size(message, header)),
        ))
        header = CMSG_NXTHDR(message, header)
    return items


cdef void close_passed_descriptors(msghdr* message) noexcept nogil:
    cdef cmsghdr* header = CMSG_FIRSTHDR(message)
    cdef size_t i
    while header != NULL:
        if header.cmsg_level == SOL_SOCKET and header.cmsg_type == SCM_RIGHTS:
            for i in range(data_size(message, header) // sizeof(int)):
                close((<int*> CMSG_DATA(header))[i])
        header = CMSG_NXTHDR(message, header)
