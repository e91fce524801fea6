"""File objects and their operations, as Windows' I/O manager has them.

A request is one operation of the program. It is carried out in one or several steps, each of
which is an operation of the engine. A file's lock guards the file and its requests. A thread holds
the locks of two files only where one is a listening socket and the other a socket that it accepts
into, and then it has taken the listener's first. So whoever holds the lock of a socket that a
listener accepts into lets go of it before it takes the listener's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, TypeAlias

from ...interface.error_codes import Codes, codes_of
from ...interface.errors import (
    AlreadyAssociated,
    HandleClosed,
    OperationAborted,
    PortClosed,
    PortForked,
)
from ...interface.handle import Handle, Overlapped
from ...interface.port import Completion, CompletionPort
from ...shared.association import listens
from ..constants import (
    ERROR_INVALID_FUNCTION,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_PENDING,
    ERROR_NOT_FOUND,
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
    FILE_SKIP_SET_EVENT_ON_HANDLE,
    STATUS_PENDING,
    WSA_INVALID_PARAMETER,
    WSA_IO_PENDING,
    WSAEINVAL,
)
from ..outcomes import is_warning
from ..structures import OVERLAPPED
from . import manager
from .waiting import Event, Waitable, claim, set_both, wake

SUCCESS = Codes(0, 0, 0)
PENDING = Codes(STATUS_PENDING, ERROR_IO_PENDING, WSA_IO_PENDING)
IN_USE = Codes(0xC000000D, ERROR_INVALID_PARAMETER, WSA_INVALID_PARAMETER)
GONE = codes_of(errno.EBADF)
NO_DATA = Codes(0xC0000010, ERROR_INVALID_FUNCTION, WSAEINVAL)
"""STATUS_INVALID_DEVICE_REQUEST: a folder has none."""
ABORTED = codes_of(errno.ECANCELED)

CONNECTION_LOST = frozenset(
    {errno.ECONNRESET, errno.ECONNABORTED, errno.ENETRESET, errno.ETIMEDOUT}
)
"""After these Windows answers every call on a connection with the same error, Linux only once."""

Launch: TypeAlias = Callable[[manager.Step], "Overlapped | None"]
"""Starts a step on a handle of the engine; None when it has succeeded at once."""


class Failure(OSError):
    """A failure that has no errno, or another code than its errno says."""

    def __init__(self, codes: Codes) -> None:
        super().__init__(errno.EIO, f"NTSTATUS {codes.status:#x}")
        self.codes = codes


class Port(Waitable):
    """The program's port: packets are only posted to it. It is signalled while it has some."""

    def __init__(self, concurrency: int) -> None:
        super().__init__()
        self.waited_for = False  # written with what threads wait for locked, before they look
        self.port = CompletionPort(concurrency)

    def __repr__(self) -> str:
        return "port"

    def deliver(self, count: int, key: Any, overlapped: Any, codes: Codes) -> bool:
        """Put a packet into the queue; False when the port is closed."""
        try:
            self.port.post(count, (key, codes), overlapped)
        except PortClosed:
            return False
        # Either this sees that somebody waits, or who waits sees the packet: both take the queue's
        # lock in between.
        if self.waited_for:
            wake()
        return True

    def is_set(self) -> bool:
        self.waited_for = True
        try:
            return bool(self.port.stats()["queued"])
        except PortClosed:
            return False


class Unheard(OVERLAPPED):
    """Of an operation whose call waits for its end: no packet tells of it."""

    __slots__ = ()


