"""What a program gives to `CompletionPort.associate` on Windows, and the handle to work with.

A socket is duplicated. So is a file that was opened as overlapped. A regular file that was not,
as Python opens them, is opened once more: the file's own position then stays where the program
has it, and is moved from here.
"""

from __future__ import annotations

import contextlib
import errno
import msvcrt
import os
import socket
import stat
from collections.abc import Hashable
from typing import Any

from ..shared import association
from . import api

REMEDY = (
    "it was opened without FILE_FLAG_OVERLAPPED and can't be opened once more with it. A pipe for "
    "a port is made by asyncio.windows_utils.pipe(overlapped=(True, True)), or by CreateNamedPipe "
    "and CreateFile with that flag"
)


class Resolved:
    """A file as its channel needs it. `handle`, `sock` and `original` belong to the channel."""

    __slots__ = (
        "appends",
        "handle",
        "is_directory",
        "is_pipe_server",
        "is_regular",
        "is_socket",
        "kind",
        "original",
        "readable",
        "skips",
        "sock",
        "writable",
    )

    def __init__(self, file: Any, number: int) -> None:
        self.kind = _kind(file, number)
        self.sock: socket.socket | None = None
        self.original: int | None = None
        self.is_socket = self.kind == "socket"
        self.is_regular = False  # or a directory, or a disk
        self.is_directory = self.is_pipe_server = False
        self.readable = self.writable = True
        self.appends = False
        if self.is_socket:
            self.sock = _duplicate_socket(file, number)
            self.handle = self.sock.fileno()
        else:
            self._open(file, number)
        modes = api.file_information(self.handle, api.FILE_COMPLETION_NOTIFICATION_INFORMATION)
        self.skips = bool((modes or 0) & api.FILE_SKIP_COMPLETION_PORT_ON_SUCCESS)

    def let_go(self) -> None:
        """Close what was made here."""
        if self.sock is not None:
            self.sock.close()
            return
        api.CloseHandle(self.handle)
        if self.original is not None:
            api.CloseHandle(self.original)

    def part(self, handle: int) -> None:
        """Take a socket that stays open from its port, where Windows lets it (8.1 and later)."""
        if self.original is None:
            api.part(handle)

    def identity(self) -> Hashable:
        """What tells the file from others without a handle of it; None where nothing does."""
        if self.sock is not None:
            return _addresses(self.sock)
        return api.file_identity(self.handle) if self.is_regular else None

    def close_number(self, number: int, handle: int | None, identity: Hashable) -> None:
        """Close what the program gave as a number, unless that stands for something else by now.

        ``handle``: one of the file; None where none is left, and so its ``identity`` has to tell.
        """
        if self.kind == "descriptor":
            with contextlib.suppress(OSError):
                its = msvcrt.get_osfhandle(number)
                if handle is not None:
                    same = api.same_object(its, handle)
                else:
                    same = identity is not None and api.file_identity(its) == identity
                if same:
                    os.close(number)
        elif handle is not None:
            if api.same_object(number, handle):
                socket.close(number)
        elif identity is not None and api.is_socket(number):
            sock = socket.socket(fileno=number)
            if _addresses(sock) == identity:
                sock.close()
            else:
                sock.detach()

    def _open(self, file: Any, number: int) -> None:
        source = msvcrt.get_osfhandle(number) if self.kind == "descriptor" else number
        self.is_regular = api.GetFileType(source) == api.FILE_TYPE_DISK
        self.is_directory = self.is_regular and api.is_directory(source)
        self.is_pipe_server = api.is_pipe_server(source)
        access = api.granted_access(source)
        if access is not None:
            self.readable = bool(access & api.FILE_READ_DATA)
            self.writable = bool(access & (api.FILE_WRITE_DATA | api.FILE_APPEND_DATA))
        mode = api.file_information(source, api.FILE_MODE_INFORMATION) or 0
        self.appends = "a" in str(getattr(file, "mode", ""))
        if not mode & api.FILE_SYNCHRONOUS_IO:
            self.handle = api.duplicate(source)
            return
        wanted = api.GENERIC_READ if self.readable else 0
        wanted |= api.GENERIC_WRITE if self.writable else 0
        flags = api.FILE_FLAG_OVERLAPPED
        if self.is_directory:
            flags |= api.FILE_FLAG_BACKUP_SEMANTICS
        handle = api.ReOpenFile(source, wanted, api.FILE_SHARE_ALL, flags)
        if handle in (None, api.INVALID_HANDLE_VALUE):
            code = api.last_error()
            raise api.error(code, f"{file!r} can't be used with a completion port: {REMEDY}")
        self.handle = handle
        try:
            self.original = api.duplicate(source)
        except BaseException:
            api.CloseHandle(handle)
            raise


def open_directory(path: str) -> int:
    """A descriptor of a directory, overlapped. Nobody is kept from anything by it."""
    flags = api.FILE_FLAG_BACKUP_SEMANTICS | api.FILE_FLAG_OVERLAPPED
    handle = api.CreateFile(
        path, api.FILE_LIST_DIRECTORY, api.FILE_SHARE_ALL, None, api.OPEN_EXISTING, flags, None
    )
    if handle in (None, api.INVALID_HANDLE_VALUE):
        code = api.last_error()
        failure = api.error(code)
        failure.filename = path
        raise failure
    try:
        if not api.is_directory(handle):
            raise NotADirectoryError(errno.ENOTDIR, "it is no directory", path)
        return msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_NOINHERIT)
    except BaseException:
        api.CloseHandle(handle)
        raise


def register(file: Any) -> tuple[Any, int]:
    """Note that ``file`` belongs to a port from now on. Returned: a token, and its number.

    Raised as by `association.register`.
    """
    number = association.descriptor_of(file)
    token = ("number", number) if isinstance(file, int) else ("object", id(file))
    association.claim(token, file)
    return token, number


def _kind(file: Any, number: int) -> str:
    """ "socket", "descriptor" (of the C library) or "handle"."""
    if isinstance(file, socket.socket):
        return "socket"
    if isinstance(getattr(file, "handle", None), int):
        return "handle"  # as asyncio's and multiprocessing's pipes have it
    is_socket = api.is_socket(number)
    if _is_descriptor(number):
        if is_socket:
            raise ValueError(
                f"{number} is the number of a socket and of a file: give the object in its place"
            )
        return "descriptor"
    if is_socket:
        return "socket"
    flags = api.DWORD()
    # A number alone can't be told from that of a descriptor which is closed.
    if not isinstance(file, int) and api.GetHandleInformation(number, api.address_of(flags)):
        return "handle"
    raise ValueError(f"the file is closed: {number} is not the number of an open descriptor")


def _addresses(sock: socket.socket) -> Hashable:
    """What a socket is bound and connected to, which no two have at a time; None without a port."""
    try:
        own = sock.getsockname()
    except OSError:
        return None
    peer = None
    with contextlib.suppress(OSError):
        peer = sock.getpeername()
    return sock.family, sock.type, own, peer


def _is_descriptor(number: int) -> bool:
    try:
        return not stat.S_ISSOCK(os.fstat(number).st_mode)
    except (OSError, OverflowError):
        return False


def _duplicate_socket(file: Any, number: int) -> socket.socket:
    """Another handle of a socket. Both have one mode, which the program may change."""
    if isinstance(file, socket.socket):
        return file.dup()
    # Family and type do not matter: the duplicate has its own from the system.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=number)
    try:
        return socket.fromshare(sock.share(os.getpid()))
    finally:
        sock.detach()
