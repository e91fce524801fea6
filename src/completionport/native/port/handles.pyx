# cython: language_level=3, freethreading_compatible=True
"""Handles: arguments in, operations out. `completionport.Handle` documents the methods."""

import errno as errnos
import fcntl
import os
import socket
import stat

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from libc.stdint cimport int64_t, uint32_t

from ..channels.channels cimport (
    NO_PACKET,
    cancel_operations,
    channel_close,
    channel_new,
    submit_operation,
)
from ..channels.engine cimport (
    CP_ACCEPT,
    CP_ALLOCATE,
    CP_CONNECT,
    CP_DISCONNECT,
    CP_FSYNC,
    CP_READ,
    CP_RECV,
    CP_RECVFROM,
    CP_RECVMSG,
    CP_SEND,
    CP_SENDFILE,
    CP_SENDMSG,
    CP_SENDTO,
    CP_SHUTDOWN,
    CP_STAT,
    CP_WRITE,
    POLLABLE,
    REGULAR,
    SOCKET,
    Channel,
    ChannelKind,
)
from ..channels.file_systems cimport is_on_fuse
from ..primitives.atomics cimport (
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_peek,
    cp_peek_int,
    cp_set,
    cp_swap_if,
)
from ..scheduling.scheduler cimport is_closed, strand_retain
from .core cimport Core
from .file_status cimport alignment_of
from .operations cimport HandleBase, OverlappedBase
from .strand cimport Strand

from ...interface.handle import not_an_overlapped
from ...interface.errors import HandleClosed, PortClosed, system_error
from ...shared import association
from ...shared.addresses import pack
from ...shared.arguments import (
    LARGEST_ANCILLARY,
    LARGEST_OFFSET,
    check_count,
    check_shutdown,
    check_zero_copy,
    message_flags,
    refuse_discarding,
)
from .overlapped import Overlapped

# A module's names may be gone when the interpreter ends, its C variables are not.
cdef dict taken_files = association.taken
cdef object close_number = association.close_number

cdef extern from "sys/socket.h" nogil:
    int getsockopt(int descriptor, int level, int option, void* value, unsigned int* size)
    enum:
        AF_INET, AF_INET6, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL
        SO_ACCEPTCONN, SO_DOMAIN, SO_TYPE, SOCK_STREAM, SOL_SOCKET