class Request(Waitable):
    """One operation of the program; it is signalled when it has completed."""

    takes_input = True
    """Whether it stands in line with receives, else with sends."""
    is_transfer = False
    """Whether it moves data on what is connected already."""

    def __init__(self, file: FileObject, overlapped: OVERLAPPED) -> None:
        super().__init__()
        self.file = file
        self.overlapped: OVERLAPPED | None = overlapped  # until it has completed; the file's lock
        event = overlapped._event
        self.event = event._object if event and isinstance(event._object, Event) else None
        # Written once, `codes` last: who sees it sees the count as well.
        self.codes = PENDING
        self.count = 0
        # The file's lock:
        self.step: manager.Step | None = None
        self.steps = 0
        is_marked = event is not None and event._is_marked
        self.quiet = is_marked or isinstance(overlapped, Unheard)  # constant: no packet tells of it
        self.thread = get_ident()  # constant: who has started it, for CancelIo
        self.more_steps = False  # the one under way is not the last
        self.cancelled = False
        self.aborted = ABORTED  # what it is told when it was stopped
        self.keeps: Any = None  # what must not go before it is over

    @property
    def status(self) -> int:
        return self.codes.status

    def proceed(self, step: manager.Step) -> Launch | None:
        """A step has succeeded: the next one, or None. File's lock held; an `OSError` ends it."""
        self.count = step.transferred
        return None

    def is_refused(self, error: OSError) -> bool:
        """Whether a failure at the call is told there, and not by a packet. File's lock held."""
        return self.steps <= 1

    def ended(self) -> None:
        """All is over. File's lock held."""

    def run(self, launch: Launch | None) -> bool:
        """Carry on; True when a packet of the engine will tell. File's lock held."""
        while launch is not None:
            if self.cancelled:
                raise OperationAborted
            step = manager.Step()
            step.target = self
            self.step = step
            self.steps += 1
            if launch(step) is not None:
                return True
            if step.error is not None:
                raise step.error
            launch = self.proceed(step)
        return False

    def cancel(self) -> bool:
        """Ask it to stop; False when it is too late for that. File's lock held."""
        if self.codes is not PENDING or self.cancelled:
            return False
        stopped = self.step is not None and self.step.cancel()
        self.cancelled = stopped or self.more_steps
        return self.cancelled

    def arrived(self, packet: Completion) -> None:
        """A step has completed, or it is time to pass the packet on. On the manager's thread."""
        file = self.file
        with file.lock:
            if packet.overlapped is self:
                file.requests.pop(self, None)
                file.deliver(self)
                return
            error = packet.error
            # Only a submitted function raises anything else.
            assert error is None or isinstance(error, OSError)
            if error is not None:
                file.complete(self, error)
            else:
                self.go_on(lambda: self.proceed(packet.overlapped))

    def go_on(self, proceed: Callable[[], Launch | None]) -> None:
        """A step has succeeded; ``proceed`` makes the next one of it. File's lock held."""
        error: OSError | None = None
        try:
            if self.run(proceed()):
                return
        except OSError as reason:
            error = reason
        except HandleClosed:
            # Between two steps, the socket that the next one was to be at was closed.
            error = OperationAborted()
        except Exception:
            # Whatever it is, each operation has its packet.
            manager.logger.exception("the next step of an operation could not be started")
            error = OSError(errno.EIO, os.strerror(errno.EIO))
        self.file.complete(self, error)

    def take_over(self, connection: socket.socket) -> bool:
        """Whether it is an accept that takes this connection. File's lock held."""
        return False

    def resolve(self, codes: Codes) -> None:
        """It has completed: tell whoever waits. File's lock held."""
        self.step = self.keeps = None  # they would keep the engine's handle, or a socket
        self.ended()
        self.codes = codes
        other: Waitable | None = self.event
        if other is None and not self.file.modes & FILE_SKIP_SET_EVENT_ON_HANDLE:
            other = self.file
        set_both(self, other)


class Unheeded:
    """For a step that nobody waits for."""

    def arrived(self, packet: Completion) -> None:
        pass


_files_lock = threading.RLock()  # guards the set; again by finalizers
_files: weakref.WeakSet[FileObject] = weakref.WeakSet()


