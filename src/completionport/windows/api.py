"""What is called of Windows: functions with their types, structures, and errors as exceptions.

Sources: the reference of the Windows API for each name; the numbers of ntdll's calls are those of
the Windows driver kit's ``ntifs.h`` and ``wdm.h``.
"""

from __future__ import annotations

import _overlapped  # type: ignore[import-not-found]  # a part of CPython, without stubs
import ctypes
import errno
import socket
import sys
import threading
from typing import Any

assert sys.platform == "win32"

from ctypes import wintypes  # noqa: E402

from ..interface.error_codes import codes_of  # noqa: E402

HANDLE = ctypes.c_void_p
DWORD = wintypes.DWORD
INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value
INFINITE = 0xFFFFFFFF

ERROR_ACCESS_DENIED = 5
ERROR_INVALID_HANDLE = 6
ERROR_HANDLE_EOF = 38
ERROR_NETNAME_DELETED = 64
ERROR_INVALID_PARAMETER = 87
ERROR_BROKEN_PIPE = 109
WAIT_IO_COMPLETION = 192
ERROR_PIPE_NOT_CONNECTED = 233
ERROR_MORE_DATA = 234
WAIT_TIMEOUT = 258
ERROR_DELETE_PENDING = 303
ERROR_PIPE_CONNECTED = 535
ERROR_ABANDONED_WAIT_0 = 735
ERROR_NOTIFY_CLEANUP = 745
ERROR_OPERATION_ABORTED = 995
ERROR_IO_PENDING = 997
ERROR_NOTIFY_ENUM_DIR = 1022
ERROR_NOT_FOUND = 1168
ERROR_REQUEST_ABORTED = 1235
WSABASEERR = 10000
WSAENOTSOCK = 10038
WSAEMSGSIZE = 10040
WSAECONNABORTED = 10053
WSAECONNRESET = 10054
WSAENOTCONN = 10057
WSAESHUTDOWN = 10058

STATUS_SUCCESS = 0
STATUS_PENDING = 0x103
STATUS_ALERTED = 0x101
"""On Wine: the thread that had started it ended in the moment in which it became possible."""
STATUS_CONNECTION_RESET = 0xC000020D
STATUS_HANDLES_CLOSED = 0x8000000A

COPY_FILE_FAIL_IF_EXISTS = 1
PROGRESS_CONTINUE = 0
PROGRESS_CANCEL = 1
FILE_TYPE_DISK = 1
FILE_TYPE_PIPE = 3
FILE_FLAG_OVERLAPPED = 0x40000000
FILE_FLAG_BACKUP_SEMANTICS = 0x02000000
OPEN_EXISTING = 3
FILE_STANDARD_INFO_CLASS = 1
FILE_END_OF_FILE_INFO_CLASS = 6
PIPE_SERVER_END = 1
GENERIC_READ = 0x80000000
GENERIC_WRITE = 0x40000000
FILE_READ_DATA = 1
FILE_LIST_DIRECTORY = 1
FILE_WRITE_DATA = 2
FILE_APPEND_DATA = 4
FILE_SHARE_ALL = 7
FILE_CURRENT = 1
FILE_BEGIN = 0
DUPLICATE_SAME_ACCESS = 2
FILE_SKIP_COMPLETION_PORT_ON_SUCCESS = 1
FILE_SYNCHRONOUS_IO = 0x30
"""FILE_SYNCHRONOUS_IO_ALERT and FILE_SYNCHRONOUS_IO_NONALERT: the file is not overlapped."""
FILE_MODE_INFORMATION = 16
FILE_COMPLETION_NOTIFICATION_INFORMATION = 41
FILE_REPLACE_COMPLETION_INFORMATION = 61
SO_UPDATE_ACCEPT_CONTEXT = 0x700B
SO_UPDATE_CONNECT_CONTEXT = 0x7010
SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC8000006


class OVERLAPPED(ctypes.Structure):
    """One operation as the kernel sees it."""

    _fields_ = [
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", DWORD),
        ("OffsetHigh", DWORD),
        ("hEvent", HANDLE),
    ]


class OVERLAPPED_ENTRY(ctypes.Structure):
    """One packet that was taken from a port."""

    _fields_ = [
        ("lpCompletionKey", ctypes.c_size_t),
        ("lpOverlapped", ctypes.c_size_t),
        ("Internal", ctypes.c_size_t),
        ("dwNumberOfBytesTransferred", DWORD),
    ]


