"""The engine ``selectors``: readiness and calls that do not wait.

A request is tried at once when nothing is queued in front of it, and again each time the
selector says that its file is ready.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import selectors
import socket
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .. import association
from ..errors import HandleClosed
from ..operation import Operation
from .chores import Chores
from .requests import LARGEST_VECTOR, READING, Request

if TYPE_CHECKING:
    from ..overlapped import Overlapped

Result = TypeVar("Result")

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
DONT_WAIT = socket.MSG_DONTWAIT
NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
CONNECT_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY, errno.EINTR)
WAITS = (BlockingIOError, InterruptedError)

# The mode is one for all duplicates of a descriptor, so two channels may share it. Reentrant,
# because a finalizer may start an operation while it is held.
_mode_lock = threading.RLock()


def _after_fork() -> None:
    global _mode_lock
    _mode_lock = threading.RLock()  # the old one may be held by a thread that the child lacks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def without_waiting(descriptor: int, call: Callable[[], Result]) -> Result:
    """Make the call with the file in non-blocking mode, and leave the mode as it was."""
    with _mode_lock:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if mode & os.O_NONBLOCK:
            return call()
        fcntl.fcntl(descriptor, fcntl.F_SETFL, mode | os.O_NONBLOCK)
        try:
            return call()
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, mode)


def is_ready(descriptor: int) -> bool:
    """Whether a read of the file would not wait."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])


class SelectorsChannel:
    """The duplicate of one file's descriptor, and the requests that wait for it."""

    __slots__ = (
        "__weakref__",
        "armed",
        "chores",
        "closed",
        "descriptor",
        "engine",
        "is_regular",
        "is_socket",
        "lock",
        "readable",
        "reads",
        "sock",
        "status",
        "token",
        "writable",
        "writes",
    )

    def __init__(self, engine: SelectorsEngine, number: int, token: Hashable) -> None:
        self.engine = engine
        self.token = token
        self.status = os.fstat(number)
        kind = stat.S_IFMT(self.status.st_mode)
        mode = fcntl.fcntl(number, fcntl.F_GETFL)
        self.is_socket = kind == stat.S_IFSOCK
        self.is_regular = kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK)
        self.readable = mode & os.O_ACCMODE != os.O_WRONLY
        self.writable = mode & os.O_ACCMODE != os.O_RDONLY
        self.lock = threading.Lock()  # guards everything below; held over calls that do not wait
        self.chores = Chores(self.lock)
        self.reads: deque[Request] = deque()
        self.writes: deque[Request] = deque()
        self.armed = 0  # what the selector looks for
        self.closed = False
        self.sock: socket.socket | None = None
        self.descriptor: int = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0)
        if self.is_socket:
            try:
                self.sock = socket.socket(fileno=self.descriptor)
                if self.sock.gettimeout() is not None:
                    # socket.setdefaulttimeout() made it change the mode.
                    self.sock.settimeout(None)
                    fcntl.fcntl(number, fcntl.F_SETFL, mode)
            except BaseException:
                if self.sock is None:
                    os.close(self.descriptor)
                else:
                    self.sock.close()
                raise

    def family(self) -> tuple[int, int]:
        assert self.sock is not None
        return self.sock.family, self.sock.type

    def same_file(self, number: int) -> bool:
        try:
            return os.path.samestat(os.fstat(number), self.status)
        except OSError:
            return False

    def pending(self) -> int:
        return len(self.reads) + len(self.writes)

    def start(self, request: Request) -> None:
        queue = self.reads if request.operation in READING else self.writes
        try:
            with self.lock:
                if self.closed:
                    raise HandleClosed("this handle is closed: associate a new file with the port")
                if queue or not attempt(self, request):
                    queue.append(request)
                    try:
                        self._arm()
                    except BaseException:
                        queue.remove(request)
                        raise
                else:
                    self._complete(request)
        finally:
            self.chores.run()

    def cancel(self, overlapped: Overlapped | None) -> int:
        count = 0
        with self.lock:
            for queue in (self.reads, self.writes):
                for request in list(queue):
                    if overlapped is None or request.overlapped is overlapped:
                        queue.remove(request)
                        # A receive that was to be filled keeps its part: no byte is lost.
                        if not (request.operation is Operation.RECV and request.transferred):
                            request.abort("the operation was cancelled")
                        self._complete(request)
                        count += 1
        self.chores.run()
        if count:
            self.advance(READ | WRITE)  # what stood behind them may be possible now
        return count

    def detach(self, reason: str) -> None:
        self.chores.add(partial(self._detach, reason))

    def advance(self, events: int) -> None:
        """The selector says that the file is ready for these."""
        with self.lock:
            if not self.closed:
                unused = 0
                if events & READ and not self._advance(self.reads):
                    unused |= READ
                if events & WRITE:
                    self._advance(self.writes)
                    if not self.writes:
                        unused |= WRITE
                # Reading stays armed for the next receive until it proves to be of no use;
                # writing does not, since a socket can nearly always be written to.
                self._arm(unused)
        self.chores.run()

    def _advance(self, queue: deque[Request]) -> bool:
        """Carry out what is possible; False when nothing waited. Lock held."""
        if not queue:
            return False
        while queue:
            request = queue[0]
            try:
                if not attempt(self, request):
                    break
            except Exception as error:
                request.fail(error)
            queue.popleft()
            self._complete(request)
        return True

    def _complete(self, request: Request) -> None:
        """Make a packet of it. Lock held, so that packets keep the order of their requests."""
        request.complete = True
        self.engine.deliver(request)

    def _arm(self, unused: int = 0) -> None:
        """Tell the selector what to look for. Lock held."""
        wanted = (READ if self.reads else 0) | (WRITE if self.writes else 0)
        wanted |= self.armed & ~unused
        if wanted != self.armed:
            self.engine.watch(self, wanted)

    def _detach(self, reason: str) -> None:
        """Lock held."""
        if self.closed:
            return
        self.closed = True
        aborted = [*self.reads, *self.writes]
        self.reads.clear()
        self.writes.clear()
        for request in aborted:
            request.abort(reason)
        self.engine.let_go(self, aborted)

    def close_descriptor(self) -> None:
        """The last step: nothing refers to the duplicate any more."""
        if self.sock is not None:
            self.sock.close()
        else:
            os.close(self.descriptor)


