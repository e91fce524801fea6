"""Files."""

from __future__ import annotations

import os
import socket

from .arguments import check_overlapped, succeed
from .constants import (
    CREATE_ALWAYS,
    FILE_FLAG_OVERLAPPED,
    FILE_SHARE_READ,
    FILE_SHARE_WRITE,
    OPEN_ALWAYS,
    OPEN_EXISTING,
)
from .last_error import SetLastError
from .structures import HANDLE, INVALID_HANDLE_VALUE, OVERLAPPED, Buffer, views_of
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
    ``CREATE_ALWAYS`` and so on. ``dwFlagsAndAttributes``: without ``FILE_FLAG_OVERLAPPED`` no port
    takes the file, and an operation on it returns when it is done; other flags count on Windows.

    With ``CREATE_ALWAYS`` and ``OPEN_ALWAYS`` the last error of a success is 0, or
    ``ERROR_ALREADY_EXISTS`` where the file was there before.
    """
    if lpSecurityAttributes is not None or hTemplateFile is not None:
        raise ValueError("CreateFile() takes no security attributes and no template: give None")
    code, handle = system.create_file(
        os.fspath(lpFileName),
        dwDesiredAccess,
        dwShareMode,
        dwCreationDisposition,
        dwFlagsAndAttributes,
    )
    if handle is None or dwCreationDisposition in (CREATE_ALWAYS, OPEN_ALWAYS):
        SetLastError(code)
    return INVALID_HANDLE_VALUE if handle is None else handle


def ReadFile(hFile: HANDLE | socket.socket, lpBuffer: Buffer, lpOverlapped: OVERLAPPED) -> bool:
    """Read into a writable buffer, at the place that ``lpOverlapped`` says.

    Returned: True when it has succeeded, else False and the last error: ``ERROR_IO_PENDING`` while
    it is under way, ``ERROR_HANDLE_EOF`` at the end of the file. The number of bytes comes with
    the packet, or from `GetOverlappedResult`. A socket's data is received.
    """
    check_overlapped(lpOverlapped)
    return succeed(system.read(hFile, views_of(lpBuffer, True)[0], lpOverlapped).code)


def WriteFile(hFile: HANDLE | socket.socket, lpBuffer: Buffer, lpOverlapped: OVERLAPPED) -> bool:
    """Write all of a buffer, at the place that ``lpOverlapped`` says. Returned: as `ReadFile`."""
    check_overlapped(lpOverlapped)
    return succeed(system.write(hFile, views_of(lpBuffer, False)[0], lpOverlapped).code)
