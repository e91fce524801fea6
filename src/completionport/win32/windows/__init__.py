"""Windows' own functions, through ctypes.

The kernel writes to an OVERLAPPED and to buffers until an operation has completed, and gives
their addresses back in packets. So both are kept in a table from the call until the packet was
taken; where none will come, until it is known that the operation has completed. A completion key
is the number of an entry in another table, which has the program's key; 0 stands for what was
posted.
"""

# The relative imports stand behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import ctypes
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from ctypes import byref, c_char, c_int, c_size_t, c_void_p, sizeof
from ctypes.wintypes import DWORD, ULONG
from ctypes.wintypes import HANDLE as HANDLE_VALUE
from typing import Any, TypeAlias

assert sys.platform == "win32"

from ...interface.error_codes import codes_of
from ...windows.api import (
    DUPLICATE_SAME_ACCESS,
    GUID,
    OVERLAPPED_ENTRY,
    SIO_GET_EXTENSION_FUNCTION_POINTER,
    WSABUF,
    CancelIoEx,
    CloseHandle,
    CreateFile,
    CreateIoCompletionPort,
    DuplicateHandle,
    GetCurrentProcess,
    GetQueuedCompletionStatusEx,
    PostQueuedCompletionStatus,
    ReadFile,
    WriteFile,
    WSAIoctl,
    WSARecv,
    WSARecvFrom,
    WSASend,
    WSASendTo,
    last_error,
)
from ...windows.api import OVERLAPPED as OverlappedStructure
from ..constants import (
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_INCOMPLETE,
    ERROR_IO_PENDING,
    ERROR_NOT_FOUND,
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
    SO_UPDATE_ACCEPT_CONTEXT,
    SOCKET_ERROR,
    STATUS_PENDING,
    STILL_ACTIVE,
    WAIT_FAILED,
    WSAEINVAL,
    WSAENOTSOCK,
)
from ..outcomes import Started, Taken
from ..structures import HANDLE, OVERLAPPED, SOCKADDR, SYSTEM_INFO, sockaddr_of
from .api import (
    CONNECT_EX,
    DISCONNECT_EX,
    NO_HANDLE,
    NO_HANDLE_INHERIT,
    NO_SOCKET,
    POSTED,
    SOCKET_VALUE,
    STATUS_UNSUCCESSFUL,
    SystemInfoStructure,
    TransmitBuffersStructure,
    accept_ex,
    close_socket,
    create_event,
    get_accept_addresses,
    get_result,
    get_status,
    get_system_info,
    reset_event,
    set_event,
    set_notification_modes,
    set_option,
    this_thread,
    transmit_file,
    wait_for,
    wsa_cleanup,
    wsa_get_result,
    wsa_socket,
    wsa_startup,
)


