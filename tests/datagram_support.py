"""What tests of datagrams and messages need besides `support`."""

from __future__ import annotations

import array
import contextlib
import os
import secrets
import socket

RIGHTS = (socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", -1))
ROOM = socket.CMSG_SPACE(4 * 10) if hasattr(socket, "CMSG_SPACE") else 100


def bound_socket(kind, host="127.0.0.1"):
    """A datagram socket with an address; `host` is for one of IPv4."""
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(b"\0completionport-" + secrets.token_hex(8).encode())
    elif kind == "udp6":
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::1", 0))
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, 0))
    return sock


def rights(*numbers):
    return [(*RIGHTS, array.array("i", numbers))]


def passed(ancillary):
    numbers = array.array("i")
    for level, kind, data in ancillary:
        assert (level, kind) == RIGHTS
        numbers.frombytes(data)
    return list(numbers)


def at_end(pipe):
    """Whether nobody has the write end of the pipe any more."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def fill(sock, size=1000):
    """Send until the kernel takes no more; returns how many."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"%06d" % count + bytes(size), socket.MSG_DONTWAIT)
            count += 1
    return count
