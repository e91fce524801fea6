"""Winsock's functions."""

from __future__ import annotations

import socket as _socket
from typing import Any, Final

from ..shared.arguments import check_count
from .arguments import (
    check_dword,
    check_handle,
    check_number,
    check_overlapped,
    check_socket,
    check_structure,
    checked_by_python,
    succeed,
)
from .constants import (
    ERROR_INVALID_PARAMETER,
    SD_BOTH,
    SO_UPDATE_ACCEPT_CONTEXT,
    SO_UPDATE_CONNECT_CONTEXT,
    SOCKET_ERROR,
    WSA_FLAG_OVERLAPPED,
)
from .last_error import WSASetLastError
from .structures import (
    HANDLE,
    IN_ADDR,
    OVERLAPPED,
    SOCKADDR,
    TRANSMIT_FILE_BUFFERS,
    WSADATA,
    Buffer,
    Buffers,
    views_of,
)
from .system import system


class SOCKET(_socket.socket):
    """A socket of `WSASocket`, `socket`, `accept`: a `socket.socket` that can be used as one too.

    It is in blocking mode, and closed by `closesocket`; its ``close()`` does the same.
    """

    __slots__ = ()

    def close(self) -> None:
        """Close it, as `closesocket` does."""
        system.close_socket(self)

    def __repr__(self) -> str:
        return "<INVALID_SOCKET>" if self is INVALID_SOCKET else super().__repr__()


INVALID_SOCKET: Final = SOCKET(_socket.AF_INET, _socket.SOCK_STREAM)
"""What is returned in the place of a socket: a closed one, so that each call with it fails with
``WSAENOTSOCK``."""
_socket.socket.close(INVALID_SOCKET)


AnySocket = _socket.socket
"""The functions here take any `socket.socket`. One that is not a `SOCKET` must be closed by
`closesocket` and not by its ``close()`` once it was given to them."""


def WSAStartup(wVersionRequired: int, lpWSAData: WSADATA | None = None) -> int:
    """Begin to use Winsock: 0.

    ``wVersionRequired``: ``MAKEWORD(2, 2)``. ``lpWSAData`` is filled in.
    Python has done all that is needed, so a program that leaves it out works as well.
    """
    check_count("wVersionRequired", wVersionRequired, 0, 0xFFFF)
    check_structure("lpWSAData", lpWSAData, WSADATA, optional=True)
    code = system.startup(wVersionRequired)
    if lpWSAData is not None:
        lpWSAData.wVersion = wVersionRequired
        lpWSAData.wHighVersion = MAKEWORD(2, 2)
        lpWSAData.szDescription = "completionport.win32"
        lpWSAData.szSystemStatus = "Running"
    return code


def WSACleanup() -> int:
    """The end of one `WSAStartup`: 0.

    Elsewhere than on Windows the last one ends the thread that this module has, provided that
    all sockets and files are closed.
    """
    return system.cleanup()


def WSASocket(
    af: int,
    type: int,
    protocol: int = 0,
    lpProtocolInfo: None = None,
    g: int = 0,
    dwFlags: int = WSA_FLAG_OVERLAPPED,
) -> SOCKET:
    """A new socket, or ``INVALID_SOCKET``.

    ``af``, ``type``, ``protocol``: ``AF_INET``, ``SOCK_STREAM`` and the like.
    ``dwFlags``: without ``WSA_FLAG_OVERLAPPED`` no port takes the socket
    (``ERROR_INVALID_PARAMETER``), and an operation on it returns when it is done.
    ``lpProtocolInfo`` and ``g`` must be None and 0.
    """
    if lpProtocolInfo is not None or g:
        raise ValueError("WSASocket() takes no protocol info and no group: give None and 0")
    for name, value in (("af", af), ("type", type), ("protocol", protocol)):
        check_number(name, value)
    check_dword("dwFlags", dwFlags)
    code, number = system.new_socket(af, type, protocol, dwFlags)
    if code:
        WSASetLastError(code)
        return INVALID_SOCKET
    sock = SOCKET(af, type, protocol, number)
    sock.settimeout(None)
    if not dwFlags & WSA_FLAG_OVERLAPPED:
        system.set_synchronous(sock)
    return sock


def socket(af: int, type: int, protocol: int = 0) -> SOCKET:
    """A new socket, overlapped as Winsock's ``socket`` makes them, or ``INVALID_SOCKET``."""
    return WSASocket(af, type, protocol)