class WSABUF(ctypes.Structure):
    """One of the buffers of a receive or a send."""

    _fields_ = [("len", wintypes.ULONG), ("buf", ctypes.c_void_p)]


class GUID(ctypes.Structure):
    """The name of an extension function of Winsock."""

    _fields_ = [
        ("Data1", DWORD),
        ("Data2", wintypes.WORD),
        ("Data3", wintypes.WORD),
        ("Data4", ctypes.c_ubyte * 8),
    ]


class IO_STATUS_BLOCK(ctypes.Structure):
    """What a call of ntdll did."""

    _fields_ = [("Status", ctypes.c_size_t), ("Information", ctypes.c_size_t)]


class PUBLIC_OBJECT_BASIC_INFORMATION(ctypes.Structure):
    """What a handle may be used for."""

    _fields_ = [
        ("Attributes", DWORD),
        ("GrantedAccess", DWORD),
        ("HandleCount", DWORD),
        ("PointerCount", DWORD),
        ("Reserved", DWORD * 10),
    ]


class BY_HANDLE_FILE_INFORMATION(ctypes.Structure):
    _fields_ = [
        ("dwFileAttributes", DWORD),
        ("ftCreationTime", wintypes.FILETIME),
        ("ftLastAccessTime", wintypes.FILETIME),
        ("ftLastWriteTime", wintypes.FILETIME),
        ("dwVolumeSerialNumber", DWORD),
        ("nFileSizeHigh", DWORD),
        ("nFileSizeLow", DWORD),
        ("nNumberOfLinks", DWORD),
        ("nFileIndexHigh", DWORD),
        ("nFileIndexLow", DWORD),
    ]


class FILE_STANDARD_INFO(ctypes.Structure):
    """How long a file is, and so on."""

    _fields_ = [
        ("AllocationSize", ctypes.c_longlong),
        ("EndOfFile", ctypes.c_longlong),
        ("NumberOfLinks", DWORD),
        ("DeletePending", ctypes.c_ubyte),
        ("Directory", ctypes.c_ubyte),
    ]


class FILE_COMPLETION_INFORMATION(ctypes.Structure):
    """The port of a file."""

    _fields_ = [("Port", HANDLE), ("Key", ctypes.c_void_p)]


WSAID_ACCEPTEX = GUID(
    *(0xB5367DF1, 0xCBAC, 0x11CF), (0x95, 0xCA, 0x00, 0x80, 0x5F, 0x48, 0xA1, 0x92)
)
WSAID_CONNECTEX = GUID(
    *(0x25A207B9, 0xDDF3, 0x4660), (0x8E, 0xE9, 0x76, 0xE5, 0x8C, 0x74, 0x06, 0x3E)
)
WSAID_TRANSMITFILE = GUID(
    *(0xB5367DF0, 0xCBAC, 0x11CF), (0x95, 0xCA, 0x00, 0x80, 0x5F, 0x48, 0xA1, 0x92)
)
WSAID_DISCONNECTEX = GUID(
    *(0x7FDA2E11, 0x8630, 0x436F), (0xA0, 0x31, 0xF5, 0x36, 0xA6, 0xEE, 0xC1, 0x57)
)

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
ws2_32 = ctypes.WinDLL("ws2_32", use_last_error=True)
_ntdll = ctypes.WinDLL("ntdll")


