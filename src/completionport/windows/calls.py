"""Each operation as a call to the kernel, and what its outcome means.

`prepare` gives the call, which never waits; `finish` puts what came of it into the request. A
request that takes several calls (`has_steps`) goes on with `prepare`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import msvcrt
import socket
import struct
from collections.abc import Callable
from typing import Any

from ..interface.errors import CANCELLED, system_error
from ..interface.operation import Operation
from ..portable.channels.requests import READING, Request
from ..shared import addresses
from ..shared.association import listens
from . import api, changes, pipes, pool_calls
from .channel_state import ChannelState
from .flights import Flight

Call = Callable[[], int]

RECEIVED_AT_ONCE = 1 << 18
"""Bytes of memory that a receive of a size takes at most: a stream gives what it has anyway."""
GATHERED_AT_ONCE = 1 << 20
"""Bytes; ReadFile and WriteFile take one buffer, so several go through one of ours."""
MOVED_AT_ONCE = 1 << 30
BUFFERS_AT_ONCE = 1024
DATAGRAM = 1 << 16
ADDRESS_SPACE = 128 + 16
"""AcceptEx: the longest address, and 16 bytes more."""
END_OF_FILE = -1
MSG_PARTIAL = 0x8000
_CUT_OFF = (api.ERROR_MORE_DATA, api.WSAEMSGSIZE)
"""What a message is that was longer than the buffers."""

_extensions: dict[tuple[str, int, int], Any] = {}  # one step each to look and to set


_ALONE = (
    *(Operation.CONNECT, Operation.DISCONNECT, Operation.SHUTDOWN, Operation.SENDFILE),
    *(Operation.FSYNC, Operation.ALLOCATE),
)


def goes_alone(channel: ChannelState, request: Request) -> bool:
    """Whether the kernel must have nothing else of its direction while it has this request."""
    operation = request.operation
    if operation is Operation.CHANGES:
        return False
    if operation in _ALONE:
        # A send behind a connect would fail; an end overtakes what is being sent; what is to
        # reach the disk is written first.
        return True
    if operation is Operation.ACCEPT:
        return not channel.is_socket  # a pipe has nothing to read before
    if operation is Operation.STAT:
        return False
    if channel.is_regular:
        # The file's position moves with each; one at an offset has its place, but takes
        # several calls where there are several buffers.
        return request.offset is None or len(request.views) > 1 or _is_long(request)
    return has_steps(channel, request)


def has_steps(channel: ChannelState, request: Request) -> bool:
    """Whether the request may take several calls."""
    operation = request.operation
    if operation is Operation.RECV:
        return _is_filled(channel, request)
    if operation is Operation.SENDFILE:
        return True
    if operation not in (Operation.SEND, Operation.WRITE, Operation.READ, Operation.SENDMSG):
        return False
    if channel.is_socket:
        return channel.is_stream and (len(request.views) > BUFFERS_AT_ONCE or _is_long(request))
    return len(request.views) > 1 or _is_long(request)


def prepare(channel: ChannelState, flight: Flight) -> Call:
    """The call for what is left of a request. It returns 0, or the code of the error."""
    operation = flight.request.operation
    if channel.is_socket:
        if operation in (Operation.RECV, Operation.READ):
            return _receive(channel, flight)
        if operation in (Operation.SEND, Operation.WRITE):
            return _send(channel, flight)
    elif operation in _PIPE_CALLS:
        return _PIPE_CALLS[operation](channel, flight)
    return _CALLS[operation](channel, flight)


def at_once(channel: ChannelState, flight: Flight, code: int) -> int:
    """What a call that failed at once means: a code, or ERROR_HANDLE_EOF for a packet of ours."""
    operation = flight.request.operation
    if code == api.WSAESHUTDOWN and channel.ended and operation in READING:
        flight.set_outcome(api.STATUS_SUCCESS, 0)
        return api.ERROR_HANDLE_EOF
    is_end = code in (api.ERROR_HANDLE_EOF, api.ERROR_BROKEN_PIPE)
    if is_end and not channel.is_socket and operation is Operation.READ:
        flight.set_outcome(api.STATUS_SUCCESS, 0)
        return api.ERROR_HANDLE_EOF
    if operation is Operation.ACCEPT and code in _CLIENT_HAS_GONE:
        # Who came has gone before the call: the request goes on with the next client.
        flight.set_outcome(api.STATUS_CONNECTION_RESET, 0)
        return api.ERROR_HANDLE_EOF
    if code in _CUT_OFF and operation in READING:
        # STATUS_BUFFER_OVERFLOW is a warning, and only an error has no packet of the kernel.
        return api.ERROR_HANDLE_EOF if channel.skips else api.ERROR_IO_PENDING
    return code


def finish(channel: ChannelState, flight: Flight, code: int) -> None:
    """Put the outcome of a flight into its request.

    A second call gives the same as the first: it sets and does not add.
    """
    request = flight.request
    if channel.closed and channel.is_socket and code in _CONNECTION_ENDED:
        code = api.ERROR_OPERATION_ABORTED  # it was the close that has ended the connection
    try:
        finishes = _FINISHES if channel.is_socket or channel.is_regular else _PIPE_FINISHES
        finishes.get(request.operation, _finish_other)(channel, flight, code)
    except (OSError, MemoryError, ValueError) as error:
        request.fail(error)  # all others are a signal handler's


def stop(request: Request) -> None:
    """Complete a request that was asked to stop."""
    if request.operation is Operation.RECV and request.transferred:
        request.complete = True  # it was to be filled and keeps its part: no byte is lost
    else:
        request.abort(request.reason or CANCELLED)


def _is_filled(channel: ChannelState, request: Request) -> bool:
    return (
        bool(request.flags & socket.MSG_WAITALL)
        and not request.flags & (socket.MSG_PEEK | socket.MSG_OOB)
        and channel.is_stream
    )


def _wants_nothing(channel: ChannelState, request: Request) -> bool:
    """Whether it only waits for a datagram: a receive of 0 bytes would take it from the socket."""
    return channel.is_socket and not channel.is_stream and _size(request) == 0


def _is_long(request: Request) -> bool:
    return _size(request) > MOVED_AT_ONCE


def _size(request: Request) -> int:
    """How many bytes are to be moved."""
    return request.size if request.size is not None else sum(map(len, request.views))


def _left(request: Request) -> int:
    """How many bytes are still to be moved."""
    return _size(request) - request.transferred


# -- sockets


def _receive(channel: ChannelState, flight: Flight) -> Call:
    request = flight.request
    assert channel.sock is not None
    flags = 0
    if request.operation is Operation.RECV:
        flags = request.flags
        if channel.is_stream:
            flags &= ~socket.MSG_WAITALL  # seen to here
    if _wants_nothing(channel, request):
        flags |= socket.MSG_PEEK
        views = [flight.make_space(1)]
    elif request.size is not None:
        most = RECEIVED_AT_ONCE if channel.is_stream else DATAGRAM
        views = [flight.make_space(min(_left(request), most))]
    else:
        views = flight.rest(request.views)[:BUFFERS_AT_ONCE] or [memoryview(bytearray(1))[:0]]
    buffers, count = flight.pin_all(views, True, MOVED_AT_ONCE)
    flight.extra = api.DWORD(flags & 0xFFFFFFFF)

    def call() -> int:
        failed = api.WSARecv(
            *(channel.handle, buffers, count, None, ctypes.addressof(flight.extra)),
            *(flight.address, None),
        )
        return api.last_error() if failed else 0

    return call


def _send(channel: ChannelState, flight: Flight) -> Call:
    request = flight.request
    flags = request.flags & 0xFFFFFFFF if request.operation is Operation.SEND else 0
    views = flight.rest(request.views)
    if channel.is_stream:
        views = views[:BUFFERS_AT_ONCE]
    buffers, count = flight.pin_all(views or [memoryview(b"")], False, MOVED_AT_ONCE)

    def call() -> int:
        failed = api.WSASend(channel.handle, buffers, count, None, flags, flight.address, None)
        return api.last_error() if failed else 0

    return call


def _receive_message(channel: ChannelState, flight: Flight) -> Call:
    """A message and who sent it. Winsock's ancillary data are not looked at: none comes."""
    request = flight.request
    flags = request.flags & ~socket.MSG_WAITALL if channel.is_stream else request.flags
    if _wants_nothing(channel, request):
        flags |= socket.MSG_PEEK
        views = [flight.make_space(1)]
    elif request.size is not None:
        size = min(request.size, RECEIVED_AT_ONCE if channel.is_stream else DATAGRAM)
        views = [flight.make_space(size)]
    else:
        views = request.views[:BUFFERS_AT_ONCE] or [memoryview(bytearray(1))[:0]]
    buffers, count = flight.pin_all(views, True, MOVED_AT_ONCE)
    flight.extra = _Sender()
    flight.extra.flags = flags & 0xFFFFFFFF
    flight.extra.size = ctypes.sizeof(flight.extra.address)
    where = ctypes.addressof(flight.extra)

    def call() -> int:
        failed = api.WSARecvFrom(
            *(channel.handle, buffers, count, None, where + _Sender.flags.offset),
            *(where, where + _Sender.size.offset, flight.address, None),
        )
        return api.last_error() if failed else 0

    return call


