"""Arguments that are checked the same way in several places."""

from __future__ import annotations

import errno
import operator
import os
import socket
from typing import Any

from ..interface.errors import system_error

LARGEST_DESCRIPTOR = 2**31 - 1
LARGEST_CONCURRENCY = 2**31 - 1
LARGEST_OFFSET = 2**63 - 1
LARGEST_POOL = 1024
"""The most threads that a port's pool may have."""
LARGEST_WORKERS = 32768
"""The most threads that a server or a `WorkerPool` always has; few systems let it have more."""
LARGEST_ANCILLARY = 1 << 20
"""The most room for ancillary data that one message is given, bytes."""


def check_count(
    name: str, value: Any, least: int, most: int = 2**31 - 1, *, optional: bool = False
) -> None:
    """Raise what is due unless ``value`` is an integer in the range, or None where that will do."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")


def check_concurrency(concurrency: Any) -> int:
    """How many threads may run at a time, 0 for as many as can, checked."""
    try:
        count = operator.index(concurrency)
    except TypeError:
        raise TypeError(
            f"concurrency must be an integer, not {type(concurrency).__name__}"
        ) from None
    if not 0 <= count <= LARGEST_CONCURRENCY:
        raise ValueError(
            "concurrency must be 0 (as many as can run at once) or a number of threads, "
            f"not {count}"
        )
    return count


def check_seconds(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise what is due unless ``value`` is a number of seconds that can be waited for."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if positive and not value > 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more seconds, not {value}")


def check_shutdown(how: Any) -> int:
    """The direction of a shutdown, checked."""
    if not isinstance(how, int) or isinstance(how, bool):
        raise TypeError(f"how must be an integer, not {type(how).__name__}")
    if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        raise ValueError(f"how must be socket.SHUT_RD, SHUT_WR or SHUT_RDWR, not {how}")
    return int(how)


def check_zero_copy(zero_copy: Any) -> bool:
    """Whether a send may be from the program's own pages, checked."""
    if not isinstance(zero_copy, bool):
        raise TypeError(f"zero_copy must be True or False, not {type(zero_copy).__name__}")
    return zero_copy


def message_flags(flags: int, caller: str) -> int:
    """The flags of a call that receives one message, checked."""
    if flags & socket.MSG_WAITALL:
        raise ValueError(f"{caller}() takes one message as it comes: MSG_WAITALL is for recv()")
    return flags


MSG_TRUNC = int(getattr(socket, "MSG_TRUNC", 0))


def refuse_discarding(caller: str) -> None:
    """MSG_TRUNC on a stream counts bytes that were thrown away and written nowhere (tcp(7))."""
    raise system_error(
        errno.EOPNOTSUPP,
        f"{caller}() takes MSG_TRUNC for datagrams only: on a stream it throws bytes away and "
        "fills no memory; receive them, and drop them",
    )


LONGEST_DELAY = 3.2e9
"""Seconds, a hundred years: what lies beyond that is a mistake."""


def check_delay(seconds: Any) -> None:
    """Raise what is due unless ``seconds`` is how long a timer can wait."""
    check_seconds("seconds", seconds)
    if seconds > LONGEST_DELAY:
        raise ValueError(
            f"seconds must be at most {LONGEST_DELAY:g} (a hundred years), not {seconds}"
        )


def check_when(when: Any, now: float) -> None:
    """Raise what is due unless a timer can wait until ``when``, on `time.monotonic`'s clock."""
    if not isinstance(when, (int, float)) or isinstance(when, bool):
        raise TypeError(f"when must be a time.monotonic() time, not {type(when).__name__}")
    if not -LONGEST_DELAY <= when <= now + LONGEST_DELAY:
        raise ValueError(
            f"when must be a time.monotonic() time within {LONGEST_DELAY:g} seconds "
            f"(a hundred years) of now, not {when}"
        )


def check_callable(function: Any) -> None:
    """Raise what is due unless it can be called."""
    if not callable(function):
        raise TypeError(f"function must be callable, not {type(function).__name__}")


def check_open(flags: Any, mode: Any) -> None:
    """Raise what is due unless these are the flags and the mode of an open(2)."""
    check_count("flags", flags, 0, 2**31 - 1)
    check_count("mode", mode, 0, 0o7777)


def path_bytes(path: Any) -> bytes:
    """The path as the operating system has it."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be a str, bytes or os.PathLike, not {type(path).__name__}")
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError(f"path must not have a null byte in it: {path!r}")
    return name


def check_lookup(
    host: Any, service: Any, family: Any, kind: Any, protocol: Any, flags: Any
) -> tuple[bytes | None, bytes | None]:
    """Host and service as getaddrinfo(3) takes them."""
    for what, value in (("family", family), ("type", kind), ("proto", protocol), ("flags", flags)):
        check_count(what, value, 0, 2**31 - 1)
    name: bytes | None
    if host is None or isinstance(host, bytes):
        name = host
    elif isinstance(host, str):
        name = host.encode("idna")
    else:
        raise TypeError(f"host must be a str, bytes or None, not {type(host).__name__}")
    if isinstance(service, str):
        number: bytes | None = service.encode()
    elif service is None or isinstance(service, bytes):
        number = service
    elif isinstance(service, int) and not isinstance(service, bool):
        number = str(service).encode()
    else:
        raise TypeError(f"service must be a str, bytes, int or None, not {type(service).__name__}")
    for text in (name, number):
        if text is not None and b"\0" in text:
            raise ValueError("host and service must not contain a null character")
    return name, number