cdef extern from "errno.h" nogil:
    enum:
        EBADF

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* Whether two descriptors came from one open: 1, 0, or -1 where the kernel does not say.
     * 1024 + 3 is F_DUPFD_QUERY, of Linux 6.10; 0 is KCMP_FILE, which a sandbox may refuse. */
    static int cp_opened_together(int one, int other)
    {
        int answer = fcntl(one, 1024 + 3, other);
        if (answer < 0) {
            answer = (int)syscall(SYS_kcmp, getpid(), getpid(), 0, one, other);
            answer = answer < 0 ? -1 : answer == 0;
        }
        return answer;
    }
    """
    int cp_opened_together(int one, int other) nogil

cdef extern from *:
    """
    #include <poll.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <sys/sysmacros.h>
    #include <sys/vfs.h>
    /* The same terminal or named pipe once more, as an open file of our own that never waits; -1 where that can't be
     * had. Not the master of a pseudo-terminal (it would be another one), not what is hung up (it would not be). An
     * anonymous pipe needs none: it knows RWF_NOWAIT. */
    static int cp_open_anew(int number, int flags, const char *path)
    {
        struct stat was, is;
        struct statfs system;
        struct pollfd ready = {number, 0, 0};
        int opened;
        if (fstat(number, &was) != 0 || poll(&ready, 1, 0) < 0 || ready.revents != 0)
            return -1;
        if (S_ISFIFO(was.st_mode)) {
            if (fstatfs(number, &system) != 0 || system.f_type == 0x50495045)
                return -1;
        } else if (!S_ISCHR(was.st_mode) || !isatty(number) || was.st_rdev == makedev(5, 2)
                   || major(was.st_rdev) == 2)
            return -1;
        opened = open(path, (flags & (O_ACCMODE | O_APPEND)) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (opened >= 0 && (fstat(opened, &is) != 0 || is.st_dev != was.st_dev
                            || is.st_ino != was.st_ino || is.st_rdev != was.st_rdev)) {
            close(opened);
            opened = -1;
        }
        return opened;
    }
    """
    int cp_open_anew(int number, int flags, const char* path) nogil


cdef extern from "fcntl.h" nogil:
    enum:
        AT_EMPTY_PATH

cdef enum:
    # Bytes. Below it pinning pages and a second completion cost more than the copy: the kernel's
    # Documentation/networking/msg_zerocopy.rst.
    ZERO_COPY_FROM = 10240

cdef object new_overlapped = Overlapped
cdef object SHUT_WR = socket.SHUT_WR


def refusal(int error, str hint=None):
    reason = os.strerror(error)
    return system_error(error, f"{reason}: {hint}" if hint else reason)


cdef int flags_of(object flags) except? -1:
    if not isinstance(flags, int):
        raise TypeError(f"flags must be an integer, not {type(flags).__name__}")
    if not -0x80000000 <= flags <= 0x7fffffff:
        raise ValueError(f"flags must fit into 32 bits, {flags} is too large")
    return flags


cdef int socket_option(int descriptor, int option) noexcept:
    cdef int value = 0
    cdef unsigned int size = sizeof(value)
    getsockopt(descriptor, SOL_SOCKET, option, &value, &size)
    return value


cdef class Handle(HandleBase):
    cdef Core core
    cdef Channel* channel
    cdef object file_
    cdef int number          # of the program's descriptor
    cdef object identity     # what fstat(2) told of it
    # Owned, but out of the collector's sight, which clears attributes before __dealloc__.
    cdef PyObject* last_core
    cdef PyObject* token     # in the registry of associated files
    cdef uint32_t token_gone # atomic: whoever sets it releases the token
    cdef int family          # of a socket, and its type
    cdef int type
    cdef bint listening      # seen to be, which does not change
    # What works for this handle on a descriptor of its own: cancelled and closed with it. Set once,
    # under the lock of completionport.watches.changes.
    cdef public object _companion
    cdef readonly object _strand
    cdef bint is_file        # a regular one, a directory or a disk. A channel may become REGULAR for less
    cdef bint fills          # a file: a read that brings less has met its end
    cdef object __weakref__

    # Not `__init__`, which a subclass may leave out: there is no handle without a channel.
    def __cinit__(
        self, Core core not None, file, key, Strand strand=None, bint skips_on_success=False
    ):
        cdef ChannelKind kind
        cdef int duplicate = -1
        cdef bint own_open
        cdef bytes path
        token, number = association.register(file)
        try:
            self.identity = os.fstat(number)
            mode = self.identity.st_mode
            kind = (
                SOCKET if stat.S_ISSOCK(mode)
                else REGULAR if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode)
                else POLLABLE
            )
            status = fcntl.fcntl(number, fcntl.F_GETFL)
            access = status & os.O_ACCMODE
            if kind == POLLABLE:
                path = b"/proc/self/fd/%d" % number
                duplicate = cp_open_anew(number, status, path)
            own_open = duplicate >= 0
            if not own_open:
                duplicate = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0)
            self.channel = channel_new(core.engine, duplicate, kind)
            if self.channel == NULL:
                os.close(duplicate)
                raise MemoryError
            if strand is not None:
                strand_retain(strand.strand)
                self.channel.strand = strand.strand
                self._strand = strand
            if kind == SOCKET:
                self.family = socket_option(duplicate, SO_DOMAIN)
                self.type = socket_option(duplicate, SO_TYPE)
                self.channel.keeps_messages = self.type != SOCK_STREAM
            self.channel.own_open = own_open
            self.channel.is_device = stat.S_ISCHR(mode)
            self.channel.is_pipe = stat.S_ISFIFO(mode)
            self.channel.readable = access != os.O_WRONLY
            self.channel.writable = access != os.O_RDONLY
            self.channel.skips_on_success = skips_on_success
            self.is_file = kind == REGULAR
            if kind == REGULAR:
                self.fills = not stat.S_ISDIR(mode)
                self.channel.appends = status & os.O_APPEND != 0
                if status & os.O_DIRECT:
                    self.channel.direct = alignment_of(duplicate)
                with nogil:
                    self.channel.on_fuse = is_on_fuse(duplicate)
            self.key = key
            self.file_ = file
            self.number = number
            self.core = core
            Py_INCREF(core)
            self.last_core = <PyObject*> core
            Py_INCREF(token)
            self.token = <PyObject*> token
            core.tokens.add(token)
            core.adopt(self.channel)
        except BaseException:
            self.token_gone = 1
            core.tokens.discard(token)
            taken_files.pop(token, None)
            raise

    def __dealloc__(self):
        # Nothing is pending: an operation under way would have kept the handle.
        if self.token != NULL:
            self.release_token()
            Py_DECREF(<object> self.token)
        if self.channel != NULL and self.last_core != NULL:
            (<Core> self.last_core).forget(self.channel)
        if self.last_core != NULL:
            Py_DECREF(<object> self.last_core)

    cdef bint release_token(self) except -1:
        """True for the first caller, who may close the file."""
        if not cp_swap_if(&self.token_gone, 0, 1):
            return False
        # No Python code runs here, so no signal handler's exception leaves it half done.
        taken_files.pop(<object> self.token, None)
        (<Core> self.last_core).tokens.discard(<object> self.token)
        return True

    @property
    def file(self):
        return self.file_

    @property
    def port(self):
        return self.core.port_reference()

    @property
    def closed(self):
        return cp_peek(&self.channel.closing) or is_closed(self.core.scheduler)

    def fileno(self):
        return -1 if self.closed else self.number

    def __repr__(self):
        state = "closed" if self.closed else f"descriptor {self.number}"
        return f"<Handle {state}, key {self.key!r}>"

    # -- operations

    cdef OverlappedBase prepare(self, overlapped, int code):
        cdef OverlappedBase operation
        if overlapped is None:
            operation = <OverlappedBase> new_overlapped()
        elif isinstance(overlapped, OverlappedBase):
            operation = <OverlappedBase> overlapped
        else:
            raise not_an_overlapped(overlapped)
        if cp_peek(&self.channel.closing):
            self.refuse_closed()
        operation.claim(self, code)
        return operation

    cdef int refuse_closed(self) except -1:
        """Raise what is due: the whole port may be closed, or be the parent's."""
        self.core.begin()
        self.core.end()
        raise HandleClosed

    cdef object launch(self, OverlappedBase operation):
        """Start a prepared operation: it is under way, or an exception says why not."""
        cdef int error
        # For a file's pages: io_uring copies what is in memory as it is told of it.
        cdef bint may_wait = (
            self.channel.kind == REGULAR or operation.operation_.code == CP_SENDFILE
        )
        self.core.begin()
        Py_INCREF(operation)
        operation.operation_.overlapped = <void*> operation
        if may_wait:
            with nogil:
                error = submit_operation(self.channel, &operation.operation_)
        else:
            error = submit_operation(self.channel, &operation.operation_)
        self.core.end()
        if error != 0:
            Py_DECREF(operation)
            if error == NO_PACKET:
                operation.conclude(False)
                operation.set_idle()
                return None
            if error == EBADF and cp_peek(&self.channel.closing):
                self.refuse_closed()
            raise operation.failed_with(error)
        return operation

    cdef int need_socket(self) except -1:
        if self.channel.kind != SOCKET:
            raise refusal(errnos.ENOTSOCK, "this operation needs a socket; use read() or write()")
        return 0

    def accept(self, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_ACCEPT)
        try:
            self.need_socket()
            if not cp_peek(&self.listening):
                # Of a handle that another thread closes meanwhile the answer may be a stranger's:
                # then `launch` refuses.
                if socket_option(cp_peek_int(&self.channel.descriptor), SO_ACCEPTCONN):
                    cp_set(&self.listening, True)
                elif not cp_peek(&self.channel.closing):
                    raise refusal(errnos.EINVAL, "accept() needs a listening socket")
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def connect(self, address, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_CONNECT)
        try:
            self.need_socket()
            operation.set_address(pack(self.family, self.type, address))
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    cdef int receive_flags(self, flags, str caller) except? -1:
        cdef int bits = flags_of(flags)
        if bits & MSG_TRUNC and not self.channel.keeps_messages:
            refuse_discarding(caller)
        return bits

    def recv(self, size_or_buffers, flags=0, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_RECV)
        cdef int bits
        try:
            self.need_socket()
            operation.pin_input(size_or_buffers, "recv")
            bits = self.receive_flags(flags, "recv")
            operation.operation_.flags = bits & ~MSG_WAITALL
            operation.operation_.fill = (
                bits & MSG_WAITALL != 0 and bits & (MSG_PEEK | MSG_OOB) == 0
                and not self.channel.keeps_messages
            )
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def recvfrom(self, size_or_buffers, flags=0, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_RECVFROM)
        try:
            self.receive_message(operation, size_or_buffers, 0, flags, "recvfrom")
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def recvmsg(self, size_or_buffers, ancillary_size=0, flags=0, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_RECVMSG)
        try:
            check_count("ancillary_size", ancillary_size, 0, LARGEST_ANCILLARY)
            self.receive_message(operation, size_or_buffers, ancillary_size, flags, "recvmsg")
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    cdef int receive_message(
        self, OverlappedBase operation, size_or_buffers, Py_ssize_t ancillary_size, flags, str caller
    ) except -1:
        self.need_socket()
        operation.pin_input(size_or_buffers, caller)
        operation.operation_.flags = message_flags(self.receive_flags(flags, caller), caller)
        operation.make_envelope(ancillary_size)
        return 0

    def send(self, data_or_buffers, flags=0, overlapped=None, *, zero_copy=False):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_SEND)
        cdef int64_t size
        try:
            self.need_socket()
            size = operation.pin_output(data_or_buffers, "send")
            operation.operation_.flags = flags_of(flags)
            operation.operation_.zero_copy = (
                check_zero_copy(zero_copy) and size >= ZERO_COPY_FROM
                and self.channel.engine.sends_zero_copy
                and (self.family == AF_INET or self.family == AF_INET6)
            )
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def sendto(self, data_or_buffers, address, flags=0, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_SENDTO)
        try:
            self.need_socket()
            operation.pin_output(data_or_buffers, "sendto")
            operation.operation_.flags = flags_of(flags)
            operation.set_address(pack(self.family, self.type, address))
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def sendmsg(self, data_or_buffers, ancillary=(), flags=0, address=None, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_SENDMSG)
        try:
            self.need_socket()
            operation.pin_output(data_or_buffers, "sendmsg")
            operation.operation_.flags = flags_of(flags)
            if address is not None:
                operation.set_address(pack(self.family, self.type, address))
            operation.set_ancillary(ancillary)
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def sendfile(self, file, offset=0, count=None, *, head=b"", tail=b"", overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_SENDFILE)
        try:
            self.need_socket()
            if self.channel.keeps_messages:
                raise refusal(errnos.EOPNOTSUPP, "sendfile() needs a stream socket")
            operation.pin_list((head, tail), False, "sendfile")
            operation.set_source(file, offset, count)
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def shutdown(self, how=SHUT_WR, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_SHUTDOWN)
        try:
            self.need_socket()
            operation.operation_.flags = check_shutdown(how)
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def read(self, size_or_buffers, offset=None, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_READ)
        try:
            self.set_offset(operation, offset)
            if not self.channel.readable:
                raise refusal(errnos.EBADF, "the file is not open for reading")
            operation.pin_input(size_or_buffers, "read")
            if self.channel.kind == REGULAR:
                operation.operation_.probe_only = False
                operation.operation_.fill = self.fills
                if self.channel.direct:
                    operation.align(self.channel.direct)
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def _read_for(self, meaning, size, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_READ)
        try:
            operation.pin_input(size, "read")
            operation.mean(meaning)
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def write(self, data_or_buffers, offset=None, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_WRITE)
        try:
            self.set_offset(operation, offset)
            if not self.channel.writable:
                raise refusal(errnos.EBADF, "the file is not open for writing")
            operation.operation_.extent = operation.pin_output(data_or_buffers, "write")
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def disconnect(self, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_DISCONNECT)
        try:
            self.need_socket()
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def fsync(self, data_only=False, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_FSYNC)
        try:
            self.need_file("fsync")
            operation.operation_.flags = bool(data_only)
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def allocate(self, offset, length, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_ALLOCATE)
        try:
            check_count("offset", offset, 0, LARGEST_OFFSET)
            check_count("length", length, 1, LARGEST_OFFSET)
            self.need_file("allocate")
            if not self.channel.writable:
                raise refusal(errnos.EBADF, "the file is not open for writing")
            operation.operation_.offset = offset
            operation.operation_.extent = length
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    def stat(self, overlapped=None):
        cdef OverlappedBase operation = self.prepare(overlapped, CP_STAT)
        try:
            self.need_file("stat")
            operation.set_path(b"", True)
            operation.operation_.flags = AT_EMPTY_PATH
            return self.launch(operation)
        except BaseException:
            operation.withdraw()
            raise

    cdef int need_file(self, str caller) except -1:
        if not self.is_file:
            raise refusal(errnos.EINVAL, f"{caller}() needs a regular file, a directory or a disk")
        return 0

    cdef int set_offset(self, OverlappedBase operation, offset) except -1:
        if offset is None:
            return 0
        if not isinstance(offset, int):
            raise TypeError(f"offset must be an integer or None, not {type(offset).__name__}")
        if not 0 <= offset <= LARGEST_OFFSET:
            raise ValueError(f"offset must be from 0 to 2**63 - 1, not {offset}")
        if not self.is_file:
            raise refusal(errnos.ESPIPE, "only a regular file takes an offset")
        operation.operation_.offset = offset
        return 0

    # -- the end of operations and of the handle

    def cancel(self, overlapped=None):
        cdef int count
        if overlapped is not None and not isinstance(overlapped, OverlappedBase):
            raise not_an_overlapped(overlapped)
        try:
            self.core.begin()
        except PortClosed:
            return 0
        if overlapped is None:
            count = cancel_operations(self.channel, NULL)
        else:
            count = cancel_operations(self.channel, &(<OverlappedBase> overlapped).operation_)
        self.core.end()
        if self._companion is not None:
            count += self._companion.cancel(overlapped)
        return count

    cdef object opened_together(self):
        """Whether the program's number still has our file; None: it can't be told, or not any more."""
        cdef int answer = -1
        cp_mutex_lock(&self.channel.lock)
        if self.channel.descriptor >= 0 and not self.channel.own_open:
            answer = cp_opened_together(self.number, self.channel.descriptor)
        cp_mutex_unlock(&self.channel.lock)
        return None if answer < 0 else answer != 0

    def close(self):
        cdef object together = None
        try:
            self.core.begin()
        except PortClosed:
            pass
        else:
            if isinstance(self.file_, int):
                together = self.opened_together()
            # The program's own number goes at once: operations are on the duplicate.
            if not cp_peek(&self.channel.closing):
                # close(2) may take as long as a file system likes, which writes what it has kept.
                with nogil:
                    channel_close(self.channel, True)
                    self.core.settle_closing(self.channel)
            self.core.end()
        if self._companion is not None:
            self._companion.close()
        if self.release_token():
            if isinstance(self.file_, int):
                close_number(self.number, self.identity, together)
            elif hasattr(self.file_, "close"):
                self.file_.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