def bind(s: AnySocket, name: SOCKADDR | tuple[Any, ...]) -> int:
    """Give the socket an address, a structure or Python's form of one: 0, or ``SOCKET_ERROR``."""
    check_socket("s", s)
    address = _address(s, name)
    with checked_by_python():
        return _told(system.prepare(s, lambda: s.bind(address)))


def listen(s: AnySocket, backlog: int) -> int:
    """Let it take connections: 0, or ``SOCKET_ERROR``.

    ``backlog``: how many may wait, ``SOMAXCONN`` for as many as the system allows.
    """
    check_socket("s", s)
    check_dword("backlog", backlog)
    return _told(system.prepare(s, lambda: s.listen(min(backlog, 0x7FFFFFFF))))


def WSAAccept(s: AnySocket, addr: SOCKADDR | None = None) -> SOCKET:
    """The next connection of a listening socket, or ``INVALID_SOCKET``. It waits for one.

    ``addr``: a structure that is filled in with the client's address.
    A wait ends with ``WSAEINTR`` when the listening socket is closed. On Windows no signal ends it:
    see `recv`.
    """
    check_socket("s", s)
    check_structure("addr", addr, SOCKADDR, optional=True)
    code, accepted = system.accept(s)
    if accepted is None:
        WSASetLastError(code)
        return INVALID_SOCKET
    connection = SOCKET(fileno=accepted.detach())
    connection.settimeout(None)
    system.note_connection(connection)
    if addr is not None:
        try:
            addr.assign(connection.family, connection.getpeername())
        except OSError:  # it has gone again
            addr.load(b"")
    return connection


def accept(s: AnySocket, addr: SOCKADDR | None = None) -> SOCKET:
    """As `WSAAccept`."""
    return WSAAccept(s, addr)


def connect(s: AnySocket, name: SOCKADDR | tuple[Any, ...]) -> int:
    """Connect, waiting for it: 0, or ``SOCKET_ERROR``. On Windows no signal ends it: see `recv`."""
    check_socket("s", s)
    address = _address(s, name)
    with checked_by_python():
        return _told(system.connect(s, address))


def send(s: AnySocket, buf: Buffer, flags: int = 0) -> int:
    """Send, waiting for room: the number of bytes taken, or ``SOCKET_ERROR``.

    It may be less than there is. On Windows no signal ends the wait: see `recv`.
    """
    check_socket("s", s)
    check_number("flags", flags)
    return _counted(system.blocking(s, False, lambda: s.send(buf, flags)))


def recv(s: AnySocket, buf: bytearray | memoryview, flags: int = 0) -> int:
    """Receive into ``buf``, waiting for data: the number of bytes, or ``SOCKET_ERROR``.

    Winsock's calls that wait are no alertable waits, so on Windows no signal ends one: a Ctrl-C is
    handled once the call is over, as with `socket.socket.recv` there. Where the main thread is to
    be stopped, use `WSARecv` and its like, and wait for the outcome: `GetOverlappedResult`.
    """
    check_socket("s", s)
    check_number("flags", flags)
    return _counted(system.blocking(s, True, lambda: s.recv_into(buf, 0, flags)))


def shutdown(s: AnySocket, how: int = SD_BOTH) -> int:
    """End one way or both (``SD_RECEIVE``, ``SD_SEND``, ``SD_BOTH``): 0, or ``SOCKET_ERROR``.

    ``SD_SEND``: the peer reads the end of the stream, behind what is being sent. ``SD_RECEIVE``:
    receives that are under way go on, and later ones fail with ``WSAESHUTDOWN``. It has no effect
    on the peer; Windows documents a reset where data comes that nobody receives, elsewhere
    such data stays unread. ``WSAENOTCONN`` for a stream socket without a connection, and so
    for a listening one, which goes on listening.
    """
    check_socket("s", s)
    check_number("how", how)
    return _told(system.shut_down(s, how))


def setsockopt(s: AnySocket, level: int, optname: int, optval: Any = None) -> int:
    """Set an option: 0, or ``SOCKET_ERROR``.

    ``optval``: an integer or bytes; for ``SO_RCVTIMEO`` and ``SO_SNDTIMEO`` milliseconds, after
    which a `recv` or `send` that waits fails with ``WSAETIMEDOUT``; for
    ``SO_UPDATE_ACCEPT_CONTEXT`` the listening socket.
    That and ``SO_UPDATE_CONNECT_CONTEXT`` are needed on Windows behind `AcceptEx` and `ConnectEx`
    before the socket is asked for its addresses or shut down; elsewhere they do nothing.
    """
    check_socket("s", s)
    check_number("level", level)
    check_number("optname", optname)
    if optname in (SO_UPDATE_ACCEPT_CONTEXT, SO_UPDATE_CONNECT_CONTEXT):
        return _told(system.update_context(s, optname, optval))
    with checked_by_python():
        return _told(system.set_option(s, level, optname, optval))


