"""The completion port's functions, and those that ask for the outcome of an operation."""

from __future__ import annotations

import socket
from typing import Any

from ..shared.arguments import check_count
from .arguments import check_dword, check_file, check_handle, check_overlapped, succeed
from .constants import ERROR_INVALID_HANDLE, NULL, WSAENOTSOCK
from .handles import let_go
from .last_error import SetLastError
from .structures import HANDLE, INVALID_HANDLE_VALUE, OVERLAPPED, OVERLAPPED_ENTRY
from .system import system


def CreateIoCompletionPort(
    FileHandle: HANDLE | socket.socket,
    ExistingCompletionPort: HANDLE | None,
    CompletionKey: Any,
    NumberOfConcurrentThreads: int,
) -> HANDLE:
    """Create a completion port, or bind a file to one.

    ``FileHandle``: ``INVALID_HANDLE_VALUE`` creates a port; else a socket or a file's handle, which
    is bound to ``ExistingCompletionPort`` (with None there, to a new port).
    ``CompletionKey``: any object; it comes with every packet of the file (per-handle data).
    ``NumberOfConcurrentThreads``: how many threads that have taken packets may run at a time; 0
    means as many as there are processors. It counts where a port is created.

    Returned: the port, or ``NULL`` (which is None) and the last error.
    ``ERROR_INVALID_PARAMETER``: the file has a port already, or it is not overlapped.
    ``ERROR_INVALID_HANDLE``: the file or the port is closed.

    Operations that are under way already, and complete from now on, give packets too.
    """
    check_dword("NumberOfConcurrentThreads", NumberOfConcurrentThreads)
    if ExistingCompletionPort is not None:
        check_handle("ExistingCompletionPort", ExistingCompletionPort)
    if FileHandle is INVALID_HANDLE_VALUE:
        if ExistingCompletionPort is not None:
            raise ValueError(
                "INVALID_HANDLE_VALUE creates a port: ExistingCompletionPort must be None"
            )
        return system.create_port(NumberOfConcurrentThreads)
    if not isinstance(FileHandle, socket.socket):
        check_handle("FileHandle", FileHandle)
    port = ExistingCompletionPort
    if port is None:
        port = system.create_port(NumberOfConcurrentThreads)
    code = system.associate(FileHandle, port, CompletionKey)
    if code and ExistingCompletionPort is None:
        system.close(port)
    return port if succeed(code) else NULL


def GetQueuedCompletionStatus(
    CompletionPort: HANDLE, dwMilliseconds: int
) -> tuple[bool, int | None, Any, Any]:
    """Take the packet that has waited longest, waiting for one if need be.

    ``dwMilliseconds``: 0 looks without waiting, ``INFINITE`` waits without end.

    Returned: ``(ok, bytes, key, overlapped)``.

    - A packet of an operation that succeeded, or one that was posted: ``ok`` is True.
    - A packet of an operation that failed: ``ok`` is False, and the last error says why.
    - No packet: ``(False, None, None, None)``. The last error is ``WAIT_TIMEOUT``;
      ``ERROR_ABANDONED_WAIT_0`` when the port was closed meanwhile; ``ERROR_INVALID_HANDLE`` when
      it was closed before.

    Any number of threads may wait; the one that came last is served first. A thread that has taken
    a packet counts against the port's concurrency until it comes again, here or at another port.
    """
    code, packets = _take(CompletionPort, 1, dwMilliseconds)
    if not packets:
        SetLastError(code)
        return False, None, None, None
    packet = packets[0]
    return succeed(packet.code), packet.transferred, packet.key, packet.overlapped


def GetQueuedCompletionStatusEx(
    CompletionPort: HANDLE, ulCount: int, dwMilliseconds: int, fAlertable: bool = False
) -> tuple[bool, list[OVERLAPPED_ENTRY]]:
    """Take up to ``ulCount`` packets; it waits for the first as `GetQueuedCompletionStatus` does.

    ``fAlertable``: whether an asynchronous procedure call may end the wait
    (``WAIT_IO_COMPLETION``); there are none elsewhere than on Windows.

    Returned: ``(True, entries)``; how each operation has ended is in the ``Internal`` of its entry,
    or asked with `GetOverlappedResult`. ``(False, [])`` and the last error where there is none.

    Of packets that were posted to end threads, one for each, a thread may get several at once: it
    posts those again that are not its own, or asks for one packet at a time.
    """
    check_count("ulCount", ulCount, 1, 0xFFFFFFFF)
    code, packets = _take(CompletionPort, ulCount, dwMilliseconds, fAlertable)
    entries = [
        OVERLAPPED_ENTRY(packet.key, packet.overlapped, packet.status, packet.transferred)
        for packet in packets
    ]
    return succeed(code), entries


