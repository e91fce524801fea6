# cython: language_level=3, freethreading_compatible=True
"""Completion: what becomes of a packet when it is taken, or dropped.

Everything here runs with the GIL held or, free-threaded, with an attached thread state.
"""

import sys
from collections.abc import Sequence
from types import GenericAlias

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdlib cimport free

from ..channels.channels cimport drop_result
from ..channels.engine cimport Operation
from ..primitives.atomics cimport cp_passed_on
from ..scheduling.scheduler cimport (
    PACKET_OPERATION,
    PACKET_POSTED,
    PACKET_TIMER,
    Packet,
    PostedPacket,
    Scheduler,
    Taken,
    drop_queued,
    post,
    put_back,
    strand_release,
)
from ..scheduling.timer_heap cimport TimedPacket
from .operations cimport HandleBase, OverlappedBase, brings_descriptor

# A module's names may be gone when the interpreter ends, its C variables are not.
cdef object is_finalizing = sys.is_finalizing

cdef extern from "errno.h" nogil:
    enum:
        ECANCELED


@cython.freelist(64)
@cython.collection_type("sequence")
cdef class Completion:
    """A packet as it was taken; unpacks as ``transferred, key, overlapped, error``."""

    __match_args__ = ("transferred", "key", "overlapped", "error")

    def __init__(self, transferred, key, overlapped, error=None):
        self.transferred = transferred
        self.key = key
        self.overlapped = overlapped
        self.error = error

    @classmethod
    def __class_getitem__(cls, key):
        return GenericAlias(cls, key)

    def __iter__(self):
        return iter((self.transferred, self.key, self.overlapped, self.error))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return (self.transferred, self.key, self.overlapped, self.error)[index]

    def __eq__(self, other):
        if not isinstance(other, (Completion, tuple)):
            return NotImplemented
        return tuple(self) == tuple(other)

    def __hash__(self):
        return hash(tuple(self))

    def count(self, value):
        return tuple(self).count(value)

    def index(self, value, *limits):
        return tuple(self).index(value, *limits)

    def __repr__(self):
        return (
            f"Completion(transferred={self.transferred!r}, key={self.key!r}, "
            f"overlapped={self.overlapped!r}, error={self.error!r})"
        )


Sequence.register(Completion)


cdef OverlappedBase overlapped_of(Packet* packet):
    """The Overlapped of a taken packet, which has a reference of its own."""
    return <OverlappedBase> <PyObject*> (<Operation*> packet).overlapped


# The key of a packet that is a Completion: one that was made, and that nobody has got.
cdef object GIVEN_BACK = object()


cdef int give_back(Scheduler* scheduler, object completion) except -1:
    """Have another call of get return it; it is gone where the port is closed."""
    Py_INCREF(completion)
    Py_INCREF(GIVEN_BACK)
    Py_INCREF(None)
    if not post(
        scheduler, <void*> completion, <void*> GIVEN_BACK, <void*> None, NULL
    ):
        Py_XDECREF(<PyObject*> completion)
        Py_XDECREF(<PyObject*> GIVEN_BACK)
        Py_XDECREF(<PyObject*> None)
    return 0


cdef int fill(Completion completion, Scheduler* scheduler, Taken* taken) except -1:
    """Make the Completion of a packet, whose references it takes over.

    Made before the packet is taken, it leaves nothing that can fail for what was posted. Of an operation more
    is made here: where there is no memory for that the packet is the queue's first again.
    """
    cdef OverlappedBase overlapped
    cdef Completion given_back
    cdef object error
    # An object from the start: to make it takes memory.
    cdef object transferred = 0
    if taken.packet == NULL:
        if taken.key == <void*> GIVEN_BACK:
            given_back = <Completion> <PyObject*> taken.transferred
            completion.transferred = given_back.transferred
            completion.key = given_back.key
            completion.overlapped = given_back.overlapped
            completion.error = given_back.error
        else:
            completion.transferred = <object> taken.transferred
            completion.key = <object> taken.key
            completion.overlapped = <object> taken.overlapped
        drop_posted(taken)
        return 0
    if taken.packet.kind == PACKET_TIMER:
        fill_from_timer(completion, <TimedPacket*> taken.packet)
        return 0
    overlapped = overlapped_of(taken.packet)
    try:
        if not brings_descriptor(&overlapped.operation_):
            transferred = overlapped.operation_.transferred
        error = overlapped.conclude(True)
    except MemoryError:
        put_back(scheduler, taken.packet)
        raise
    except BaseException:
        Py_XDECREF(<PyObject*> overlapped)
        raise
    try:
        if overlapped.meaning is not None:
            transferred = overlapped.operation_.transferred
        completion.transferred = transferred
        completion.key = (<HandleBase> overlapped.handle_).key
        completion.overlapped = overlapped
        completion.error = error
    finally:
        overlapped.set_idle()
        Py_XDECREF(<PyObject*> overlapped)
    return 0


cdef void drop_posted(Taken* taken) noexcept:
    """Let go of what was posted, which is nobody's business."""
    Py_XDECREF(<PyObject*> taken.transferred)
    Py_XDECREF(<PyObject*> taken.key)
    Py_XDECREF(<PyObject*> taken.overlapped)


cdef void fill_from_timer(Completion completion, TimedPacket* timed) noexcept:
    """The packet's references move out, and with the last one to the Timer it may be gone."""
    cdef PyObject* timer = <PyObject*> timed.timer
    completion.transferred = <object> timed.transferred
    completion.key = <object> timed.key
    completion.overlapped = <object> timed.overlapped
    release_values(timed)
    cp_passed_on(timer)
    Py_XDECREF(timer)


cdef int release_values(TimedPacket* timed) except -1:
    Py_XDECREF(<PyObject*> timed.transferred)
    Py_XDECREF(<PyObject*> timed.key)
    Py_XDECREF(<PyObject*> timed.overlapped)
    return 0


cdef int drop_packet(Packet* packet) except -1:
    """A packet that nobody will take: the port is closed."""
    cdef PostedPacket* posted
    cdef OverlappedBase overlapped
    cdef Operation* op
    if packet.consumer != NULL:
        if not is_finalizing():
            # Its callbacks may need what is gone by then.
            drop_queued(packet)
    elif packet.kind == PACKET_OPERATION:
        overlapped = overlapped_of(packet)
        op = &overlapped.operation_
        if op.error == 0:
            with nogil:
                # The close of a file on a file server may take long.
                drop_result(op)
        op.error = ECANCELED
        if is_finalizing():
            # The names that make an exception may be gone, and nobody can ask for it.
            overlapped.unpin()
        else:
            try:
                overlapped.conclude(False)
            except BaseException:
                Py_XDECREF(<PyObject*> overlapped)
                raise
        overlapped.set_idle()
        Py_XDECREF(<PyObject*> overlapped)
    elif packet.kind == PACKET_POSTED:
        posted = <PostedPacket*> packet
        Py_XDECREF(<PyObject*> posted.transferred)
        Py_XDECREF(<PyObject*> posted.key)
        Py_XDECREF(<PyObject*> posted.overlapped)
        if packet.strand != NULL:
            strand_release(packet.strand)
        free(posted)
    elif packet.kind == PACKET_TIMER:
        release_values(<TimedPacket*> packet)
        if packet.strand != NULL:
            strand_release(packet.strand)
        cp_passed_on((<TimedPacket*> packet).timer)
        Py_XDECREF(<PyObject*> (<TimedPacket*> packet).timer)
    return 0