def getsockname(s: AnySocket, name: SOCKADDR) -> int:
    """Fill in the socket's own address: 0, or ``SOCKET_ERROR``."""
    check_socket("s", s)
    check_structure("name", name, SOCKADDR)
    return _do(lambda: name.assign(s.family, s.getsockname()))


def getpeername(s: AnySocket, name: SOCKADDR) -> int:
    """Fill in the address of the other side: 0, or ``SOCKET_ERROR``."""
    check_socket("s", s)
    check_structure("name", name, SOCKADDR)
    return _do(lambda: name.assign(s.family, s.getpeername()))


def closesocket(s: AnySocket) -> int:
    """Close a socket: 0, or ``SOCKET_ERROR``.

    Every operation under way on it completes and gives its packet. What is moved on a connection
    (receives, sends, `TransmitFile`) ends with ``ERROR_CONNECTION_ABORTED`` (1236), as on Windows
    since Vista, which said ``ERROR_NETNAME_DELETED`` before; everything else, as an `AcceptEx` of
    either of its sockets or a receive of datagrams, with ``ERROR_OPERATION_ABORTED`` (995).
    A thread that waits in `accept` for it gets ``WSAEINTR``, one in `recv`, `send` or `connect` on
    a stream socket ``WSAECONNABORTED``.
    """
    check_socket("s", s)
    return _told(system.close_socket(s))


def WSARecv(
    s: AnySocket, lpBuffers: Buffers, dwFlags: int, lpOverlapped: OVERLAPPED | None
) -> tuple[int, int | None]:
    """Receive into the buffers: ``(0, bytes)``, or ``(SOCKET_ERROR, None)`` and the last error.

    ``lpBuffers``: a `WSABUF`, a writable buffer, or a sequence of them, filled in order. They are
    kept until the operation has completed. ``dwFlags``: ``MSG_PEEK``, ``MSG_WAITALL``, ``MSG_OOB``.

    - ``(0, bytes)``: data was there, or the stream has ended (0 bytes). The packet comes all the
      same, unless the handle skips the port on success.
    - ``WSA_IO_PENDING``: it is under way, and its packet comes when it has completed.
    - Any other error: no packet comes. ``WSAENOTCONN`` for a socket that is not connected,
      ``WSAECONNRESET`` for a connection that was reset, ``WSAENOTSOCK`` for a closed socket,
      ``WSA_INVALID_PARAMETER`` when ``lpOverlapped`` is under way.

    Several receives on one socket get the data in the order of these calls.

    With ``NULL`` for ``lpOverlapped`` it waits as `recv` does, and no packet comes.
    """
    _check_transfer(s, dwFlags, lpOverlapped)
    views = views_of(lpBuffers, True)
    if lpOverlapped is None:
        return _done(system.receive_now(s, views, dwFlags, None))
    return _transferred(system.receive(s, views, dwFlags, lpOverlapped))


def WSASend(
    s: AnySocket, lpBuffers: Buffers, dwFlags: int, lpOverlapped: OVERLAPPED | None
) -> tuple[int, int | None]:
    """Send all of the buffers: ``(0, bytes)``, or ``(SOCKET_ERROR, None)`` and the last error.

    The operation completes when the system has taken every byte, so there is no partial send.
    The rest is as with `WSARecv`.
    """
    _check_transfer(s, dwFlags, lpOverlapped)
    views = views_of(lpBuffers, False)
    if lpOverlapped is None:
        return _done(system.send_now(s, views, dwFlags, None))
    return _transferred(system.send(s, views, dwFlags, lpOverlapped))


