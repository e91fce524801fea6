"""Socket addresses between Python's form and the kernel's (``struct sockaddr``)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

from ..interface.errors import system_error

# What the socket module means by names that are none.
_WILDCARDS: dict[tuple[int, Any], str] = {
    (socket.AF_INET, ""): "0.0.0.0",
    (socket.AF_INET, "<broadcast>"): "255.255.255.255",
    (socket.AF_INET6, ""): "::",
}


def pack(family: int, kind: int, address: Any) -> bytes:
    """The kernel's form of ``address``, which is given as for `socket.socket.connect`.

    A host name is looked up, which may block. Raised: `TypeError` for an address of
    another form, `OSError` when a name is unknown.
    """
    if family == getattr(socket, "AF_UNIX", None):
        return _pack_unix(address)
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise system_error(
            errno.EAFNOSUPPORT,
            f"addresses of the families INET, INET6 and UNIX are known here, not of {family}",
        )
    if (
        not isinstance(address, tuple)
        or not 2 <= len(address) <= (2 if family == socket.AF_INET else 4)
        or not isinstance(address[0], (str, bytes))
        or not isinstance(address[1], int)
    ):
        raise TypeError(f"an address (host, port) was expected, not {address!r}")
    if not 0 <= address[1] <= 0xFFFF:
        raise OverflowError(f"a port is a number from 0 to 65535, not {address[1]}")
    flow = address[2] if len(address) > 2 else 0
    scope = address[3] if len(address) > 3 else 0
    for what, value, most in (("flow information", flow, 0xFFFFF), ("scope", scope, 0xFFFFFFFF)):
        if not isinstance(value, int):
            raise TypeError(f"the {what} of an address is a number, not {type(value).__name__}")
        if not 0 <= value <= most:
            raise OverflowError(f"the {what} of an address is from 0 to {most}, not {value}")
    host: Any = address[0]
    try:
        number = socket.inet_pton(family, _WILDCARDS.get((family, host), host))
    except (OSError, TypeError):
        # A name, or another spelling of a number.
        found = socket.getaddrinfo(host, None, family, kind)[0][4]
        number = socket.inet_pton(family, str(found[0]).partition("%")[0])
        if len(address) <= 3 and len(found) > 3:
            scope = found[3]
    port = struct.pack("!H", address[1])
    if family == socket.AF_INET:
        return struct.pack("=H", family) + port + number + bytes(8)
    return (
        struct.pack("=H", family)
        + port
        + struct.pack("!I", flow)
        + number
        + struct.pack("=I", scope)
    )


def _pack_unix(address: Any) -> bytes:
    if not isinstance(address, (str, bytes)):
        raise TypeError(f"the path of a Unix socket was expected, not {type(address).__name__}")
    path = os.fsencode(address)
    if len(path) > 107:
        raise system_error(
            errno.ENAMETOOLONG, f"the path of a Unix socket has at most 107 bytes, not {len(path)}"
        )
    end = b"" if path.startswith(b"\0") else b"\0"
    return struct.pack("=H", socket.AF_UNIX) + path + end


def unpack(address: bytes) -> Any:
    """Python's form of a ``struct sockaddr``; None for an empty one."""
    if len(address) < 2:
        return None
    (family,) = struct.unpack_from("=H", address)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, address[4:8]), struct.unpack_from("!H", address, 2)[0]
    if family == socket.AF_INET6:
        port, flow = struct.unpack_from("!HI", address, 2)
        (scope,) = struct.unpack_from("=I", address, 24)
        return socket.inet_ntop(family, address[8:24]), port, flow, scope
    if family != getattr(socket, "AF_UNIX", None):
        return family, address[2:]
    path = address[2:]
    return path if path.startswith(b"\0") else os.fsdecode(path.rstrip(b"\0"))
