"""Files."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple, overload

from ..shared.arguments import check_count
from .arguments import check_dword, check_file, check_handle, check_overlapped, succeed
from .constants import (
    CREATE_ALWAYS,
    FILE_BEGIN,
    FILE_END,
    FILE_FLAG_OVERLAPPED,
    FILE_SHARE_READ,
    FILE_SHARE_WRITE,
    OPEN_ALWAYS,
    OPEN_EXISTING,
)
from .last_error import SetLastError
from .structures import HANDLE, INVALID_HANDLE_VALUE, OVERLAPPED, Buffer, WritableBuffer, views_of
from .system import system


def CreateFile(
    lpFileName: str | os.PathLike[str],
    dwDesiredAccess: int,
    dwShareMode: int = FILE_SHARE_READ | FILE_SHARE_WRITE,
    lpSecurityAttributes: None = None,
    dwCreationDisposition: int = OPEN_EXISTING,
    dwFlagsAndAttributes: int = FILE_FLAG_OVERLAPPED,
    hTemplateFile: None = None,
) -> HANDLE:
    """Open or create a file: its handle, or ``INVALID_HANDLE_VALUE`` and the last error.

    ``dwDesiredAccess``: ``GENERIC_READ``, ``GENERIC_WRITE``. ``dwShareMode``: what others may do
    meanwhile, which only Windows enforces. ``dwCreationDisposition``: ``OPEN_EXISTING``,
    ``CREATE_ALWAYS`` and so on. ``dwFlagsAndAttributes``: without ``FILE_FLAG_OVERLAPPED``, which
    is the default, no port takes the file, and an operation on it returns when it is done. A folder
    is opened with ``FILE_FLAG_BACKUP_SEMANTICS`` only (else ``ERROR_ACCESS_DENIED``). Other flags
    count on Windows.

    The last error tells a missing folder (``ERROR_PATH_NOT_FOUND``) from a missing file
    (``ERROR_FILE_NOT_FOUND``). ``TRUNCATE_EXISTING`` needs ``GENERIC_WRITE``
    (``ERROR_INVALID_PARAMETER``). Access that ``dwDesiredAccess`` did not ask for is
    ``ERROR_ACCESS_DENIED`` at the read or write.

    With ``CREATE_ALWAYS`` and ``OPEN_ALWAYS`` the last error of a success is 0, or
    ``ERROR_ALREADY_EXISTS`` where the file was there before.
    """
    if lpSecurityAttributes is not None or hTemplateFile is not None:
        raise ValueError("CreateFile() takes no security attributes and no template: give None")
    if not isinstance(lpFileName, str | bytes | os.PathLike):
        raise TypeError(f"lpFileName must be a path, not {type(lpFileName).__name__}")
    name = os.fsdecode(lpFileName)
    if "\0" in name:
        raise ValueError("a file's name has no NUL character")
    check_dword("dwDesiredAccess", dwDesiredAccess)
    check_dword("dwShareMode", dwShareMode)
    check_dword("dwCreationDisposition", dwCreationDisposition)
    check_dword("dwFlagsAndAttributes", dwFlagsAndAttributes)
    code, handle = system.create_file(
        name,
        dwDesiredAccess,
        dwShareMode,
        dwCreationDisposition,
        dwFlagsAndAttributes,
    )
    if handle is None or dwCreationDisposition in (CREATE_ALWAYS, OPEN_ALWAYS):
        SetLastError(code)
    return INVALID_HANDLE_VALUE if handle is None else handle


class Transferred(NamedTuple):
    """What `ReadFile` and `WriteFile` return without an OVERLAPPED; it is true when ``ok`` is."""

    ok: bool
    """Whether it has succeeded; else the last error says why not."""
    bytes: int
    """Bytes moved; 0 of a read that has succeeded is the end of the file."""

    def __bool__(self) -> bool:
        return self.ok


@overload
def ReadFile(
    hFile: HANDLE | socket.socket, lpBuffer: WritableBuffer, lpOverlapped: OVERLAPPED
) -> bool: ...
@overload
def ReadFile(
    hFile: HANDLE | socket.socket, lpBuffer: WritableBuffer, lpOverlapped: None
) -> Transferred: ...
def ReadFile(
    hFile: HANDLE | socket.socket, lpBuffer: WritableBuffer, lpOverlapped: OVERLAPPED | None
) -> bool | Transferred:
    """Read into a writable buffer, at the place that ``lpOverlapped`` says.

    Returned: True when it has succeeded, else False and the last error: ``ERROR_IO_PENDING`` while
    it is under way, ``ERROR_HANDLE_EOF`` at the end of the file. The number of bytes comes with
    the packet, or from `GetOverlappedResult`. A socket's data is received.

    With ``NULL`` for ``lpOverlapped`` it waits, and returns `Transferred`: ``ok, count =
    ReadFile(file, buffer, NULL)``. It reads at the file's own position, which it moves; 0 bytes are
    the end of the file. A file that was opened with ``FILE_FLAG_OVERLAPPED`` has no position:
    ``ERROR_INVALID_PARAMETER``. No packet comes.
    """
    check_file("hFile", hFile)
    view = views_of(lpBuffer, True)[0]
    if lpOverlapped is None:
        code, count = system.read_now(hFile, view)
        return Transferred(succeed(code), count)
    check_overlapped(lpOverlapped)
    return succeed(system.read(hFile, view, lpOverlapped).code)


@overload
def WriteFile(
    hFile: HANDLE | socket.socket, lpBuffer: Buffer, lpOverlapped: OVERLAPPED
) -> bool: ...
@overload
def WriteFile(
    hFile: HANDLE | socket.socket, lpBuffer: Buffer, lpOverlapped: None
) -> Transferred: ...
def WriteFile(
    hFile: HANDLE | socket.socket, lpBuffer: Buffer, lpOverlapped: OVERLAPPED | None
) -> bool | Transferred:
    """Write all of a buffer, at the place that ``lpOverlapped`` says. Returned: as `ReadFile`.

    With ``Offset`` and ``OffsetHigh`` both 0xFFFFFFFF that is the end of the file, wherever that
    is by then, as with ``FILE_APPEND_DATA``.
    """
    check_file("hFile", hFile)
    view = views_of(lpBuffer, False)[0]
    if lpOverlapped is None:
        code, count = system.write_now(hFile, view)
        return Transferred(succeed(code), count)
    check_overlapped(lpOverlapped)
    return succeed(system.write(hFile, view, lpOverlapped).code)


def SetFilePointerEx(
    hFile: HANDLE, liDistanceToMove: int, dwMoveMethod: int = FILE_BEGIN
) -> tuple[bool, int | None]:
    """Move a file's own position: ``(True, position)``, or ``(False, None)``.

    ``liDistanceToMove``: bytes, -2**63 to 2**63 - 1. ``dwMoveMethod``: from the beginning, from
    where it is, or from the end (``FILE_BEGIN``, ``FILE_CURRENT``, ``FILE_END``). ``ReadFile`` and
    ``WriteFile`` without an OVERLAPPED go on from there; those with one say their own place.

    ``ERROR_NEGATIVE_SEEK`` for a place before the beginning, ``ERROR_INVALID_HANDLE`` for what is
    no file.
    """
    check_handle("hFile", hFile)
    check_count("liDistanceToMove", liDistanceToMove, -(2**63), 2**63 - 1)
    check_count("dwMoveMethod", dwMoveMethod, FILE_BEGIN, FILE_END)
    code, position = system.seek(hFile, liDistanceToMove, dwMoveMethod)
    return (True, position) if succeed(code) else (False, None)


def GetFileSizeEx(hFile: HANDLE) -> tuple[bool, int | None]:
    """The size of a file in bytes: ``(True, size)``, or ``(False, None)`` and the last error."""
    check_handle("hFile", hFile)
    code, size = system.file_size(hFile)
    return (True, size) if succeed(code) else (False, None)


def FlushFileBuffers(hFile: HANDLE) -> bool:
    """Have what was written to a file reach the disk; it waits. False and the last error."""
    check_handle("hFile", hFile)
    return succeed(system.flush(hFile))
