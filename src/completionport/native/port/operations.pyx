# cython: language_level=3, freethreading_compatible=True
"""Overlapped: an operation as Python sees it.

Everything here runs with the GIL held or, free-threaded, with an attached thread state.
"""

import os
import socket
from collections.abc import Sequence
from functools import partial
from operator import index

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uintptr_t

from ..channels.channels cimport channel_release
from ..channels.engine cimport (
    CLAIMED,
    CP_ACCEPT,
    CP_CALL,
    CP_CONNECT,
    CP_COPY,
    CP_OPEN,
    CP_READ,
    CP_RECVFROM,
    CP_RECVMSG,
    CP_RESOLVE,
    CP_STAT,
    CP_WRITE,
    ERRANDS,
    IDLE,
    iovec,
)
from ..channels.lookups cimport lookup_error, lookup_free, lookup_result
from ..channels.messages cimport (
    address_of,
    close_passed_descriptors,
    pack_ancillary,
    unpack_ancillary,
)
from ..channels.sources cimport source_kind
from ..channels.steps cimport let_sources_go
from ..primitives.atomics cimport (
    cp_load_acquire,
    cp_passed_on,
    cp_peek_int,
    cp_received,
    cp_set_int,
    cp_store_release,
    cp_swap_if,
)
from ..scheduling.scheduler cimport PACKET_OPERATION
from .file_status cimport STATUS_ROOM, status_of

from ...interface.error_codes import add_codes
from ...interface.errors import BACKLOG_IS_FULL, NO_THREAD, OperationAborted, OperationPending, system_error
from ...interface.operation import Operation as OperationCode
from ...shared.sources import open_source

cdef extern from "Python.h":
    bint PyIndex_Check(object value)

cdef extern from "errno.h" nogil:
    enum:
        EAGAIN, ECANCELED, EINTR, EINVAL

cdef extern from "sys/socket.h" nogil:
    enum:
        AF_UNIX, MSG_CMSG_CLOEXEC, MSG_MORE

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from *:
    """
    #include <stddef.h>
    /* A bytes object that only the caller has, made smaller: what _PyBytes_Resize does, but that lets the
       object go where there is no memory. Here it keeps its room then. */
    static PyObject *cp_shrunk(PyObject *bytes, Py_ssize_t size)
    {
        void *moved = PyObject_Realloc(bytes, offsetof(PyBytesObject, ob_sval) + size + 1);
        if (moved != NULL)
            bytes = (PyObject *)moved;
        Py_SET_SIZE((PyVarObject *)bytes, size);
        ((PyBytesObject *)bytes)->ob_sval[size] = 0;
        return bytes;
    }
    """
    PyObject* cp_shrunk(PyObject* data, Py_ssize_t size)

cdef enum:
    LARGEST = 0x7fffffff
    ADDRESS_ROOM = 128         # sockaddr_storage

cdef str INTERRUPTED = "an exception came in place of this operation's packet"

# By number, which has gaps.
cdef list CODES = [None] * (max(OperationCode) + 1)
for _code in OperationCode:
    CODES[_code] = _code


cdef void let_lookup_go(Operation* operation) noexcept:
    if operation.lookup != NULL:
        lookup_free(operation.lookup)
        operation.lookup = NULL


cdef class HandleBase:
    """So that this module can read a handle's key."""


