"""What the tests look at on Windows: the open handles of the process, and whether this is Wine."""

from __future__ import annotations

import _winapi
import contextlib
import ctypes
import msvcrt
import os
import secrets
import signal
import socket
import subprocess
import sys
from asyncio import windows_utils
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from completionport.windows import api

GAP = 4 * 256
"""So far behind the last open handle, none is expected any more."""


def is_wine() -> bool:
    """Whether Windows is Wine: only there ntdll has this function."""
    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


def handles() -> dict[int, str]:
    """The handles of this process that stand for sockets, pipes and ports.

    Files on a disk are left out: pytest captures output with one that it opens anew.
    """
    found = {}
    last = number = 0
    while number < last + GAP:
        number += 4
        if not is_handle(number):
            continue
        last = number
        if api.GetFileType(number) == api.FILE_TYPE_PIPE:
            found[number] = "socket or pipe"
        elif not api.NtQueryIoCompletion(number, 0, ctypes.addressof(_depth), 4, None):
            found[number] = "port"
    return found


def handle_count() -> int:
    """How many handles this process has, of all kinds."""
    count = ctypes.c_ulong()
    assert _kernel32.GetProcessHandleCount(ctypes.c_void_p(-1), ctypes.byref(count))
    return count.value


def handles_of_file(path: Path) -> list[str]:
    """The names of the handles of this process that stand for a file, one for each."""
    name = ctypes.create_unicode_buffer(32768)
    names = []
    for number in range(4, 4 * 4096, 4):
        if is_handle(number) and api.GetFileType(number) == api.FILE_TYPE_DISK:
            _kernel32.GetFinalPathNameByHandleW(ctypes.c_void_p(number), name, len(name), 0)
            if name.value.removeprefix("\\\\?\\").lower() == str(path).lower():
                names.append(name.value)
    return names


def is_handle(number: int) -> bool:
    """Whether the number stands for anything."""
    return bool(api.GetHandleInformation(number, ctypes.addressof(_flags)))


_kernel32 = ctypes.WinDLL("kernel32")
_depth, _flags = ctypes.c_long(), ctypes.c_ulong()  # what nobody looks at


class _PROCESS_MEMORY_COUNTERS(ctypes.Structure):
    _fields_ = [("cb", ctypes.c_ulong), ("PageFaultCount", ctypes.c_ulong)] + [
        (name, ctypes.c_size_t)
        for name in (
            *("PeakWorkingSetSize", "WorkingSetSize"),
            *("QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage"),
            *("QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage"),
            *("PagefileUsage", "PeakPagefileUsage"),
        )
    ]


def resident() -> int:
    """Bytes of this process that are in memory."""
    counters = _PROCESS_MEMORY_COUNTERS()
    assert _kernel32.K32GetProcessMemoryInfo(
        ctypes.c_void_p(api.GetCurrentProcess()),
        ctypes.byref(counters),
        ctypes.sizeof(counters),
    )
    return int(counters.WorkingSetSize)


def under_number(sock: socket.socket, number: int) -> socket.socket:
    """The same socket under a handle that has become free, where Winsock takes that one."""
    if is_handle(number):
        return sock  # chance had it: something else took the number
    # Free handles are given out from the lowest: those below it are taken until it is its turn.
    taken: list[int] = []
    try:
        while (same := api.duplicate(sock.fileno())) != number:
            taken.append(same)
            if len(taken) > 2000:
                return sock  # another order than that, on another Windows
        api.CloseHandle(number)
        another = sock.dup()
    finally:
        for other in taken:
            api.CloseHandle(other)
    sock.close()
    return another


def is_descriptor(file: Any) -> bool:
    """Whether the program has the file as a descriptor of the C library."""
    return not isinstance(file, (socket.socket, PipeEnd))


@contextlib.contextmanager
def file_under_number(number: int) -> Iterator[Callable[[], None]]:
    """Another file under a descriptor that has become free, and a look at whether it works."""
    content = Path(__file__).read_bytes()
    opened = os.open(__file__, os.O_RDONLY | os.O_BINARY)
    if opened != number:
        os.dup2(opened, number, inheritable=False)
        os.close(opened)

    def works() -> None:
        os.lseek(number, 0, os.SEEK_SET)
        assert os.read(number, 100) == content[:100]

    try:
        yield works
    finally:
        os.close(number)


