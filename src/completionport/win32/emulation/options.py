"""What sockets are asked and told, and the words of errors, where the system is not Windows."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import termios
import time
from typing import Any

from ...interface.error_codes import CODES, UNKNOWN, codes_of
from .. import constants
from ..constants import (
    ERROR_ABANDONED_WAIT_0,
    ERROR_BROKEN_PIPE,
    ERROR_DEV_NOT_EXIST,
    ERROR_FILE_EXISTS,
    ERROR_HANDLE_EOF,
    ERROR_HOST_UNREACHABLE,
    ERROR_INSUFFICIENT_BUFFER,
    ERROR_INVALID_FUNCTION,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_INCOMPLETE,
    ERROR_IO_PENDING,
    ERROR_MORE_DATA,
    ERROR_MR_MID_NOT_FOUND,
    ERROR_NEGATIVE_SEEK,
    ERROR_NETNAME_DELETED,
    ERROR_NETWORK_UNREACHABLE,
    ERROR_NOT_FOUND,
    ERROR_NOT_SUPPORTED,
    ERROR_PATH_NOT_FOUND,
    ERROR_SUCCESS,
    ERROR_TOO_MANY_OPEN_FILES,
    FIONBIO,
    FIONREAD,
    SIO_KEEPALIVE_VALS,
    SIOCATMARK,
    SO_CONNECT_TIME,
    SO_ERROR,
    SO_LINGER,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    WAIT_TIMEOUT,
    WSAEINVAL,
    WSAENOPROTOOPT,
    WSAENOTSOCK,
    WSAHOST_NOT_FOUND,
    WSANO_DATA,
    WSANO_RECOVERY,
    WSANOTINITIALISED,
    WSATRY_AGAIN,
    WSATYPE_NOT_FOUND,
)
from ..structures import tcp_keepalive
from .lookup import file_of_socket

LONGEST_KEEPALIVE = 32767
"""Seconds that Linux counts up to (tcp(7): MAX_TCP_KEEPIDLE)."""
NEVER = 0xFFFFFFFF

_WORDS = {
    ERROR_SUCCESS: "The operation completed successfully.",
    ERROR_INVALID_FUNCTION: "What was asked for makes no sense for this file.",
    ERROR_PATH_NOT_FOUND: "There is no such folder.",
    ERROR_INVALID_HANDLE: "The handle is closed, or of another kind.",
    UNKNOWN.windows: "It failed, for a reason that has no code.",
    ERROR_HANDLE_EOF: "The end of the file was reached.",
    ERROR_DEV_NOT_EXIST: "The device is not there any more.",
    ERROR_NETNAME_DELETED: "The connection was reset.",
    ERROR_FILE_EXISTS: "The file exists already.",
    ERROR_INVALID_PARAMETER: "An argument is not valid.",
    ERROR_BROKEN_PIPE: "The other side of the pipe was closed.",
    ERROR_INSUFFICIENT_BUFFER: "The buffer is too small.",
    ERROR_NEGATIVE_SEEK: "The place lies before the beginning of the file.",
    ERROR_MORE_DATA: "There is more data than the buffer has room for.",
    ERROR_MR_MID_NOT_FOUND: "There is no text for this code.",
    ERROR_ABANDONED_WAIT_0: "What the thread waited for was closed.",
    ERROR_IO_INCOMPLETE: "The operation has not completed yet.",
    ERROR_IO_PENDING: "The operation is under way.",
    ERROR_NOT_FOUND: "There is no such operation under way.",
    WAIT_TIMEOUT: "The time for the wait is over.",
    WSANOTINITIALISED: "WSAStartup was not called.",
    WSAHOST_NOT_FOUND: "No such host is known.",
    WSANO_DATA: "The host has no address of this kind.",
    WSANO_RECOVERY: "The name server could not answer.",
    WSATRY_AGAIN: "The name server did not answer; it may do so later.",
    WSATYPE_NOT_FOUND: "No such service is known.",
}
"""Of codes that stand for no errno, or for several."""
_ERRNOS = (
    {codes.windows: number for number, codes in reversed(CODES.items())}
    | {codes.winsock: number for number, codes in reversed(CODES.items())}
    | {
        # Of several errnos with one code the one that has its name.
        code: getattr(errno, name[3:])
        for name, code in vars(constants).items()
        if name.startswith("WSAE") and hasattr(errno, name[3:])
    }
    | {
        ERROR_TOO_MANY_OPEN_FILES: errno.EMFILE,
        ERROR_NOT_SUPPORTED: errno.EOPNOTSUPP,
        ERROR_NETWORK_UNREACHABLE: errno.ENETUNREACH,
        ERROR_HOST_UNREACHABLE: errno.EHOSTUNREACH,
    }
)


class EngineOptions:
    """The part of `completionport.win32.system.System` that is about options and words."""

    def control(self, sock: socket.socket, code: int, value: Any) -> tuple[int, Any]:
        if sys.platform == "win32":
            raise NotImplementedError
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK, None
        try:
            if code == FIONBIO:
                sock.setblocking(not value)
                return 0, None
            if code in (FIONREAD, SIOCATMARK):
                request = termios.FIONREAD if code == FIONREAD else SIOCATMARK_OF_LINUX
                return 0, struct.unpack("i", fcntl.ioctl(sock.fileno(), request, bytes(4)))[0]
            if code == SIO_KEEPALIVE_VALS:
                return _keep_alive(sock, value), None
            # SIO_UDP_CONNRESET
            return (WSAEINVAL if file.is_stream else 0), None
        except OSError as error:
            return codes_of(error.errno).winsock, None

    def get_option(
        self, sock: socket.socket, level: int, option: int, size: int
    ) -> tuple[int, Any]:
        file = file_of_socket(sock)
        if file is None:
            return WSAENOTSOCK, None
        try:
            if level != socket.SOL_SOCKET or option < 0:
                if option < 0:
                    return WSAENOPROTOOPT, None
                return 0, sock.getsockopt(level, option, *((size,) if size else ()))
            value: Any
            if option == SO_CONNECT_TIME:
                with file.lock:
                    value = NEVER
                    if file.is_connected() and file.connected_at is not None:
                        value = int(time.monotonic() - file.connected_at)
            elif option == SO_ERROR:
                number = sock.getsockopt(level, option)
                value = codes_of(number).winsock if number else 0
            elif option in (SO_RCVTIMEO, SO_SNDTIMEO):
                seconds, micros = struct.unpack("@ll", sock.getsockopt(level, option, 16))
                value = seconds * 1000 + micros // 1000
            elif option == SO_LINGER and not size:
                return 0, struct.unpack("ii", sock.getsockopt(level, option, 8))
            else:
                return 0, sock.getsockopt(level, option, *((size,) if size else ()))
            return 0, value.to_bytes(max(size, 4), "little") if size else value
        except OSError as error:
            return codes_of(error.errno).winsock, None

    def text_of(self, code: int, language: int) -> str:
        words = _WORDS.get(code)
        if words is None:
            number = _ERRNOS.get(code)
            if number is None:
                return ""
            words = os.strerror(number) + "."
        return words + "\r\n"


SIOCATMARK_OF_LINUX = 0x8905


def _keep_alive(sock: socket.socket, wanted: tcp_keepalive) -> int:
    """Set it: a code of Winsock's."""
    if sock.type != socket.SOCK_STREAM:
        return WSAENOPROTOOPT
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if wanted.onoff else 0)
    if wanted.onoff:
        for name, milliseconds in (
            ("TCP_KEEPIDLE", wanted.keepalivetime),
            ("TCP_KEEPINTVL", wanted.keepaliveinterval),
        ):
            option = getattr(socket, name, None)
            if option is not None:
                seconds = min(max(-(-milliseconds // 1000), 1), LONGEST_KEEPALIVE)
                sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
    return 0
