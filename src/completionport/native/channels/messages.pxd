"""What a message carries besides its bytes: addresses, and ancillary data as cmsg(3) has it."""

from libc.stdint cimport int64_t

from .engine cimport msghdr

# Python's form of a socket address; None for an empty one.
cdef object address_of(const char* address, unsigned int size)
# The kernel's form of (level, type, data) tuples. Descriptors in it are duplicates: the caller's.
cdef bytes pack_ancillary(object ancillary)
# Python's form; descriptors in it are the caller's from now on, or closed if it raises.
cdef list unpack_ancillary(msghdr* message)
# sendmsg(2): the number of bytes, or minus its errno. ENOBUFS: a Unix socket's receiver is full.
cdef int64_t send_message(int descriptor, const msghdr* message, int flags) noexcept nogil
# Close the descriptors that lie in a control buffer.
cdef void close_passed_descriptors(msghdr* message) noexcept nogil