class _Sender(ctypes.Structure):
    """What comes with a message."""

    _fields_ = [
        ("address", ctypes.c_ubyte * ADDRESS_SPACE),
        ("size", ctypes.c_int),
        ("flags", api.DWORD),
    ]


def _finish_message(channel: ChannelState, flight: Flight, code: int) -> None:
    request, sender = flight.request, flight.extra
    _finish_other(channel, flight, code)
    if request.error is not None or not request.complete:
        return
    address = None
    if not channel.is_stream:
        address = addresses.unpack(bytes(sender.address[: sender.size]))
    request.value = address
    if request.operation is Operation.RECVMSG:
        cut_off = code in _CUT_OFF
        seen = int(sender.flags) & ~MSG_PARTIAL | (socket.MSG_TRUNC if cut_off else 0)
        request.value = [], seen & ~socket.MSG_PEEK, address


def _send_message(channel: ChannelState, flight: Flight) -> Call:
    request = flight.request
    if request.address is None:
        return _send(channel, flight)
    sock = channel.sock
    assert sock is not None
    views = request.views or [memoryview(b"")]
    buffers, count = flight.pin_all(views, False, MOVED_AT_ONCE)
    address = addresses.pack(sock.family, sock.type, request.address)
    where, size = flight.pin(memoryview(address), False)
    flags = request.flags & 0xFFFFFFFF

    def call() -> int:
        failed = api.WSASendTo(
            *(channel.handle, buffers, count, None, flags),
            *(where, size, flight.address, None),
        )
        return api.last_error() if failed else 0

    return call