class Port:
    """A completion port."""

    def __init__(self, value: int) -> None:
        self.value = value
        # What was posted and not taken yet. Each step on it is atomic.
        self.posted: dict[int, tuple[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"port {self.value:#x}"


class Waitable:
    """An event or a thread."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.exit_code = STILL_ACTIVE  # of a thread; written by it before it ends

    def __repr__(self) -> str:
        return f"waitable {self.value:#x}"


class File:
    """What is known of a socket or of a file's handle."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.number = 0  # its completion key, 0 before it was associated; set once
        self.key: Any = None
        self.modes = 0
        self.closed = False
        # Operations whose packet has not been taken, by address. Each step on it is atomic.
        self.under_way: dict[int, Io] = {}

    def __repr__(self) -> str:
        return f"file {self.value:#x}"


class Io:
    """One operation: its structure and whatever else the kernel may write to."""

    def __init__(self, file: File, overlapped: OVERLAPPED, memory: list[Any]) -> None:
        self.file = file
        self.overlapped: OVERLAPPED | None = overlapped  # until its packet was taken
        self.memory: list[Any] | None = memory
        self.structure = OverlappedStructure(
            STATUS_PENDING, 0, overlapped.Offset, overlapped.OffsetHigh, event_of(overlapped)
        )
        self.address = ctypes.addressof(self.structure)

    @property
    def status(self) -> int:
        return int(self.structure.Internal) & 0xFFFFFFFF

    @property
    def count(self) -> int:
        return int(self.structure.InternalHigh)


_lock = threading.Lock()  # guards the numbers, and who uses an OVERLAPPED
_last_number = 0
_files: dict[int, File] = {}  # by completion key; each step on it is atomic
# Every operation from its call to `settle`, by address: whoever lets go of its OVERLAPPED, its file
# or its port, the memory that the kernel may write to stays. Each step on it is atomic.
_kept: dict[int, Io] = {}
_loose: dict[int, Io] = {}  # those that were started on a file without a port
_sockets: weakref.WeakKeyDictionary[socket.socket, File] = weakref.WeakKeyDictionary()
_sockets_lock = threading.RLock()  # guards it; again by finalizers


def new_number() -> int:
    """A number that nothing else has."""
    global _last_number
    with _lock:
        _last_number += 1
        return _last_number


def event_of(overlapped: OVERLAPPED) -> int | None:
    """The event's number for the structure."""
    event = overlapped.hEvent
    if event is None or not isinstance(event._object, Waitable):
        return None
    return event._object.value


def memory_of(view: memoryview, memory: list[Any]) -> int:
    """The address of the view's bytes, which ``memory`` keeps."""
    if not view.nbytes:
        return 0
    if view.readonly:
        whole = view.obj
        data = whole if isinstance(whole, bytes) and len(whole) == view.nbytes else bytes(view)
        pointer = ctypes.c_char_p(data)
        memory.append(pointer)
        return ctypes.cast(pointer, c_void_p).value or 0
    array = (c_char * view.nbytes).from_buffer(view)
    memory.append(array)
    return ctypes.addressof(array)


def buffers_of(views: list[memoryview], memory: list[Any]) -> Any:
    """An array of WSABUF."""
    array = (WSABUF * len(views))()
    for entry, view in zip(array, views, strict=True):
        entry.len = view.nbytes
        entry.buf = memory_of(view, memory)
    memory.append(array)
    return array


def file_of_socket(sock: socket.socket) -> File | None:
    """What is known of a socket; None for a closed one."""
    with _sockets_lock:
        file = _sockets.get(sock)
        if file is None:
            if sock.fileno() < 0:
                return None
            file = File(sock.fileno())
            _sockets[sock] = file
            weakref.finalize(sock, forget, file).atexit = False
        return None if file.closed else file


def file_of(file: HANDLE | socket.socket) -> File | None:
    """What is known of a file; None for a handle of another kind, or a closed one."""
    if isinstance(file, socket.socket):
        return file_of_socket(file)
    found = file._object
    return found if isinstance(found, File) and not found.closed else None


def forget(file: File) -> None:
    """The file is closed; its key goes when its last packet was taken."""
    file.closed = True
    if not file.under_way:
        _files.pop(file.number, None)
    # No packet comes for an operation of a file without a port. Those of this one may take a moment
    # to be aborted, so each file that is closed sees to the ones before it.
    for io in list(_loose.values()):
        if io.file.closed and not io.file.number and io.status != STATUS_PENDING:
            settle(io)


def settle(io: Io) -> None:
    """The operation has completed and no packet will come, or it was taken."""
    io.memory = io.overlapped = None
    file = io.file
    _kept.pop(io.address, None)
    _loose.pop(io.address, None)
    file.under_way.pop(io.address, None)
    if file.closed and not file.under_way:
        _files.pop(file.number, None)


Call: TypeAlias = Callable[[int, Any, int], int]
"""Starts an operation: the file's value, where the bytes are counted, the structure's address."""


def on_socket(
    sock: socket.socket, overlapped: OVERLAPPED, memory: list[Any], call: Call
) -> Started:
    """Make the call that starts an operation of a socket."""
    file = file_of_socket(sock)
    return Started(WSAENOTSOCK) if file is None else start(file, overlapped, memory, call)


def start(file: File, overlapped: OVERLAPPED, memory: list[Any], call: Call) -> Started:
    """Make the call that starts an operation; it returns 0 or an error code."""
    with _lock:
        if overlapped.Internal == STATUS_PENDING:
            return Started(ERROR_INVALID_PARAMETER)
        before = overlapped._io
        io = overlapped._io = Io(file, overlapped, memory)
    if before is not None and isinstance(before, Io) and not before.file.number:
        settle(before)
    file.under_way[io.address] = _kept[io.address] = io
    if not file.number:
        _loose[io.address] = io
    count = DWORD()
    code = call(file.value, byref(count), io.address)
    if code == ERROR_IO_PENDING:
        return Started(code)
    if code:
        if io.status == STATUS_PENDING:
            io.structure.Internal = STATUS_UNSUCCESSFUL
        settle(io)
        return Started(code)
    if not file.number or file.modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS:
        settle(io)
    return Started(0, count.value)


def size_of_name(name: SOCKADDR) -> int:
    """Bytes of the address in it."""
    return 28 if name.sa_family == socket.AF_INET6 else 16


def code_unless(done: int) -> int:
    """0 for what has gone well, else the last error."""
    return 0 if done else last_error()


class WindowsSystem:
    """`completionport.win32.system.System` as Windows has it."""

    def __init__(self) -> None:
        self._extensions: dict[int, Any] = {}

    # -- ports

    def create_port(self, concurrency: int) -> HANDLE:
        value = CreateIoCompletionPort(NO_HANDLE, None, 0, concurrency)
        if not value:
            raise ctypes.WinError(last_error())
        return HANDLE(Port(value))

    def associate(self, file: HANDLE | socket.socket, port: HANDLE, key: Any) -> int:
        target = port._object
        found = file_of(file)
        if not isinstance(target, Port) or found is None:
            return ERROR_INVALID_HANDLE
        if found.number:
            # Its key is in use: Windows would answer the same.
            return ERROR_INVALID_PARAMETER
        number = new_number()
        # Before the call: a packet may come right behind it.
        _files[number] = found
        found.key, before = key, found.key
        if not CreateIoCompletionPort(found.value, target.value, number, 0):
            code = last_error()
            found.key = before
            del _files[number]
            return code
        found.number = number
        return 0

    def take(
        self, port: HANDLE, count: int, milliseconds: int, alertable: bool
    ) -> tuple[int, list[Taken]]:
        source = port._object
        if not isinstance(source, Port):
            return ERROR_INVALID_HANDLE, []
        if count == 1 and not alertable:
            size, key, address = DWORD(), c_size_t(), c_void_p()
            done = get_status(source.value, byref(size), byref(key), byref(address), milliseconds)
            code = 0 if done else last_error()
            if not address.value:
                return code, []
            return 0, [self._taken(source, size.value, key.value, address.value, code)]
        # More than this at once makes nothing faster, and takes memory.
        entries = (OVERLAPPED_ENTRY * min(count, 1024))()
        found = ULONG()
        if not GetQueuedCompletionStatusEx(
            source.value, entries, len(entries), byref(found), milliseconds, alertable
        ):
            return last_error(), []
        return 0, [
            self._taken(
                source,
                entry.dwNumberOfBytesTransferred,
                entry.lpCompletionKey,
                entry.lpOverlapped,
                None,
            )
            for entry in entries[: found.value]
        ]

    def _taken(self, port: Port, count: int, number: int, address: int, code: int | None) -> Taken:
        if number == POSTED:
            key, overlapped = port.posted.pop(address)
            return Taken(count, key, overlapped, 0, 0)
        file = _files[number]
        io = file.under_way[address]
        status, overlapped = io.status, io.overlapped
        settle(io)
        return Taken(count, file.key, overlapped, status, 0 if code is None else code)

    def post(self, port: HANDLE, count: int, key: Any, overlapped: Any) -> int:
        target = port._object
        if not isinstance(target, Port):
            return ERROR_INVALID_HANDLE
        number = new_number()
        target.posted[number] = (key, overlapped)
        if PostQueuedCompletionStatus(target.value, count, POSTED, number):
            return 0
        code = last_error()
        target.posted.pop(number, None)
        return code

    def set_modes(self, file: HANDLE | socket.socket, flags: int) -> int:
        found = file_of(file)
        if found is None:
            return ERROR_INVALID_HANDLE
        code = code_unless(set_notification_modes(found.value, flags))
        if not code:
            found.modes |= flags
        return code

    def cancel(self, file: HANDLE | socket.socket, overlapped: OVERLAPPED | None) -> int:
        found = file_of(file)
        if found is None:
            return ERROR_INVALID_HANDLE
        if overlapped is None:
            return code_unless(CancelIoEx(found.value, None))
        io = overlapped._io
        if not isinstance(io, Io):
            return ERROR_NOT_FOUND
        return code_unless(CancelIoEx(found.value, io.address))

    def result(
        self, file: HANDLE | socket.socket, overlapped: OVERLAPPED, wait: bool, winsock: bool
    ) -> tuple[int, int]:
        io = overlapped._io
        found = file_of(file)
        if winsock and (found is None or not isinstance(file, socket.socket)):
            return WSAENOTSOCK, 0
        if not isinstance(io, Io):
            return 0, 0
        if found is None and io.status == STATUS_PENDING:
            return (ERROR_INVALID_HANDLE if wait else ERROR_IO_INCOMPLETE), 0
        value = io.file.value if found is None else found.value
        count, flags = DWORD(), DWORD()
        if winsock:
            done = wsa_get_result(value, io.address, byref(count), wait, byref(flags))
        else:
            done = get_result(value, io.address, byref(count), wait)
        code = 0 if done else last_error()
        if io.status != STATUS_PENDING and not io.file.number:
            settle(io)
        return code, count.value

    def close(self, handle: HANDLE) -> int:
        found, handle._object = handle._object, None
        if found is None:
            return ERROR_INVALID_HANDLE
        code = code_unless(CloseHandle(found.value))
        if isinstance(found, File):
            forget(found)
        elif isinstance(found, Port):
            found.posted.clear()
        return code

    # -- sockets

    def startup(self, version: int) -> int:
        return int(wsa_startup(version, ctypes.create_string_buffer(1024)))

    def cleanup(self) -> int:
        return int(wsa_cleanup())

    def new_socket(
        self, family: int, kind: int, protocol: int, flags: int
    ) -> tuple[int, int | None]:
        value = wsa_socket(family, kind, protocol, None, 0, flags | NO_HANDLE_INHERIT)
        return (last_error(), None) if value == NO_SOCKET else (0, value)

    def set_synchronous(self, sock: socket.socket) -> None:
        """Windows knows."""

    def accept(self, listener: socket.socket) -> tuple[int, socket.socket | None]:
        if listener.fileno() < 0:
            return WSAENOTSOCK, None
        try:
            return 0, listener.accept()[0]
        except OSError as error:
            return self.winsock_code(error), None

    def close_socket(self, sock: socket.socket) -> int:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK
        with _sockets_lock:
            value = socket.socket.detach(sock)
        if value < 0:
            return WSAENOTSOCK
        code = 0 if close_socket(value) == 0 else last_error()
        forget(file)
        return code

    def shut_down(self, sock: socket.socket, how: int) -> int:
        try:
            sock.shutdown(how)
        except OSError as error:
            return self.winsock_code(error)
        return 0

    def update_context(self, sock: socket.socket, option: int, value: Any) -> int:
        if sock.fileno() < 0:
            return WSAENOTSOCK
        size, data = 0, None
        if option == SO_UPDATE_ACCEPT_CONTEXT:
            if not isinstance(value, socket.socket):
                return WSAEINVAL
            data = SOCKET_VALUE(value.fileno())
            size = sizeof(data)
        done = set_option(
            sock.fileno(), socket.SOL_SOCKET, option, None if data is None else byref(data), size
        )
        return 0 if done == 0 else last_error()

    def winsock_code(self, error: OSError) -> int:
        return getattr(error, "winerror", None) or codes_of(error.errno).winsock

    def receive(
        self, sock: socket.socket, views: list[memoryview], flags: int, overlapped: OVERLAPPED
    ) -> Started:
        memory: list[Any] = [DWORD(flags)]
        array = buffers_of(views, memory)

        def call(value: int, count: Any, address: int) -> int:
            done = WSARecv(value, array, len(array), count, byref(memory[0]), address, None)
            return code_unless(done == 0)

        return on_socket(sock, overlapped, memory, call)

    def send(
        self, sock: socket.socket, views: list[memoryview], flags: int, overlapped: OVERLAPPED
    ) -> Started:
        memory: list[Any] = []
        array = buffers_of(views, memory)

        def call(value: int, count: Any, address: int) -> int:
            return code_unless(WSASend(value, array, len(array), count, flags, address, None) == 0)

        return on_socket(sock, overlapped, memory, call)

    def receive_from(
        self,
        sock: socket.socket,
        views: list[memoryview],
        flags: int,
        sender: SOCKADDR | None,
        overlapped: OVERLAPPED,
    ) -> Started:
        name = memoryview(bytearray(128) if sender is None else sender._memory)
        memory: list[Any] = [DWORD(flags), c_int(name.nbytes)]
        array = buffers_of(views, memory)
        where = memory_of(name, memory)

        def call(value: int, count: Any, address: int) -> int:
            sizes = byref(memory[0]), where, byref(memory[1])
            done = WSARecvFrom(value, array, len(array), count, *sizes, address, None)
            return code_unless(done == 0)

        return on_socket(sock, overlapped, memory, call)

    def send_to(
        self,
        sock: socket.socket,
        views: list[memoryview],
        flags: int,
        name: SOCKADDR,
        overlapped: OVERLAPPED,
    ) -> Started:
        memory: list[Any] = []
        array = buffers_of(views, memory)
        where = memory_of(memoryview(bytes(name._memory)), memory)

        def call(value: int, count: Any, address: int) -> int:
            target = where, size_of_name(name)
            done = WSASendTo(value, array, len(array), count, flags, *target, address, None)
            return code_unless(done == 0)

        return on_socket(sock, overlapped, memory, call)

    def transmit_file(
        self,
        sock: socket.socket,
        file: HANDLE | None,
        sizes: tuple[int, int],
        parts: tuple[memoryview, memoryview],
        flags: int,
        overlapped: OVERLAPPED,
    ) -> Started:
        source = None if file is None else file_of(file)
        if source is None and file is not None:
            return Started(ERROR_INVALID_HANDLE)
        memory: list[Any] = []
        head, tail = parts
        buffers = TransmitBuffersStructure(
            memory_of(head, memory), head.nbytes, memory_of(tail, memory), tail.nbytes
        )
        memory.append(buffers)
        source_value = None if source is None else source.value

        def call(value: int, count: Any, address: int) -> int:
            done = transmit_file(value, source_value, *sizes, address, byref(buffers), flags)
            return code_unless(done)

        return on_socket(sock, overlapped, memory, call)

    def accept_ex(
        self,
        listener: socket.socket,
        sock: socket.socket,
        view: memoryview,
        sizes: tuple[int, int, int],
        overlapped: OVERLAPPED,
    ) -> Started:
        target = file_of_socket(sock)
        if target is None:
            return Started(WSAENOTSOCK)
        memory: list[Any] = []
        where = memory_of(view, memory)

        def call(value: int, count: Any, address: int) -> int:
            return code_unless(accept_ex(value, target.value, where, *sizes, count, address))

        return on_socket(listener, overlapped, memory, call)

    def accept_addresses(
        self, view: memoryview, sizes: tuple[int, int, int]
    ) -> tuple[SOCKADDR, SOCKADDR]:
        memory: list[Any] = []
        local, remote = c_void_p(), c_void_p()
        local_size, remote_size = c_int(), c_int()
        get_accept_addresses(
            memory_of(view, memory),
            *sizes,
            byref(local),
            byref(local_size),
            byref(remote),
            byref(remote_size),
        )
        return (
            sockaddr_of(ctypes.string_at(local.value or 0, local_size.value)),
            sockaddr_of(ctypes.string_at(remote.value or 0, remote_size.value)),
        )

    def connect_ex(
        self, sock: socket.socket, name: SOCKADDR, views: list[memoryview], overlapped: OVERLAPPED
    ) -> Started:
        memory: list[Any] = []
        where = memory_of(memoryview(bytes(name._memory)), memory)
        data = memory_of(views[0], memory) if views else None
        data_size = views[0].nbytes if views else 0

        def call(value: int, count: Any, address: int) -> int:
            function = self._extension(value, *CONNECT_EX)
            target = where, size_of_name(name)
            return code_unless(function(value, *target, data, data_size, count, address))

        return on_socket(sock, overlapped, memory, call)

    def disconnect_ex(self, sock: socket.socket, overlapped: OVERLAPPED, flags: int) -> Started:
        def call(value: int, count: Any, address: int) -> int:
            function = self._extension(value, *DISCONNECT_EX)
            return code_unless(function(value, address, flags, 0))

        return on_socket(sock, overlapped, [], call)

    def _extension(self, value: int, guid: GUID, kind: Any) -> Any:
        """A function that Winsock gives out by its GUID."""
        key = guid.Data1
        function = self._extensions.get(key)
        if function is None:
            pointer, size = c_void_p(), DWORD()
            done = WSAIoctl(
                value,
                SIO_GET_EXTENSION_FUNCTION_POINTER,
                byref(guid),
                sizeof(guid),
                byref(pointer),
                sizeof(pointer),
                byref(size),
                None,
                None,
            )
            if done == SOCKET_ERROR:
                raise ctypes.WinError(last_error())
            function = self._extensions[key] = kind(pointer.value)
        return function

    # -- files

    def create_file(
        self, name: str, access: int, share: int, disposition: int, flags: int
    ) -> tuple[int, HANDLE | None]:
        value = CreateFile(name, access, share, None, disposition, flags, None)
        if value is None or value == NO_HANDLE:
            return last_error(), None
        return 0, HANDLE(File(value))

    def read(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        return self._read_or_write(ReadFile, file, view, overlapped)

    def write(
        self, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        return self._read_or_write(WriteFile, file, view, overlapped)

    def _read_or_write(
        self, function: Any, file: HANDLE | socket.socket, view: memoryview, overlapped: OVERLAPPED
    ) -> Started:
        found = file_of(file)
        if found is None:
            return Started(ERROR_INVALID_HANDLE)
        memory: list[Any] = []
        where = memory_of(view, memory)

        def call(value: int, count: Any, address: int) -> int:
            return code_unless(function(value, where, view.nbytes, count, address))

        return start(found, overlapped, memory, call)

    # -- threads and waiting

    def create_thread(self, function: Callable[[Any], Any], argument: Any) -> HANDLE:
        thread = Waitable(0)
        begun = threading.Event()

        def run() -> None:
            value = HANDLE_VALUE()
            process = GetCurrentProcess()
            DuplicateHandle(
                process, this_thread(), process, byref(value), 0, False, DUPLICATE_SAME_ACCESS
            )
            thread.value = value.value or 0
            begun.set()
            code = 1  # of a thread that an exception has ended
            try:
                result = function(argument)
                code = result if isinstance(result, int) else 0
            finally:
                thread.exit_code = code

        # As with Win32, the program does not wait for its threads at its end.
        threading.Thread(target=run, daemon=True).start()
        begun.wait()
        return HANDLE(thread)

    def exit_code(self, thread: HANDLE) -> tuple[int, int]:
        found = thread._object
        return (0, found.exit_code) if isinstance(found, Waitable) else (ERROR_INVALID_HANDLE, 0)

    def create_event(self, manual: bool, signalled: bool) -> HANDLE:
        value = create_event(None, manual, signalled, None)
        if not value:
            raise ctypes.WinError(last_error())
        return HANDLE(Waitable(value))

    def set_event(self, event: HANDLE, signalled: bool) -> int:
        found = event._object
        if not isinstance(found, Waitable):
            return ERROR_INVALID_HANDLE
        return code_unless((set_event if signalled else reset_event)(found.value))

    def wait(self, handles: list[HANDLE], everything: bool, milliseconds: int) -> tuple[int, int]:
        values = []
        for handle in handles:
            if not isinstance(handle._object, Waitable):
                return ERROR_INVALID_HANDLE, WAIT_FAILED
            values.append(handle._object.value)
        array = (HANDLE_VALUE * len(values))(*values)
        answer = wait_for(len(values), array, everything, milliseconds)
        return (last_error() if answer == WAIT_FAILED else 0), answer

    def system_info(self) -> SYSTEM_INFO:
        info = SystemInfoStructure()
        get_system_info(byref(info))
        return SYSTEM_INFO(info.dwNumberOfProcessors, info.dwPageSize, info.dwAllocationGranularity)
