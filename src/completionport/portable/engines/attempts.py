"""One request as calls that do not wait.

`attempt` tries a request at the head of its queue; the engine tries again when the file is ready.

A signal handler may raise behind each call of a function (``scheduling.scheduler`` says more). So a
system call is made by an iterator in the place of a call, and what it gave is in the request before
anything else is called: who tries again begins with that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter, call, itemgetter
from typing import Any, Protocol, TypeVar

from ...interface.errors import BACKLOG_IS_FULL, system_error
from ...interface.operation import Operation
from ...shared.association import listens
from ..channels.messages import CLOSE_ON_EXEC, descriptors_in
from ..channels.requests import LARGEST_VECTOR, Request
from ..channels.sources import PIECE

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
FIRST = itemgetter(0)
SIZE_OF = attrgetter("nbytes")

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
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, mode | os.O_NONBLOCK)
            return call()
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, mode)


@contextlib.contextmanager
def without_sigpipe() -> Iterator[None]:
    """For calls that have no MSG_NOSIGNAL: an error is all that comes of them.

    Whatever the process has set, the signal is held back in this thread and taken. One that was
    pending before stays.
    """
    if not hasattr(signal, "sigtimedwait"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        was_pending = signal.SIGPIPE in signal.sigpending()
        try:
            yield
        finally:
            if not was_pending:
                signal.sigtimedwait({signal.SIGPIPE}, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_anew(number: int, flags: int, status: os.stat_result) -> int | None:
    """The same terminal or pipe once more, as an open file of our own that never waits.

    None where that can't be had, and it is not done: for the master of a pseudo-terminal (it would
    be another one), and for what is hung up (it would not be).
    """
    fifo = stat.S_ISFIFO(status.st_mode)
    terminal = stat.S_ISCHR(status.st_mode) and os.isatty(number)
    if not sys.platform.startswith("linux") or not (fifo or terminal):
        return None
    place = f"/proc/self/fd/{number}"
    try:
        major = os.major(status.st_rdev)
        if terminal and (major == 2 or (major, os.minor(status.st_rdev)) == (5, 2)):
            return None
        poll = select.poll()
        poll.register(number, 0)
        if poll.poll(0):
            return None
        kept = flags & (os.O_ACCMODE | os.O_APPEND)
        opened = os.open(place, kept | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    now = os.fstat(opened)
    if (now.st_dev, now.st_ino, now.st_rdev) != (status.st_dev, status.st_ino, status.st_rdev):
        os.close(opened)
        return None
    return opened


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
    own_open: bool
    is_socket: bool
    sock: socket.socket | None
    stopped_short: bool


def attempt(channel: Target, request: Request) -> bool:
    """Try the request without waiting: True when it is done, well or not. The channel's lock held.

    It may be called again for one that is done.
    """
    if request.error is not None:
        request.fail(request.error)
        return True
    return ATTEMPTS[request.operation](channel, request)


def _failed(request: Request, error: BaseException) -> bool:
    """What a system call raised: False where it has to wait."""
    if isinstance(error, WAITS):
        return False
    request.error = error
    request.fail(error)
    return True


def _accept(channel: Target, request: Request) -> bool:
    listener = channel.sock
    assert listener is not None
    while request.count < 0:
        # Others see the mode only while there is somebody to accept, or where accept(2) refuses.
        if not is_ready(channel.descriptor) and listens(listener):
            return False
        error = without_waiting(channel.descriptor, partial(_accept_one, listener, request))
        # Else that client has gone again.
        if error is not None and not isinstance(error, ConnectionAbortedError):
            return _failed(request, error)
    sock = request.accepted
    if sock is None:
        sock = socket.socket.__new__(socket.socket)
        sock._io_refs = 0  # type: ignore[attr-defined]
        sock._closed = False  # type: ignore[attr-defined]
        request.accepted = sock
    if sock.fileno() < 0:
        sock.__init__(fileno=request.count)  # type: ignore[misc]
    # Elsewhere than on Linux the new socket has the listener's mode.
    if sock.gettimeout() is not None or not sys.platform.startswith("linux"):
        sock.setblocking(True)
    request.value = sock
    return True


def _accept_one(listener: socket.socket, request: Request) -> BaseException | None:
    step = map(call, (listener._accept,))  # type: ignore[attr-defined]
    try:
        [(request.count, _)] = step
    except Exception as error:
        return error.with_traceback(None)  # whose frames have it: it would be a cycle
    return None


def _connect(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    if request.count < 0:
        begin = partial(_begin_connect, sock, request)
        # Of datagrams it never waits, and others may be receiving.
        datagrams = sock.type == socket.SOCK_DGRAM
        begin() if datagrams else without_waiting(channel.descriptor, begin)
    if not request.connecting:
        code = request.count
        if code == 0:
            return True
        if code not in CONNECT_UNDER_WAY:
            # EAGAIN comes only where a Unix listener's queue is full, and then nothing will say
            # when there is room.
            why = f"{os.strerror(code)}: {BACKLOG_IS_FULL}"
            full = code == errno.EAGAIN and sock.family == UNIX
            request.fail(system_error(code, why) if full else system_error(code))
            return True
        request.connecting = True
        return False
    if not request.asked:
        step = map(sock.getsockopt, (socket.SOL_SOCKET,), (socket.SO_ERROR,))
        [request.asked] = step
    if request.asked:
        end_connecting(sock)
        request.fail(system_error(request.asked))
        return True
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


def must_look_first(channel: Target, sock: socket.socket, flags: int) -> bool:
    """Whether the next byte may be urgent, and a plain receive would drop it: then it has to wait.

    That is at the end of what the last receive from a stream brought, or found nothing, until the
    system says that there is more.
    """
    if sock.type != socket.SOCK_STREAM or flags & (socket.MSG_OOB | socket.MSG_PEEK):
        return False
    if channel.stopped_short and not is_ready(channel.descriptor):
        return True
    channel.stopped_short = True
    return False


def _begin_connect(sock: socket.socket, request: Request) -> None:
    step = map(sock.connect_ex, (request.address,))
    [request.count] = step


def _receive(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = 0 if request.operation is Operation.READ else request.flags & ~socket.MSG_WAITALL
    stream = sock.type == socket.SOCK_STREAM
    fill = (
        bool(request.flags & socket.MSG_WAITALL)
        and not request.flags & (socket.MSG_PEEK | socket.MSG_OOB)
        and stream
    )
    flags |= DONT_WAIT

    def some(size: int | None, views: list[memoryview]) -> Iterator[Any] | None:
        if must_look_first(channel, sock, flags):
            return None
        if size is not None:
            if not flags & socket.MSG_TRUNC:
                return map(sock.recv, (size,), (flags,))
            # The kernel reports more than it wrote, and recv() would believe it.
            space = bytearray(size)
            return _cut(space, map(sock.recv_into, (space,), (0,), (flags,)))
        if len(views) == 1:
            return map(sock.recv_into, (views[0],), (0,), (flags,))
        return map(FIRST, map(sock.recvmsg_into, (views,), (0,), (flags,)))

    if _wants_nothing(request):
        step = map(sock.recv, (1,), (flags | socket.MSG_PEEK,))
        try:
            [_] = step
        except Exception as error:
            return _failed(request, error)
        return _brings_nothing(request)
    return _fill(request, some, fill, not stream or bool(flags & socket.MSG_PEEK), stream)


def _cut(space: bytearray, counts: Iterator[int]) -> Iterator[bytes]:
    """The bytes of the space that were filled."""
    return map(bytes, map(space.__getitem__, map(slice, counts)))


def _read(channel: Target, request: Request) -> bool:
    if channel.is_socket:
        return _receive(channel, request)
    descriptor = channel.descriptor

    def some(size: int | None, views: list[memoryview]) -> Iterator[Any]:
        if size is not None:
            return map(os.read, (descriptor,), (size,))
        return map(os.readv, (descriptor,), (views,))

    if _wants_nothing(request):
        return is_ready(descriptor) and _brings_nothing(request)
    fill = partial(_fill, request, some, False, False, True)
    return fill() if channel.own_open else without_waiting(descriptor, fill)


def _wants_nothing(request: Request) -> bool:
    if request.size is not None:
        return request.size == 0
    return not any(map(SIZE_OF, request.views))


def _brings_nothing(request: Request) -> bool:
    if request.size is not None:
        request.parts = [b""]
    return True


def _rest(request: Request, limited: bool) -> list[memoryview]:
    """What of the buffers is still to be filled or sent: as many as one call takes, or all."""
    index, before = request.place
    views, moved = request.views, request.transferred
    while index < len(views) and moved >= before + views[index].nbytes:
        before += views[index].nbytes
        index += 1
    request.place = index, before
    rest = views[index : index + LARGEST_VECTOR] if limited else views[index:]
    if rest and moved > before:
        rest[0] = rest[0][moved - before :]
    return rest


def _fill(
    request: Request,
    some: Callable[[int | None, list[memoryview]], Iterator[Any] | None],
    fill: bool,
    one_go: bool,
    limited: bool,
) -> bool:
    """Receive once, or until everything is full where ``fill`` says so."""
    if request.size is not None:
        while True:
            parts = request.parts
            request.transferred = sum(map(len, parts))
            left = request.size - request.transferred
            if parts and (not fill or not left or not parts[-1]):
                return True
            step = some(left, [])
            if step is None:
                return False
            try:
                parts += step
            except Exception as error:
                return _failed(request, error)
    while True:
        views = _rest(request, limited)
        # More buffers than one call takes: what else is there goes into them.
        full = request.count == request.asked
        if request.count >= 0 and (one_go or not request.count or not views or not (fill or full)):
            return True
        asked = sum(map(SIZE_OF, views))
        step = some(None, views)
        if step is None:
            return request.count >= 0 and not fill
        try:
            [count] = step
            request.transferred += count
            request.count = count
            request.asked = asked
        except Exception as error:
            if request.count >= 0 and not fill and isinstance(error, WAITS):
                return True
            return _failed(request, error)


def _sent(
    request: Request, some: Callable[[list[memoryview]], Iterator[int]], all_of_it: bool
) -> bool:
    """Send once, or on and on until all of it is sent."""
    while True:
        views = _rest(request, all_of_it)
        if request.count >= 0 and not (views and all_of_it):
            return True
        step = some(views or request.views[:1])
        try:
            [count] = step
            request.transferred += count
            request.count = count
        except Exception as error:
            return _failed(request, error)


def _send(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = DONT_WAIT | NO_SIGNAL
    if request.operation is Operation.SEND:
        flags |= request.flags

    def some(views: list[memoryview]) -> Iterator[int]:
        if len(views) == 1:
            return map(sock.send, (views[0],), (flags,))
        return map(sock.sendmsg, (views,), ((),), (flags,))

    return _sent(request, some, sock.type == socket.SOCK_STREAM)


def _write(channel: Target, request: Request) -> bool:
    if channel.is_socket:
        return _send(channel, request)
    descriptor = channel.descriptor

    def some(views: list[memoryview]) -> Iterator[int]:
        return map(os.writev, (descriptor,), (views,))

    sent = partial(_sent, request, some, True)
    with without_sigpipe():
        return sent() if channel.own_open else without_waiting(descriptor, sent)


def _receive_message(channel: Target, request: Request) -> bool:
    """One message with its sender, and for `recvmsg` its ancillary data and flags."""
    sock = channel.sock
    assert sock is not None
    flags = request.flags | DONT_WAIT | CLOSE_ON_EXEC
    with_flags = request.operation is Operation.RECVMSG
    if _wants_nothing(request):
        step: Iterator[Any] = map(sock.recvfrom, (1,), (flags | socket.MSG_PEEK,))
        try:
            [(_, address)] = step
        except Exception as error:
            return _failed(request, error)
        request.value = ([], 0, address) if with_flags else address
        return _brings_nothing(request)
    if request.message is None:
        if must_look_first(channel, sock, flags):
            return False
        room = request.ancillary_size
        if request.size is None:
            step = map(sock.recvmsg_into, (request.views,), (room,), (flags,))
        elif flags & socket.MSG_TRUNC:
            # The kernel reports more bytes than it wrote, and recvmsg() would believe it.
            request.space = space = bytearray(request.size)
            step = map(sock.recvmsg_into, ([space],), (room,), (flags,))
        else:
            # Memory that is not filled with zeros first: the size may be 2 GiB.
            step = map(sock.recvmsg, (request.size,), (room,), (flags,))
        try:
            [request.message] = step
        except Exception as error:
            return _failed(request, error)
    data, ancillary, seen, address = request.message
    if not CLOSE_ON_EXEC:
        for number in descriptors_in(ancillary):
            os.set_inheritable(number, False)
    if request.size is None:
        request.transferred = data
    elif request.space is not None:
        request.transferred = data
        request.parts = [bytes(request.space[:data])]
    else:
        request.transferred = len(data)
        request.parts = [data]
    shown = int(seen) & ~int(CLOSE_ON_EXEC)
    request.value = (ancillary, shown, address) if with_flags else address
    return True


def _send_message(channel: Target, request: Request) -> bool:
    sock = channel.sock
    assert sock is not None
    flags = DONT_WAIT | NO_SIGNAL | request.flags
    destination = () if request.address is None else ((request.address,),)
    stream = sock.type == socket.SOCK_STREAM

    def some(views: list[memoryview]) -> Iterator[int]:
        # The ancillary data goes with the first byte.
        ancillary = request.ancillary if request.count < 0 else []
        return map(sock.sendmsg, (views,), (ancillary,), (flags,), *destination)

    for _ in range(TRIES):
        if _sent(request, some, stream):
            return True
        # Where this socket has room, it either got it just now, or it is the receiver's queue that
        # is full, and of that nothing would tell: a few more tries say which.
        if not destination or sock.family != UNIX or not is_writable(sock):
            return False
    request.fail(system_error(errno.ENOBUFS, RECEIVER_IS_FULL))
    return True


def _send_file(channel: Target, request: Request) -> bool:
    """The head, then the file, then the tail.

    There are two views as long as something of the head is left; then there is the tail, or none.
    """
    sock = channel.sock
    assert sock is not None
    source = request.source
    assert source is not None
    flags = DONT_WAIT | NO_SIGNAL
    head = request.views[0] if len(request.views) > 1 else memoryview(b"")
    tail = request.views[-1] if request.views else memoryview(b"")
    end_of_turn = request.transferred + TURN
    while True:
        in_head = request.transferred < head.nbytes
        in_tail = request.transferred - source.gone - head.nbytes
        if in_head:
            more = source.left > 0 or tail.nbytes > 0
            rest = head[request.transferred :]
            step = map(sock.send, (rest,), (flags | (MORE if more else 0),))
        elif source.left <= 0:
            if in_tail >= tail.nbytes:
                return True
            step = map(sock.send, (tail[in_tail:],), (flags,))
        elif request.transferred >= end_of_turn:
            return False
        elif data := source.data:
            # Before more is read it may take long: no part of it is kept back.
            more = len(data) == source.left and tail.nbytes > 0
            step = map(sock.send, (data,), (flags | (MORE if more else 0),))
        elif part := source.sendable():
            if os.get_blocking(channel.descriptor):  # then sendfile(2) would wait
                error = _read_part(request, part)
            else:
                with without_sigpipe():
                    error = _send_part(channel.descriptor, request, part)
            if error is not None:
                return _failed(request, error)
            continue
        else:
            # For a socket that is full it need not be read yet.
            source.wants_read = is_writable(sock)
            return False
        in_file = not in_head and source.left > 0
        try:
            [count] = step
            request.transferred += count
            if in_file:
                source.gone += count
                source.offset += count
                source.left -= count
                source.data = source.data[count:]
        except Exception as error:
            return _failed(request, error)


def _send_part(descriptor: int, request: Request, part: int) -> BaseException | None:
    source = request.source
    assert source is not None
    step = map(os.sendfile, (descriptor,), (source.descriptor,), (source.offset,), (part,))
    try:
        [count] = step
        request.transferred += count
        source.gone += count
        source.offset += count
        # 0: the file has become shorter than it was.
        source.left = source.left - count if count else 0
    except Exception as error:
        return error.with_traceback(None)  # whose frames have it: it would be a cycle
    return None


def _read_part(request: Request, part: int) -> BaseException | None:
    """What need not be waited for, to be sent by send(2)."""
    source = request.source
    assert source is not None
    try:
        source.data = os.pread(source.descriptor, min(part, PIECE), source.offset)
        if not source.data:
            source.left = 0  # the file has become shorter than it was
    except Exception as error:
        return error.with_traceback(None)  # whose frames have it: it would be a cycle
    return None


def _disconnect(channel: Target, request: Request) -> bool:
    return _shut(channel, request, socket.SHUT_RDWR)


def _shutdown(channel: Target, request: Request) -> bool:
    return _shut(channel, request, request.flags)


def _shut(channel: Target, request: Request, how: int) -> bool:
    assert channel.sock is not None
    step = map(channel.sock.shutdown, (how,))
    try:
        [_] = step
    except Exception as error:
        return _failed(request, error)
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
