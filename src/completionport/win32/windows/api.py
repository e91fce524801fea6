"""Windows' functions and structures, as ctypes needs to know them."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_int, c_size_t, c_void_p
from ctypes.wintypes import BOOL, BYTE, DWORD, LPVOID, ULONG, WORD
from ctypes.wintypes import HANDLE as HANDLE_VALUE
from typing import Any

assert sys.platform == "win32"

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
ws2_32 = ctypes.WinDLL("ws2_32", use_last_error=True)
mswsock = ctypes.WinDLL("mswsock", use_last_error=True)
last_error = ctypes.get_last_error

SOCKET_VALUE = c_size_t
NO_SOCKET = c_size_t(-1).value
NO_HANDLE = c_void_p(-1).value
POSTED = 0
STATUS_UNSUCCESSFUL = 0xC0000001
NO_HANDLE_INHERIT = 0x80
SAME_ACCESS = 2
SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC8000006


class OverlappedStructure(Structure):
    _fields_ = (
        ("Internal", c_size_t),
        ("InternalHigh", c_size_t),
        ("Offset", DWORD),
        ("OffsetHigh", DWORD),
        ("hEvent", HANDLE_VALUE),
    )


class EntryStructure(Structure):
    _fields_ = (
        ("lpCompletionKey", c_size_t),
        ("lpOverlapped", c_void_p),
        ("Internal", c_size_t),
        ("dwNumberOfBytesTransferred", DWORD),
    )


class BufferStructure(Structure):
    _fields_ = (("len", ULONG), ("buf", c_void_p))


class TransmitBuffersStructure(Structure):
    _fields_ = (
        ("Head", c_void_p),
        ("HeadLength", DWORD),
        ("Tail", c_void_p),
        ("TailLength", DWORD),
    )


class Guid(Structure):
    _fields_ = (("one", DWORD), ("two", WORD), ("three", WORD), ("four", BYTE * 8))


class SystemInfoStructure(Structure):
    _fields_ = (
        ("architecture", DWORD),
        ("dwPageSize", DWORD),
        ("lowest", LPVOID),
        ("highest", LPVOID),
        ("dwActiveProcessorMask", c_size_t),
        ("dwNumberOfProcessors", DWORD),
        ("dwProcessorType", DWORD),
        ("dwAllocationGranularity", DWORD),
        ("wProcessorLevel", WORD),
        ("wProcessorRevision", WORD),
    )


def declare(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function of a library with its types."""
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