def WSARecvFrom(
    s: AnySocket,
    lpBuffers: Buffers,
    dwFlags: int,
    lpOverlapped: OVERLAPPED | None,
    lpFrom: SOCKADDR | None = None,
) -> tuple[int, int | None]:
    """Receive one datagram: ``(0, bytes)``, or ``(SOCKET_ERROR, None)`` and the last error.

    ``lpFrom``: a structure that is filled in with the sender's address when the operation
    completes. A datagram that is longer than the buffers loses what there is no room for, and the
    operation fails with ``WSAEMSGSIZE`` (``ERROR_MORE_DATA`` in a packet). Where the datagram is
    there already the call says so itself, and the packet comes all the same, since for Windows that
    is a warning (``STATUS_BUFFER_OVERFLOW``). The rest is as with `WSARecv`.
    """
    _check_transfer(s, dwFlags, lpOverlapped)
    check_structure("lpFrom", lpFrom, SOCKADDR, optional=True)
    views = views_of(lpBuffers, True)
    if lpOverlapped is None:
        return _done(system.receive_now(s, views, dwFlags, lpFrom or SOCKADDR()))
    return _transferred(system.receive_from(s, views, dwFlags, lpFrom, lpOverlapped))


def WSASendTo(
    s: AnySocket,
    lpBuffers: Buffers,
    dwFlags: int,
    lpTo: SOCKADDR | tuple[Any, ...],
    lpOverlapped: OVERLAPPED | None,
) -> tuple[int, int | None]:
    """Send one datagram: ``(0, bytes)``, or ``(SOCKET_ERROR, None)`` and the last error.

    ``lpTo``: the receiver's address, a structure or Python's form of one. The rest is as with
    `WSASend`.
    """
    _check_transfer(s, dwFlags, lpOverlapped)
    views = views_of(lpBuffers, False)
    if lpOverlapped is None:
        return _done(system.send_now(s, views, dwFlags, _structure(s, lpTo)))
    return _transferred(system.send_to(s, views, dwFlags, _structure(s, lpTo), lpOverlapped))


def recvfrom(
    s: AnySocket,
    buf: bytearray | memoryview,
    flags: int = 0,
    from_: SOCKADDR | None = None,
) -> int:
    """Receive one datagram, waiting for it: the number of bytes, or ``SOCKET_ERROR``.

    ``from_``: a structure that is filled in with the sender's address. A datagram that is longer
    than ``buf`` loses what there is no room for: ``WSAEMSGSIZE``, with the sender filled in. On
    Windows no signal ends the wait: see `recv`.
    """
    _check_transfer(s, flags, None)
    check_structure("from_", from_, SOCKADDR, optional=True)
    views = views_of(buf, True)
    result, count = _done(system.receive_now(s, views, flags, from_ or SOCKADDR()))
    return result if count is None else count


def sendto(s: AnySocket, buf: Buffer, flags: int, to: SOCKADDR | tuple[Any, ...]) -> int:
    """Send one datagram, waiting for room: the number of bytes, or ``SOCKET_ERROR``.

    ``to``: the receiver's address, a structure or Python's form of one, numeric.
    """
    _check_transfer(s, flags, None)
    views = views_of(buf, False)
    result, count = _done(system.send_now(s, views, flags, _structure(s, to)))
    return result if count is None else count


def TransmitFile(
    hSocket: AnySocket,
    hFile: HANDLE | None,
    nNumberOfBytesToWrite: int,
    nNumberOfBytesPerSend: int,
    lpOverlapped: OVERLAPPED | None,
    lpTransmitBuffers: TRANSMIT_FILE_BUFFERS | None = None,
    dwFlags: int = 0,
) -> bool:
    """Send a part of a file, from the place that ``lpOverlapped`` says.

    ``hFile``: of `CreateFile`, or None to send the buffers alone. ``nNumberOfBytesToWrite``: 0 for
    all from there to the end. ``nNumberOfBytesPerSend``: a hint for Windows, 0 for its own choice.
    ``lpTransmitBuffers``: what goes before and behind. ``dwFlags``: ``TF_DISCONNECT`` ends the
    connection afterwards, with ``TF_REUSE_SOCKET`` as in `DisconnectEx`.

    Returned: as `AcceptEx`. The packet's bytes are those of file and buffers together.

    With ``NULL`` for ``lpOverlapped`` it waits, and begins at the file's own position.
    """
    _check_transfer(hSocket, dwFlags, lpOverlapped)
    check_structure("lpTransmitBuffers", lpTransmitBuffers, TRANSMIT_FILE_BUFFERS, optional=True)
    if hFile is not None:
        check_handle("hFile", hFile)
    check_dword("nNumberOfBytesToWrite", nNumberOfBytesToWrite)
    check_dword("nNumberOfBytesPerSend", nNumberOfBytesPerSend)
    buffers = TRANSMIT_FILE_BUFFERS() if lpTransmitBuffers is None else lpTransmitBuffers
    parts = (views_of(buffers.Head, False)[0], views_of(buffers.Tail, False)[0])
    sizes = (nNumberOfBytesToWrite, nNumberOfBytesPerSend)
    if lpOverlapped is None:
        return succeed(system.transmit_now(hSocket, hFile, sizes, parts, dwFlags))
    return succeed(system.transmit_file(hSocket, hFile, sizes, parts, dwFlags, lpOverlapped).code)


