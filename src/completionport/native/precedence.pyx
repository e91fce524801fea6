# cython: language_level=3, freethreading_compatible=True
"""Which operations on a file wait for which. The channel's lock is held in all of this.

Reads at an offset change nothing, so they wait for nothing, and have a queue of their own together
with `stat`. In the other queue:

- what works at the file's own position is carried out in order, reads and writes alike;
- writes and allocations wait for those before them that cover a part of the same bytes; a write at
  the file's own position (and any on a file that was opened to append) may cover every byte;
- fsync waits for all writes and allocations before it, and nothing waits for it.
"""

from .engine cimport (
    CP_ALLOCATE,
    CP_FSYNC,
    CP_READ,
    CP_STAT,
    CP_WRITE,
    ERRANDS,
    Operation,
)


cdef inline bint changes(Operation* operation) noexcept nogil:
    return operation.code == CP_WRITE or operation.code == CP_ALLOCATE


cdef inline bint at_position(Operation* operation) noexcept nogil:
    return operation.offset < 0 and (operation.code == CP_READ or operation.code == CP_WRITE)


cdef inline bint may_meet(Operation* one, Operation* other) noexcept nogil:
    """Whether two operations that change the file may cover the same byte."""
    if one.offset < 0 or other.offset < 0:
        return True
    if one.channel.appends and one.code == CP_WRITE and other.code == CP_WRITE:
        return True
    # As differences: the sums may be out of range.
    if one.offset < other.offset:
        return other.offset - one.offset < one.extent
    return one.offset - other.offset < other.extent or one.offset == other.offset


cdef bint must_follow(Operation* later, Operation* earlier) noexcept nogil:
    if later.code == CP_FSYNC:
        return changes(earlier)
    if at_position(later) and at_position(earlier):
        return True
    return changes(later) and changes(earlier) and may_meet(later, earlier)


cdef bint is_in_turn(Operation* operation) noexcept nogil:
    cdef Operation* earlier = operation.previous
    if operation.channel.kind == ERRANDS or operation.code == CP_STAT or (
        operation.code == CP_READ and operation.offset >= 0
    ):
        return True
    while earlier != NULL:
        if must_follow(operation, earlier):
            return False
        earlier = earlier.previous
    return True
