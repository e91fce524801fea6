"""One request as calls that do not wait.

`attempt` tries a request at the head of its queue; the engine tries again when the file is ready.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from ...interface.errors import BACKLOG_IS_FULL, system_error
from ...interface.operation import Operation
from ..channels.messages import CLOSE_ON_EXEC, Items, descriptors_in
from ..channels.requests import LARGEST_VECTOR, Request

Result = TypeVar("Result")

DONT_WAIT = socket.MSG_DONTWAIT
NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
MORE: int = getattr(socket, "MSG_MORE", 0)
TURN = 4 << 20
"""What is sent of a file in one go, bytes: others then have a turn, if the peer keeps up too."""
TRIES = 4
UNIX = getattr(socket, "AF_UNIX", None)
RECEIVER_IS_FULL = "the receiver's queue is full, and the system does not tell when it has room"
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


def is_writable(sock: socket.socket) -> bool:
    """Whether a send would not wait for this socket itself."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        return bool(poll.poll(0))
    return bool(select.select([], [sock], [], 0)[1])


def is_ready(descriptor: int) -> bool:
    """Whether a read of the file would not wait."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])


class Target(Protocol):
    """A channel, as what is tried on it sees it."""

    descriptor: int
    is_socket: bool
    sock: socket.socket | None
    stopped_short: bool


def attempt(channel: Target, request: Request) -> bool:
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


def _accept(channel: Target, request: Request) -> bool:
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


def _connect(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    if not request.connecting:
        code = without_waiting(channel.descriptor, partial(sock.connect_ex, request.address))
        if code == 0:
            return True
        if code == errno.EAGAIN and sock.family == UNIX:
            raise system_error(code, f"{os.strerror(code)}: {BACKLOG_IS_FULL}")
        if code not in CONNECT_UNDER_WAY:
            raise system_error(code)
        request.connecting = True
        return False
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        end_connecting(sock)
        raise system_error(code)
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


def end_connecting(sock: socket.socket) -> None:
    """Nothing is left of a connect that was begun, and the socket can be connected anew.

    While the kernel has not told a connect(2) of one that failed it answers ``ECONNABORTED``, and
    one that was given up goes on. ``SO_ERROR`` is taken: the socket would stay ready for it.
    """
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes

        nobody = bytes(16)  # of the family AF_UNSPEC: connect(2)
        ctypes.CDLL(None).connect(sock.fileno(), nobody, len(nobody))
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def look_first(channel: Target, sock: socket.socket, flags: int) -> None:
    """Raise `BlockingIOError` where the next byte may be urgent, and a plain receive would drop it.

    That is at the end of what the last receive from a stream brought, or found nothing, until the
    system says that there is more.
    """
    if sock.type != socket.SOCK_STREAM or flags & (socket.MSG_OOB | socket.MSG_PEEK):
        return
    if channel.stopped_short and not is_ready(channel.descriptor):
        raise BlockingIOError
    channel.stopped_short = True


def _receive(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = 0 if request.operation is Operation.READ else request.flags & ~socket.MSG_WAITALL
    fill = (
        bool(request.flags & socket.MSG_WAITALL)
        and not request.flags & (socket.MSG_PEEK | socket.MSG_OOB)
        and sock.type == socket.SOCK_STREAM
    )

    def some(size: int | None, views: list[memoryview]) -> bytes | int:
        look_first(channel, sock, flags)
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


def _read(channel: Target, request: Request) -> bool:
    if channel.is_socket:
        return _receive(channel, request)
    descriptor = channel.descriptor

    def some(size: int | None, views: list[memoryview]) -> bytes | int:
        if size is not None:
            return os.read(descriptor, size)
        return os.readv(descriptor, views)

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


def _send(channel: Target, request: Request) -> bool:
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


def _write(channel: Target, request: Request) -> bool:
    if channel.is_socket:
        return _send(channel, request)
    descriptor = channel.descriptor

    def all_of_it() -> bool:
        while True:
            request.advance(os.writev(descriptor, request.views[:LARGEST_VECTOR]))
            if not request.views:
                return True

    return without_waiting(descriptor, all_of_it)


def _receive_message(channel: Target, request: Request) -> bool:
    """One message with its sender, and for `recvmsg` its ancillary data and flags."""
    sock = channel.sock
    assert sock is not None
    flags = request.flags | DONT_WAIT | CLOSE_ON_EXEC
    if _wants_nothing(request):
        _, address = sock.recvfrom(1, flags | socket.MSG_PEEK)
        _collect(request, b"")
        request.value = ([], 0, address) if request.operation is Operation.RECVMSG else address
        return True
    look_first(channel, sock, flags)
    room = request.ancillary_size
    if request.size is None:
        buffers = request.views[:LARGEST_VECTOR]
        count, ancillary, seen, address = sock.recvmsg_into(buffers, room, flags)
    elif flags & socket.MSG_TRUNC:
        # The kernel reports more bytes than it wrote, and recvmsg() would believe it.
        space = bytearray(request.size)
        count, ancillary, seen, address = sock.recvmsg_into([space], room, flags)
        request.parts.append(bytes(space[:count]))
    else:
        # Memory that is not filled with zeros first: the size may be 2 GiB.
        data, ancillary, seen, address = sock.recvmsg(request.size, room, flags)
        request.parts.append(data)
        count = len(data)
    if not CLOSE_ON_EXEC:
        for number in descriptors_in(ancillary):
            os.set_inheritable(number, False)
    request.transferred = count
    request.value = address
    if request.operation is Operation.RECVMSG:
        request.value = ancillary, int(seen) & ~int(CLOSE_ON_EXEC), address
    return True


def _send_message(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = DONT_WAIT | NO_SIGNAL | request.flags
    destination = () if request.address is None else (request.address,)
    stream = sock.type == socket.SOCK_STREAM
    while True:
        views = request.views[:LARGEST_VECTOR] if stream else request.views
        count = _send_one(sock, views, request.ancillary, flags, destination)
        request.let_sources_go()  # the ancillary data went with the first byte
        if not stream:
            request.transferred = count
            return True
        request.advance(count)
        if not request.views:
            return True


def _send_one(
    sock: socket.socket,
    views: list[memoryview],
    ancillary: Items,
    flags: int,
    destination: tuple[Any, ...],
) -> int:
    """`socket.sendmsg`; ``ENOBUFS`` where a Unix socket's receiver is full."""
    for _ in range(TRIES):
        try:
            return sock.sendmsg(views, ancillary, flags, *destination)
        except BlockingIOError:
            # Where this socket has room, it either got it just now, or it is the receiver's queue
            # that is full, and of that nothing would tell: a few more tries say which.
            if not destination or sock.family != UNIX or not is_writable(sock):
                raise
    raise system_error(errno.ENOBUFS, RECEIVER_IS_FULL)