def AcceptEx(
    sListenSocket: AnySocket,
    sAcceptSocket: SOCKET,
    lpOutputBuffer: Buffer,
    dwReceiveDataLength: int,
    dwLocalAddressLength: int,
    dwRemoteAddressLength: int,
    lpOverlapped: OVERLAPPED | None,
) -> bool:
    """Accept a connection into a socket that is there already, and receive its first data.

    ``sAcceptSocket``: of `WSASocket` or `socket`, not bound and not connected.
    ``lpOutputBuffer``: takes the first data, then the two addresses; at least as long as the three
    lengths together. ``dwReceiveDataLength``: room for the first data, and then the operation
    completes when some has come; with 0 it completes with the connection.
    ``dwLocalAddressLength``, ``dwRemoteAddressLength``: the size of an address and 16 bytes more.
    With 0 the local address is left out; a remote length of 0 is refused (``WSAEFAULT``). With less
    than that the operation fails when a client comes (``ERROR_INSUFFICIENT_BUFFER``), and the
    client is the next accept's. ``WSAEINVAL``: the one socket does not listen, or the other is
    bound, connected, in another `AcceptEx`, or no stream socket.

    Returned: True when it has succeeded, else False and the last error: ``ERROR_IO_PENDING`` while
    it is under way. The packet has the listening socket's key and the number of data bytes. It
    fails with ``ERROR_OPERATION_ABORTED`` when either socket is closed first. It is always
    overlapped: ``ERROR_INVALID_PARAMETER`` with ``NULL`` for ``lpOverlapped``.
    """
    _check_transfer(sListenSocket, 0, lpOverlapped)
    if not isinstance(sAcceptSocket, SOCKET):
        raise TypeError(
            "AcceptEx() accepts into a SOCKET made by WSASocket() or socket(), "
            f"not {type(sAcceptSocket).__name__}"
        )
    sizes = (dwReceiveDataLength, dwLocalAddressLength, dwRemoteAddressLength)
    view = _checked_output(lpOutputBuffer, sizes)
    if lpOverlapped is None:
        return succeed(ERROR_INVALID_PARAMETER)
    return succeed(system.accept_ex(sListenSocket, sAcceptSocket, view, sizes, lpOverlapped).code)


def GetAcceptExSockaddrs(
    lpOutputBuffer: Buffer,
    dwReceiveDataLength: int,
    dwLocalAddressLength: int,
    dwRemoteAddressLength: int,
) -> tuple[SOCKADDR, SOCKADDR]:
    """The local and the remote address that a completed `AcceptEx` has left in its buffer."""
    sizes = (dwReceiveDataLength, dwLocalAddressLength, dwRemoteAddressLength)
    view = _checked_output(lpOutputBuffer, sizes)
    return system.accept_addresses(view, sizes)


def ConnectEx(
    s: AnySocket,
    name: SOCKADDR | tuple[Any, ...],
    lpSendBuffer: Buffer | None,
    lpOverlapped: OVERLAPPED | None,
) -> bool:
    """Connect a bound socket, and send the first data.

    ``name``: a structure or Python's form of an address, numeric. ``lpSendBuffer``: what is sent
    once it is connected, or None; the packet's bytes are those of it.

    Returned: as `AcceptEx`. ``WSAEINVAL`` for a socket that is not bound. What the network says
    (``ERROR_CONNECTION_REFUSED``) comes with the packet. It is always overlapped:
    ``ERROR_INVALID_PARAMETER`` with ``NULL`` for ``lpOverlapped``.
    """
    if lpOverlapped is None:
        return succeed(ERROR_INVALID_PARAMETER)
    _check_transfer(s, 0, lpOverlapped)
    views = [] if lpSendBuffer is None else views_of(lpSendBuffer, False)
    return succeed(system.connect_ex(s, _structure(s, name), views, lpOverlapped).code)


