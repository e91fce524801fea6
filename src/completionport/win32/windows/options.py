"""What sockets are asked and told, and the words of errors, through Windows' own functions."""

# The relative imports stand behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import ctypes
import socket
import struct
import sys
from ctypes import byref, c_int, c_ulong
from typing import Any

assert sys.platform == "win32"

from ...interface.error_codes import codes_of
from ...windows.api import getsockopt, last_error
from ..constants import (
    FIONBIO,
    FORMAT_MESSAGE_FROM_SYSTEM,
    FORMAT_MESSAGE_IGNORE_INSERTS,
    SIO_KEEPALIVE_VALS,
    SIO_UDP_CONNRESET,
    SO_LINGER,
    WSAENOTSOCK,
)
from .api import format_message, ioctl_socket


class WindowsOptions:
    """The part of `completionport.win32.system.System` that is about options and words."""

    def control(self, sock: socket.socket, code: int, value: Any) -> tuple[int, Any]:
        if sock.fileno() < 0:
            return WSAENOTSOCK, None
        try:
            if code == FIONBIO:
                # Python waits for a socket with a timeout by itself, and so has to know.
                sock.setblocking(not value)
                return 0, None
            if code == SIO_KEEPALIVE_VALS:
                times = (value.keepalivetime, value.keepaliveinterval)
                sock.ioctl(socket.SIO_KEEPALIVE_VALS, (1 if value.onoff else 0, *times))
                return 0, None
        except OSError as error:
            return getattr(error, "winerror", None) or codes_of(error.errno).winsock, None
        number = c_ulong(1 if value else 0)
        if code == SIO_UDP_CONNRESET:
            return wsa_ioctl(sock.fileno(), code, number), None
        done = ioctl_socket(sock.fileno(), ctypes.c_long(code & 0xFFFFFFFF), byref(number))
        return (0, number.value) if done == 0 else (last_error(), None)

    def get_option(
        self, sock: socket.socket, level: int, option: int, size: int
    ) -> tuple[int, Any]:
        if sock.fileno() < 0:
            return WSAENOTSOCK, None
        lingers = level == socket.SOL_SOCKET and option == SO_LINGER and not size
        memory = ctypes.create_string_buffer(size or 4)
        length = c_int(len(memory))
        if getsockopt(sock.fileno(), level, option, memory, byref(length)) != 0:
            return last_error(), None
        data = memory.raw[: length.value]
        if lingers:
            return 0, struct.unpack("HH", data)
        return 0, data if size else int.from_bytes(data, "little")

    def text_of(self, code: int, language: int) -> str:
        room = ctypes.create_unicode_buffer(8192)
        flags = FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS
        length = format_message(flags, None, code, language, room, len(room), None)
        return str(room[:length])


def wsa_ioctl(value: int, code: int, number: c_ulong) -> int:
    """Tell a socket something by a number: a code of Winsock's."""
    from ...windows.api import WSAIoctl

    count = c_ulong()
    done = WSAIoctl(
        value, code, byref(number), ctypes.sizeof(number), None, 0, byref(count), None, None
    )
    return 0 if done == 0 else last_error()