cdef class OverlappedBase:
    """See `completionport.Overlapped`, which documents it."""

    def __cinit__(self):
        cp_received(<void*> self)
        self.operation_.packet.kind = PACKET_OPERATION
        self.operation_.source = -1

    def __dealloc__(self):
        self.unpin()
        cp_passed_on(<void*> self)

    @property
    def operation(self):
        with cython.critical_section(self):
            return self.code() if self.meaning is None else self.meaning.operation

    @property
    def handle(self):
        with cython.critical_section(self):
            handle = self.handle_ if self.meaning is None else self.meaning.handle
        return None if getattr(handle, "is_errand", False) else handle

    @property
    def pending(self):
        return self.is_pending()

    @property
    def transferred(self):
        with cython.critical_section(self):
            if self.is_pending() or brings_descriptor(&self.operation_):
                return 0
            return self.operation_.transferred

    @property
    def error(self):
        with cython.critical_section(self):
            return None if self.is_pending() else self.error_

    def result(self):
        cdef object error = None
        cdef object value = None
        cdef bint pending
        with cython.critical_section(self):
            pending = self.is_pending()
            if not pending:
                error = self.error_
                value = self.value_
        if pending:
            raise OperationPending(
                f"the {self.code().name.lower()} is still pending: take its packet from the port first"
            )
        if cp_peek_int(&self.operation_.code) == 0:
            raise ValueError("this Overlapped has not been used for an operation yet")
        if error is not None:
            raise error
        return value

    def cancel(self):
        with cython.critical_section(self):
            handle = self.handle_
        return self.is_pending() and handle is not None and handle.cancel(self) > 0

    def __repr__(self):
        code = self.operation
        state = "pending" if self.is_pending() else "failed" if self.error is not None else "done"
        if code is OperationCode.NONE:
            state = "not used yet"
        return f"<{type(self).__name__} {code.name.lower()}, {state}>"

    # -- the life cycle

    cdef bint is_pending(self) noexcept:
        return cp_load_acquire(&self.operation_.state) != IDLE

    cdef object code(self):
        return CODES[cp_peek_int(&self.operation_.code)]

    cdef int claim(self, object handle, int code) except -1:
        # Another thread may be reading what the operation before this one has left. What is taken
        # away here is let go behind the critical section.
        cdef object handle_before, error_before, value_before, meaning_before
        cdef bint claimed
        with cython.critical_section(self):
            claimed = cp_swap_if(&self.operation_.state, IDLE, CLAIMED)
            if claimed:
                if self.handle_ is not handle:
                    handle_before = self.handle_
                    self.handle_ = handle
                if self.error_ is not None:
                    error_before = self.error_
                    self.error_ = None
                if self.value_ is not None:
                    value_before = self.value_
                    self.value_ = None
                if self.meaning is not None:
                    meaning_before = self.meaning
                    self.meaning = None
        if not claimed:
            raise OperationPending(
                f"this Overlapped is in use for a pending {self.code().name.lower()}: "
                "take its packet from the port first, or use another one"
            )
        # `packet.kind`, `state` and `channel` stay as they are.
        cp_set_int(&self.operation_.code, code)
        self.skipped = 0
        self.operation_.next = NULL
        self.operation_.previous = NULL
        self.operation_.offloaded = False
        self.operation_.in_kernel = False
        self.operation_.waits_only = False
        self.operation_.cancelled = False
        self.operation_.probe_only = False
        self.operation_.fill = False
        self.operation_.connecting = False
        self.operation_.gives_way = False
        self.operation_.given_back = False
        self.operation_.wants_source = False
        self.operation_.source_ready = 0
        self.operation_.zero_copy = False
        self.operation_.notifications = 0
        self.operation_.flags = 0
        self.operation_.error = 0
        self.operation_.transferred = 0
        self.operation_.offset = -1
        self.operation_.extent = 0
        self.operation_.vector = NULL
        self.operation_.vector_count = 0
        self.operation_.address = NULL
        self.operation_.address_size = 0
        self.operation_.control = NULL
        self.operation_.control_size = 0
        return 0

    cdef void mean(self, object meaning) noexcept:
        with cython.critical_section(self):
            self.meaning = meaning

    cdef int withdraw(self) except -1:
        """The operation failed at once: no packet comes, the object is free, and as if new."""
        cdef object handle
        self.unpin()
        if self.operation_.source >= 0 or self.operation_.owns_control:
            with nogil:
                # A file's server may be waited for.
                let_sources_go(&self.operation_)
        let_lookup_go(&self.operation_)
        self.received = None
        if self.meaning is not None:
            self.mean(None)
        with cython.critical_section(self):
            handle = self.handle_
            self.handle_ = None
        cp_set_int(&self.operation_.code, 0)
        self.operation_.transferred = 0
        cp_store_release(&self.operation_.state, IDLE)
        return 0

    cdef int pin_input(self, object size_or_buffers, str caller) except -1:
        cdef Py_ssize_t size
        cdef Operation* op = &self.operation_
        if PyIndex_Check(size_or_buffers) and not PyObject_CheckBuffer(size_or_buffers):
            size_or_buffers = index(size_or_buffers)
            if not 0 <= size_or_buffers <= LARGEST:
                raise ValueError(
                    f"{caller}() takes a size of 0 to {LARGEST} bytes, not {size_or_buffers}"
                )
            size = size_or_buffers
            self.received = PyBytes_FromStringAndSize(NULL, size) if size > 0 else b""
            op.one.iov_base = PyBytes_AS_STRING(self.received)
            op.one.iov_len = size
        elif PyObject_CheckBuffer(size_or_buffers):
            self.pin_one(size_or_buffers, True, caller)
        elif is_sequence(size_or_buffers):
            self.pin_list(size_or_buffers, True, caller)
            return 0
        else:
            raise TypeError(
                f"{caller}() takes a size in bytes, a writable buffer or a sequence of them, "
                f"not {type(size_or_buffers).__name__}"
            )
        op.vector = &op.one
        op.vector_count = 1
        op.probe_only = op.one.iov_len == 0
        return 0

    cdef int64_t pin_output(self, object data_or_buffers, str caller) except -1:
        """Returns the number of bytes."""
        cdef Operation* op = &self.operation_
        if PyObject_CheckBuffer(data_or_buffers):
            self.pin_one(data_or_buffers, False, caller)
            op.vector = &op.one
            op.vector_count = 1
            return self.single.len
        if is_sequence(data_or_buffers):
            return self.pin_list(data_or_buffers, False, caller)
        raise TypeError(
            f"{caller}() takes a bytes-like object or a sequence of them, "
            f"not {type(data_or_buffers).__name__}"
        )

    cdef int pin_one(self, object buffer, bint writable, str caller) except -1:
        get_buffer(buffer, &self.single, writable, caller)
        self.pinned = 1
        self.operation_.one.iov_base = self.single.buf
        self.operation_.one.iov_len = self.single.len
        return 0

    cdef int64_t pin_list(self, object buffers, bint writable, str caller) except -1:
        cdef Py_ssize_t count = len(buffers)
        cdef Py_ssize_t i
        cdef iovec* entries
        cdef size_t total = 0
        if count == 0:
            raise ValueError(f"{caller}() takes at least one buffer, the sequence is empty")
        self.many = <Py_buffer*> PyMem_Malloc(count * sizeof(Py_buffer))
        if self.many == NULL:
            raise MemoryError
        self.vectors = PyBytes_FromStringAndSize(NULL, count * sizeof(iovec))
        entries = <iovec*> PyBytes_AS_STRING(self.vectors)
        for i in range(count):
            get_buffer(buffers[i], &self.many[i], writable, caller)
            self.pinned += 1
            entries[i].iov_base = self.many[i].buf
            entries[i].iov_len = self.many[i].len
            total += self.many[i].len
        self.operation_.vector = entries
        self.operation_.vector_count = <int> count
        self.operation_.probe_only = writable and total == 0
        return total

    cdef int set_address(self, bytes address) except -1:
        self.envelope = address
        self.operation_.address = PyBytes_AS_STRING(address)
        self.operation_.address_size = <unsigned int> len(address)
        return 0

    cdef int set_ancillary(self, object ancillary) except -1:
        """What goes with the bytes; an address that is set already moves along."""
        cdef Operation* op = &self.operation_
        cdef bytes control = pack_ancillary(ancillary)
        if not control:
            return 0
        self.envelope = (control, self.envelope)
        op.control = PyBytes_AS_STRING(control)
        op.control_size = len(control)
        op.owns_control = True
        return 0

    cdef int make_envelope(self, Py_ssize_t ancillary_size) except -1:
        """Room for the sender's address, and behind it for ancillary data."""
        cdef Operation* op = &self.operation_
        self.envelope = PyBytes_FromStringAndSize(NULL, ADDRESS_ROOM + ancillary_size)
        op.address = PyBytes_AS_STRING(self.envelope)
        op.address_size = ADDRESS_ROOM
        if ancillary_size > 0:
            op.control = PyBytes_AS_STRING(self.envelope) + ADDRESS_ROOM
            op.control_size = ancillary_size
        return 0

    cdef int set_source(self, object file, object offset, object count) except -1:
        """The part of a file that goes out between the two pinned buffers."""
        cdef Operation* op = &self.operation_
        op.source, op.offset, op.source_left = open_source(file, offset, count)
        with nogil:
            op.source_kind = source_kind(op.source, op.offset)
        op.vector_count = 1
        if op.vector[0].iov_len == 0:
            op.vector += 1
            op.vector_count = 0
        elif op.source_left > 0 or op.vector[1].iov_len > 0:
            op.flags = MSG_MORE
        return 0

    cdef int set_path(self, bytes path, bint wants_status) except -1:
        cdef Operation* op = &self.operation_
        cdef bytes status
        op.address = PyBytes_AS_STRING(path)
        self.envelope = path
        if wants_status:
            status = PyBytes_FromStringAndSize(NULL, STATUS_ROOM)
            op.control = PyBytes_AS_STRING(status)
            self.envelope = (path, status)
        return 0

    cdef int set_paths(self, bytes source, bytes target) except -1:
        self.operation_.address = PyBytes_AS_STRING(source)
        self.operation_.control = PyBytes_AS_STRING(target)
        self.envelope = (source, target)
        return 0

    cdef int align(self, Py_ssize_t boundary) except -1:
        """Have the memory of a read of a size begin where O_DIRECT wants it to."""
        cdef Operation* op = &self.operation_
        cdef Py_ssize_t size = op.one.iov_len
        if self.received is None or size == 0 or boundary <= 1:
            return 0
        self.received = PyBytes_FromStringAndSize(NULL, size + boundary)
        self.skipped = -<Py_ssize_t> <uintptr_t> PyBytes_AS_STRING(self.received) & (boundary - 1)
        op.one.iov_base = PyBytes_AS_STRING(self.received) + self.skipped
        return 0

    cdef object failed_with(self, int error):
        """The exception for what the system answered."""
        # Its address has the family in front.
        if (
            error == EAGAIN and self.operation_.code == CP_CONNECT
            and (<const unsigned short*> self.operation_.address)[0] == AF_UNIX
        ):
            return system_error(error, f"{os.strerror(error)}: {BACKLOG_IS_FULL}")
        if error == EAGAIN and self.operation_.channel.beside != NULL:
            return system_error(error, f"{os.strerror(error)}: {NO_THREAD}")
        return system_error(error)

    cdef object failure(self):
        """The exception for what went wrong."""
        cdef Operation* op = &self.operation_
        if op.error == ECANCELED:
            return OperationAborted()
        if op.error == EINVAL and op.channel.direct and (
            op.code == CP_READ or op.code == CP_WRITE
        ):
            return system_error(
                op.error,
                f"{os.strerror(op.error)}: the file is open with O_DIRECT, so the offset and each "
                f"buffer's address and size must be multiples of {op.channel.direct} bytes",
            )
        error = self.failed_with(op.error)
        if op.code == CP_OPEN or (op.code == CP_STAT and op.channel.kind == ERRANDS):
            error.filename = os.fsdecode(<const char*> op.address)
        elif op.code == CP_COPY:
            error.filename = os.fsdecode(<const char*> op.address)
            error.filename2 = os.fsdecode(<const char*> op.control)
        return error

    cdef void unpin(self) noexcept:
        cdef int i
        if self.many != NULL:
            for i in range(self.pinned):
                PyBuffer_Release(&self.many[i])
            PyMem_Free(self.many)
            self.many = NULL
        elif self.pinned:
            PyBuffer_Release(&self.single)
        self.pinned = 0

    cdef object conclude(self, bint stays):
        """The packet is taken: say what came of it and let the buffers go. Returns the error.

        The operation is the caller's until `set_idle`: from then on any thread may use it again.

        What is made here is made by Python's code too, where a signal handler may raise. Then the exception is
        the caller's of get in place of the packet, and the operation is over all the same. A `MemoryError`
        leaves all as it is where the packet ``stays``, to be taken again.
        """
        cdef Operation* op = &self.operation_
        cdef object error
        self.unpin()
        self.vectors = None
        try:
            error = self.outcome()
        except BaseException as failure:
            if stays and isinstance(failure, MemoryError):
                raise
            if op.error == 0 and op.code == CP_RECVMSG:
                close_passed_descriptors(&op.message)
            elif op.error == 0 and op.code == CP_ACCEPT:
                close(<int> op.transferred)
            self.received = None
            self.value_ = None
            self.error_ = interrupted()
            self.lay_down()
            self.set_idle()
            raise
        self.error_ = error
        self.lay_down()
        return error

    cdef void lay_down(self) noexcept:
        let_lookup_go(&self.operation_)
        self.envelope = None
        channel_release(self.operation_.channel)
        self.operation_.channel = NULL

    cdef object outcome(self):
        """Set the value, or return the error. Where it raises it has changed nothing that it needs."""
        cdef Operation* op = &self.operation_
        cdef object value = None
        cdef object error = None
        if op.error != 0:
            error = self.failure()
        elif op.code == CP_ACCEPT:
            value = socket_of(<int> op.transferred)
        elif op.code == CP_RESOLVE:
            error = lookup_error(op.lookup)
            if error is None:
                value = lookup_result(op.lookup)
        elif op.code == CP_CALL:
            error, value = self.envelope
        elif op.code == CP_STAT:
            value = status_of(<const char*> op.control)
        elif self.skipped:
            value = self.received[self.skipped:self.skipped + op.transferred]
        elif self.received is not None:
            # With MSG_TRUNC the kernel counts bytes that it had no room for.
            self.shrink_received(min(op.transferred, <int64_t> len(self.received)))
            value = self.received
        else:
            value = op.transferred
        if error is None and (op.code == CP_RECVFROM or op.code == CP_RECVMSG):
            value = self.envelope_of(value)
        if error is None and self.meaning is not None:
            try:
                op.transferred, value = self.meaning.outcome(value)
            except OSError as reason:
                op.transferred = 0
                value = None
                error = reason
        self.received = None
        self.value_ = value
        return error

    cdef void shrink_received(self, Py_ssize_t size) noexcept:
        """Nobody else has a reference to it yet, so it may be resized in place."""
        cdef PyObject* shrunk
        if size == len(self.received):
            return
        if size == 0:
            self.received = b""
            return
        shrunk = <PyObject*> self.received
        Py_INCREF(self.received)
        self.received = None
        shrunk = cp_shrunk(shrunk, size)
        self.received = <bytes> shrunk
        Py_XDECREF(shrunk)

    cdef object envelope_of(self, object data):
        """The result of a recvfrom or recvmsg that brought ``data``."""
        cdef Operation* op = &self.operation_
        address = address_of(<const char*> op.address, min(op.message.msg_namelen, op.address_size))
        if op.code == CP_RECVFROM:
            return data, address
        received = (
            data, unpack_ancillary(&op.message), op.message.msg_flags & ~MSG_CMSG_CLOEXEC, address
        )
        # The program has the descriptors in it now.
        op.message.msg_controllen = 0
        return received

    cdef void set_idle(self) noexcept:
        cp_passed_on(<void*> self)
        cp_store_release(&self.operation_.state, IDLE)

    # -- for engines written in Python: the same life cycle without buffers and channel

    def _begin(self, handle, operation):
        self.claim(handle, operation)

    def _finish(self, transferred, error, value):
        self.operation_.transferred = transferred
        self.error_ = error
        self.value_ = value
        cp_store_release(&self.operation_.state, IDLE)

    def _prepare(self, transferred, error, value):
        return partial(self._finish, transferred, error, value)

    def _withdraw(self):
        self.withdraw()