def DisconnectEx(
    s: AnySocket, lpOverlapped: OVERLAPPED | None, dwFlags: int = 0, dwReserved: int = 0
) -> bool:
    """End a connection, behind what was sent before.

    The peer reads the end of the stream; sends fail with ``WSAESHUTDOWN`` from then on, receives
    go on. ``WSAENOTCONN`` for a socket without a connection.
    ``dwFlags``: with ``TF_REUSE_SOCKET`` the socket can be given to `AcceptEx` or `ConnectEx`
    again.
    Returned: as `AcceptEx`. With ``NULL`` for ``lpOverlapped`` it waits.
    """
    _check_transfer(s, dwFlags, lpOverlapped)
    if lpOverlapped is None:
        return succeed(system.disconnect_now(s, dwFlags))
    return succeed(system.disconnect_ex(s, lpOverlapped, dwFlags).code)


def MAKEWORD(bLow: int, bHigh: int) -> int:
    """A number of two bytes."""
    return (bLow & 0xFF) | (bHigh & 0xFF) << 8


def htons(hostshort: int) -> int:
    """A 16-bit number in network order."""
    check_count("hostshort", hostshort, 0, 0xFFFF)
    return _socket.htons(hostshort)


def ntohs(netshort: int) -> int:
    """A 16-bit number in the machine's order."""
    check_count("netshort", netshort, 0, 0xFFFF)
    return _socket.ntohs(netshort)


def htonl(hostlong: int) -> int:
    """A 32-bit number in network order."""
    check_dword("hostlong", hostlong)
    return _socket.htonl(hostlong)


def ntohl(netlong: int) -> int:
    """A 32-bit number in the machine's order."""
    check_dword("netlong", netlong)
    return _socket.ntohl(netlong)


def inet_ntoa(addr: IN_ADDR) -> str:
    """An IPv4 address in figures and dots."""
    check_structure("addr", addr, IN_ADDR)
    return _socket.inet_ntoa(bytes(addr._memory))


def inet_addr(cp: str) -> int:
    """The ``s_addr`` of an IPv4 address in figures and dots; ``INADDR_NONE`` for another text."""
    try:
        address = IN_ADDR(memoryview(bytearray(_socket.inet_aton(cp))))
    except OSError:
        return 0xFFFFFFFF
    return address.s_addr


def _check_transfer(s: AnySocket, flags: int, overlapped: OVERLAPPED | None) -> None:
    check_socket("s", s)
    check_number("dwFlags", flags)
    if overlapped is not None:
        check_overlapped(overlapped)


def _checked_output(buffer: Buffer, sizes: tuple[int, int, int]) -> memoryview:
    """The memory of an AcceptEx."""
    view = views_of(buffer, True)[0]
    for size in sizes:
        check_dword("a length", size)
    if sum(sizes) > view.nbytes:
        raise ValueError(
            f"lpOutputBuffer has {view.nbytes} bytes, the lengths together are {sum(sizes)}"
        )
    return view


def _address(s: AnySocket, name: SOCKADDR | tuple[Any, ...]) -> Any:
    """In Python's form."""
    if isinstance(name, SOCKADDR):
        return name.address
    if s.family in (_socket.AF_INET, _socket.AF_INET6) and not isinstance(name, tuple):
        raise TypeError(f"name must be a SOCKADDR or a tuple, not {type(name).__name__}")
    return name


def _structure(s: AnySocket, name: SOCKADDR | tuple[Any, ...]) -> SOCKADDR:
    if isinstance(name, SOCKADDR):
        return name
    structure = SOCKADDR()
    address = _address(s, name)
    try:
        with checked_by_python():
            structure.assign(s.family, address)
    except OSError as error:
        raise ValueError(f"{name!r} is no numeric address: {error}") from None
    return structure


def _do(call: Any) -> int:
    """Make a call of Python's socket module, and report as Winsock does."""
    try:
        value = call()
    except OSError as error:
        WSASetLastError(system.winsock_code(error))
        return SOCKET_ERROR
    return value if isinstance(value, int) else 0


def _counted(answer: tuple[int, int]) -> int:
    code, count = answer
    return _told(code) or count


def _done(answer: tuple[int, int]) -> tuple[int, int | None]:
    """What a call that has waited says."""
    code, count = answer
    return (SOCKET_ERROR, None) if _told(code) else (0, count)


def _told(code: int) -> int:
    if code:
        WSASetLastError(code)
        return SOCKET_ERROR
    return 0


def _transferred(started: Any) -> tuple[int, int | None]:
    if started.code:
        WSASetLastError(started.code)
        return SOCKET_ERROR, None
    return 0, started.transferred
