# cython: language_level=3, freethreading_compatible=True
"""Which operations on a file wait for which. The channel's lock is held in all of this.

Reads at an offset change nothing, so they wait for nothing, and have a queue of their own together
with `stat`. In the other queue:

- what works at the file's own position is carried out in order, reads and writes alike;
- writes and allocations wait for those before them that cover a part of the same bytes; a write at
  the file's own position (and any on a file that was opened to append) may cover every byte;
- fsync waits for all writes and allocations before it, and nothing waits for it.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from .engine cimport (
    CP_ALLOCATE,
    CP_FSYNC,
    CP_READ,
    CP_STAT,
    CP_WRITE,
    ERRANDS,
    Operation,
    SideBySide,
)


cdef inline bint changes(Operation* operation) noexcept nogil:
    return operation.code == CP_WRITE or operation.code == CP_ALLOCATE


cdef inline bint at_position(Operation* operation) noexcept nogil:
    return operation.offset < 0 and (operation.code == CP_READ or operation.code == CP_WRITE)


cdef inline bint may_meet(Operation* one, Operation* other) noexcept nogil:
    """Whether two operations that change the file may cover the same byte."""
    if one.offset < 0 or other.offset < 0:
        return True
    if one.channel.appends and (one.code == CP_WRITE or other.code == CP_WRITE):
        # It goes to the end, wherever that is by then.
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


# -- changes that were started, by offset: so that thousands can be pending ---------------------


cdef inline bint may_cover_all(Operation* operation) noexcept nogil:
    return changes(operation) and (
        operation.offset < 0 or (operation.channel.appends and operation.code == CP_WRITE)
    )


cdef int place_of(SideBySide* beside, int64_t offset) noexcept nogil:
    """How many spans begin before the offset."""
    cdef int low = 0
    cdef int high = beside.span_count
    cdef int middle
    while low < high:
        middle = (low + high) // 2
        if beside.spans[middle].offset < offset:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint meets_span(SideBySide* beside, Operation* operation) noexcept nogil:
    cdef int place = place_of(beside, operation.offset)
    if place < beside.span_count and may_meet(operation, beside.spans[place]):
        return True
    return place > 0 and may_meet(operation, beside.spans[place - 1])


cdef void note_queued(Operation* operation) noexcept nogil:
    cdef SideBySide* beside = operation.channel.beside
    if not changes(operation):
        return
    if operation.previous == NULL:
        beside.spans_lost = False
    beside.everywhere += may_cover_all(operation)


cdef void note_started(Operation* operation) noexcept nogil:
    cdef SideBySide* beside = operation.channel.beside
    cdef Operation** grown
    cdef int place
    if not changes(operation) or may_cover_all(operation) or beside.spans_lost:
        return
    if beside.span_count == beside.span_room:
        grown = <Operation**> realloc(
            beside.spans, (2 * beside.span_room + 16) * sizeof(Operation*)
        )
        if grown == NULL:
            beside.spans_lost = True
            return
        beside.spans = grown
        beside.span_room = 2 * beside.span_room + 16
    place = place_of(beside, operation.offset)
    memmove(
        &beside.spans[place + 1], &beside.spans[place],
        (beside.span_count - place) * sizeof(Operation*),
    )
    beside.spans[place] = operation
    beside.span_count += 1
    operation.is_span = True


cdef void note_gone(Operation* operation) noexcept nogil:
    cdef SideBySide* beside = operation.channel.beside
    cdef int place
    beside.everywhere -= may_cover_all(operation)
    if operation.is_span:
        operation.is_span = False
        place = place_of(beside, operation.offset)
        beside.span_count -= 1
        memmove(
            &beside.spans[place], &beside.spans[place + 1],
            (beside.span_count - place) * sizeof(Operation*),
        )
        if beside.span_count == 0:
            free(beside.spans)
            beside.spans = NULL
            beside.span_room = 0


cdef bint hides(Operation* pending, Operation* gone) noexcept nogil:
    return (
        changes(gone) and gone.extent > 0 and not may_cover_all(gone) and changes(pending)
        and (
            may_cover_all(pending) or (
                pending.offset <= gone.offset
                and gone.offset - pending.offset <= pending.extent - gone.extent
            )
        )
    )


cdef bint is_in_turn(Operation* operation) noexcept nogil:
    cdef SideBySide* beside = operation.channel.beside
    cdef Operation* earlier = operation.previous
    if operation.channel.kind == ERRANDS or operation.code == CP_STAT or (
        operation.code == CP_READ and operation.offset >= 0
    ):
        return True
    if changes(operation) and not may_cover_all(operation):
        # What was started and covers some of the same bytes came before: it would have waited else.
        if meets_span(beside, operation):
            return False
        if beside.waiting == beside.waiting_syncs and beside.everywhere == 0 and not beside.spans_lost:
            return True
    while earlier != NULL:
        if must_follow(operation, earlier):
            return False
        earlier = earlier.previous
    return True