cdef object socket_of(int descriptor):
    """Whatever it raises, the descriptor is the caller's still."""
    cdef object made = socket.socket.__new__(socket.socket)
    try:
        made.__init__(fileno=descriptor)
        made.settimeout(None)
    except BaseException:
        try:
            # Its number is taken away before anything in there can fail.
            made.detach()
        except BaseException:
            pass
        raise
    return made


cdef inline bint is_sequence(object value) except -1:
    return isinstance(value, (list, tuple)) or (
        isinstance(value, Sequence) and not isinstance(value, str)
    )


cdef int get_buffer(object buffer, Py_buffer* view, bint writable, str caller) except -1:
    if not PyObject_CheckBuffer(buffer):
        raise TypeError(f"{caller}() takes bytes-like objects, not {type(buffer).__name__}")
    try:
        PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    except BufferError as reason:
        if writable:
            raise TypeError(
                f"{caller}() needs a writable, contiguous buffer; {type(buffer).__name__}: {reason}"
            ) from None
        raise TypeError(f"{caller}() needs a contiguous buffer: {reason}") from None
    return 0


cdef object interrupted():
    """The error of an operation whose outcome an exception kept from being made."""
    error = OSError(EINTR, INTERRUPTED)
    try:
        add_codes(error)
    except BaseException:
        # One exception is on its way already.
        pass
    return error
