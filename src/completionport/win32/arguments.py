"""Arguments that several functions check in the same way."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from ..shared.arguments import check_count
from .last_error import SetLastError
from .structures import HANDLE, OVERLAPPED


def check_dword(name: str, value: Any) -> None:
    """Raise unless ``value`` fits into the 32 bits of a DWORD."""
    check_count(name, value, 0, 0xFFFFFFFF)


def check_overlapped(value: Any) -> None:
    """Raise unless ``value`` is an OVERLAPPED."""
    if not isinstance(value, OVERLAPPED):
        raise TypeError(f"lpOverlapped must be an OVERLAPPED, not {type(value).__name__}")


def check_handle(name: str, value: Any) -> None:
    """Raise unless ``value`` is a HANDLE."""
    if not isinstance(value, HANDLE):
        raise TypeError(f"{name} must be a HANDLE, not {type(value).__name__}")


def check_file(name: str, value: Any) -> None:
    """Raise unless ``value`` is a HANDLE or a socket."""
    if not isinstance(value, (HANDLE, socket.socket)):
        raise TypeError(f"{name} must be a HANDLE or a socket, not {type(value).__name__}")


def check_socket(name: str, value: Any) -> None:
    """Raise unless ``value`` is a socket."""
    if not isinstance(value, socket.socket):
        raise TypeError(f"{name} must be a socket, not {type(value).__name__}")


LEAST, MOST = -(2**31), 2**31 - 1
"""Of a C int."""


def check_number(name: str, value: Any) -> None:
    """Raise unless ``value`` is an integer that fits into a C int."""
    if type(value) is not int or not LEAST <= value <= MOST:
        check_count(name, value, LEAST, MOST)


def check_structure(name: str, value: Any, kind: type[Any], *, optional: bool = False) -> None:
    """Raise unless ``value`` is one of the structures, or None where that will do."""
    if not (isinstance(value, kind) or (optional and value is None)):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")


@contextlib.contextmanager
def checked_by_python() -> Iterator[None]:
    """For a call of Python's socket object, which has another word for a number that is too big."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(str(error)) from None


def succeed(code: int) -> bool:
    """True for the code 0; else False, with the code as the last error."""
    if code:
        SetLastError(code)
    return not code