class PipeEnd:
    """An overlapped end of a pipe that can be read and written like a file, waiting."""

    def __init__(self, handle: windows_utils.PipeHandle) -> None:
        self._pipe = handle
        self.closed = False

    @property
    def handle(self) -> int:
        return self._pipe.handle

    def fileno(self) -> int:
        return -1 if self.closed else self._pipe.handle

    def read(self, size: int) -> bytes:
        try:
            operation, error = _winapi.ReadFile(self.handle, size, overlapped=True)
            return self._wait(operation, error)
        except BrokenPipeError:
            return b""

    def read_within(self, size: int, seconds: float) -> bytes | None:
        """What comes in that time; None when nothing does."""
        try:
            operation, error = _winapi.ReadFile(self.handle, size, overlapped=True)
            if error == _winapi.ERROR_IO_PENDING:
                _winapi.WaitForMultipleObjects([operation.event], False, int(seconds * 1000))
                operation.cancel()  # where nothing has come
            return self._wait(operation, error)
        except BrokenPipeError:
            return b""
        except OSError as failure:
            if failure.winerror != _winapi.ERROR_OPERATION_ABORTED:
                raise
            return None

    def write(self, data: bytes) -> int:
        operation, error = _winapi.WriteFile(self.handle, data, overlapped=True)
        self._wait(operation, error)
        return len(data)

    def close(self) -> None:
        self.closed = True
        self._pipe.close()

    def _wait(self, operation: Any, error: int) -> bytes:
        count, _ = operation.GetOverlappedResult(True)
        return bytes(operation.getbuffer() or b"")[:count]


class NamedPipe:
    """A named pipe: its server's end, and clients of it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.name = rf"\\.\pipe\completionport-{os.getpid()}-{secrets.token_hex(6)}"
        self.server = self.keep(
            _winapi.CreateNamedPipe(
                self.name,
                _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_OVERLAPPED,
                _winapi.PIPE_WAIT,
                _winapi.PIPE_UNLIMITED_INSTANCES,
                *(65536, 65536, 0, 0),
            )
        )

    def keep(self, handle: int) -> PipeEnd:
        end = PipeEnd(windows_utils.PipeHandle(handle))
        return self.stack.enter_context(contextlib.closing(end))

    def client(self) -> PipeEnd:
        return self.keep(
            _winapi.CreateFile(
                *(self.name, _winapi.GENERIC_READ | _winapi.GENERIC_WRITE, 0, 0),
                *(_winapi.OPEN_EXISTING, _winapi.FILE_FLAG_OVERLAPPED, 0),
            )
        )


@contextlib.contextmanager
def make_pipe() -> Iterator[tuple[PipeEnd, PipeEnd]]:
    """Both ends of a pipe, the reading one first."""
    reader, writer = (
        PipeEnd(windows_utils.PipeHandle(handle))
        for handle in windows_utils.pipe(overlapped=(True, True))
    )
    with contextlib.closing(reader), contextlib.closing(writer):
        yield reader, writer


def process_runs(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        handle = _winapi.OpenProcess(0x100000, False, pid)  # SYNCHRONIZE
    except OSError:
        return False
    try:
        return not api.is_signaled(handle)
    finally:
        api.CloseHandle(handle)


@contextlib.contextmanager
def make_output() -> Iterator[tuple[PipeEnd, Any]]:
    """An overlapped end to read from, and a file of the other end for a program's output."""
    reading, writing = windows_utils.pipe(overlapped=(True, False))
    reader = PipeEnd(windows_utils.PipeHandle(reading))
    descriptor = msvcrt.open_osfhandle(writing, 0)
    with contextlib.closing(reader), open(descriptor, "wb", 0) as writer:
        yield reader, writer


def send_ctrl_event(number: int, process: int) -> None:
    """Press Ctrl-C or Ctrl-Break in the console of a process, which has one of its own."""
    event = {signal.SIGINT: 0, signal.SIGBREAK: 1}[signal.Signals(number)]
    # The console's other processes get it too, so it is another process that goes there.
    script = f"""if True:
        import ctypes
        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.FreeConsole()
        assert kernel32.AttachConsole({process}), ctypes.get_last_error()
        kernel32.SetConsoleCtrlHandler(None, True)
        assert kernel32.GenerateConsoleCtrlEvent({event}, 0), ctypes.get_last_error()
    """
    subprocess.run([sys.executable, "-c", script], check=True, stdin=subprocess.PIPE, timeout=60)
