"""What a socket is asked and told beside its data: its options, its mode, extension functions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

from .arguments import check_number, check_socket
from .constants import (
    FIONBIO,
    FIONREAD,
    SIO_GET_EXTENSION_FUNCTION_POINTER,
    SIO_KEEPALIVE_VALS,
    SIO_UDP_CONNRESET,
    SIOCATMARK,
    SO_UPDATE_ACCEPT_CONTEXT,
    SO_UPDATE_CONNECT_CONTEXT,
    SOCKET_ERROR,
    WSAEFAULT,
    WSAEINVAL,
    WSAEOPNOTSUPP,
)
from .last_error import WSASetLastError
from .sockets import (
    AcceptEx,
    AnySocket,
    ConnectEx,
    DisconnectEx,
    GetAcceptExSockaddrs,
    TransmitFile,
)
from .structures import OVERLAPPED, tcp_keepalive
from .system import system

WSAID_ACCEPTEX: Final = uuid.UUID("b5367df1-cbac-11cf-95ca-00805f48a192")
WSAID_CONNECTEX: Final = uuid.UUID("25a207b9-ddf3-4660-8ee9-76e58c74063e")
WSAID_DISCONNECTEX: Final = uuid.UUID("7fda2e11-8630-436f-a031-f536a6eec157")
WSAID_GETACCEPTEXSOCKADDRS: Final = uuid.UUID("b5367df2-cbac-11cf-95ca-00805f48a192")
WSAID_TRANSMITFILE: Final = uuid.UUID("b5367df0-cbac-11cf-95ca-00805f48a192")

_EXTENSIONS: dict[uuid.UUID, Callable[..., Any]] = {
    WSAID_ACCEPTEX: AcceptEx,
    WSAID_CONNECTEX: ConnectEx,
    WSAID_DISCONNECTEX: DisconnectEx,
    WSAID_GETACCEPTEXSOCKADDRS: GetAcceptExSockaddrs,
    WSAID_TRANSMITFILE: TransmitFile,
}


def WSAIoctl(
    s: AnySocket,
    dwIoControlCode: int,
    lpvInBuffer: Any = None,
    lpOverlapped: None = None,
    lpCompletionRoutine: None = None,
) -> tuple[int, Any]:
    """Ask or tell a socket something: ``(0, answer)``, or ``(SOCKET_ERROR, None)``.

    - ``SIO_GET_EXTENSION_FUNCTION_POINTER`` with a ``WSAID_...``: the function. All that there are
      stand in this module by name too, so a program need not ask. ``WSAEINVAL`` for another GUID.
    - ``SIO_KEEPALIVE_VALS`` with a `tcp_keepalive`: how an idle connection is looked at. Linux
      counts in seconds, from 1 to 32767: a part of one is rounded up.
    - ``FIONBIO``, ``FIONREAD``, ``SIOCATMARK``: as `ioctlsocket`.
    - ``SIO_UDP_CONNRESET`` with False, on a UDP socket: a datagram that was refused does not make
      the next receive fail. Linux tells that to connected sockets only, so there it is so already.

    Any other code: ``WSAEOPNOTSUPP``. What is asked is answered at once: ``lpOverlapped`` and
    ``lpCompletionRoutine`` must be None, else it is a `ValueError`.
    """
    if isinstance(lpOverlapped, OVERLAPPED) or lpCompletionRoutine is not None:
        raise ValueError("WSAIoctl() answers at once: give NULL for lpOverlapped and the routine")
    if lpOverlapped is not None:
        raise TypeError(f"lpOverlapped must be NULL, not {type(lpOverlapped).__name__}")
    if not isinstance(dwIoControlCode, int):
        raise TypeError(f"a control code is a number, not {type(dwIoControlCode).__name__}")
    check_socket("s", s)
    code, answer = system.control(s, FIONREAD, None) if s.fileno() < 0 else (0, None)
    if code:
        pass  # a closed socket, whatever is asked
    elif dwIoControlCode == SIO_GET_EXTENSION_FUNCTION_POINTER:
        if not isinstance(lpvInBuffer, uuid.UUID):
            code = WSAEFAULT
        elif lpvInBuffer not in _EXTENSIONS:
            code = WSAEINVAL
        else:
            answer = _EXTENSIONS[lpvInBuffer]
    elif dwIoControlCode == SIO_KEEPALIVE_VALS:
        if isinstance(lpvInBuffer, tcp_keepalive):
            code, answer = system.control(s, dwIoControlCode, lpvInBuffer)
        else:
            code = WSAEFAULT
    elif dwIoControlCode in (FIONBIO, FIONREAD, SIOCATMARK, SIO_UDP_CONNRESET):
        code, answer = system.control(s, dwIoControlCode, lpvInBuffer)
    else:
        code = WSAEOPNOTSUPP
    if code:
        WSASetLastError(code)
        return SOCKET_ERROR, None
    return 0, answer


def ioctlsocket(s: AnySocket, cmd: int, argp: Any = 0) -> tuple[int, int | None]:
    """Set or ask for a socket's mode: ``(0, answer)``, or ``(SOCKET_ERROR, None)``.

    - ``FIONBIO``: with ``argp`` 1 no call waits on the socket any more, one that would fails with
      ``WSAEWOULDBLOCK``; with 0 calls wait again. It makes no difference to overlapped calls.
    - ``FIONREAD``: the answer is how many bytes are there to be received; of a datagram socket on
      Linux, those of the next one.
    - ``SIOCATMARK``: the answer is 1 when no urgent data waits to be received.

    Any other command: ``WSAEOPNOTSUPP``.
    """
    check_socket("s", s)
    if not isinstance(cmd, int):
        raise TypeError(f"a command is a number, not {type(cmd).__name__}")
    if cmd not in (FIONBIO, FIONREAD, SIOCATMARK):
        WSASetLastError(WSAEOPNOTSUPP)
        return SOCKET_ERROR, None
    code, answer = system.control(s, cmd, argp)
    if code:
        WSASetLastError(code)
        return SOCKET_ERROR, None
    return 0, answer


def getsockopt(s: AnySocket, level: int, optname: int, optlen: int = 0) -> tuple[int, Any]:
    """Ask for an option: ``(0, value)``, or ``(SOCKET_ERROR, None)``.

    ``value`` is a number, or with ``optlen`` (bytes, 1 to 1024) bytes as the system has them.

    - ``SO_ERROR``: Winsock's code of what has failed since it was asked last, 0 for nothing.
    - ``SO_CONNECT_TIME``: whole seconds for which it has been connected, 0xFFFFFFFF when it is not.
    - ``SO_RCVTIMEO``, ``SO_SNDTIMEO``: milliseconds. ``SO_LINGER``: ``(onoff, seconds)``.
    - ``SO_UPDATE_ACCEPT_CONTEXT``, ``SO_UPDATE_CONNECT_CONTEXT``: can be set only
      (``WSAENOPROTOOPT``).
    """
    check_socket("s", s)
    for name, value in (("level", level), ("optname", optname), ("optlen", optlen)):
        check_number(name, value)
    if not 0 <= optlen <= 1024:
        raise ValueError(f"optlen must be from 0 to 1024 bytes, not {optlen}")
    if optname in (SO_UPDATE_ACCEPT_CONTEXT, SO_UPDATE_CONNECT_CONTEXT):
        optname = -1
    code, value = system.get_option(s, level, optname, optlen)
    if code:
        WSASetLastError(code)
        return SOCKET_ERROR, None
    return 0, value