def _shut_down(channel: ChannelState, flight: Flight) -> Call:
    """It never waits, and Windows gives no packet for it."""

    def call() -> int:
        assert channel.sock is not None
        try:
            channel.sock.shutdown(flight.request.flags)
        except OSError as error:
            return error.winerror or api.WSAENOTCONN
        flight.set_outcome(api.STATUS_SUCCESS, 0)
        return api.ERROR_HANDLE_EOF

    return call


def _finish_shutdown(channel: ChannelState, flight: Flight, code: int) -> None:
    _finish_other(channel, flight, code)
    if flight.request.flags != socket.SHUT_WR:
        channel.end_reads()


def _send_file(channel: ChannelState, flight: Flight) -> Call:
    """The next part: of the head, of the file, or of the tail.

    There are two views as long as something of the head is left; then there is the tail, or none.
    """
    request = flight.request
    file = request.source
    assert file is not None
    if len(request.views) > 1 or file.left == 0:
        views = request.views[:1] or [memoryview(b"")]
        buffers, count = flight.pin_all(views, False, MOVED_AT_ONCE)

        def send() -> int:
            failed = api.WSASend(channel.handle, buffers, count, None, 0, flight.address, None)
            return api.last_error() if failed else 0

        return send
    transmit = _extension(channel, "transmit", api.WSAID_TRANSMITFILE, api.TransmitFile_TYPE)
    source = msvcrt.get_osfhandle(file.descriptor)
    access = api.granted_access(source)
    if access is not None and not access & api.FILE_READ_DATA:
        raise system_error(errno.EBADF, "the file is not open for reading")
    # The file may have become shorter than it was, and then the call would fail.
    there = max(api.file_size(source) - file.offset, 0)
    file.left = min(file.left, there)
    if file.left == 0:
        return _send_file(channel, flight)
    flight.extra = min(file.left, MOVED_AT_ONCE)
    flight.set_offset(file.offset)

    def call() -> int:
        done = transmit(channel.handle, source, flight.extra, 0, flight.address, None, 0)
        return 0 if done else api.last_error()

    return call


