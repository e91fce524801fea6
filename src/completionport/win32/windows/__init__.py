"""Windows' own functions, through ctypes."""

# The relative imports stand behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import ctypes
import socket
import sys
import threading
from collections.abc import Callable
from ctypes import byref, c_int, c_void_p, sizeof
from ctypes.wintypes import DWORD
from ctypes.wintypes import HANDLE as HANDLE_VALUE
from typing import Any

assert sys.platform == "win32"

from ...interface.error_codes import codes_of
from ...windows import alerts
from ...windows.api import (
    DUPLICATE_SAME_ACCESS,
    GUID,
    SIO_GET_EXTENSION_FUNCTION_POINTER,
    CancelIoEx,
    CloseHandle,
    CreateFile,
    CreateIoCompletionPort,
    DuplicateHandle,
    GetCurrentProcess,
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
    ERROR_ALREADY_EXISTS,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_INCOMPLETE,
    ERROR_NOT_FOUND,
    SO_UPDATE_ACCEPT_CONTEXT,
    SOCKET_ERROR,
    STATUS_PENDING,
    WAIT_FAILED,
    WSAECONNABORTED,
    WSAEINTR,
    WSAEINVAL,
    WSAENOTSOCK,
    WSAETIMEDOUT,
)
from ..outcomes import Started, Taken
from ..structures import HANDLE, OVERLAPPED, SOCKADDR, SYSTEM_INFO, Written, sockaddr_of
from .api import (
    CONNECT_EX,
    DISCONNECT_EX,
    NO_HANDLE,
    NO_HANDLE_INHERIT,
    NO_SOCKET,
    POSTED,
    SOCKET_VALUE,
    SystemInfoStructure,
    TransmitBuffersStructure,
    accept_ex,
    close_socket,
    create_event,
    get_accept_addresses,
    get_result,
    get_system_info,
    reset_event,
    set_event,
    set_notification_modes,
    set_option,
    this_thread,
    transmit_file,
    wsa_cleanup,
    wsa_get_result,
    wsa_socket,
    wsa_startup,
)
from .handles import WindowsHandles
from .objects import (
    File,
    Io,
    Port,
    Waitable,
    buffers_of,
    code_unless,
    detach,
    file_of,
    file_of_socket,
    forget,
    memory_of,
    new_number,
    on_socket,
    set_key,
    settle,
    size_of_name,
    start,
    unset_key,
)
from .options import WindowsOptions
from .waits import code_of, take, wait_for_objects, wait_for_result


def result_of_written(io: Written, file: HANDLE | socket.socket, winsock: bool) -> tuple[int, int]:
    """What is in an OVERLAPPED that the program has written itself."""
    if io.status == STATUS_PENDING:
        return ERROR_IO_INCOMPLETE, 0  # Winsock's number for it is the same
    structure = OverlappedStructure(io.status, io.count, 0, 0, None)
    count, flags = DWORD(), DWORD()
    if winsock:
        assert isinstance(file, socket.socket)
        call = byref(structure), byref(count), False, byref(flags)
        done = wsa_get_result(file.fileno(), *call)
        return (0 if done else last_error()), count.value
    return code_of(io.status), io.count