def declare(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function of a library with its types."""
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


_BOOL = wintypes.BOOL
_POINTER = ctypes.c_void_p  # addresses are passed as numbers: what they point to is kept elsewhere

CreateIoCompletionPort = declare(
    kernel32, "CreateIoCompletionPort", HANDLE, HANDLE, HANDLE, ctypes.c_size_t, DWORD
)
GetQueuedCompletionStatusEx = declare(
    kernel32, "GetQueuedCompletionStatusEx", _BOOL, HANDLE, _POINTER, DWORD, _POINTER, DWORD, _BOOL
)
PostQueuedCompletionStatus = declare(
    kernel32, "PostQueuedCompletionStatus", _BOOL, HANDLE, DWORD, ctypes.c_size_t, _POINTER
)
ReadFileEx = declare(kernel32, "ReadFileEx", _BOOL, HANDLE, _POINTER, DWORD, _POINTER, _POINTER)
SleepEx = declare(kernel32, "SleepEx", DWORD, DWORD, _BOOL)
GetCurrentThreadId = declare(kernel32, "GetCurrentThreadId", DWORD)
OpenThread = declare(kernel32, "OpenThread", HANDLE, DWORD, _BOOL, DWORD)
QueueUserAPC = declare(kernel32, "QueueUserAPC", DWORD, _POINTER, HANDLE, ctypes.c_size_t)
CloseHandle = declare(kernel32, "CloseHandle", _BOOL, HANDLE)
CancelIoEx = declare(kernel32, "CancelIoEx", _BOOL, HANDLE, _POINTER)
ReadFile = declare(kernel32, "ReadFile", _BOOL, HANDLE, _POINTER, DWORD, _POINTER, _POINTER)
WriteFile = declare(kernel32, "WriteFile", _BOOL, HANDLE, _POINTER, DWORD, _POINTER, _POINTER)
ReOpenFile = declare(kernel32, "ReOpenFile", HANDLE, HANDLE, DWORD, DWORD, DWORD)
CreateFile = declare(
    kernel32,
    *("CreateFileW", HANDLE, wintypes.LPCWSTR, DWORD, DWORD, _POINTER, DWORD, DWORD, HANDLE),
)
PROGRESS_ROUTINE = ctypes.WINFUNCTYPE(
    DWORD,
    *[ctypes.c_longlong] * 4,  # sizes and bytes so far, of the file and of its stream
    *(DWORD, DWORD, HANDLE, HANDLE, _POINTER),
)
CopyFileEx = declare(
    kernel32,
    *("CopyFileExW", _BOOL, wintypes.LPCWSTR, wintypes.LPCWSTR, PROGRESS_ROUTINE),
    *(_POINTER, _POINTER, DWORD),
)
ReadDirectoryChanges = declare(
    kernel32,
    *("ReadDirectoryChangesW", _BOOL, HANDLE, _POINTER, DWORD, _BOOL, DWORD),
    *(_POINTER, _POINTER, _POINTER),
)
GetFileInformationByHandle = declare(
    kernel32, "GetFileInformationByHandle", _BOOL, HANDLE, _POINTER
)
GetFileInformationByHandleEx = declare(
    kernel32, "GetFileInformationByHandleEx", _BOOL, HANDLE, ctypes.c_int, _POINTER, DWORD
)
SetFileInformationByHandle = declare(
    kernel32, "SetFileInformationByHandle", _BOOL, HANDLE, ctypes.c_int, _POINTER, DWORD
)
ConnectNamedPipe = declare(kernel32, "ConnectNamedPipe", _BOOL, HANDLE, _POINTER)
DisconnectNamedPipe = declare(kernel32, "DisconnectNamedPipe", _BOOL, HANDLE)
GetNamedPipeInfo = declare(
    kernel32, "GetNamedPipeInfo", _BOOL, HANDLE, _POINTER, _POINTER, _POINTER, _POINTER
)
WaitForSingleObject = declare(kernel32, "WaitForSingleObject", DWORD, HANDLE, DWORD)
GetFileType = declare(kernel32, "GetFileType", DWORD, HANDLE)
GetHandleInformation = declare(kernel32, "GetHandleInformation", _BOOL, HANDLE, _POINTER)
SetFilePointerEx = declare(
    kernel32, "SetFilePointerEx", _BOOL, HANDLE, ctypes.c_longlong, _POINTER, DWORD
)
GetFileSizeEx = declare(kernel32, "GetFileSizeEx", _BOOL, HANDLE, _POINTER)
GetCurrentProcess = declare(kernel32, "GetCurrentProcess", HANDLE)
DuplicateHandle = declare(
    kernel32,
    *("DuplicateHandle", _BOOL, HANDLE, HANDLE, HANDLE, _POINTER),
    *(DWORD, _BOOL, DWORD),
)
WSARecv = declare(
    ws2_32,
    *("WSARecv", ctypes.c_int, HANDLE, _POINTER, DWORD, _POINTER),
    *(_POINTER, _POINTER, _POINTER),
)
WSASend = declare(
    ws2_32,
    *("WSASend", ctypes.c_int, HANDLE, _POINTER, DWORD, _POINTER),
    *(DWORD, _POINTER, _POINTER),
)
WSARecvFrom = declare(
    ws2_32,
    *("WSARecvFrom", ctypes.c_int, HANDLE, _POINTER, DWORD, _POINTER),
    *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
)
WSASendTo = declare(
    ws2_32,
    *("WSASendTo", ctypes.c_int, HANDLE, _POINTER, DWORD, _POINTER),
    *(DWORD, _POINTER, ctypes.c_int, _POINTER, _POINTER),
)
TransmitFile_TYPE = ctypes.WINFUNCTYPE(
    *(_BOOL, HANDLE, HANDLE, DWORD, DWORD, _POINTER, _POINTER, DWORD), use_last_error=True
)
getsockopt = declare(
    ws2_32,
    *("getsockopt", ctypes.c_int, HANDLE, ctypes.c_int, ctypes.c_int, _POINTER, _POINTER),
)
WSAIoctl = declare(
    ws2_32,
    *("WSAIoctl", ctypes.c_int, HANDLE, DWORD, _POINTER, DWORD, _POINTER),
    *(DWORD, _POINTER, _POINTER, _POINTER),
)
_NTSTATUS = ctypes.c_uint32
NtQueryIoCompletion = declare(
    _ntdll, "NtQueryIoCompletion", _NTSTATUS, HANDLE, DWORD, _POINTER, DWORD, _POINTER
)
NtQueryInformationFile = declare(
    _ntdll, "NtQueryInformationFile", _NTSTATUS, HANDLE, _POINTER, _POINTER, DWORD, DWORD
)
NtSetInformationFile = declare(
    _ntdll, "NtSetInformationFile", _NTSTATUS, HANDLE, _POINTER, _POINTER, DWORD, DWORD
)
NtQueryObject = declare(
    _ntdll, "NtQueryObject", _NTSTATUS, HANDLE, DWORD, _POINTER, DWORD, _POINTER
)
RtlNtStatusToDosError = declare(_ntdll, "RtlNtStatusToDosError", DWORD, _NTSTATUS)

last_error = ctypes.get_last_error
"""The error of the last call of this thread; Winsock keeps its own in the same place."""

AcceptEx_TYPE = ctypes.WINFUNCTYPE(
    *(_BOOL, HANDLE, HANDLE, _POINTER, DWORD, DWORD, DWORD, _POINTER, _POINTER), use_last_error=True
)
ConnectEx_TYPE = ctypes.WINFUNCTYPE(
    *(_BOOL, HANDLE, _POINTER, ctypes.c_int, _POINTER, DWORD, _POINTER, _POINTER),
    use_last_error=True,
)
DisconnectEx_TYPE = ctypes.WINFUNCTYPE(
    *(_BOOL, HANDLE, _POINTER, DWORD, DWORD), use_last_error=True
)


def extension(number: int, name: GUID, kind: Any) -> Any:
    """An extension function of Winsock, as the provider of the socket ``number`` has it."""
    function = ctypes.c_void_p()
    count = DWORD()
    failed = WSAIoctl(
        number,
        SIO_GET_EXTENSION_FUNCTION_POINTER,
        ctypes.addressof(name),
        ctypes.sizeof(name),
        ctypes.addressof(function),
        ctypes.sizeof(function),
        ctypes.addressof(count),
        None,
        None,
    )
    if failed:
        raise error(last_error())
    return kind(function.value)


# Windows' own codes for what Winsock has a code of: WSAGetOverlappedResult turns them the same way.
WINSOCK_CODES = {
    ERROR_ACCESS_DENIED: 10013,
    ERROR_INVALID_HANDLE: 10038,
    8: 10055,  # ERROR_NOT_ENOUGH_MEMORY
    59: WSAECONNRESET,  # ERROR_UNEXP_NET_ERR
    ERROR_NETNAME_DELETED: WSAECONNRESET,
    ERROR_INVALID_PARAMETER: 10022,
    ERROR_BROKEN_PIPE: WSAECONNRESET,
    121: 10060,  # ERROR_SEM_TIMEOUT
    ERROR_MORE_DATA: WSAEMSGSIZE,
    1214: 10049,  # ERROR_INVALID_NETNAME
    1225: 10061,  # ERROR_CONNECTION_REFUSED
    1226: 10101,  # ERROR_GRACEFUL_DISCONNECT
    1227: 10048,  # ERROR_ADDRESS_ALREADY_ASSOCIATED
    1229: WSAENOTCONN,  # ERROR_CONNECTION_INVALID
    1231: 10051,  # ERROR_NETWORK_UNREACHABLE
    1232: 10065,  # ERROR_HOST_UNREACHABLE
    1234: WSAECONNRESET,  # ERROR_PORT_UNREACHABLE
    1235: 10053,  # ERROR_REQUEST_ABORTED
    1236: 10053,  # ERROR_CONNECTION_ABORTED
    1450: 10055,  # ERROR_NO_SYSTEM_RESOURCES
    2250: WSAENOTCONN,  # ERROR_NOT_CONNECTED
}


TEXTS = {
    ERROR_NETNAME_DELETED: "the network name is no longer there: the peer has reset the connection",
    WSAEMSGSIZE: "the message is too long",
    10022: "Invalid argument, as of an accept on a socket that does not listen",
    10038: "not a socket",
    10045: "the operation or its flags are not known to this kind of socket",
    10048: "the address is in use",
    10049: "the address can't be had",
    10051: "the network can't be reached",
    10053: "the connection was aborted on this side",
    WSAECONNRESET: "the connection was reset by the peer",
    10055: "there is no room for more buffers",
    10056: "the socket is connected already",
    WSAENOTCONN: "the socket is not connected",
    WSAESHUTDOWN: "the socket was shut down",
    10060: "the connection timed out",
    10061: "the connection was refused",
    10065: "the host can't be reached",
}
"""Where the system has no text for a code, as Wine for those of Winsock."""


def error(code: int, text: str = "") -> OSError:
    """The exception for a code of Windows or Winsock; its class and ``errno`` go by the code.

    Whichever of the two it is given, it carries both.
    """
    if not text:
        text = ctypes.FormatError(code).strip()
        if not text or text.startswith("<no desc"):
            text = TEXTS.get(code, f"error {code}")
    failure = OSError(0, text, None, code)
    if code == ERROR_PIPE_NOT_CONNECTED:
        failure = BrokenPipeError(errno.EPIPE, text)
        failure.winerror = code
    if code == WSAESHUTDOWN:
        failure.errno = errno.EPIPE  # the number of its class, `BrokenPipeError`
    codes = codes_of(failure.errno)
    if code < WSABASEERR:
        winsock: int | None = WINSOCK_CODES.get(code, codes.winsock)
    else:
        winsock, failure.winerror = code, codes.windows
    failure.winsock_error = winsock  # type: ignore[attr-defined]
    return failure


_THREAD_SET_CONTEXT = 0x10
# What is called does not matter, but no Python may run in there: this one has one argument too, and
# with 0 returns.
_NO_CALL = ctypes.cast(kernel32.Sleep, ctypes.c_void_p).value


class Alarm:
    """Ends an alertable wait of the thread that has made it: the one under way, or the next."""

    def __init__(self) -> None:
        self._thread = OpenThread(_THREAD_SET_CONTEXT, False, GetCurrentThreadId())
        if not self._thread:
            raise error(last_error())

    def ring(self) -> None:
        """The thread has not ended."""
        QueueUserAPC(_NO_CALL, self._thread, 0)

    def __del__(self, close: Any = CloseHandle) -> None:
        if getattr(self, "_thread", None):
            close(self._thread)


class _Alarms(threading.local):
    def __init__(self) -> None:
        self.mine = Alarm()


_alarms = _Alarms()


def own_alarm() -> Alarm:
    """The calling thread's."""
    return _alarms.mine


def code_of(status: int, is_socket: bool) -> int:
    """The code for the status of a completion, 0 for success."""
    if status in (STATUS_SUCCESS, STATUS_PENDING):
        return 0
    if status in (STATUS_HANDLES_CLOSED, STATUS_ALERTED):
        return ERROR_OPERATION_ABORTED
    code = int(RtlNtStatusToDosError(status))
    return WINSOCK_CODES.get(code, code) if is_socket else code


def duplicate(handle: int) -> int:
    """Another handle for the same object, which child processes do not inherit."""
    process = GetCurrentProcess()
    another = HANDLE()
    if not DuplicateHandle(
        process, handle, process, ctypes.addressof(another), 0, False, DUPLICATE_SAME_ACCESS
    ):
        raise error(last_error())
    assert another.value is not None
    return another.value


def file_information(handle: int, kind: int) -> int | None:
    """A number that is known of a file; None where this Windows does not tell."""
    block, number = IO_STATUS_BLOCK(), DWORD()
    status = NtQueryInformationFile(
        handle, ctypes.addressof(block), ctypes.addressof(number), ctypes.sizeof(number), kind
    )
    return None if status else number.value


def granted_access(handle: int) -> int | None:
    """The rights of a handle; None where this Windows does not tell."""
    answer = PUBLIC_OBJECT_BASIC_INFORMATION()
    status = NtQueryObject(handle, 0, ctypes.addressof(answer), ctypes.sizeof(answer), None)
    return None if status else int(answer.GrantedAccess)


def same_object(one: int, other: int) -> bool:
    """Whether two handles are of one object; True where this Windows does not tell."""
    try:
        compare = declare(
            ctypes.WinDLL("kernelbase"), "CompareObjectHandles", _BOOL, HANDLE, HANDLE
        )
    except (AttributeError, OSError):
        return True
    return bool(compare(one, other))


def file_identity(handle: int) -> tuple[int, int, int] | None:
    """The number of a file and of its volume; None for what has none, as a pipe."""
    info = BY_HANDLE_FILE_INFORMATION()
    if not GetFileInformationByHandle(handle, ctypes.addressof(info)):
        return None
    return info.dwVolumeSerialNumber, info.nFileIndexHigh, info.nFileIndexLow


def file_size(handle: int) -> int:
    """The size of a file in bytes."""
    size = ctypes.c_longlong()
    if not GetFileSizeEx(handle, ctypes.addressof(size)):
        raise error(last_error())
    return size.value


def is_directory(handle: int) -> bool:
    """Whether it is one; a disk, which does not tell, is none."""
    info = FILE_STANDARD_INFO()
    known = GetFileInformationByHandleEx(
        handle, FILE_STANDARD_INFO_CLASS, ctypes.addressof(info), ctypes.sizeof(info)
    )
    return bool(known and info.Directory)


def set_length(handle: int, length: int) -> None:
    """Set where a file ends; its own position stays."""
    value = ctypes.c_longlong(length)
    if not SetFileInformationByHandle(
        handle, FILE_END_OF_FILE_INFO_CLASS, ctypes.addressof(value), ctypes.sizeof(value)
    ):
        raise error(last_error())


def is_pipe_server(handle: int) -> bool:
    """Whether it is that end of a named pipe that CreateNamedPipe has made."""
    flags = DWORD()
    known = GetNamedPipeInfo(handle, ctypes.addressof(flags), None, None, None)
    return bool(known and flags.value & PIPE_SERVER_END)


def register_wait(handle: int, port: int, overlapped: int) -> int:
    """Have the system's thread pool post to a port once the object is signaled.

    No Python runs in that thread: CPython's C code makes the packet, with the key 0.
    """
    return int(_overlapped.RegisterWaitWithQueue(handle, port, overlapped, INFINITE))


def unregister_wait(wait: int, and_see_it_out: bool) -> None:
    """End such a wait. To see it out means that it posts nothing any more from then on.

    Of one that has not posted, CPython leaves 16 bytes behind.
    """
    event = _overlapped.INVALID_HANDLE_VALUE if and_see_it_out else 0
    try:
        _overlapped.UnregisterWaitEx(wait, event)
    except OSError as failure:
        if failure.winerror != ERROR_IO_PENDING:  # it is posting, and goes by itself then
            raise


def is_signaled(handle: int) -> bool:
    """Whether an object of the kernel is, as a process that has ended."""
    return bool(WaitForSingleObject(handle, 0) == 0)


def address_of(value: Any) -> int:
    """Where a value of ctypes lies."""
    return ctypes.addressof(value)


def part(file: int) -> None:
    """Take a file from its port. Windows before 8.1 can't, and then the file stays with it."""
    block, nothing = IO_STATUS_BLOCK(), FILE_COMPLETION_INFORMATION()
    NtSetInformationFile(
        file,
        ctypes.addressof(block),
        ctypes.addressof(nothing),
        ctypes.sizeof(nothing),
        FILE_REPLACE_COMPLETION_INFORMATION,
    )


def can_part() -> bool:
    """Whether `part` works."""
    ports = [CreateIoCompletionPort(INVALID_HANDLE_VALUE, None, 0, 0) for _ in range(2)]
    with socket.socket() as sock:
        CreateIoCompletionPort(sock.fileno(), ports[0], 0, 0)
        part(sock.fileno())
        works = bool(CreateIoCompletionPort(sock.fileno(), ports[1], 0, 0))
    for port in ports:
        CloseHandle(port)
    return works


def is_socket(number: int) -> bool:
    """Whether a number is the handle of a socket."""
    kind, size = ctypes.c_int(), ctypes.c_int(ctypes.sizeof(ctypes.c_int))
    return not getsockopt(
        number,
        socket.SOL_SOCKET,
        socket.SO_TYPE,
        ctypes.addressof(kind),
        ctypes.addressof(size),
    )