def PostQueuedCompletionStatus(
    CompletionPort: HANDLE,
    dwNumberOfBytesTransferred: int,
    dwCompletionKey: Any,
    lpOverlapped: Any,
) -> bool:
    """Put a packet into the queue: the three values come out unchanged.

    ``dwNumberOfBytesTransferred``: 0 to 0xFFFFFFFF. ``dwCompletionKey``, ``lpOverlapped``: any
    object.
    Returned: True, or False and ``ERROR_INVALID_HANDLE`` for a closed port.
    """
    check_handle("CompletionPort", CompletionPort)
    check_dword("dwNumberOfBytesTransferred", dwNumberOfBytesTransferred)
    return succeed(
        system.post(CompletionPort, dwNumberOfBytesTransferred, dwCompletionKey, lpOverlapped)
    )


def SetFileCompletionNotificationModes(FileHandle: HANDLE | socket.socket, Flags: int) -> bool:
    """Say how a file tells of completed operations; what was set once stays.

    ``Flags``: with ``FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`` an operation that succeeds in its call
    gives no packet. With ``FILE_SKIP_SET_EVENT_ON_HANDLE`` no operation signals the handle itself.
    A file that is not overlapped takes neither (``ERROR_INVALID_PARAMETER``).
    Returned: True, or False and ``ERROR_INVALID_HANDLE`` or ``ERROR_INVALID_PARAMETER``.
    """
    check_file("FileHandle", FileHandle)
    check_count("Flags", Flags, 0, 0xFF)
    return succeed(system.set_modes(FileHandle, Flags))


def CancelIo(hFile: HANDLE | socket.socket) -> bool:
    """Ask the operations of a file that the calling thread has started to stop.

    Returned: True, also when there were none; False and ``ERROR_INVALID_HANDLE`` for a closed file.
    Each that stops gives its packet as with `CancelIoEx`, which needs no certain thread.
    """
    if not isinstance(hFile, socket.socket):
        check_handle("hFile", hFile)
    return succeed(system.cancel_of_thread(hFile))


def CancelIoEx(hFile: HANDLE | socket.socket, lpOverlapped: OVERLAPPED | None) -> bool:
    """Cancel one operation that is under way on a file, or with None all of them.

    Returned: True when one was asked to stop, else False and ``ERROR_NOT_FOUND``. Each gives its
    packet all the same: with ``ERROR_OPERATION_ABORTED``, or its own outcome where that came first.
    """
    check_file("hFile", hFile)
    if lpOverlapped is not None:
        check_overlapped(lpOverlapped)
    return succeed(system.cancel(hFile, lpOverlapped))


def GetOverlappedResult(
    hFile: HANDLE | socket.socket, lpOverlapped: OVERLAPPED, bWait: bool
) -> tuple[bool, int]:
    """How an operation has ended, whether its packet was taken or not.

    ``bWait``: wait until it has. Returned: ``(ok, bytes)``; where ``ok`` is False the last error is
    the Windows code (``ERROR_NETNAME_DELETED``, 64, for a reset), or ``ERROR_IO_INCOMPLETE``.
    """
    check_file("hFile", hFile)
    check_overlapped(lpOverlapped)
    code, count = system.result(hFile, lpOverlapped, bool(bWait), False)
    return succeed(code), count


def WSAGetOverlappedResult(
    s: socket.socket, lpOverlapped: OVERLAPPED, fWait: bool
) -> tuple[bool, int]:
    """As `GetOverlappedResult`, but the last error is Winsock's code (``WSAECONNRESET``, 10054).

    ``WSAENOTSOCK`` for a socket that is closed: so ask before you close it.
    """
    check_file("s", s)
    check_overlapped(lpOverlapped)
    code, count = system.result(s, lpOverlapped, bool(fWait), True)
    return succeed(code), count


def CloseHandle(hObject: HANDLE | socket.socket) -> bool:
    """Close a port, a file, a thread's or an event's handle; a socket as `closesocket` does.

    A port: every thread that waits in it gets ``ERROR_ABANDONED_WAIT_0``, and packets that were not
    taken are dropped. A file: its operations complete with ``ERROR_OPERATION_ABORTED``. A thread
    goes on. Returned: True, or False and ``ERROR_INVALID_HANDLE`` for what is closed already.

    All of that comes with the last handle: see `DuplicateHandle`.
    """
    if isinstance(hObject, socket.socket):
        code = system.close_socket(hObject)
        return succeed(ERROR_INVALID_HANDLE if code == WSAENOTSOCK else code)
    check_handle("hObject", hObject)
    return let_go(hObject) or succeed(system.close(hObject))


def _take(port: HANDLE, count: int, milliseconds: int, alertable: bool = False) -> Any:
    check_handle("CompletionPort", port)
    check_dword("dwMilliseconds", milliseconds)
    return system.take(port, count, milliseconds, bool(alertable))
