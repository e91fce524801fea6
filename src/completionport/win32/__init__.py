"""Win32's completion port under its own names: the real one, or the same on the engines.

On Windows these functions call Windows, elsewhere they do the same on the library's engines.

Names and the order of arguments are Win32's. Output arguments become returned values, structures
are small classes, and what C passes by reference (an OVERLAPPED, an address that is filled in) is
passed as the object. Where an argument only says how long another one is, it is left out. A key
and what is posted may be any object. Arguments of a wrong type raise `TypeError` and `ValueError`;
whatever Win32 reports is returned, with the last error of the thread behind it.

Elsewhere than on Windows all operations run on one engine of the library (the environment variable
``COMPLETIONPORT_ENGINE`` chooses which) under a thread that passes their packets on: docs/design.md
says how. docs/from-win32.md says how to carry a server over.
"""

from __future__ import annotations

from . import constants
from .constants import *  # noqa: F403
from .files import CreateFile, ReadFile, WriteFile
from .last_error import GetLastError, SetLastError, WSAGetLastError, WSASetLastError
from .ports import (
    CancelIoEx,
    CloseHandle,
    CreateIoCompletionPort,
    GetOverlappedResult,
    GetQueuedCompletionStatus,
    GetQueuedCompletionStatusEx,
    PostQueuedCompletionStatus,
    SetFileCompletionNotificationModes,
    WSAGetOverlappedResult,
)
from .sockets import (
    MAKEWORD,
    SOCKET,
    AcceptEx,
    ConnectEx,
    DisconnectEx,
    GetAcceptExSockaddrs,
    WSAAccept,
    WSACleanup,
    WSARecv,
    WSASend,
    WSASocket,
    WSAStartup,
    accept,
    bind,
    closesocket,
    connect,
    getpeername,
    getsockname,
    htonl,
    htons,
    inet_addr,
    inet_ntoa,
    listen,
    ntohl,
    ntohs,
    recv,
    send,
    setsockopt,
    shutdown,
    socket,
)
from .structures import (
    CONTAINING_RECORD,
    HANDLE,
    IN_ADDR,
    INVALID_HANDLE_VALUE,
    OVERLAPPED,
    OVERLAPPED_ENTRY,
    SOCKADDR,
    SOCKADDR_IN,
    SOCKADDR_IN6,
    SOCKADDR_STORAGE,
    SYSTEM_INFO,
    WSABUF,
    WSADATA,
    WSAOVERLAPPED,
    HasOverlappedIoCompleted,
    sizeof,
)
from .threads import (
    CreateEvent,
    CreateThread,
    GetExitCodeThread,
    GetSystemInfo,
    ResetEvent,
    SetEvent,
    WaitForMultipleObjects,
    WaitForSingleObject,
)

__all__ = [
    "CONTAINING_RECORD",
    "HANDLE",
    "INVALID_HANDLE_VALUE",
    "IN_ADDR",
    "MAKEWORD",
    "OVERLAPPED",
    "OVERLAPPED_ENTRY",
    "SOCKADDR",
    "SOCKADDR_IN",
    "SOCKADDR_IN6",
    "SOCKADDR_STORAGE",
    "SOCKET",
    "SYSTEM_INFO",
    "WSABUF",
    "WSADATA",
    "WSAOVERLAPPED",
    "AcceptEx",
    "CancelIoEx",
    "CloseHandle",
    "ConnectEx",
    "CreateEvent",
    "CreateFile",
    "CreateIoCompletionPort",
    "CreateThread",
    "DisconnectEx",
    "GetAcceptExSockaddrs",
    "GetExitCodeThread",
    "GetLastError",
    "GetOverlappedResult",
    "GetQueuedCompletionStatus",
    "GetQueuedCompletionStatusEx",
    "GetSystemInfo",
    "HasOverlappedIoCompleted",
    "PostQueuedCompletionStatus",
    "ReadFile",
    "ResetEvent",
    "SetEvent",
    "SetFileCompletionNotificationModes",
    "SetLastError",
    "WSAAccept",
    "WSACleanup",
    "WSAGetLastError",
    "WSAGetOverlappedResult",
    "WSARecv",
    "WSASend",
    "WSASetLastError",
    "WSASocket",
    "WSAStartup",
    "WaitForMultipleObjects",
    "WaitForSingleObject",
    "WriteFile",
    "accept",
    "bind",
    "closesocket",
    "connect",
    "getpeername",
    "getsockname",
    "htonl",
    "htons",
    "inet_addr",
    "inet_ntoa",
    "listen",
    "ntohl",
    "ntohs",
    "recv",
    "send",
    "setsockopt",
    "shutdown",
    "sizeof",
    "socket",
]
__all__ += constants.__all__
