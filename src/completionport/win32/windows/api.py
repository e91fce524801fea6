"""Windows' functions and structures, as ctypes needs to know them.

Only what `completionport.windows.api` does not have.
"""

# The relative import stands behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_int, c_size_t, c_void_p
from ctypes.wintypes import BOOL, DWORD, LPVOID, WORD
from ctypes.wintypes import HANDLE as HANDLE_VALUE

assert sys.platform == "win32"

from ...windows.api import (
    WSAID_CONNECTEX,
    WSAID_DISCONNECTEX,
    ConnectEx_TYPE,
    DisconnectEx_TYPE,
    declare,
    kernel32,
    ws2_32,
)

mswsock = ctypes.WinDLL("mswsock", use_last_error=True)

SOCKET_VALUE = c_size_t
NO_SOCKET = c_size_t(-1).value
NO_HANDLE = c_void_p(-1).value
POSTED = 0
STATUS_UNSUCCESSFUL = 0xC0000001
NO_HANDLE_INHERIT = 0x80


class TransmitBuffersStructure(Structure):
    _fields_ = (
        ("Head", c_void_p),
        ("HeadLength", DWORD),
        ("Tail", c_void_p),
        ("TailLength", DWORD),
    )


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


get_status = declare(
    kernel32,
    *("GetQueuedCompletionStatus", BOOL, HANDLE_VALUE, c_void_p, c_void_p, c_void_p, DWORD),
)
set_notification_modes = declare(
    kernel32, "SetFileCompletionNotificationModes", BOOL, HANDLE_VALUE, ctypes.c_ubyte
)
get_result = declare(
    kernel32, "GetOverlappedResult", BOOL, HANDLE_VALUE, c_void_p, POINTER(DWORD), BOOL
)
get_result_alertably = declare(
    kernel32,
    *("GetOverlappedResultEx", BOOL, HANDLE_VALUE, c_void_p, c_void_p, DWORD, BOOL),
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
create_event = declare(
    kernel32, "CreateEventW", HANDLE_VALUE, c_void_p, BOOL, BOOL, ctypes.c_wchar_p
)
set_event = declare(kernel32, "SetEvent", BOOL, HANDLE_VALUE)
reset_event = declare(kernel32, "ResetEvent", BOOL, HANDLE_VALUE)
wait_for_alertably = declare(
    kernel32,
    *("WaitForMultipleObjectsEx", DWORD, DWORD, POINTER(HANDLE_VALUE), BOOL, DWORD, BOOL),
)
this_thread = declare(kernel32, "GetCurrentThread", HANDLE_VALUE)
get_system_info = declare(kernel32, "GetSystemInfo", None, POINTER(SystemInfoStructure))
wsa_startup = declare(ws2_32, "WSAStartup", c_int, WORD, c_void_p)
wsa_cleanup = declare(ws2_32, "WSACleanup", c_int)
wsa_socket = declare(
    ws2_32, "WSASocketW", SOCKET_VALUE, c_int, c_int, c_int, c_void_p, DWORD, DWORD
)
close_socket = declare(ws2_32, "closesocket", c_int, SOCKET_VALUE)
set_option = declare(ws2_32, "setsockopt", c_int, SOCKET_VALUE, c_int, c_int, c_void_p, c_int)
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
CONNECT_EX = (WSAID_CONNECTEX, ConnectEx_TYPE)
DISCONNECT_EX = (WSAID_DISCONNECTEX, DisconnectEx_TYPE)
cancel_io = declare(kernel32, "CancelIo", BOOL, HANDLE_VALUE)
flush_file_buffers = declare(kernel32, "FlushFileBuffers", BOOL, HANDLE_VALUE)
format_message = declare(
    kernel32,
    *("FormatMessageW", DWORD, DWORD, c_void_p, DWORD, DWORD, ctypes.c_wchar_p, DWORD, c_void_p),
)
ioctl_socket = declare(
    ws2_32, "ioctlsocket", c_int, SOCKET_VALUE, ctypes.c_long, POINTER(ctypes.c_ulong)
)
