"""Which file system a file lies on, as far as it decides who may wait for it."""

# Whether its reads and its close may take as long as a file server, or a program, likes.
cdef bint is_distant(int descriptor) noexcept nogil
# Whether its file system is a program's.
cdef bint is_on_fuse(int descriptor) noexcept nogil
