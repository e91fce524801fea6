"""What statx(2) tells, as Python has it."""

cdef enum:
    STATUS_ROOM = 256   # of a struct statx

cdef object status_of(const char* status)
# What O_DIRECT wants addresses, offsets and sizes to be multiples of.
cdef int alignment_of(int descriptor) noexcept