def _send_file(channel: Target, request: Request) -> bool:
    """The head, then the file, then the tail.

    There are two views as long as something of the head is left; then there is the tail, or none.
    """
    sock = channel.sock
    assert sock is not None
    flags = DONT_WAIT | NO_SIGNAL
    source = request.source
    assert source is not None
    while len(request.views) > 1:
        head, tail = request.views
        more = source.left > 0 or tail.nbytes > 0
        request.advance(sock.send(head, flags | (MORE if more else 0)))
    end_of_turn = request.transferred + TURN
    while source.left > 0:
        if request.transferred >= end_of_turn:
            return False
        if data := source.data:
            # Before more is read it may take long: no part of it is kept back.
            more = len(data) == source.left and len(request.views) > 0
            count = sock.send(data, flags | (MORE if more else 0))
        elif part := source.sendable():
            sent = partial(os.sendfile, channel.descriptor, source.descriptor, source.offset, part)
            count = without_waiting(channel.descriptor, sent)
        else:
            # For a socket that is full it need not be read yet.
            source.wants_read = is_writable(sock)
            return False
        request.transferred += count
        source.sent(count)
    while request.views:
        request.advance(sock.send(request.views[0], flags))
    return True


def _disconnect(channel: Target, request: Request) -> bool:
    assert channel.sock is not None
    channel.sock.shutdown(socket.SHUT_RDWR)
    return True


def _shutdown(channel: Target, request: Request) -> bool:
    assert channel.sock is not None
    channel.sock.shutdown(request.flags)
    return True


ATTEMPTS: dict[Operation, Callable[[Target, Request], bool]] = {
    Operation.ACCEPT: _accept,
    Operation.CONNECT: _connect,
    Operation.RECV: _receive,
    Operation.SEND: _send,
    Operation.READ: _read,
    Operation.WRITE: _write,
    Operation.DISCONNECT: _disconnect,
    Operation.SHUTDOWN: _shutdown,
    Operation.SENDFILE: _send_file,
    Operation.RECVFROM: _receive_message,
    Operation.SENDTO: _send_message,
    Operation.RECVMSG: _receive_message,
    Operation.SENDMSG: _send_message,
}