create_port = declare(
    kernel32, "CreateIoCompletionPort", HANDLE_VALUE, HANDLE_VALUE, HANDLE_VALUE, c_size_t, DWORD
)
get_status = declare(
    kernel32,
    "GetQueuedCompletionStatus",
    BOOL,
    HANDLE_VALUE,
    POINTER(DWORD),
    POINTER(c_size_t),
    POINTER(c_void_p),
    DWORD,
)
get_status_ex = declare(
    kernel32,
    "GetQueuedCompletionStatusEx",
    BOOL,
    HANDLE_VALUE,
    POINTER(EntryStructure),
    ULONG,
    POINTER(ULONG),
    DWORD,
    BOOL,
)
post_status = declare(
    kernel32, "PostQueuedCompletionStatus", BOOL, HANDLE_VALUE, DWORD, c_size_t, c_void_p
)
close_handle = declare(kernel32, "CloseHandle", BOOL, HANDLE_VALUE)
set_notification_modes = declare(
    kernel32, "SetFileCompletionNotificationModes", BOOL, HANDLE_VALUE, ctypes.c_ubyte
)
cancel_io = declare(kernel32, "CancelIoEx", BOOL, HANDLE_VALUE, c_void_p)
get_result = declare(
    kernel32, "GetOverlappedResult", BOOL, HANDLE_VALUE, c_void_p, POINTER(DWORD), BOOL
)
wsa_get_result = declare(
    ws2_32,
    "WSAGetOverlappedResult",
    BOOL,
    SOCKET_VALUE,
    c_void_p,
    POINTER(DWORD),
    BOOL,
    POINTER(DWORD),
)
create_file = declare(
    kernel32,
    "CreateFileW",
    HANDLE_VALUE,
    ctypes.c_wchar_p,
    DWORD,
    DWORD,
    c_void_p,
    DWORD,
    DWORD,
    HANDLE_VALUE,
)
read_file = declare(
    kernel32, "ReadFile", BOOL, HANDLE_VALUE, c_void_p, DWORD, POINTER(DWORD), c_void_p
)
write_file = declare(
    kernel32, "WriteFile", BOOL, HANDLE_VALUE, c_void_p, DWORD, POINTER(DWORD), c_void_p
)
create_event = declare(
    kernel32, "CreateEventW", HANDLE_VALUE, c_void_p, BOOL, BOOL, ctypes.c_wchar_p
)
set_event = declare(kernel32, "SetEvent", BOOL, HANDLE_VALUE)
reset_event = declare(kernel32, "ResetEvent", BOOL, HANDLE_VALUE)
wait_for = declare(
    kernel32, "WaitForMultipleObjects", DWORD, DWORD, POINTER(HANDLE_VALUE), BOOL, DWORD
)
this_process = declare(kernel32, "GetCurrentProcess", HANDLE_VALUE)
this_thread = declare(kernel32, "GetCurrentThread", HANDLE_VALUE)
duplicate_handle = declare(
    kernel32,
    "DuplicateHandle",
    BOOL,
    HANDLE_VALUE,
    HANDLE_VALUE,
    HANDLE_VALUE,
    POINTER(HANDLE_VALUE),
    DWORD,
    BOOL,
    DWORD,
)
get_system_info = declare(kernel32, "GetSystemInfo", None, POINTER(SystemInfoStructure))
wsa_startup = declare(ws2_32, "WSAStartup", c_int, WORD, c_void_p)
wsa_cleanup = declare(ws2_32, "WSACleanup", c_int)
wsa_socket = declare(
    ws2_32, "WSASocketW", SOCKET_VALUE, c_int, c_int, c_int, c_void_p, DWORD, DWORD
)
close_socket = declare(ws2_32, "closesocket", c_int, SOCKET_VALUE)
set_option = declare(ws2_32, "setsockopt", c_int, SOCKET_VALUE, c_int, c_int, c_void_p, c_int)
wsa_recv = declare(
    ws2_32,
    "WSARecv",
    c_int,
    SOCKET_VALUE,
    POINTER(BufferStructure),
    DWORD,
    POINTER(DWORD),
    POINTER(DWORD),
    c_void_p,
    c_void_p,
)
wsa_send = declare(
    ws2_32,
    "WSASend",
    c_int,
    SOCKET_VALUE,
    POINTER(BufferStructure),
    DWORD,
    POINTER(DWORD),
    DWORD,
    c_void_p,
    c_void_p,
)
wsa_recv_from = declare(
    ws2_32,
    "WSARecvFrom",
    c_int,
    SOCKET_VALUE,
    POINTER(BufferStructure),
    DWORD,
    POINTER(DWORD),
    POINTER(DWORD),
    c_void_p,
    POINTER(c_int),
    c_void_p,
    c_void_p,
)
wsa_send_to = declare(
    ws2_32,
    "WSASendTo",
    c_int,
    SOCKET_VALUE,
    POINTER(BufferStructure),
    DWORD,
    POINTER(DWORD),
    DWORD,
    c_void_p,
    c_int,
    c_void_p,
    c_void_p,
)
transmit_file = declare(
    mswsock,
    "TransmitFile",
    BOOL,
    SOCKET_VALUE,
    HANDLE_VALUE,
    DWORD,
    DWORD,
    c_void_p,
    c_void_p,
    DWORD,
)
wsa_ioctl = declare(
    ws2_32,
    "WSAIoctl",
    c_int,
    SOCKET_VALUE,
    DWORD,
    c_void_p,
    DWORD,
    c_void_p,
    DWORD,
    POINTER(DWORD),
    c_void_p,
    c_void_p,
)
accept_ex = declare(
    mswsock,
    "AcceptEx",
    BOOL,
    SOCKET_VALUE,
    SOCKET_VALUE,
    c_void_p,
    DWORD,
    DWORD,
    DWORD,
    POINTER(DWORD),
    c_void_p,
)
get_accept_addresses = declare(
    mswsock,
    "GetAcceptExSockaddrs",
    None,
    c_void_p,
    DWORD,
    DWORD,
    DWORD,
    POINTER(c_void_p),
    POINTER(c_int),
    POINTER(c_void_p),
    POINTER(c_int),
)
CONNECT_EX = (
    Guid(0x25A207B9, 0xDDF3, 0x4660, (BYTE * 8)(0x8E, 0xE9, 0x76, 0xE5, 0x8C, 0x74, 0x06, 0x3E)),
    ctypes.WINFUNCTYPE(
        BOOL,
        SOCKET_VALUE,
        c_void_p,
        c_int,
        c_void_p,
        DWORD,
        POINTER(DWORD),
        c_void_p,
        use_last_error=True,
    ),
)
DISCONNECT_EX = (
    Guid(0x7FDA2E11, 0x8630, 0x436F, (BYTE * 8)(0xA0, 0x31, 0xF5, 0x36, 0xA6, 0xEE, 0xC1, 0x57)),
    ctypes.WINFUNCTYPE(BOOL, SOCKET_VALUE, c_void_p, DWORD, DWORD, use_last_error=True),
)