def _finish_file(channel: ChannelState, flight: Flight, code: int) -> None:
    request = flight.request
    file = request.source
    assert file is not None
    count = flight.count
    if code and code != api.ERROR_OPERATION_ABORTED:
        request.fail(api.error(code))
    if flight.extra is None:
        flight.unpin()
        request.advance(flight.before + count - request.transferred)
    else:
        file.offset += flight.before + count - request.transferred
        file.left -= flight.before + count - request.transferred
        request.transferred = flight.before + count
    if code == 0 and not request.views and file.left == 0:
        request.complete = True


def _accept(channel: ChannelState, flight: Flight) -> Call:
    listener = channel.sock
    assert listener is not None
    if not listens(listener):
        raise api.error(errno.WSAEINVAL)
    accept = _extension(channel, "accept", api.WSAID_ACCEPTEX, api.AcceptEx_TYPE)
    sock = socket.socket(listener.family, listener.type, listener.proto)
    flight.sock = sock
    sock.settimeout(None)
    address, _ = flight.pin(flight.make_space(2 * ADDRESS_SPACE), True)
    flight.extra = api.DWORD()

    def call() -> int:
        done = accept(
            *(channel.handle, sock.fileno(), address, 0, ADDRESS_SPACE, ADDRESS_SPACE),
            *(ctypes.addressof(flight.extra), flight.address),
        )
        return 0 if done else api.last_error()

    return call


def _finish_accept(channel: ChannelState, flight: Flight, code: int) -> None:
    request, sock = flight.request, flight.sock
    assert sock is not None
    if code == 0 and not channel.closed:
        sock.setsockopt(
            socket.SOL_SOCKET, api.SO_UPDATE_ACCEPT_CONTEXT, struct.pack("P", channel.handle)
        )
        request.value = sock
        request.complete = True
        return
    sock.close()
    if code not in (0, api.ERROR_OPERATION_ABORTED, *_CLIENT_HAS_GONE):
        request.fail(api.error(code))
    # Else the request is stopped, or it goes on with the next client.


_CONNECTION_ENDED = frozenset(
    (api.WSAECONNABORTED, api.WSAECONNRESET, api.WSAENOTCONN, api.WSAESHUTDOWN, api.WSAENOTSOCK)
)

_CLIENT_HAS_GONE = (api.WSAECONNRESET, api.WSAENOTCONN, api.WSAECONNABORTED)


def _connect(channel: ChannelState, flight: Flight) -> Call:
    request, sock = flight.request, channel.sock
    assert sock is not None
    if sock.type != socket.SOCK_STREAM:

        def connect() -> int:
            # It only notes the address. Windows gives no packet for that.
            sock.connect(request.address)
            flight.set_outcome(api.STATUS_SUCCESS, 0)
            return api.ERROR_HANDLE_EOF

        return connect
    connect_ex = _extension(channel, "connect", api.WSAID_CONNECTEX, api.ConnectEx_TYPE)
    with contextlib.suppress(OSError):  # WSAEINVAL: it is bound already
        sock.bind(("::" if sock.family == socket.AF_INET6 else "0.0.0.0", 0))
    address = addresses.pack(sock.family, sock.type, request.address)
    where, size = flight.pin(memoryview(address), False)
    flight.extra = api.DWORD()

    def call() -> int:
        done = connect_ex(
            *(channel.handle, where, size, None, 0),
            *(ctypes.addressof(flight.extra), flight.address),
        )
        return 0 if done else api.last_error()

    return call