class SelectorsEngine:
    """One selector for all channels; a `scheduler.Reaper`."""

    def __init__(
        self,
        deliver: Callable[[Request], None],
        gone: Callable[[SelectorsChannel, list[Request]], None],
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self.deliver = deliver
        """Called with each complete request."""
        self._gone = gone
        self._selector = selectors.DefaultSelector() if selector is None else selector
        # With epoll and kqueue the kernel keeps the list, and each channel's lock guards its
        # entry. Any other list must not change while a thread looks at it: it has a lock.
        names = ("EpollSelector", "KqueueSelector")
        self._kernel_keeps = isinstance(
            self._selector,
            tuple(getattr(selectors, name) for name in names if hasattr(selectors, name)),
        )
        self._list_lock = threading.Lock()  # held over the wait itself
        self._changes = Chores(self._list_lock)
        # Guards `_disposed`, which never goes back, and that `_waker` is open until then.
        # Reentrant for finalizers, and never held for long.
        self._waker_lock = threading.RLock()
        self._disposed = False
        self._waker, self._wakes = socket.socketpair()
        self._waker.setblocking(False)
        self._wakes.setblocking(False)
        self._selector.register(self._wakes.fileno(), READ, None)

    def wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._kernel_keeps:
            return self._selector.select(timeout)
        with self._list_lock:
            events = self._selector.select(timeout)
        self._changes.run()
        return events

    def reap(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            if key.data is not None:
                key.data.advance(mask)
            else:
                with contextlib.suppress(OSError):
                    self._wakes.recv(4096)

    def wake(self) -> None:
        with self._waker_lock:
            if not self._disposed:
                with contextlib.suppress(OSError):  # full is as good
                    self._waker.send(b"\0")

    def dispose(self) -> None:
        with self._waker_lock:
            self._disposed = True
            self._waker.close()
        self._selector.close()
        self._wakes.close()

    def watch(self, channel: SelectorsChannel, events: int) -> None:
        """Look for these events from now on. The channel's lock held."""
        before, channel.armed = channel.armed, events
        try:
            self._change(partial(self._watch, channel, before, events))
        except BaseException:
            channel.armed = before
            raise

    def let_go(self, channel: SelectorsChannel, aborted: list[Request]) -> None:
        """Stop looking, let the descriptor go, and only then report. The channel's lock held."""
        before, channel.armed = channel.armed, 0
        self._change(partial(self._let_go, channel, before))
        self._gone(channel, aborted)

    def _watch(self, channel: SelectorsChannel, before: int, events: int) -> None:
        if before == events:
            return
        try:
            if not before:
                self._selector.register(channel.descriptor, events, channel)
            elif not events:
                self._selector.unregister(channel.descriptor)
            else:
                self._selector.modify(channel.descriptor, events, channel)
        except (KeyError, ValueError, RuntimeError, TypeError, OSError):
            # A selector that is closed has forgotten everything.
            if not self._disposed:
                raise

    def _let_go(self, channel: SelectorsChannel, before: int) -> None:
        with contextlib.suppress(KeyError, ValueError, OSError):
            self._watch(channel, before, 0)
        channel.close_descriptor()
        association.release(channel.token)

    def _change(self, work: Callable[[], None]) -> None:
        if self._kernel_keeps:
            work()
            return
        self._changes.add(work)
        if self._changes:
            # A thread looks at the list: it does the work once it is woken.
            self.wake()


def attempt(channel: SelectorsChannel, request: Request) -> bool:
    """Try the request without waiting: True when it is done. The channel's lock held."""
    try:
        return ATTEMPTS[request.operation](channel, request)
    except OSError as error:
        # A connect raises EAGAIN only where a Unix listener's queue is full, and then nothing
        # will say when there is room.
        if isinstance(error, WAITS) and request.operation is not Operation.CONNECT:
            return False
        if not request.transferred:
            raise
        request.fail(error)
        return True


def _accept(channel: SelectorsChannel, request: Request) -> bool:
    listener = channel.sock
    assert listener is not None
    while True:
        try:
            sock, _ = without_waiting(channel.descriptor, listener.accept)
            break
        except ConnectionAbortedError:
            continue  # that client has gone again
    # Elsewhere than on Linux the new socket has the listener's mode.
    if sock.gettimeout() is not None or not sys.platform.startswith("linux"):
        sock.setblocking(True)
    request.value = sock
    return True


def _connect(channel: SelectorsChannel, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    if not request.connecting:
        code = without_waiting(channel.descriptor, partial(sock.connect_ex, request.address))
        if code == 0:
            return True
        if code not in CONNECT_UNDER_WAY:
            raise OSError(code, os.strerror(code))
        request.connecting = True
        return False
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    try:
        sock.getpeername()
    except OSError:
        # Either the readiness was from before the connect, or the connection ended already.
        poll = select.poll() if hasattr(select, "poll") else None
        if poll is None:
            return False
        poll.register(channel.descriptor, select.POLLOUT)
        return bool(poll.poll(0))
    return True


def _receive(channel: SelectorsChannel, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = 0 if request.operation is Operation.READ else request.flags & ~socket.MSG_WAITALL
    fill = (
        bool(request.flags & socket.MSG_WAITALL)
        and not request.flags & (socket.MSG_PEEK | socket.MSG_OOB)
        and sock.type == socket.SOCK_STREAM
    )

    def some(size: int | None, views: list[memoryview]) -> bytes | int:
        if size is not None:
            if not flags & socket.MSG_TRUNC:
                return sock.recv(size, flags | DONT_WAIT)
            # The kernel reports more than it wrote, and recv() would believe it.
            space = bytearray(size)
            return bytes(space[: sock.recv_into(space, 0, flags | DONT_WAIT)])
        if len(views) == 1:
            return sock.recv_into(views[0], 0, flags | DONT_WAIT)
        return sock.recvmsg_into(views, 0, flags | DONT_WAIT)[0]

    if _wants_nothing(request):
        sock.recv(1, socket.MSG_PEEK | DONT_WAIT)
        _collect(request, b"")
        return True
    one_go = sock.type != socket.SOCK_STREAM or bool(flags & socket.MSG_PEEK)
    return _fill(request, some, fill, one_go)


def _read(channel: SelectorsChannel, request: Request) -> bool:
    if channel.is_socket:
        return _receive(channel, request)
    descriptor = channel.descriptor
    offset = request.offset

    def some(size: int | None, views: list[memoryview]) -> bytes | int:
        if offset is None:
            if size is not None:
                return os.read(descriptor, size)
            return os.readv(descriptor, views)
        if size is not None:
            return os.pread(descriptor, size, offset + request.transferred)
        return os.preadv(descriptor, views, offset + request.transferred)

    if channel.is_regular:
        return _fill(request, some, False, False)
    if _wants_nothing(request):
        if not is_ready(descriptor):
            return False
        _collect(request, b"")
        return True
    return without_waiting(descriptor, partial(_fill, request, some, False, False))


def _wants_nothing(request: Request) -> bool:
    if request.size is not None:
        return request.size == 0
    return not any(view.nbytes for view in request.views)


def _collect(request: Request, data: bytes) -> None:
    if request.size is not None:
        request.parts.append(data)
        request.transferred += len(data)


def _fill(
    request: Request,
    some: Callable[[int | None, list[memoryview]], bytes | int],
    fill: bool,
    one_go: bool,
) -> bool:
    """Receive once, or until everything is full where ``fill`` says so."""
    if request.size is not None:
        while True:
            left = request.size - request.transferred
            data = some(left, [])
            assert isinstance(data, bytes)
            _collect(request, data)
            if not data or not fill or len(data) == left:
                return True
    while True:
        views = request.views[:LARGEST_VECTOR]
        count = some(None, views)
        assert isinstance(count, int)
        full = count == sum(view.nbytes for view in views)
        if one_go:
            request.transferred += count
            return True
        request.advance(count)
        if not count or not request.views:
            return True
        if not fill and not full:
            return True
        if not fill:
            # More buffers than one call takes: what else is there goes into them.
            try:
                return _fill(request, some, False, False)
            except WAITS:
                return True


def _send(channel: SelectorsChannel, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = DONT_WAIT | NO_SIGNAL
    if request.operation is Operation.SEND:
        flags |= request.flags
    stream = sock.type == socket.SOCK_STREAM
    while True:
        views = request.views[:LARGEST_VECTOR] if stream else request.views
        count = sock.send(views[0], flags) if len(views) == 1 else sock.sendmsg(views, [], flags)
        if not stream:
            request.transferred = count
            return True
        request.advance(count)
        if not request.views:
            return True


def _write(channel: SelectorsChannel, request: Request) -> bool:
    if channel.is_socket:
        return _send(channel, request)
    descriptor = channel.descriptor

    def all_of_it() -> bool:
        while True:
            views = request.views[:LARGEST_VECTOR]
            if request.offset is None:
                count = os.writev(descriptor, views)
            else:
                count = os.pwritev(descriptor, views, request.offset + request.transferred)
            request.advance(count)
            if not request.views:
                return True

    if channel.is_regular:
        return all_of_it()
    return without_waiting(descriptor, all_of_it)


def _disconnect(channel: SelectorsChannel, request: Request) -> bool:
    assert channel.sock is not None
    channel.sock.shutdown(socket.SHUT_RDWR)
    return True


ATTEMPTS: dict[Operation, Callable[[SelectorsChannel, Request], bool]] = {
    Operation.ACCEPT: _accept,
    Operation.CONNECT: _connect,
    Operation.RECV: _receive,
    Operation.SEND: _send,
    Operation.READ: _read,
    Operation.WRITE: _write,
    Operation.DISCONNECT: _disconnect,
}