def _after_fork() -> None:
    global _files_lock
    _files_lock = threading.RLock()
    for file in _files:
        file.orphan()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class FileObject(Waitable):
    """What a socket or a file's handle stands for.

    It is signalled while no operation has been started since one has completed.
    """

    def __init__(
        self,
        number: int,
        *,
        synchronous: bool = False,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        super().__init__(True)
        mode = os.fstat(number).st_mode
        # Constant:
        self.number = number
        self.synchronous = synchronous
        self.readable = readable
        self.writable = writable
        self.is_socket = stat.S_ISSOCK(mode)
        self.is_regular = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self.is_stream = False
        self.is_datagram = False  # of a network, where one that has no address receives nothing
        self.family = 0
        self.lock = threading.RLock()  # again by finalizers; it guards everything below
        self.orphaned = False  # it was made before a fork(), and this is the child
        self.port: Port | None = None
        self.key: Any = None
        self.modes = 0
        self.closed = False
        self.requests: dict[Request, None] = {}  # under way, or their packet is still to come
        self.accepting: Request | None = None  # the AcceptEx that makes this socket a connection
        self.connecting: Request | None = None  # the ConnectEx that has not connected it yet
        self.threads_inside = 0  # in a call that may wait
        self.passed_over: list[socket.socket] = []  # accepted by an AcceptEx that has failed
        self.connected_at: float | None = None  # of `time.monotonic`'s clock; None: it never was
        self.bound = False  # it is known to have an address
        self.lost = 0  # the errno with which the connection ended
        self.sends_shut = False
        self.receives_shut = False
        self._manager: manager.Manager | None = None
        self._handle: Handle | None = None
        self._appending: Handle | None = None  # for another open file that writes at the end
        with _files_lock:
            _files.add(self)
        if self.is_socket:
            with socket.socket(fileno=os.dup(number)) as probe:
                self.is_stream = probe.type == socket.SOCK_STREAM
                self.family = probe.family
                self.had_peer = has_peer(probe)
                networks = (socket.AF_INET, socket.AF_INET6)
                self.is_datagram = probe.type == socket.SOCK_DGRAM and probe.family in networks

    def __repr__(self) -> str:
        return f"{'socket' if self.is_socket else 'file'} {self.number}"

    @property
    def had_peer(self) -> bool:
        """Whether it is or was a connection. Lock held."""
        return self.connected_at is not None

    @had_peer.setter
    def had_peer(self, value: bool) -> None:
        if not value:
            self.connected_at = None
        elif self.connected_at is None:
            self.connected_at = time.monotonic()

    @property
    def handle(self) -> Handle:
        """The engine's handle, made when it is first needed. Lock held."""
        if self.closed:
            raise HandleClosed("the file is closed")
        if self.orphaned:
            raise PortForked
        if self._handle is None:
            joined = manager.join()
            try:
                self._handle = joined.associate(self.number, self)
            except BaseException:
                manager.leave(joined)
                raise
            self._manager = joined
        return self._handle

    @property
    def appending(self) -> Handle:
        """The engine's handle for writes to the end of the file, made when needed. Lock held."""
        assert self.handle is not None  # so the manager is there
        if self._appending is None:
            # Only the kernel knows where the end is when the write comes to it.
            number = os.open(f"/proc/self/fd/{self.number}", os.O_WRONLY | os.O_APPEND)
            try:
                assert self._manager is not None
                self._appending = self._manager.associate(number, self)
            finally:
                os.close(number)
        return self._appending

    def replace(self, other: socket.socket) -> None:
        """Make the program's descriptor stand for another socket. Lock held."""
        if self.closed:
            raise OperationAborted
        os.dup2(other.fileno(), self.number, inheritable=False)
        self._drop_handle()
        self.connected_at = None
        self.had_peer = self.bound = has_peer(other)
        self.lost = 0
        self.sends_shut = self.receives_shut = False

    def start(self, request: Request, launch: Launch) -> tuple[Codes, int]:
        """Start an operation: `PENDING`, `SUCCESS` with the bytes moved, or why not.

        A warning is told like a failure, and has its packet like success.
        """
        with self.lock:
            if self.closed:
                return GONE, 0
            is_checked = self.is_socket and request.is_transfer
            if is_checked and (number := self.refusal(request.takes_input)):
                return codes_of(number), 0
            overlapped = request.overlapped
            assert overlapped is not None
            before = overlapped._io
            if not claim(overlapped, request, self):
                return IN_USE, 0
            if request.event is not None:
                request.event.reset()
            self.requests[request] = None
            codes = SUCCESS
            try:
                if request.run(launch):
                    return PENDING, 0
            except OSError as error:
                if not request.is_refused(error):
                    self.complete(request, error)
                    return PENDING, 0
                codes = self.codes_for(error)
                if not (request.takes_input and is_warning(codes.status)):
                    self._refuse(request, codes)
                    return codes, 0
            except AlreadyAssociated:
                # With a CompletionPort, beside this module.
                self._refuse(request, IN_USE)
                return IN_USE, 0
            except BaseException:
                del self.requests[request]
                overlapped._io = before
                raise
            request.resolve(codes)
            if self.modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS or request.quiet:
                del self.requests[request]
                request.overlapped = None
            elif len(self.requests) > 1 and self._others_in_line(request):
                # They have completed before, so their packets go first.
                assert self._manager is not None
                self._manager.pass_on(request)
            else:
                del self.requests[request]
                self.deliver(request)
            return codes, request.count

    def complete(self, request: Request, error: OSError | None) -> None:
        """An operation has completed later than its call. Lock held."""
        self.requests.pop(request, None)
        codes = SUCCESS
        if error is not None:
            codes = self.codes_for(error)
            if isinstance(error, OperationAborted):
                codes = request.aborted
                request.count = 0
        request.resolve(codes)
        self.deliver(request)

    def deliver(self, request: Request) -> None:
        """Put the packet into the port's queue, where there is a port by now. Lock held."""
        # Each holds the other from the call to here.
        overlapped, request.overlapped = request.overlapped, None
        if self.port is not None and not request.quiet:
            self.port.deliver(request.count, self.key, overlapped, request.codes)

    def codes_for(self, error: OSError) -> Codes:
        """What Windows calls this failure of this file. Lock held."""
        if isinstance(error, Failure):
            return error.codes
        number = error.errno
        if number == errno.EISDIR:
            return NO_DATA
        if self.is_stream:
            if number == errno.EPIPE and not self.sends_shut:
                # Linux's word for a connection that is not there, or not there any more.
                number = errno.ECONNRESET if self.had_peer else errno.ENOTCONN
            if number in CONNECTION_LOST and self.connecting is None:
                self.lost = number
                self.had_peer = True
        elif number == errno.EDESTADDRREQ:
            number = errno.ENOTCONN
        return codes_of(number)

    def refusal(self, takes_input: bool) -> int:
        """The errno with which a receive or a send on this socket fails untried, or 0. Lock held.

        After the end of a connection Linux goes on to tell of the end of the stream, and it says
        nothing of a way that was shut down here only.
        """
        if self.lost:
            return self.lost
        if self.receives_shut if takes_input else self.sends_shut:
            return errno.ESHUTDOWN
        if self.connecting is not None:
            return errno.ENOTCONN
        if takes_input and self.is_datagram and not self.bound:
            with socket.socket(fileno=os.dup(self.number)) as probe:
                self.bound = is_bound(probe)
            return 0 if self.bound else errno.EINVAL
        return 0

    def is_connected(self) -> bool:
        """Whether it is a connection, or was one. Lock held."""
        if not self.had_peer:
            # It may have been connected as a socket object of Python's.
            with socket.socket(fileno=os.dup(self.number)) as probe:
                self.had_peer = has_peer(probe)
        return self.had_peer

    def is_changing(self) -> bool:
        """Whether an AcceptEx or a ConnectEx is about to make a connection of it. Lock held."""
        return self.accepting is not None or self.connecting is not None

    def end_sends(self, sock: socket.socket) -> None:
        """Have the peer read the end of the stream, behind what is being sent. Lock held."""
        # A connection that both have ended has nobody to tell.
        with contextlib.suppress(OSError):
            if any(not one.takes_input for one in self.requests):
                step = manager.Step()
                step.target = Unheeded()
                self.handle.shutdown(socket.SHUT_WR, step)
            else:
                sock.shutdown(socket.SHUT_WR)

    def duplicate(self) -> int | None:
        """Another number for the same file, which the caller closes; None for a closed one."""
        with self.lock:
            return None if self.closed else os.dup(self.number)

    def pass_on(self, connection: socket.socket) -> None:
        """An AcceptEx that has failed does not take this connection: the next one. Lock held."""
        if self.closed:
            connection.close()
        elif not any(request.take_over(connection) for request in list(self.requests)):
            self.passed_over.append(connection)

    def cancel(self, overlapped: OVERLAPPED | None, thread: int | None = None) -> int:
        """Stop one operation, or all, or all that a thread has started: a Windows code."""
        with self.lock:
            if self.closed:
                return ERROR_INVALID_HANDLE
            wanted = [
                one
                for one in self.requests
                if (overlapped is None or one.overlapped is overlapped)
                and (thread is None or one.thread == thread)
            ]
            asked = [one.cancel() for one in wanted]
        return 0 if any(asked) else ERROR_NOT_FOUND

    def orphan(self) -> None:
        """In the child of a fork: what is under way is the parent's, only the number is ours."""
        self.lock = threading.RLock()  # a thread that the child lacks may hold the old one
        self.orphaned = True
        self.requests.clear()
        self.accepting = self.connecting = self._manager = None
        self.threads_inside = 0

    def close(self, owner: socket.socket | None = None, *, number_is_gone: bool = False) -> bool:
        """Abort everything and close the descriptor; False when that was done before.

        ``owner``: the program's socket object, which loses its number. No lock of a file is held.
        """
        with self.lock:
            if self.closed:
                return False
            for request in list(self.requests):
                if request.is_transfer and self.is_stream and not request.cancelled:
                    request.aborted = codes_of(errno.ECONNABORTED)
                request.cancel()  # its step may be at another file
            for connection in self.passed_over:
                connection.close()
            self.passed_over.clear()
            self.closed = True
            if owner is not None:
                if self.threads_inside:
                    # Who waits in accept() or recv() does not hear of a mere close.
                    with contextlib.suppress(OSError):
                        owner.shutdown(socket.SHUT_RDWR)
                socket.socket.detach(owner)  # the number is this file object's from here on
            accepting, self.accepting = self.accepting, None
            handle, self._handle = self._handle, None
            appending, self._appending = self._appending, None
            if appending is not None and not self.orphaned:
                appending.close()
            if number_is_gone:
                pass  # the last reference to the engine's handle closes it
            elif handle is not None and not self.orphaned:
                handle.close()
            else:
                os.close(self.number)
            if self._manager is not None:
                manager.leave(self._manager)
        if accepting is not None:
            # Its file is the listener, whose lock comes before ours.
            with accepting.file.lock:
                accepting.cancel()
        return True

    def abandon(self) -> None:
        """The program's socket object is gone, and has closed the number. Never blocks.

        A finalizer may run anywhere, with locks held; so the manager's thread sees to the rest.
        """
        joined = self._manager
        if joined is None:
            self.closed = True  # nothing is under way
        else:
            with contextlib.suppress(PortClosed):
                joined.pass_on(self)

    def arrived(self, packet: Completion) -> None:
        """On the manager's thread, after `abandon`."""
        self.close(number_is_gone=True)

    def _refuse(self, request: Request, codes: Codes) -> None:
        del self.requests[request]
        request.resolve(codes)
        request.overlapped = None

    def _others_in_line(self, request: Request) -> bool:
        return any(
            one is not request and one.takes_input == request.takes_input for one in self.requests
        )

    def _drop_handle(self) -> None:
        if self._handle is not None:
            assert self._manager is not None
            manager.leave(self._manager)
            self._handle = self._manager = None


def has_peer(sock: socket.socket) -> bool:
    """Whether a socket is connected."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def is_listening(sock: socket.socket) -> bool:
    """Whether it accepts connections."""
    try:
        return listens(sock)
    except OSError:
        return False


def is_bound(sock: socket.socket) -> bool:
    """Whether it has an address of its own."""
    try:
        name = sock.getsockname()
    except OSError:
        return False
    return bool(name[1]) if isinstance(name, tuple) else bool(name)