class WindowsSystem(WindowsHandles, WindowsOptions):
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
        number, before = new_number(), found.key
        # Before the call: a packet may come right behind it.
        set_key(found, number, key)
        if not CreateIoCompletionPort(found.value, target.value, number, 0):
            code = last_error()
            unset_key(found, number, before)
            return code
        found.number = number
        return 0

    def take(
        self, port: HANDLE, count: int, milliseconds: int, alertable: bool
    ) -> tuple[int, list[Taken]]:
        source = port._object
        if not isinstance(source, Port):
            return ERROR_INVALID_HANDLE, []
        return take(source, count, milliseconds, alertable)

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
        io = None if overlapped is None else overlapped._io
        if overlapped is not None and not isinstance(io, Io):
            return ERROR_NOT_FOUND
        asked = [io] if isinstance(io, Io) else list(found.under_way.values())
        code = code_unless(CancelIoEx(found.value, io.address if isinstance(io, Io) else None))
        for one in asked:
            one.cancelled |= not code
        return code

    def result(
        self, file: HANDLE | socket.socket, overlapped: OVERLAPPED, wait: bool, winsock: bool
    ) -> tuple[int, int]:
        io = overlapped._io
        found = file_of(file)
        if winsock and (found is None or not isinstance(file, socket.socket)):
            return WSAENOTSOCK, 0
        if isinstance(io, Written):
            return result_of_written(io, file, winsock)
        if not isinstance(io, Io):
            return 0, 0
        if found is None and io.status == STATUS_PENDING:
            return (ERROR_INVALID_HANDLE if wait else ERROR_IO_INCOMPLETE), 0
        if found is None:
            return code_of(io.status), io.count
        value = found.value
        count, flags = DWORD(), DWORD()
        if wait and alerts.is_main_thread():
            wait_for_result(value, io.address)
            wait = False
        if winsock:
            done = wsa_get_result(value, io.address, byref(count), wait, byref(flags))
        else:
            done = get_result(value, io.address, byref(count), wait)
        code = 0 if done else last_error()
        if io.status != STATUS_PENDING and io.is_loose():
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

    def note_connection(self, sock: socket.socket) -> None:
        """Windows knows."""

    def set_synchronous(self, sock: socket.socket) -> None:
        """Windows knows."""

    def accept(self, listener: socket.socket) -> tuple[int, socket.socket | None]:
        if listener.fileno() < 0:
            return WSAENOTSOCK, None
        try:
            return 0, listener.accept()[0]
        except OSError as error:
            return self.winsock_code(error), None

    def blocking(
        self, sock: socket.socket, takes_input: bool, call: Callable[[], int]
    ) -> tuple[int, int]:
        was_open = sock.fileno() >= 0
        try:
            return 0, call()
        except OSError as error:
            if was_open and sock.fileno() < 0:  # what Windows says of it depends on the version
                return (WSAECONNABORTED if sock.type == socket.SOCK_STREAM else WSAEINTR), 0
            return self.winsock_code(error), 0

    def connect(self, sock: socket.socket, address: Any) -> int:
        return self.prepare(sock, lambda: sock.connect(address))

    def prepare(self, sock: socket.socket, call: Callable[[], Any]) -> int:
        try:
            call()
        except OSError as error:
            return self.winsock_code(error)
        return 0

    def set_option(self, sock: socket.socket, level: int, option: int, value: Any) -> int:
        return self.prepare(sock, lambda: sock.setsockopt(level, option, value))

    def close_socket(self, sock: socket.socket) -> int:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK
        value = detach(sock)
        if value < 0:
            return WSAENOTSOCK
        file.closed = True  # before packets tell of it
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
        if isinstance(error, TimeoutError) and error.errno is None:
            return WSAETIMEDOUT  # of the socket object's own timeout
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
        memory: list[Any] = [sock]
        where = memory_of(view, memory)

        def call(value: int, count: Any, address: int) -> int:
            return code_unless(accept_ex(value, target.value, where, *sizes, count, address))

        return on_socket(listener, overlapped, memory, call, is_transfer=False)

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

        return on_socket(sock, overlapped, memory, call, is_transfer=False)

    def disconnect_ex(self, sock: socket.socket, overlapped: OVERLAPPED, flags: int) -> Started:
        def call(value: int, count: Any, address: int) -> int:
            function = self._extension(value, *DISCONNECT_EX)
            return code_unless(function(value, address, flags, 0))

        return on_socket(sock, overlapped, [], call, is_transfer=False)

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
        code = last_error()
        if value is None or value == NO_HANDLE:
            return code, None
        return (code if code == ERROR_ALREADY_EXISTS else 0), HANDLE(File(value, flags))

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

    def wait(
        self, handles: list[HANDLE | socket.socket], everything: bool, milliseconds: int
    ) -> tuple[int, int]:
        values = []
        for handle in handles:
            found: object
            found = file_of_socket(handle) if isinstance(handle, socket.socket) else handle._object
            if not isinstance(found, (File, Port, Waitable)):
                return ERROR_INVALID_HANDLE, WAIT_FAILED
            values.append(found.value)
        array = (HANDLE_VALUE * len(values))(*values)
        answer = wait_for_objects(array, everything, milliseconds)
        return (last_error() if answer == WAIT_FAILED else 0), answer

    def system_info(self) -> SYSTEM_INFO:
        info = SystemInfoStructure()
        get_system_info(byref(info))
        return SYSTEM_INFO(info.dwNumberOfProcessors, info.dwPageSize, info.dwAllocationGranularity)