def _finish_connect(channel: ChannelState, flight: Flight, code: int) -> None:
    request, sock = flight.request, channel.sock
    if code == api.ERROR_OPERATION_ABORTED:
        return
    if code:
        request.fail(api.error(code))
        return
    assert sock is not None
    if sock.type == socket.SOCK_STREAM:
        # Winsock keeps for each of its handles what state the connection is in.
        for one in (sock, getattr(request.handle, "file", None)):
            if isinstance(one, socket.socket):
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, api.SO_UPDATE_CONNECT_CONTEXT, b"")
    request.complete = True


def _disconnect(channel: ChannelState, flight: Flight) -> Call:
    assert channel.sock is not None
    try:
        channel.sock.getpeername()
    except OSError:
        raise api.error(api.WSAENOTCONN) from None
    disconnect = _extension(channel, "disconnect", api.WSAID_DISCONNECTEX, api.DisconnectEx_TYPE)

    def call() -> int:
        done = disconnect(channel.handle, flight.address, 0, 0)
        return 0 if done else api.last_error()

    return call


def _finish_disconnect(channel: ChannelState, flight: Flight, code: int) -> None:
    _finish_other(channel, flight, code)
    if code == 0:
        channel.end_reads()


def _extension(channel: ChannelState, name: str, guid: api.GUID, kind: Any) -> Any:
    assert channel.sock is not None
    key = name, int(channel.sock.family), int(channel.sock.type)
    found = _extensions.get(key)
    if found is None:
        found = _extensions[key] = api.extension(channel.handle, guid, kind)
    return found


# -- files and pipes


def _read(channel: ChannelState, flight: Flight) -> Call:
    request = flight.request
    _set_place(channel, flight, appends=False)
    left = min(_left(request), MOVED_AT_ONCE)
    if request.size is None and len(views := flight.rest(request.views)) == 1:
        address, size = flight.pin(views[0], True)
        size = min(size, MOVED_AT_ONCE)
    elif request.size is None:
        address, size = flight.pin(flight.make_space(min(left, GATHERED_AT_ONCE)), True)
    else:
        if channel.is_regular:
            # Memory for what is there, and not for what was asked for.
            left = min(left, max(api.file_size(channel.handle) - flight.extra, 1))
        else:
            left = min(left, RECEIVED_AT_ONCE)
        address, size = flight.pin(flight.make_space(left), True)

    def call() -> int:
        done = api.ReadFile(channel.handle, address, size, None, flight.address)
        return 0 if done else api.last_error()

    return call


def _write(channel: ChannelState, flight: Flight) -> Call:
    request = flight.request
    _set_place(channel, flight, appends=channel.appends)
    views = flight.rest(request.views)
    if len(views) == 1:
        address, size = flight.pin(views[0], False)
        size = min(size, MOVED_AT_ONCE)
    else:
        space = bytearray()
        for view in views:
            space += view[: GATHERED_AT_ONCE - len(space)]
            if len(space) == GATHERED_AT_ONCE:
                break
        flight.space = space
        address, size = flight.pin(memoryview(space), False)

    def call() -> int:
        done = api.WriteFile(channel.handle, address, size, None, flight.address)
        return 0 if done else api.last_error()

    return call


def _set_place(channel: ChannelState, flight: Flight, appends: bool) -> None:
    """Where in the file the call works. It is kept as the flight's `extra`."""
    flight.extra = 0
    if not channel.is_regular:
        return
    request = flight.request
    if request.offset is not None:
        flight.extra = request.offset + request.transferred
    else:
        flight.extra = _position(channel)
    flight.set_offset(END_OF_FILE if appends else flight.extra)


def _position(channel: ChannelState) -> int:
    """The file's own position, which the program may have moved."""
    if channel.original is None:
        return channel.position
    place = ctypes.c_longlong()
    if not api.SetFilePointerEx(channel.original, 0, ctypes.addressof(place), api.FILE_CURRENT):
        raise api.error(api.last_error())
    return place.value


