# cython: language_level=3, freethreading_compatible=True
"""Operations of a port that belong to no handle: functions, and what is asked of names."""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from ..channels.channels cimport cancel_operations, submit_operation
from ..channels.engine cimport CP_CLOSE, CP_COPY, CP_OPEN, CP_RESOLVE, CP_STAT, Operation
from ..channels.lookups cimport lookup_new
from .core cimport Core
from .completions cimport drop_packet
from .operations cimport HandleBase, OverlappedBase
from .strand cimport Strand

from ...interface.handle import not_an_overlapped
from ...interface.errors import PortClosed, system_error
from .overlapped import Overlapped

cdef extern from "errno.h" nogil:
    enum:
        EBADF, ECANCELED

cdef extern from "fcntl.h" nogil:
    enum:
        AT_SYMLINK_NOFOLLOW, O_CLOEXEC

cdef object new_overlapped = Overlapped


cdef class Errand(HandleBase):
    """What an operation without a handle has in its place: its key, its strand, its way to be cancelled."""
    cdef Core core
    cdef object strand

    is_errand = True

    def cancel(self, OverlappedBase overlapped not None):
        cdef int count
        if self.core is None:
            return 0  # no port has made it
        try:
            self.core.begin()
        except PortClosed:
            return 0
        count = cancel_operations(self.core.errands, &overlapped.operation_)
        self.core.end()
        return count


cdef OverlappedBase prepare(Core core, int code, key, overlapped, strand):
    cdef OverlappedBase operation
    cdef Errand errand
    if overlapped is None:
        operation = <OverlappedBase> new_overlapped()
    elif isinstance(overlapped, OverlappedBase):
        operation = <OverlappedBase> overlapped
    else:
        raise not_an_overlapped(overlapped)
    errand = Errand.__new__(Errand)
    errand.core = core
    errand.key = key
    errand.strand = strand
    operation.claim(errand, code)
    # The errand holds the strand's object, and the Overlapped the errand.
    operation.operation_.packet.strand = (<Strand> strand).strand if strand is not None else NULL
    return operation


cdef object launch(Core core, OverlappedBase operation):
    cdef int error
    try:
        core.begin()
    except BaseException:
        operation.withdraw()
        raise
    Py_INCREF(operation)
    operation.operation_.overlapped = <void*> operation
    error = submit_operation(core.errands, &operation.operation_)
    core.end()
    if error != 0:
        # The port was closed in between; nothing else fails here.
        Py_DECREF(operation)
        operation.withdraw()
        raise PortClosed() if error == EBADF else system_error(error)
    return operation


cdef object start_call(Core core, int code, function, tuple args, key, overlapped, strand):
    cdef OverlappedBase operation = prepare(core, code, key, overlapped, strand)
    try:
        operation.envelope = (function, args)
    except BaseException:
        operation.withdraw()
        raise
    return launch(core, operation)


cdef object start_lookup(
    Core core, bytes host, bytes service, int family, int type, int proto, int flags, key, overlapped,
    strand
):
    cdef OverlappedBase operation = prepare(core, CP_RESOLVE, key, overlapped, strand)
    try:
        operation.operation_.lookup = lookup_new(host, service, family, type, proto, flags)
    except BaseException:
        operation.withdraw()
        raise
    return launch(core, operation)


cdef object start_open(Core core, bytes path, int flags, unsigned mode, key, overlapped, strand):
    cdef OverlappedBase operation = prepare(core, CP_OPEN, key, overlapped, strand)
    try:
        operation.set_path(path, False)
    except BaseException:
        operation.withdraw()
        raise
    operation.operation_.flags = flags | O_CLOEXEC
    operation.operation_.extent = mode
    return launch(core, operation)


cdef object start_stat(Core core, bytes path, bint follow_symlinks, key, overlapped, strand):
    cdef OverlappedBase operation = prepare(core, CP_STAT, key, overlapped, strand)
    try:
        operation.set_path(path, True)
    except BaseException:
        operation.withdraw()
        raise
    operation.operation_.flags = 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW
    return launch(core, operation)


cdef object start_copy(
    Core core, bytes source, bytes target, int64_t at_most, key, overlapped, strand
):
    cdef OverlappedBase operation = prepare(core, CP_COPY, key, overlapped, strand)
    try:
        operation.set_paths(source, target)
    except BaseException:
        operation.withdraw()
        raise
    operation.operation_.extent = at_most
    return launch(core, operation)


cdef object start_close(Core core, int descriptor, key, overlapped, strand):
    cdef OverlappedBase operation = prepare(core, CP_CLOSE, key, overlapped, strand)
    operation.operation_.offset = descriptor
    return launch(core, operation)


cdef object NO_OUTCOME = (MemoryError(), None)


cdef void call_function(Operation* operation) noexcept nogil:
    with gil:
        run(operation)


cdef void run(Operation* operation) noexcept:
    cdef OverlappedBase overlapped = <OverlappedBase> operation.overlapped
    function, args = overlapped.envelope
    # Where there is no memory even for the tuple.
    overlapped.envelope = NO_OUTCOME
    try:
        try:
            outcome = None, function(*args)
        except BaseException as error:
            outcome = error, None
        overlapped.envelope = outcome
    except MemoryError:
        pass


cdef void drop_operation(Operation* operation) noexcept nogil:
    with gil:
        operation.error = ECANCELED
        drop_packet(&operation.packet)
