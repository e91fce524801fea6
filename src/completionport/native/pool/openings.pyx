# cython: language_level=3, freethreading_compatible=True
"""Opening a file by name, by a thread that may be left behind with it.

open(2) of a named pipe waits for the other side, as long as that takes, and that of a file for a server that
may not answer. So the thread works on memory of its own, as with a lookup.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport strdup

from ..channels.lookups cimport RUNNING

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EINTR

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    static inline int cp_open_name(const char *path, int flags, unsigned mode)
    {
        return open(path, flags, mode);
    }
    """
    int cp_open_name(const char* path, int flags, unsigned mode)


cdef Opening* opening_new(Operation* operation) noexcept nogil:
    cdef Opening* opening = <Opening*> calloc(1, sizeof(Opening))
    if opening == NULL:
        return NULL
    opening.path = strdup(<const char*> operation.address)
    if opening.path == NULL:
        free(opening)
        return NULL
    opening.flags = operation.flags
    opening.mode = <unsigned> operation.extent
    opening.state = RUNNING
    return opening


cdef void opening_run(Opening* opening) noexcept nogil:
    opening.result = -EINTR
    while opening.result == -EINTR:
        opening.result = cp_open_name(opening.path, opening.flags, opening.mode)
        if opening.result < 0:
            opening.result = -errno


cdef void opening_free(Opening* opening) noexcept nogil:
    free(opening.path)
    free(opening)


cdef void opening_drop(Opening* opening) noexcept nogil:
    if opening.result >= 0:
        close(opening.result)
    opening_free(opening)