def _set_position(channel: ChannelState, place: int) -> None:
    if channel.original is None:
        channel.position = place
    else:
        api.SetFilePointerEx(channel.original, place, None, api.FILE_BEGIN)


def _finish_other(channel: ChannelState, flight: Flight, code: int) -> None:
    """Receives, sends, reads, writes, and what is either done or not."""
    request = flight.request
    count = flight.count
    reading = request.operation in READING
    if reading and _wants_nothing(channel, request):
        count = 0
    if code == api.ERROR_OPERATION_ABORTED and reading and channel.ended:
        code = 0  # with what it has, it is at its end
    if code == api.ERROR_OPERATION_ABORTED:
        if not reading:
            request.transferred = flight.before + count
        return
    if (
        reading
        and not channel.is_socket
        and code
        in (
            api.ERROR_HANDLE_EOF,
            api.ERROR_BROKEN_PIPE,
        )
    ):
        code = count = 0
    if code in _CUT_OFF and reading:
        code = 0  # the rest of the message is lost, as with recv()
    moved = flight.before + count
    if code:
        request.transferred = moved
        request.fail(api.error(code))
        return
    if reading:
        _take_in(flight, count)
    request.transferred = moved
    if channel.is_regular and request.offset is None:
        if channel.appends and not reading:
            _set_position(channel, api.file_size(channel.handle))
        else:
            _set_position(channel, flight.extra + count)
    if not has_steps(channel, request) or _left(request) == 0:
        request.complete = True
    elif reading:
        goes_on = request.operation is Operation.RECV or channel.is_regular
        request.complete = count == 0 or not goes_on


def _take_in(flight: Flight, count: int) -> None:
    """Put what came into our memory where it belongs."""
    request, space = flight.request, flight.space
    if space is None:
        return
    if request.size is not None:
        # One bytes object for each flight: its place tells whether it is there already.
        if not (request.parts and sum(map(len, request.parts)) > flight.before):
            request.parts = [*request.parts, bytes(memoryview(space)[:count])]
        return
    done = 0
    for view in flight.rest(request.views):
        part = min(len(view), count - done)
        view[:part] = memoryview(space)[done : done + part]
        done += part


_CALLS: dict[Operation, Callable[[ChannelState, Flight], Call]] = {
    Operation.ACCEPT: _accept,
    Operation.CONNECT: _connect,
    Operation.DISCONNECT: _disconnect,
    Operation.RECVFROM: _receive_message,
    Operation.RECVMSG: _receive_message,
    Operation.SENDTO: _send_message,
    Operation.SENDMSG: _send_message,
    Operation.SHUTDOWN: _shut_down,
    Operation.SENDFILE: _send_file,
    Operation.READ: _read,
    Operation.WRITE: _write,
    Operation.FSYNC: pool_calls.prepare,
    Operation.ALLOCATE: pool_calls.prepare,
    Operation.STAT: pool_calls.prepare,
    Operation.CHANGES: changes.read_changes,
}
_PIPE_CALLS: dict[Operation, Callable[[ChannelState, Flight], Call]] = {
    Operation.ACCEPT: pipes.accept,
    Operation.DISCONNECT: pipes.disconnect,
}
_FINISHES: dict[Operation, Callable[[ChannelState, Flight, int], None]] = {
    Operation.ACCEPT: _finish_accept,
    Operation.CONNECT: _finish_connect,
    Operation.DISCONNECT: _finish_disconnect,
    Operation.RECVFROM: _finish_message,
    Operation.RECVMSG: _finish_message,
    Operation.SHUTDOWN: _finish_shutdown,
    Operation.SENDFILE: _finish_file,
    Operation.FSYNC: pool_calls.finish,
    Operation.ALLOCATE: pool_calls.finish,
    Operation.STAT: pool_calls.finish,
    Operation.CHANGES: changes.finish,
}
_PIPE_FINISHES: dict[Operation, Callable[[ChannelState, Flight, int], None]] = {
    Operation.ACCEPT: pipes.finish_accept,
}
