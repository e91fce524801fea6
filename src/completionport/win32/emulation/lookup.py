"""The file object of what the program names, and how an operation on it is started."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import TypeAlias

from ...interface.error_codes import Codes
from ..constants import ERROR_INVALID_HANDLE, ERROR_IO_PENDING, WSAENOTSOCK
from ..outcomes import Started
from ..structures import HANDLE, OVERLAPPED
from .files import FileObject, Launch, Request
from .waiting import wait_for

_sockets: weakref.WeakKeyDictionary[socket.socket, FileObject] = weakref.WeakKeyDictionary()
_sockets_lock = threading.RLock()  # guards it; again by finalizers


def _after_fork() -> None:
    global _sockets_lock
    _sockets_lock = threading.RLock()  # a thread that the child lacks may hold the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def file_of_socket(sock: socket.socket, *, synchronous: bool = False) -> FileObject | None:
    """The file object of a socket, made when it is first asked for; None for a closed one."""
    with _sockets_lock:
        file = _sockets.get(sock)
        if file is None:
            number = sock.fileno()
            if number < 0:
                return None
            file = FileObject(number, synchronous=synchronous)
            _sockets[sock] = file
            # A socket that is dropped has closed its number itself.
            weakref.finalize(sock, file.abandon).atexit = False
        return None if file.closed else file


def file_of(file: HANDLE | socket.socket) -> FileObject | None:
    """The file object of a handle; None for a handle of another kind, or a closed one."""
    if isinstance(file, socket.socket):
        return file_of_socket(file)
    found = file._object
    return found if isinstance(found, FileObject) and not found.closed else None


Begin: TypeAlias = Callable[[FileObject], tuple[Codes, int]]
"""Starts an operation on a file."""


def on_file(file: HANDLE | socket.socket, begin: Begin) -> Started:
    """Start it on a file, and tell in Windows codes how that went."""
    found = file_of(file)
    if found is None:
        return Started(ERROR_INVALID_HANDLE)
    codes, count = begin(found)
    return Started(codes.windows, count)


def on_socket(sock: socket.socket, begin: Begin) -> Started:
    """Start it on a socket, and tell in Winsock's codes how that went."""
    file = file_of_socket(sock)
    if file is None:
        return Started(WSAENOTSOCK)
    codes, count = begin(file)
    return Started(codes.winsock, count)


def place_of(overlapped: OVERLAPPED) -> int:
    """The place in the file that an OVERLAPPED says."""
    return overlapped._offset_high << 32 | overlapped._offset


def transfer(file: FileObject, request: Request, launch: Launch) -> tuple[Codes, int]:
    """Start a receive, a send, a read or a write."""
    outcome = file.start(request, launch)
    if file.synchronous and outcome[0].windows == ERROR_IO_PENDING:
        wait_for([request], False, None)
        return request.codes, request.count
    return outcome
